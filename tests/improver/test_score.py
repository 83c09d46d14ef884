"""A benchmark put to a model: what is asked, what is counted, what a killed run leaves."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from improver.benchmarks.base import Task
from improver.benchmarks.builtin import Builtin
from improver.errors import BenchmarkError
from improver.policy import Policy
from improver.score import Plan, TaskScore, choose, estimate, pass_at_k, report, score, table, write
from improver.workspace import Journal
from sandbox.spec import parse_spec
from tests.improver.conftest import ExecJudge, StubServer

TASKS = Builtin().tasks()[:6]
NAME = re.compile(r"Signature: (\w+)|name: (\w+)")


def right(body: dict[str, Any], index: int) -> str:
    text = body["messages"][-1]["content"]
    spec = body.get("io_spec", {})
    name = spec.get("entry_point") or next(filter(None, NAME.search(text).groups()))  # type: ignore[union-attr]
    [task] = [task for task in TASKS if task.spec.entry_point == name]
    return f"```python\n{task.reference}```"


def scored(judged: int, passed: int) -> TaskScore:
    return TaskScore(
        id="t", judged=judged, passed=passed, ran=judged, verdicts={}, tokens=0, answer_tokens=[]
    )


async def put(
    server: StubServer, judge: ExecJudge, directory: Path, plan: Plan, tasks: Any = TASKS
) -> list[TaskScore]:
    with Journal(directory / "journal") as journal:
        async with Policy(server.url) as policy:
            return await score(tasks, plan, policy, judge, journal)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 1), (5, 2, 1), (6, 2, 3), (4, 4, 4), (7, 3, 5)])
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_one(n: int, c: int, k: int) -> None:
    draws = list(combinations(range(n), k))
    share = sum(any(i < c for i in draw) for draw in draws) / len(draws)
    assert pass_at_k(n, c, k) == pytest.approx(share)


def test_pass_at_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 5 answers"):
        pass_at_k(4, 1, 5)


def test_the_interval_is_over_tasks_and_leaves_out_what_was_not_judged() -> None:
    scores = [scored(10, 10)] * 20 + [scored(10, 0)] * 20 + [scored(0, 0)] * 50
    found = estimate(scores, 1)
    assert found is not None
    assert (found.mean, found.tasks) == (0.5, 40)
    # The normal interval of 40 coins is 0.5 ± 0.155.
    assert found.low == pytest.approx(0.345, abs=0.03)
    assert found.high == pytest.approx(0.655, abs=0.03)
    assert estimate([scored(4, 1)], 5) is None


async def test_right_answers_pass_and_every_number_is_kept(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.script = right
    plan = Plan(benchmark="builtin", samples=2, temperature=0.8)
    scores = await put(server, judge, tmp_path, plan)
    found = report(plan, scores, left_out=["x"], prompts="p", seconds=1.0, url="u")
    assert found["pass_at"]["1"]["mean"] == 1.0
    assert (found["judged"], found["ran"], found["tokens"]) == (12, 1.0, 120)
    assert found["verdicts"] == {"OK": 12}
    assert found["results"][0]["answers"][1]["verdict"] == "OK"
    assert "def " in found["results"][0]["answers"][1]["text"]
    assert "pass@1" in table(found)
    assert "left out        1" in table(found)
    write(tmp_path / "new" / "out.json", found)
    assert json.loads((tmp_path / "new" / "out.json").read_text())["results"][0]["passed"] == 2
    assert {body["seed"] for body in server.bodies} == {7}


@pytest.mark.parametrize(
    ("kinds", "has", "lacks"),
    [
        ((), ["Function name: parcel_wait"], ["Signature", "=="]),
        (("types",), ["Signature: parcel_wait(a, b)"], ["=="]),
        (("examples",), ["parcel_wait(3, 10) == 7"], ["Signature"]),
        (("types", "examples", "summary"), ["Signature", "=="], ["parcel_wait(10, 3)"]),
    ],
)
async def test_only_the_kind_of_specification_that_was_asked_for_is_shown(
    server: StubServer,
    judge: ExecJudge,
    tmp_path: Path,
    kinds: Any,
    has: list[str],
    lacks: list[str],
) -> None:
    await put(server, judge, tmp_path, Plan(benchmark="b", kinds=kinds), TASKS[:1])
    text = server.bodies[0]["messages"][0]["content"]
    assert all(word in text for word in has)
    assert not any(word in text for word in lacks)


async def test_a_killed_run_goes_on_and_asks_nothing_twice(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    plan = Plan(benchmark="builtin")
    await put(server, judge, tmp_path, plan, TASKS[:4])
    again = await put(server, judge, tmp_path, plan)
    assert len(server.bodies) == len(again) == 6
    await put(server, judge, tmp_path, Plan(benchmark="builtin", kinds=("types",)))
    assert len(server.bodies) == 12


async def test_what_infrastructure_broke_counts_nowhere_and_is_tried_again(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    plan = Plan(benchmark="builtin")
    judge.broken = True
    scores = await put(server, judge, tmp_path, plan)
    found = report(plan, scores, left_out=[], prompts="", seconds=1.0, url="")
    assert (found["judged"], found["not_judged"], found["pass_at"]) == (0, 6, {})
    assert "do not count" in table(found)
    judge.broken = False
    server.script = right
    assert sum(s.passed for s in await put(server, judge, tmp_path, plan)) == 6


async def test_a_refused_request_is_no_wrong_answer(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.status = 400
    [found, *_] = await put(server, judge, tmp_path, Plan(benchmark="builtin"))
    assert (found.judged, found.verdicts) == (0, {"REFUSED": 1})
    assert "too long" in (found.error or "")


async def test_candidates_are_chosen_by_the_server_from_what_is_shown(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.script = right
    plan = Plan(benchmark="builtin", candidates=3, temperature=0.8)
    await put(server, judge, tmp_path, plan, TASKS[:1])
    [body] = server.bodies
    assert body["io_spec"]["candidates"] == 3
    assert [e["hidden"] for e in body["io_spec"]["examples"]] == [False]
    assert body["messages"] == [{"role": "user", "content": TASKS[0].text}]


async def test_candidates_are_chosen_here_where_the_server_cannot(
    server: StubServer, judge: ExecJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_is_right(body: dict[str, Any], index: int) -> str:
        return right(body, index) if index == 1 else "```python\ndef parcel_wait(a, b): pass\n```"

    monkeypatch.setattr(server, "models", lambda: {"data": [{"id": "code"}]})
    server.script = second_is_right
    plan = Plan(benchmark="builtin", candidates=3, temperature=0.8)
    [found] = await put(server, judge, tmp_path, plan, TASKS[:1])
    assert found.passed == 1
    assert "io_spec" not in server.bodies[0]


def _plain() -> Task:
    found = parse_spec(
        {"entry_point": "f", "examples": [{"input": [1], "output": 2, "hidden": True}]}
    )
    return Task(id="a", benchmark="b", text="Add one.", spec=found)


def test_a_part_of_the_tasks_is_always_the_same_part() -> None:
    some = choose(TASKS, Plan(benchmark="b", limit=3))
    assert len(some) == 3
    assert some == choose(TASKS, Plan(benchmark="b", limit=3))
    assert choose(TASKS, Plan(benchmark="b", limit=99)) == list(TASKS)


def test_a_specification_that_no_task_has_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="shows any summary"):
        choose(TASKS, Plan(benchmark="b", kinds=("summary",)))
    with pytest.raises(BenchmarkError, match="nothing could choose"):
        choose([_plain()], Plan(benchmark="b", candidates=4))
