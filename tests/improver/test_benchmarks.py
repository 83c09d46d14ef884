"""Benchmarks: references pass, stubs fail, only the first check is shown."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from improver.benchmarks.base import Task, stub_programs
from improver.benchmarks.builtin import Builtin
from improver.benchmarks.mbpp import TaskFile
from improver.errors import BenchmarkError
from improver.evaluate import judgeable
from improver.firewall import Firewall
from sandbox.pool import Pool

DATA = Path(__file__).parents[3] / "shared" / "data" / "eval" / "mbpp_eval.jsonl"


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    async with Pool(2) as opened:
        yield opened


def mbpp() -> list[Task]:
    if not DATA.exists():
        pytest.skip(f"{DATA.name} is not beside this checkout")
    return TaskFile(DATA).tasks()


def test_the_built_in_tasks_are_thirty_and_all_different() -> None:
    tasks = Builtin().tasks()
    assert len(tasks) == 30
    assert len({task.id for task in tasks}) == 30
    assert len({task.text for task in tasks}) == 30
    for task in tasks:
        shown = [e for e in task.spec.examples if not e.hidden]
        hidden = [e for e in task.spec.examples if e.hidden]
        assert len(shown) == 1, task.id
        assert len(hidden) >= 3 or task.id == "builtin/read_pairs", task.id
        prompt = task.messages()[0]["content"]
        assert prompt.count(" == ") == 1, prompt
        assert " == " not in task.messages(with_spec=False)[0]["content"]


def test_no_built_in_task_is_like_another() -> None:
    tasks = Builtin().tasks()
    for task in tasks:
        others = Firewall(other.exam() for other in tasks if other is not task)
        hit = others.check(text=task.text, spec=task.spec, program=task.reference or "")
        assert hit is None, (task.id, str(hit))


@pytest.mark.isolation
async def test_built_in_references_pass_and_stubs_fail(pool: Pool) -> None:
    kept, unsound = await judgeable(Builtin().tasks(), pool)
    assert unsound == []
    assert len(kept) == 30
    for task in Builtin().tasks():
        for program in stub_programs(task):
            found = await pool.check(program, task.spec)
            assert not found.verified, (task.id, program)


@pytest.mark.slow
@pytest.mark.isolation
async def test_mbpp_references_pass_and_stubs_fail(pool: Pool) -> None:
    tasks = mbpp()
    kept, unsound = await judgeable(tasks, pool)
    assert len(kept) >= 86, unsound
    for task in tasks:
        for program in stub_programs(task):
            found = await pool.check(program, task.spec)
            assert not found.verified, (task.id, program)


def test_an_mbpp_row_shows_one_assert_and_holds_back_the_rest(tmp_path: Path) -> None:
    row = {
        "task_id": "MBPP/1",
        "text": "Halve.",
        "entry_point": "halve",
        "visible_test": "assert halve(2) == 1",
        "base_tests": ["assert halve(2) == 1", "assert halve(8) == 4"],
        "plus_test": "for i in range(3):\n    assert halve(2 * i) == i",
        "canonical_solution": "def halve(x):\n    return x // 2\n",
        "core60": True,
    }
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "task_id": "MBPP/2", "core60": 0}))
    [task] = TaskFile(path, subset="core60").tasks()
    assert len(TaskFile(path).tasks()) == 2
    assert [e.hidden for e in task.spec.examples] == [False, True]
    assert [t.hidden for t in task.spec.tests] == [True]
    prompt = task.messages()[0]["content"]
    assert "halve(2) == 1" in prompt
    assert "Signature: halve(x)" in prompt
    assert "halve(8)" not in prompt
    assert "range" not in prompt


def test_a_plain_task_file(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    spec = {"entry_point": "f", "examples": [{"input": [1], "output": 2}]}
    path.write_text(json.dumps({"id": "a", "text": "Add one.", "spec": spec}))
    [task] = TaskFile(path).tasks()
    assert task.reference is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no task"),
        ("nonsense", "cannot read"),
        ("[]", "a JSON object"),
        ('{"id": "a", "text": "x"}', "spec"),
        ('{"id": "a", "text": "x", "spec": {}}', "nothing in its spec"),
        ('{"id": "a", "text": "x", "spec": {"examples": 1}}', "spec.examples"),
        ('{"base_tests": []}', "entry_point"),
    ],
)
def test_a_malformed_task_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=words):
        TaskFile(path).tasks()


def test_a_task_twice_or_absent_is_refused(tmp_path: Path) -> None:
    spec = {"entry_point": "f", "examples": [{"input": [1], "output": 2}]}
    path = tmp_path / "tasks.jsonl"
    path.write_text(f"{json.dumps({'id': 'a', 'text': 'x', 'spec': spec})}\n" * 2)
    with pytest.raises(BenchmarkError, match="same id"):
        TaskFile(path).tasks()
    with pytest.raises(BenchmarkError, match="cannot read"):
        TaskFile(tmp_path / "absent").tasks()
