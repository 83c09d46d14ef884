"""What is said of a judgement, to clients and to the record."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox import ExampleResult, Tier, Verdict, Verification, parse_spec
from server.verification import Judge, Judgement, Program, execution_row
from tests.server.conftest import SharedPool

PROGRAM = Program(source="x = 1\n", sha256="0" * 64)


def _verification(
    verdict: Verdict, *, passed: int = 0, total: int = 1, **more: Any
) -> Verification:
    values: dict[str, Any] = {
        "verified": verdict is Verdict.OK and total > 0,
        "verdict": verdict,
        "passed": passed,
        "total": total,
        "passed_visible": passed,
        "total_visible": total,
        "passed_hidden": 0,
        "total_hidden": 0,
        "examples": (),
        "duration_s": 0.5,
        "tier": Tier.NAMESPACES,
    }
    return Verification(**values | more)


@pytest.mark.parametrize(
    ("verdict", "total", "status", "says_nothing"),
    [
        (Verdict.OK, 1, "Success", False),
        (Verdict.OK, 0, "Unchecked", True),
        (Verdict.WRONG, 1, "Failed", False),
        (Verdict.ERROR, 0, "Failed", False),
        (Verdict.MEMORY, 1, "Failed", False),
        (Verdict.TIMEOUT, 1, "TimeLimitExceeded", False),
        (Verdict.CPU_LIMIT, 1, "TimeLimitExceeded", False),
        (Verdict.BAD_TEST, 1, "Unchecked", True),
        (Verdict.UNSUPPORTED, 1, "Unchecked", True),
    ],
)
def test_each_verdict_has_its_word(
    verdict: Verdict, total: int, status: str, says_nothing: bool
) -> None:
    judgement = Judgement(
        program=PROGRAM, verification=_verification(verdict, total=total), total=total
    )
    assert judgement.status == status
    assert judgement.says_nothing is says_nothing
    public = judgement.public(Tier.NAMESPACES)
    assert (public["status"], public["verdict"]) == (status, verdict.value)
    assert public["duration_ms"] == 500.0


def test_what_was_not_run_is_told_apart_from_what_holds_no_program() -> None:
    empty = Judgement(program=None, verification=None, total=2)
    late = Judgement(program=PROGRAM, verification=None, total=2)
    broken = Judgement(program=PROGRAM, verification=None, total=2, fault="no child")
    assert [j.status for j in (empty, late, broken)] == ["Failed", "Unchecked", "SandboxError"]
    assert [j.says_nothing for j in (empty, late, broken)] == [False, True, True]
    for judgement in (empty, late, broken):
        assert execution_row(judgement, interaction_id="i", attempt_id="a") is None
        assert judgement.public(Tier.PROCESS)["sandbox"] == "process"


def test_messages_of_hidden_examples_stay_inside() -> None:
    hidden = ExampleResult(1, "example", True, Verdict.WRONG, 1.0, "returned 4, expected 5")
    shown = ExampleResult(0, "example", False, Verdict.WRONG, 1.0, "returned 1, expected 2")
    verification = _verification(Verdict.WRONG, examples=(shown, hidden))
    judgement = Judgement(program=PROGRAM, verification=verification, total=verification.total)
    public = judgement.public(Tier.NAMESPACES)
    assert [e["message"] for e in public["examples"]] == ["returned 1, expected 2", None]
    assert "expected 5" not in str(public)
    row = execution_row(judgement, interaction_id="i", attempt_id="a")
    assert row is not None
    assert row.examples[1]["message"] == "returned 4, expected 5"


async def test_a_program_is_taken_out_and_run(pool: SharedPool) -> None:
    judge = Judge(pool)
    spec = parse_spec({"entry_point": "f", "examples": [{"input": [2], "output": 4}]})
    program = judge.program("Sure:\n```python\ndef f(x):\n    return x * x\n```", spec)
    judgement = await judge.judge(program, spec)
    assert judgement.verified
    assert judge.program("I cannot.", spec) is None
    assert (await judge.judge(None, spec)).status == "Failed"
