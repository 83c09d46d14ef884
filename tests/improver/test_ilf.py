"""ILF: what is asked, what is accepted, what becomes a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from improver.errors import PolicyUnavailable
from improver.firewall import Exam, Firewall
from improver.policy import Policy
from improver.recipes.base import Built, Tools, live_messages
from improver.recipes.ilf import (
    Control,
    Ilf,
    Options,
    names_hidden_value,
    refinement_prompt,
    shuffled,
)
from improver.types import Case, Origin
from improver.workspace import Journal
from sandbox.spec import Spec, extend_prompt, parse_spec
from tests.improver.conftest import ExecJudge, StubServer

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
SPEC: dict[str, Any] = {
    "entry_point": "add",
    "examples": [
        {"input": [0, 0], "output": 0, "hidden": False},
        {"input": [4130, 1], "output": 4131, "hidden": True},
    ],
}
EXAM = Exam(
    id="e1",
    benchmark="own",
    text="Write a function that multiplies all numbers of a list with each other.",
    spec=Spec(entry_point="product"),
    reference="def product(xs):\n    r = 1\n    for x in xs:\n        r *= x\n    return r\n",
)


def case(**changes: Any) -> Case:
    values: dict[str, Any] = {
        "interaction_id": "i1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add two numbers."},
        ],
        "spec": SPEC,
        "program": WRONG,
        "feedback": "It subtracts. Use plus.",
        "feedback_ids": ["f1"],
        "feedback_source": "HUMAN",
        "source": "imported",
    }
    return Case(**values | changes)


async def build(
    server: StubServer, judge: ExecJudge, directory: Path, *cases: Case, **options: Any
) -> Built:
    async with Policy(server.url, patience_s=0.3) as policy:
        with Journal(directory / "journal.jsonl") as journal:
            tools = Tools(
                policy=policy, pool=judge, firewall=Firewall([EXAM]), journal=journal, seed=7
            )
            return await Ilf(Options(**options)).build(cases, tools)


def answers(*texts: str) -> Any:
    return lambda body, index: f"```python\n{texts[index % len(texts)]}```"


def test_the_refinement_prompt_has_three_parts_and_nothing_hidden() -> None:
    spec = parse_spec(SPEC)
    before, prompt = refinement_prompt(case(), spec)
    assert before == {"role": "system", "content": "Be brief."}
    content = prompt["content"]
    parts = ["### Task", "### Program", "### Feedback", "### Corrected program"]
    places = [content.index(part) for part in parts]
    assert places == sorted(places)
    assert extend_prompt("Add two numbers.", spec) in content
    assert WRONG.strip() in content
    assert "It subtracts. Use plus." in content
    assert "4131" not in content


def test_only_the_old_program_is_cut() -> None:
    long = "x = 1\n" * 2000
    [_, prompt] = refinement_prompt(case(program=long), parse_spec(SPEC))
    assert len(prompt["content"]) < 3500
    assert "(cut)" in prompt["content"]


def test_controls_differ_in_what_the_refiner_is_told() -> None:
    spec = parse_spec(SPEC)
    told = refinement_prompt(case(), spec)[-1]["content"]
    alone = refinement_prompt(case(), spec, Control.NONE)[-1]["content"]
    assert "feedback" not in alone.lower()
    assert WRONG.strip() in alone
    again = refinement_prompt(case(), spec, Control.RESAMPLE)
    assert again == live_messages(case().messages, spec)
    assert WRONG.strip() not in again[-1]["content"]
    assert told != alone


def test_shuffled_feedback_is_anothers() -> None:
    cases = [case(interaction_id=f"i{n}", feedback=f"words {n}") for n in range(20)]
    mixed = shuffled(cases, seed=7)
    assert sorted(c.feedback for c in mixed) == sorted(c.feedback for c in cases)
    assert all(a.feedback != b.feedback for a, b in zip(cases, mixed, strict=True))
    assert [c.interaction_id for c in mixed] == [c.interaction_id for c in cases]
    assert shuffled(cases, seed=7) == mixed


async def test_what_passes_becomes_a_row_of_the_live_prompt(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.script = answers(RIGHT, WRONG)
    built = await build(server, judge, tmp_path, case(), samples=2)
    [row] = built.rows
    assert row.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": extend_prompt("Add two numbers.", parse_spec(SPEC))},
    ]
    assert row.answer == f"```python\n{RIGHT.strip()}\n```"
    assert "subtracts" not in str(row.messages)
    assert row.origin is Origin.REFINEMENT
    assert row.feedback_ids == ["f1"]
    assert row.provenance["hidden_checks"] == 1
    assert row.provenance["model"] == "code"
    assert [d.reason for d in built.drops] == ["refinement fails"]
    body = server.bodies[0]
    assert body["temperature"] == 0.8
    assert body["stop"] == ["\n```\n"]


async def test_passing_the_visible_example_is_not_enough(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    # WRONG gives 0 for (0, 0) too.
    server.script = answers("def add(a, b):\n    return a * b\n")
    built = await build(server, judge, tmp_path, case(), samples=1)
    assert built.rows == []
    assert built.report["passed_visible_but_not_hidden"] == 1


async def test_the_wrong_program_and_duplicates_are_dropped(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.script = answers(RIGHT, RIGHT.replace("\n", "  \n"), "def add(a, b): return b + a\n")
    built = await build(server, judge, tmp_path, case(program=RIGHT), samples=3)
    assert sorted(d.reason for d in built.drops) == [
        "refinement equals the wrong program",
        "refinement equals the wrong program",
    ]
    assert len(built.rows) == 1


async def test_one_row_of_each_task_is_kept_at_random_but_repeatably(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.script = answers(
        RIGHT, "def add(a, b): return b + a\n", "def add(x, y):\n    return sum((x, y))\n"
    )
    cases = [case(interaction_id=f"i{n}") for n in range(3)]
    first = await build(server, judge, tmp_path, *cases, samples=3)
    second = await build(server, judge, tmp_path, *cases, samples=3)
    assert len(first.rows) == 1
    assert first.rows == second.rows
    assert {d.reason for d in first.drops} == {"another of the same task"}
    assert len(server.bodies) == 3  # the second time all came out of the journal


async def test_a_demonstration_takes_the_place_of_refinements_that_fail(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.script = answers(WRONG)
    shown = case(demonstration=RIGHT, demonstration_ids=["d1"])
    uncapped = {"demonstrations_per_refinement": None}
    built = await build(server, judge, tmp_path, shown, samples=1, **uncapped)
    assert built.rows[0].origin is Origin.DEMONSTRATION
    assert built.rows[0].feedback_ids == ["d1"]
    assert built.report["rows_by_origin"] == {"demonstration": 1}
    (tmp_path / "journal.jsonl").unlink()
    built = await build(server, judge, tmp_path, shown, samples=1, demonstrations=False)
    assert built.rows == []
    (tmp_path / "journal.jsonl").unlink()
    false = case(demonstration=WRONG, demonstration_ids=["d1"])
    built = await build(server, judge, tmp_path, false, samples=1)
    assert "demonstration fails" in [d.reason for d in built.drops]


async def test_people_do_not_outnumber_the_model(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    def script(body: dict[str, Any], index: int) -> str:
        return f"```python\n{RIGHT if 'Task 0.' in str(body) else WRONG}```"

    server.script = script
    cases = [
        case(
            interaction_id=f"i{n}",
            messages=[{"role": "user", "content": f"Task {n}."}],
            demonstration=RIGHT,
            demonstration_ids=[f"d{n}"],
        )
        for n in range(6)
    ]
    built = await build(server, judge, tmp_path, *cases, samples=1)
    assert built.report["rows_by_origin"] == {"refinement": 1, "demonstration": 1}
    over = [d for d in built.drops if d.reason == "more demonstrations than allowed"]
    assert len(over) == 4
    assert all(d.row is not None for d in over)
    again = await build(server, judge, tmp_path, *cases, samples=1)
    assert again.rows == built.rows, "the same ones are drawn"
    told = {"samples": 1, "demonstrations_per_refinement": 2.5}
    more = await build(server, judge, tmp_path, *cases, **told)
    assert more.report["rows_by_origin"] == {"refinement": 1, "demonstration": 2}
    none = await build(server, judge, tmp_path, *cases[1:], samples=1)
    assert none.rows == []


async def test_a_row_that_touches_the_examination_is_dropped_with_the_row(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.script = answers(RIGHT)
    leaked = case(messages=[{"role": "user", "content": EXAM.text}])
    built = await build(server, judge, tmp_path, leaked, samples=1)
    assert built.rows == []
    [drop] = built.drops
    assert drop.reason == "examination: same text"
    assert drop.row is not None


async def test_a_refused_request_costs_one_case_and_a_dead_server_the_stage(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.status = 400
    built = await build(server, judge, tmp_path, case(), samples=1)
    assert [d.reason for d in built.drops] == ["request refused"]
    server.status, server.unavailable = None, 1000
    with pytest.raises(PolicyUnavailable):
        await build(server, judge, tmp_path, case(interaction_id="i2"), samples=1)


async def test_specs_that_check_nothing_teach_nothing(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    built = await build(
        server,
        judge,
        tmp_path,
        case(spec={"summary": "x"}),
        case(interaction_id="i2", spec={"examples": 3}),
    )
    reasons = [d.reason for d in built.drops]
    assert reasons == ["nothing to check a refinement with", "spec not readable"]


def test_feedback_that_names_a_hidden_value_is_flagged() -> None:
    assert not names_hidden_value(case())
    assert names_hidden_value(case(feedback="For 4130 and 1 it must be 4131."))
