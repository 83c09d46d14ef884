"""Results read themselves correctly, and never show what is hidden."""

import pytest

from sandbox.types import ExampleResult, Limits, Run, Tier, Verdict, Verification


def verification(*examples: ExampleResult, **fields: object) -> Verification:
    given = {
        "verified": False,
        "verdict": Verdict.WRONG,
        "passed": 0,
        "total": len(examples),
        "passed_visible": 0,
        "total_visible": 0,
        "passed_hidden": 0,
        "total_hidden": 0,
        "examples": examples,
        "duration_s": 0.1,
        "tier": Tier.PROCESS,
    }
    return Verification(**(given | fields))  # type: ignore[arg-type]


def test_a_verdict_reads_with_its_detail() -> None:
    assert Run(Verdict.ERROR, Tier.PROCESS, error_type="ValueError").word == "ERROR:ValueError"
    assert Run(Verdict.SIGNAL, Tier.PROCESS, signal=11).word == "SIGNAL_11"
    assert Run(Verdict.OK, Tier.PROCESS).word == "OK"


def test_tiers_are_ordered_and_have_labels() -> None:
    assert Tier.NONE < Tier.PROCESS < Tier.USER_NAMESPACE < Tier.NAMESPACES < Tier.RUNTIME
    assert Tier.USER_NAMESPACE.label == "user-namespace"


@pytest.mark.parametrize("field", Limits.__slots__)
def test_limits_must_be_positive(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Limits(**{field: 0})  # type: ignore[arg-type]


def test_an_unchecked_example_has_not_passed() -> None:
    assert not ExampleResult(0, "example", False, Verdict.OK, 1.0, checked=False).passed


def test_feedback_speaks_of_visible_examples_only() -> None:
    seen = ExampleResult(0, "example", False, Verdict.WRONG, 1.0, "f(1) returned 2, expected 3")
    held = ExampleResult(1, "example", True, Verdict.WRONG, 1.0, "f(7) returned 2, expected 99")
    assert held.shown is None
    assert seen.shown == seen.message
    text = verification(seen, held).feedback()
    assert "f(1) returned 2, expected 3" in text
    assert "99" not in text
    assert "7" not in text
    assert "1 further check failed" in text
    assert len(verification(*[seen] * 3, held).feedback(20)) == 20


def test_feedback_is_empty_when_all_is_well() -> None:
    good = ExampleResult(0, "example", False, Verdict.OK, 1.0)
    assert verification(good, verified=True, verdict=Verdict.OK).feedback() == ""
