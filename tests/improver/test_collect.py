"""Collect: failures with words about them; machine feedback out of what the user could see."""

from __future__ import annotations

from typing import Any

from improver.collect import collect_cases, machine_words
from ops.records import (
    Attempt,
    Execution,
    Feedback,
    FeedbackSource,
    Interaction,
    Metric,
    Source,
    new_id,
    now,
)
from ops.store import Recording, Store
from tests.ops import records

SPEC = {
    "entry_point": "add",
    "examples": [
        {"input": [1, 2], "output": 3, "hidden": False},
        {"input": [5, 6], "output": 11, "hidden": True},
    ],
}


def example(hidden: bool, verdict: str, message: str | None) -> dict[str, Any]:
    return {
        "index": int(hidden),
        "kind": "example",
        "hidden": hidden,
        "verdict": verdict,
        "checked": True,
        "duration_ms": 1.0,
        "message": message,
    }


SHOWN = example(False, "WRONG", "add(1, 2) returned -1, expected 3")
HIDDEN = example(True, "WRONG", "add(5, 6) returned -1, expected 11")


def failed(store: Store, examples: list[dict[str, Any]], **changes: Any) -> Interaction:
    interaction = records.interaction(spec=SPEC, verified=False, **changes)
    attempts = [
        records.attempt(interaction, attempt_index=i, choice_index=i, program=f"x = {i}\n")
        for i in range(2)
    ]
    runs = [
        records.execution(a, verified=False, verdict="WRONG", examples=examples) for a in attempts
    ]
    store.add([Recording(interaction=interaction, attempts=attempts, executions=runs)])
    return interaction


def comment(interaction: Interaction, text: str, **changes: Any) -> Feedback:
    values: dict[str, Any] = {
        "id": new_id(),
        "created_at": now(),
        "updated_at": now(),
        "interaction_id": interaction.id,
        "episode_id": None,
        "metric": Metric.COMMENT,
        "value": text,
        "source": FeedbackSource.HUMAN,
    }
    return Feedback(**values | changes)


def test_a_comment_makes_a_case_of_the_choice_it_is_about(store: Store) -> None:
    interaction = failed(store, [SHOWN, HIDDEN])
    words = comment(interaction, "It subtracts; add instead.", choice_index=1)
    demonstration = comment(
        interaction,
        "def add(a, b):\n    return a + b\n",
        metric=Metric.DEMONSTRATION,
        choice_index=1,
    )
    store.put_feedback([words, demonstration])
    [case] = collect_cases(store, limit=10).cases
    assert case.program == "x = 1\n"
    assert case.feedback == "It subtracts; add instead."
    assert case.feedback_ids == [words.id]
    assert case.feedback_source == "HUMAN"
    assert case.demonstration_ids == [demonstration.id]


def test_machine_feedback_is_kept_as_what_it_is_and_once(store: Store) -> None:
    interaction = failed(store, [SHOWN, HIDDEN])
    [case] = collect_cases(store, limit=10).cases
    assert case.feedback_source == "MACHINE"
    assert "returned -1, expected 3" in case.feedback
    assert "11" not in case.feedback
    again = collect_cases(store, limit=10).cases
    assert [c.feedback_ids for c in again] == [case.feedback_ids]
    [kept] = store.feedback(interaction.id)
    assert kept.source is FeedbackSource.MACHINE


def test_a_dry_run_keeps_nothing(store: Store) -> None:
    interaction = failed(store, [SHOWN])
    assert len(collect_cases(store, limit=10, keep=False).cases) == 1
    assert store.feedback(interaction.id) == []


def test_what_only_hidden_examples_know_is_no_feedback(store: Store) -> None:
    failed(store, [example(False, "OK", None), HIDDEN])
    found = collect_cases(store, limit=10)
    assert found.cases == []
    assert found.skipped == {"fails hidden examples only, and nobody commented": 1}


def test_an_error_before_any_example_is_the_programs_own() -> None:
    run = Execution(
        id=new_id(),
        created_at=now(),
        source=Source.SERVED,
        interaction_id=None,
        attempt_id=None,
        program_sha256="",
        verdict="ERROR",
        verified=False,
        passed=0,
        total=1,
        examples=[],
        tier="namespaces",
        duration_s=0.1,
        error_type="NameError",
        error_message="name 'mth' is not defined",
    )
    words = machine_words(run)
    assert words is not None
    assert "NameError: name 'mth' is not defined" in words


def test_people_come_before_programs_and_new_before_old(store: Store) -> None:
    old = failed(store, [SHOWN])
    commented = failed(store, [SHOWN])
    new = failed(store, [SHOWN])
    store.put_feedback([comment(commented, "Use plus, not minus.")])
    order = [c.interaction_id for c in collect_cases(store, limit=10).cases]
    assert order == [commented.id, new.id, old.id]
    assert len(collect_cases(store, limit=2).cases) == 2
    human = collect_cases(store, limit=10, machine_feedback=False).cases
    assert [c.interaction_id for c in human] == [commented.id]


def test_what_teaches_nothing_is_counted(store: Store) -> None:
    short = failed(store, [SHOWN])
    store.put_feedback([comment(short, "bad")])
    unspecified = records.interaction(spec=None, verified=False)
    store.add([Recording(interaction=unspecified)])
    store.add([Recording(interaction=records.interaction(spec=SPEC, verified=True))])
    wordless: Attempt
    talk = records.interaction(spec=SPEC, verified=False)
    wordless = records.attempt(talk, program=None, program_sha256=None)
    store.add([Recording(interaction=talk, attempts=[wordless])])
    found = collect_cases(store, limit=10, machine_feedback=False)
    assert found.skipped == {"feedback too short": 1}
    found = collect_cases(store, limit=10)
    assert found.skipped["no specification"] == 1
    assert found.skipped["no program in the answer"] == 1
    assert found.cases == []


def test_another_models_failures_get_no_machine_feedback(store: Store) -> None:
    failed(store, [SHOWN], source=Source.IMPORTED)
    assert collect_cases(store, limit=10).cases == []
