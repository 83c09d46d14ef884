"""Screening and the dataset: nothing twice, nothing of the examination, every row accounted for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from improver.dataset import drop_from_lineage, keep_lineage, require, split, write
from improver.errors import FirewallError, NotEnough
from improver.firewall import Exam, Firewall
from improver.recipes.ilf import make_row
from improver.screen import Caps, Screened, screen, scrubbed, scrubbed_drop
from improver.types import Case, Drop, Origin, Row, read_lines, to_json
from ops.records import CycleState
from ops.redaction import Scrubber, scrub_secrets
from ops.store import Recording, Store
from sandbox.spec import Example, Spec
from tests.ops import records

EXAM = Exam(
    id="e1",
    benchmark="own",
    text="Write a function that multiplies all numbers of a list with each other.",
    spec=Spec(entry_point="product"),
    reference=None,
)
SPEC = Spec(
    entry_point="f",
    examples=(Example(input=[1], output="first"), Example(input=[2], output="second")),
)


def row(number: int, program: str | None = None, **changes: Any) -> Row:
    case = Case(
        interaction_id=f"i{number}",
        messages=[{"role": "user", "content": changes.pop("text", f"Do the thing {number}.")}],
        spec={},
        program="x",
        feedback="…",
        feedback_ids=["f"],
        feedback_source="HUMAN",
        source="imported",
        user=changes.pop("user", None),
        metadata=changes.pop("metadata", {}),
    )
    return make_row(
        case, SPEC, program or f"def f(x):\n    return {number}\n", Origin.REFINEMENT, {}
    )


def screened(*rows: Row, spec: Spec = SPEC, caps: Caps | None = None) -> Screened:
    return screen(rows, {r.id: spec for r in rows}, Firewall([EXAM]), caps)


def test_clean_rows_stay() -> None:
    rows = [row(n) for n in range(5)]
    found = screened(*rows)
    assert [r.id for r in found.rows] == [r.id for r in rows]
    assert found.report["dropped"] == {}


def test_rows_of_the_examination_go_although_the_spec_is_in_the_prompt() -> None:
    found = screened(row(1, text=EXAM.text), row(2, metadata={"task_id": "E1"}))
    assert [d.reason for d in found.drops] == [
        "examination: same text",
        "examination: same task id",
    ]
    assert all(d.row is not None for d in found.drops)


def test_it_fails_closed() -> None:
    with pytest.raises(FirewallError):
        screen([row(1)], {row(1).id: SPEC}, Firewall([]))


def test_near_duplicates_go() -> None:
    program = (
        "def f(x):\n    total = 0\n    for i in range(x):\n        total += i * i\n"
        "    return total\n"
    )
    found = screened(row(1, program), row(2, program.replace("total", "acc")), row(3))
    assert [d.reason for d in found.drops] == ["near-duplicate program"]


def of_snippet(made: Row, snippet: str, phase: int) -> Row:
    return replace(made, provenance={**made.provenance, "snippet": snippet, "phase": phase})


LONG = (
    "def f(x):\n    total = 0\n    for i in range(x):\n        total += i * i\n    return total\n"
)


def test_two_requests_for_one_program_of_a_corpus_are_no_duplicates() -> None:
    rows = [of_snippet(row(n, LONG), "s1", n) for n in (1, 2)]
    other = of_snippet(row(3, LONG), "s2", 1)
    found = screened(*rows, other)
    assert [r.id for r in found.rows] == [r.id for r in rows]
    assert [(d.reason, d.row and d.row.id) for d in found.drops] == [
        ("near-duplicate program", other.id)
    ]


def test_two_recipes_may_learn_one_program_of_a_request() -> None:
    refined, other = row(1, LONG), replace(row(2, LONG), recipe="inverse_instruct")
    same = replace(row(3, LONG), recipe="inverse_instruct", interaction_ids=["i1"])
    again = replace(row(4, LONG), interaction_ids=["i1"])
    found = screened(refined, other, same, again)
    assert [r.id for r in found.rows] == [refined.id, same.id]
    assert [d.reason for d in found.drops] == ["near-duplicate program"] * 2


def test_what_is_trusted_stays_where_two_are_alike() -> None:
    made, trusted = of_snippet(row(1, LONG), "s1", 1), of_snippet(row(2, LONG), "s2", 2)
    found = screened(made, trusted)
    assert [r.id for r in found.rows] == [trusted.id]


@pytest.mark.parametrize(
    ("caps", "reason"),
    [
        (Caps(per_user=2), "too many rows of one user"),
        (Caps(per_tenant=2), "too many rows of one tenant"),
        (Caps(per_task=2), "too many rows of one task"),
    ],
)
def test_no_source_drowns_the_others(caps: Caps, reason: str) -> None:
    rows = [
        replace(
            made := row(n, user="ada" if n < 5 else "bob"),
            task="t" if n < 5 else "u",
            provenance={**made.provenance, "tenant": "a" if n < 5 else "b"},
        )
        for n in range(6)
    ]
    found = screened(*rows, caps=caps)
    assert [r.id for r in found.rows] == [rows[n].id for n in (0, 1, 5)]
    assert found.report["dropped"] == {reason: 3}


def test_nobody_named_is_under_no_cap() -> None:
    found = screened(*(row(n) for n in range(3)), caps=Caps(per_user=1, per_tenant=1))
    assert len(found.rows) == 3


# Put together at run time, so that no scanner takes this file for a leak.
SECRET = "AKIA" + "IOSFODNN7ABCDEFG"


@pytest.mark.parametrize("place", ["text", "program"])
def test_a_row_with_a_secret_goes_into_quarantine_without_it(place: str) -> None:
    held = f"def f(x):\n    key = '{SECRET}'\n    return key\n"
    bad = row(1, text=f"Use {SECRET}.") if place == "text" else row(1, held)
    found = screened(bad, row(2))
    assert [r.id for r in found.rows] == [row(2).id]
    assert found.drops == []
    [drop] = found.quarantine
    assert (drop.reason, drop.detail) == ("holds a secret", "aws_key")
    assert SECRET not in json.dumps(to_json(drop))
    assert found.report["quarantined"] == {"holds a secret": 1}


def test_rows_are_kept_without_secrets_and_personal_data() -> None:
    held = row(1, f"def f(x):\n    return '{SECRET}'\n", text="Write to ann@gmail.com.")
    clean = scrubbed(held, Scrubber())
    assert SECRET not in json.dumps(to_json(clean))
    assert "ann@" not in json.dumps(to_json(clean))
    drop = Drop(reason="failed", detail="", interaction_ids=[], row=held)
    assert scrubbed_drop(drop, Scrubber()).row == clean
    empty = Drop(reason="failed", detail="", interaction_ids=[])
    assert scrubbed_drop(empty, Scrubber()) is empty


def test_a_mark_may_be_asked_about_but_not_learned() -> None:
    mark = scrub_secrets(f"'{SECRET}'")
    found = screened(
        row(1, text=f"Why is {mark} refused?"), row(2, f"def f(x):\n    return {mark}")
    )
    assert [r.id for r in found.rows] == [row(1, text=f"Why is {mark} refused?").id]
    assert [d.detail for d in found.quarantine] == ["redacted"]


def test_rows_of_users_who_are_not_trusted_are_kept_apart() -> None:
    found = screened(
        row(1, user="eve"), row(2, user="ada"), caps=Caps(distrusted=frozenset({"eve"}))
    )
    assert [r.provenance["user"] for r in found.rows] == ["ada"]
    assert [(d.reason, d.detail) for d in found.quarantine] == [("user is not trusted", "eve")]


def test_a_row_that_is_no_text_cannot_be_cleared() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    found = screened(replace(row(1), messages=picture))
    assert [d.reason for d in found.drops] == ["examination: not comparable"]


def test_a_program_that_holds_its_expected_values_is_only_flagged() -> None:
    hard = "def f(x):\n    return {1: 'first', 2: 'second'}[x]\n"
    found = screened(row(1, hard), row(2))
    assert found.report["flagged_holding_expected_values"] == 1
    assert [r.provenance["holds_expected_values"] for r in found.rows] == [True, False]


def test_the_split_is_by_task_and_does_not_move() -> None:
    rows = [row(n) for n in range(200)]
    made = split(rows, held_out_share=0.2, seed=7)
    assert 20 < len(made.held_out) < 60
    again = split(rows[:100], held_out_share=0.2, seed=7)
    assert {r.id for r in again.held_out} <= {r.id for r in made.held_out}
    assert split(rows[:3], held_out_share=0.01, seed=7).held_out == []


def test_too_few_rows_say_what_is_missing() -> None:
    drops = [Drop(reason="refinement fails", interaction_ids=["i"])] * 4
    with pytest.raises(
        NotEnough, match=r"1 training rows, 8 are wanted.*4 times 'refinement fails'"
    ):
        require([row(1)], {"ilf": 8, "gift4code": 9}, drops)
    require([row(1)], {"ilf": 1}, [])


def test_the_files_and_the_lineage(store: Store, tmp_path: Path) -> None:
    interaction = records.interaction()
    store.add([Recording(interaction=interaction)])
    cycle = records.cycle(state=CycleState.RUNNING)
    store.add_cycle(cycle)
    kept = replace(row(1), interaction_ids=[interaction.id])
    lost = replace(row(2), interaction_ids=[interaction.id])
    drops = [
        Drop(reason="duplicate", interaction_ids=[interaction.id], row=lost),
        Drop(reason="refinement fails", interaction_ids=[interaction.id]),
    ]
    keep_lineage(store, cycle.id, [kept], drops)
    keep_lineage(store, cycle.id, [kept], drops)
    found = {r.row_id: (r.kept, r.reason) for r in store.dataset(cycle.id)}
    assert found == {kept.id: (True, None), lost.id: (False, "duplicate")}
    drop_from_lineage(store, cycle.id, [kept.id], "too long")
    assert {(r.kept, r.reason) for r in store.dataset(cycle.id)} == {
        (False, "too long"),
        (False, "duplicate"),
    }
    write(tmp_path, split([kept], held_out_share=0.1, seed=1))
    assert list(read_lines(tmp_path / "train.jsonl", Row)) == [kept]
