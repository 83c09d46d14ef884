"""Preferences: what the record says of answers becomes pairs and single words, and rows."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from improver import cookbook
from improver.recipes.base import Built
from improver.recipes.preferences import Options, Preferences
from improver.screen import screen
from improver.signals import Kind, Signals, collect_signals
from improver.types import Origin
from ops.records import Interaction, Metric, now
from ops.settings import ImproverSettings
from ops.store import Recording, Store
from sandbox.extract import program_sha256
from sandbox.spec import parse_spec
from tests.improver.conftest import ExecJudge
from tests.improver.scripted import Model, firewall, tools
from tests.improver.test_collect import comment
from tests.ops import records

SPEC = {
    "entry_point": "add",
    "examples": [
        {"input": [1, 2], "output": 3},
        {"input": [5, 6], "output": 11, "hidden": True},
    ],
}
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
OTHER = "def add(a, b):\n    return b + a\n"


def asked(
    store: Store,
    programs: list[tuple[str, bool | None]],
    *,
    text: str = "Write add.",
    verdict: str | None = None,
    **changes: Any,
) -> Interaction:
    """A request with an attempt for each program; None: it was not run."""
    passed = [ok for _, ok in programs if ok is not None]
    interaction = records.interaction(
        messages=[{"role": "user", "content": text}],
        spec=SPEC,
        verified=any(passed) if passed else None,
        **changes,
    )
    attempts = [
        records.attempt(
            interaction,
            attempt_index=i,
            choice_index=i,
            program=program,
            program_sha256=program_sha256(program),
            mean_logprob=-0.1 * i,
        )
        for i, (program, _) in enumerate(programs)
    ]
    runs = [
        records.execution(
            one,
            verified=ok,
            verdict=verdict or ("OK" if ok else "WRONG"),
            program_sha256=one.program_sha256,
        )
        for one, (_, ok) in zip(attempts, programs, strict=True)
        if ok is not None
    ]
    store.add([Recording(interaction=interaction, attempts=attempts, executions=runs)])
    return interaction


def said(store: Store, interaction: Interaction, value: Any, **changes: Any) -> str:
    metric = Metric.ACCEPTED if isinstance(value, bool) else Metric.DEMONSTRATION
    word = comment(interaction, value, **({"metric": metric} | changes))
    return store.put_feedback([word])[0]


def found(store: Store, **changes: Any) -> Signals:
    return collect_signals(store, **({"limit": 100} | changes))


def test_what_passed_is_held_against_what_failed(store: Store) -> None:
    interaction = asked(store, [(WRONG, False), (OTHER, True), (RIGHT, True)])
    [signal] = found(store).signals
    assert (signal.kind, signal.better, signal.worse) == (Kind.VERIFIED, OTHER, WRONG)
    assert signal.interaction_ids == [interaction.id]
    assert found(store, before=interaction.created_at - timedelta(days=1)).signals == []


def test_what_nobody_could_judge_is_no_failure(store: Store) -> None:
    asked(store, [(WRONG, False)], verdict="SANDBOX_ERROR")
    asked(store, [(RIGHT, True), (WRONG, None)])
    assert found(store).signals == []


def test_an_edit_is_better_than_the_choice_that_it_replaces(store: Store) -> None:
    interaction = asked(store, [(RIGHT, True), (WRONG, False)])
    word = said(store, interaction, f"Rather:\n```python\n{OTHER}```", choice_index=1)
    [signal] = found(store).signals
    assert (signal.kind, signal.better, signal.worse) == (Kind.EDIT, OTHER, WRONG)
    assert signal.feedback_ids == [word]
    same = asked(store, [(RIGHT, None)])
    said(store, same, RIGHT)
    assert found(store).skipped["demonstration equals the answer"] == 1


def test_kept_and_refused_choices_are_a_pair(store: Store) -> None:
    interaction = asked(store, [(OTHER, None), (WRONG, None)])
    words = [said(store, interaction, True), said(store, interaction, False, choice_index=1)]
    [signal] = found(store).signals
    assert (signal.kind, signal.better, signal.worse) == (Kind.WORD, OTHER, WRONG)
    assert signal.feedback_ids == words


def test_answers_to_one_request_asked_twice_are_a_pair(store: Store) -> None:
    kept, refused, lone = (asked(store, [(p, None)]) for p in (RIGHT, WRONG, WRONG))
    said(store, kept, True)
    said(store, refused, False)
    said(store, lone, False, metric=Metric.TESTS_PASSED)
    signals = found(store).signals
    [pair] = [one for one in signals if one.is_pair]
    [alone] = [one for one in signals if not one.is_pair]
    assert (pair.better, pair.worse) == (RIGHT, WRONG)
    assert kept.id in pair.interaction_ids
    assert (alone.better, alone.worse) == (None, WRONG)
    assert found(store).report()["pairs"] == 1


def test_a_word_against_the_checks_counts_for_nothing(store: Store) -> None:
    said(store, asked(store, [(WRONG, False)]), True)
    said(store, asked(store, [(RIGHT, True)], text="Again."), False)
    torn = asked(store, [(RIGHT, None)], text="Torn.")
    said(store, torn, True, identifier="ann")
    said(store, torn, False, identifier="ben")
    told = found(store)
    assert told.signals == []
    assert told.skipped["word and checks contradict each other"] == 2
    assert told.skipped["words contradict each other"] == 1


async def built(store: Store, directory: Path, judge: ExecJudge, loss: Any) -> Built:
    recipe = Preferences(Options(loss=loss), signals=found(store).signals)
    made, journal = tools(Model(lambda body, index: ""), judge, directory)
    with journal:
        return await recipe.build([], made)


async def test_rows_hold_both_answers_and_where_they_come_from(
    store: Store, tmp_path: Path, judge: ExecJudge
) -> None:
    interaction = asked(store, [(WRONG, False)], user="ann")
    word = said(store, interaction, RIGHT)
    made = await built(store, tmp_path, judge, "dpo")
    [row] = made.rows
    assert row.answer == f"```python\n{RIGHT}```"
    assert row.rejected == f"```python\n{WRONG}```"
    assert row.origin is Origin.DEMONSTRATION
    assert (row.interaction_ids, row.feedback_ids) == ([interaction.id], [word])
    assert row.provenance["user"] == "ann"
    assert "11" not in row.messages[-1]["content"], "hidden examples stay hidden"
    spec = parse_spec(row.provenance["spec"])
    assert screen(made.rows, {row.id: spec}, firewall()).rows[0].rejected == row.rejected


async def test_an_edit_that_fails_its_checks_is_no_better_answer(
    store: Store, tmp_path: Path, judge: ExecJudge
) -> None:
    said(store, asked(store, [(WRONG, None)]), WRONG.replace("-", "*"))
    made = await built(store, tmp_path, judge, "dpo")
    assert made.rows == []
    assert [drop.reason for drop in made.drops] == ["edit fails"]


async def test_dpo_takes_pairs_and_kto_single_words_too(
    store: Store, tmp_path: Path, judge: ExecJudge
) -> None:
    asked(store, [(RIGHT, True), (WRONG, False)])
    said(store, asked(store, [(WRONG, None)], text="Another."), False)
    said(store, asked(store, [(OTHER, None)], text="A third."), True)
    pairs = await built(store, tmp_path / "dpo", judge, "dpo")
    every = await built(store, tmp_path / "kto", judge, "kto")
    assert len(pairs.rows) == 1
    assert [drop.reason for drop in pairs.drops] == ["judged alone: DPO needs pairs"] * 2
    assert every.report["kept_alone"] == every.report["refused_alone"] == 1
    [refused] = [row for row in every.rows if row.origin is Origin.REFUSED]
    assert refused.answer == ""
    assert refused.rejected is not None


@pytest.mark.parametrize("place", ["better", "worse"])
async def test_neither_answer_may_come_from_the_examination(
    store: Store, tmp_path: Path, judge: ExecJudge, place: str
) -> None:
    exam = (
        "def add(text):\n    total = 0\n    for letter in text.lower():\n"
        "        if letter in 'aeiou':\n            total += 1\n    return total\n"
    ).replace("add", "count_vowels")
    better, worse = (exam, WRONG) if place == "better" else (RIGHT, exam)
    asked(store, [(better, True), (worse, False)])
    made = await built(store, tmp_path, judge, "dpo")
    assert made.rows == []
    assert made.drops[0].reason.startswith("examination")


def test_the_cookbook_says_what_is_missing(store: Store) -> None:
    asked(store, [(RIGHT, True), (WRONG, False)])
    for loss, words in (("none", "train.preferences"), ("dpo", "1 pairs .* 16 rows of dpo")):
        settings = ImproverSettings.model_validate({"train": {"preferences": loss}})
        material, report = cookbook.gather(["preferences"], store, settings, before=now())
        told = cookbook.missing("preferences", settings, material, report)
        assert told is not None
        assert re.search(words, told)
    few = ImproverSettings.model_validate(
        {"train": {"preferences": "dpo"}, "preferences": {"min_rows": 1}}
    )
    material, report = cookbook.gather(["preferences"], store, few, before=now())
    assert cookbook.missing("preferences", few, material, report) is None
    assert cookbook.items("preferences", few, material) == 1
