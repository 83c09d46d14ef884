"""Benchmarks: references pass, stubs fail, only the first check is shown."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from improver.attempts import together
from improver.benchmarks.base import Task, stub_programs
from improver.benchmarks.builtin import Builtin
from improver.benchmarks.catalogue import ENTRIES, find
from improver.benchmarks.cruxeval import CruxEval
from improver.benchmarks.ds1000 import DS1000
from improver.benchmarks.humaneval import HumanEval
from improver.benchmarks.mbpp import TaskFile
from improver.benchmarks.pandaseval import PandasEval
from improver.benchmarks.replay import Replay, held_back, tenant_of
from improver.errors import BenchmarkError
from improver.evaluate import fooled, judgeable
from improver.firewall import Firewall
from ops.demo import BESIDE
from ops.records import Source
from ops.store import Recording, Store
from sandbox.pool import Pool
from sandbox.spec import parse_spec
from tests.ops.records import attempt, interaction

DATA = Path(os.environ.get("JOURNEYMAN_BENCHMARKS_DIR") or BESIDE)
"""Benchmarks do not ship: what needs their rows is skipped where they are not at hand."""

SAMPLE = 40
"""Tasks of each benchmark whose references are run here: all 2,000 would take many minutes."""

one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[Pool]:
    async with Pool(2) as opened:
        yield opened


def at_hand(name: str) -> list[Task]:
    try:
        return list(find(name, data=DATA).tasks())
    except BenchmarkError as error:
        pytest.skip(f"set JOURNEYMAN_BENCHMARKS_DIR: {error}")


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


@one_loop
@pytest.mark.isolation
async def test_built_in_references_pass_and_empty_answers_fail(pool: Pool) -> None:
    tasks = Builtin().tasks()
    kept, unsound = await judgeable(tasks, pool)
    assert unsound == []
    assert len(kept) == 30
    assert await fooled(tasks[::3], pool) == []


@one_loop
@pytest.mark.isolation
async def test_a_task_that_an_empty_answer_passes_is_found_out(pool: Pool) -> None:
    [task] = Builtin().tasks()[:1]
    weak = parse_spec({"entry_point": "f", "tests": ["assert f(1) is None"]})
    assert await fooled([replace(task, id="weak", spec=weak), task], pool) == ["weak"]


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


# --- benchmarks whose rows do not ship ------------------------------------------------------------

SOUND = {
    "humaneval": 1.0,
    "humaneval+": 1.0,
    "mbpp": 0.97,
    "mbpp+": 0.97,
    "numpyeval": 0.95,
    "pandaseval": 1.0,
    "ds1000-numpy": 0.8,
    "ds1000-pandas": 0.75,
}
"""The least share of references that pass here; DS-1000's were written for older libraries."""


@one_loop
@pytest.mark.slow
@pytest.mark.isolation
@pytest.mark.parametrize("name", SOUND)
async def test_references_pass_and_empty_answers_fail(pool: Pool, name: str) -> None:
    """On a sample; `journeyman eval NAME --references` runs all of them."""
    tasks = at_hand(name)
    tasks = random.Random(7).sample(tasks, min(SAMPLE, len(tasks)))
    kept, unsound = await judgeable(tasks, pool)
    assert len(kept) >= SOUND[name] * len(tasks), unsound
    # Each task is tried with one of them, so each of them on some tasks.
    stubs = [stub_programs(task) for task in tasks]
    tried = [some[place % len(some)] for place, some in enumerate(stubs)]
    found = await together(
        pool.check(stub, task.spec) for stub, task in zip(tried, tasks, strict=True)
    )
    assert [t.id for t, f in zip(tasks, found, strict=True) if f.verified] == []


def write(path: Path, *rows: object) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": (
        "import math\n\n\ndef twice(x):\n    return 2 * x\n\n\n"
        "def quad(x: float) -> float:\n"
        '    """ Four times x. Uses twice.\n    >>> quad(1.0)\n    4.0\n    """\n'
    ),
    "entry_point": "quad",
    "canonical_solution": "    return twice(twice(x))\n",
}
PLUS = {"base_input": [[1.0], [0.1]], "plus_input": [[-3.0]], "atol": 0}


@one_loop
@pytest.mark.isolation
@pytest.mark.parametrize("plus", [False, True])
async def test_humaneval_asks_in_words_and_checks_unseen(
    tmp_path: Path, pool: Pool, plus: bool
) -> None:
    extra = PLUS if plus else {"test": "def check(candidate):\n    assert candidate(2.0) == 8.0\n"}
    path = write(tmp_path / "h.jsonl.gz", HUMANEVAL | extra)
    [task] = HumanEval(path, plus=plus).tasks()
    prompt = task.messages()[0]["content"]
    assert "Signature: quad(x: float) -> float" in prompt
    assert "quad(1.0) == 4.0" in prompt
    assert ">>>" not in task.text
    assert "def twice" in prompt
    assert "twice(twice" not in prompt
    assert (await pool.check(task.solution or "", task.spec)).verified
    right = task.program("```python\ndef quad(x):\n    return twice(x) * 2\n```")
    wrong = task.program("```python\ndef quad(x):\n    return 4.0\n```")
    assert (await pool.check(right or "", task.spec)).verified
    assert not (await pool.check(wrong or "", task.spec)).verified


def test_humaneval_plus_needs_its_inputs(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", HUMANEVAL | {"test": "def check(candidate): pass"})
    with pytest.raises(BenchmarkError, match="plus_input"):
        HumanEval(path, plus=True).tasks()


ARRAY = {
    "task_id": "NumpyEval/900",
    "prompt": "import numpy as np\n\na = np.array([1, 2])\n# Reverse it.\nb =",
    "entry_point": "none",
    "canonical_solution": [" a[::-1]"],
    "test": "def check():\n    assert np.array_equal(b, np.array([2, 1]))\n",
}
TABLE = {
    "task_id": "PandasEval/900",
    "prompt": "import pandas as pd\n\ndef last(df):\n    # The last row as a table.\n",
    "entry_point": "last",
    "canonical_solution": "    return df.tail(1)",
    "test": "def check(candidate):\n"
    "    df = pd.DataFrame({'x': [1, 2]})\n    assert candidate(df).equals(df.tail(1))\n",
}


@one_loop
@pytest.mark.isolation
@pytest.mark.parametrize(
    ("row", "answer", "good"),
    [
        (ARRAY, "```python\na[::-1]\n```", True),
        (ARRAY, "```python\nb = a[::-1]\n```", True),
        (ARRAY, f"```python\n{ARRAY['prompt']} a[::-1]\n```", True),
        (ARRAY, "np.flip(a)", True),
        (ARRAY, "```python\nb = a\n```", False),
        (ARRAY, "", False),
        (TABLE, "```python\nreturn df.tail(1)\n```", True),
        (TABLE, "```python\n    return df.tail(1)\n```", True),
        (TABLE, f"```python\n{TABLE['prompt']}    return df.iloc[[-1]]\n```", True),
        (TABLE, "```python\nimport pandas as pd\ndef last(df):\n    return df\n```", False),
    ],
)
async def test_the_rest_of_a_program_is_taken_as_models_write_it(
    tmp_path: Path, pool: Pool, row: dict[str, object], answer: str, good: bool
) -> None:
    library = "numpy" if row is ARRAY else "pandas"
    [task] = PandasEval(write(tmp_path / "d.jsonl", ARRAY, TABLE), library=library).tasks()
    assert "Specification" not in task.messages()[0]["content"]
    assert (await pool.check(task.solution or "", task.spec)).verified
    program = task.program(answer)
    if program is None:
        assert not good
    else:
        assert (await pool.check(program, task.spec)).verified is good


CODE_CONTEXT = '''import pandas as pd, io, tokenize
def generate_test_case(number):
    df = pd.DataFrame({"x": [1, 2, number]})
    return df, df[["x"]] * 2
def exec_test(result, ans):
    return 1 if result.equals(ans) else 0
exec_context = r"""
import pandas as pd
df = test_input
[insert]
"""
def test_execution(solution: str):
    for i in range(2):
        pass
def test_string(solution: str):
    assert "for" not in solution
'''
DS_ROW = {
    "prompt": "Double x.\nA:\n<code>\nresult = ... # put solution here\nBEGIN SOLUTION\n<code>\n",
    "reference_code": "result = df * 2\n",
    "metadata": {"library": "Pandas", "problem_id": 7},
    "code_context": CODE_CONTEXT,
}


@one_loop
@pytest.mark.isolation
async def test_ds1000_runs_an_answer_in_its_context(tmp_path: Path, pool: Pool) -> None:
    other = {"metadata": {"library": "Sklearn", "problem_id": 8}}
    path = write(tmp_path / "ds1000.jsonl.gz", DS_ROW, other)
    [task] = DS1000(path, library="pandas").tasks()
    assert (await pool.check(task.solution or "", task.spec)).verified
    answers = {
        "```python\nresult = df + df\n```": True,
        "```python\nresult = df\n```": False,
        "```python\nfor _ in range(1):\n    result = df * 2\n```": False,
    }
    for answer, good in answers.items():
        found = await pool.check(task.program(answer) or "", task.spec)
        assert found.verified is good, answer


@one_loop
@pytest.mark.isolation
async def test_cruxeval_takes_values_and_nothing_that_computes(tmp_path: Path, pool: Pool) -> None:
    row = {
        "id": "s0",
        "code": "def f(a, b):\n    return [a] * b",
        "input": "'x', 2",
        "output": "['x', 'x']",
    }
    path = write(tmp_path / "c.jsonl", row)
    [out] = CruxEval(path, predict="output").tasks()
    [given] = CruxEval(path, predict="input").tasks()
    for task, answers in (
        (out, ["assert f('x', 2) == ['x', 'x']", "```python\n['x', 'x']\n```"]),
        (given, ["assert f('x', 2) == ['x', 'x']", "`f('x', b=2)`"]),
    ):
        for answer in [*answers, task.reference or ""]:
            found = await pool.check(task.program(answer) or "", task.spec)
            assert found.verified, (task.id, answer)
    wrong = await pool.check(out.program("['x']") or "", out.spec)
    assert not wrong.verified
    assert out.program("assert f('x', 2) == ['x'] * 2") is None
    assert given.program("f(*['x', 2])") is None
    assert out.program("I do not know.") is None


def test_mbpp_rows_of_other_shapes(tmp_path: Path) -> None:
    google = {
        "task_id": 2,
        "text": "Add.",
        "code": "def add(a, b):\r\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
        "test_setup_code": "",
    }
    plus = google | {"task_id": 3, "prompt": "Add.", "test": "assert add(9, 9) == 18"}
    del plus["text"]
    path = write(tmp_path / "mbpp.jsonl", google, plus)
    [one, two] = TaskFile(path, name="mbpp+").tasks()
    assert (one.spec.entry_point, one.reference) == ("add", "def add(a, b):\n    return a + b")
    assert (len(one.spec.tests), len(two.spec.tests)) == (0, 1)
    assert len(TaskFile(path, plus=False).tasks()[1].spec.tests) == 0
    bad = write(tmp_path / "bad.jsonl", {"task_id": "Mbpp/2", "base_input": []})
    with pytest.raises(BenchmarkError, match="evalplus/mbppplus"):
        TaskFile(bad).tasks()


# --- the catalogue and the record ----------------------------------------------------------------


def test_a_benchmark_is_found_by_name_and_place(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    write(tmp_path / "eval" / "ds1000.jsonl.gz", DS_ROW)
    assert len(find("ds1000", data=tmp_path).tasks()) == 1
    assert len(find("builtin").tasks()) == 30
    path = write(tmp_path / "mine.jsonl", {"id": "a", "text": "x", "spec": SPEC})
    assert find(str(path)).name == "mine"
    for name in ENTRIES:
        with pytest.raises(BenchmarkError, match="does not ship"):
            find(name)
    with pytest.raises(BenchmarkError, match=r"holds none of HumanEval\.jsonl"):
        find("humaneval", data=tmp_path)
    with pytest.raises(BenchmarkError, match="no benchmark 'mmlu'"):
        find("mmlu")
    with pytest.raises(BenchmarkError, match="needs the record"):
        find("replay")


SPEC = {
    "entry_point": "f",
    "examples": [{"input": [1], "output": 2}, {"input": [2], "output": 3, "hidden": True}],
}


def test_replay_takes_logged_requests_with_hidden_examples(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'r.db'}")
    shown = {**SPEC, "examples": SPEC["examples"][:1]}
    rows = [
        interaction(messages=user("Add one."), spec=SPEC, verified=True),
        interaction(messages=user("Add  ONE"), spec=SPEC, verified=False),
        interaction(messages=user("Nothing hidden."), spec=shown),
        interaction(messages=user("No spec."), spec=None),
        interaction(messages=user("Malformed."), spec={"examples": 3}),
        interaction(messages=user("Elsewhere."), spec=SPEC, source=Source.IMPORTED),
        interaction(messages=user("More.") * 2, spec=SPEC),
    ]
    right = attempt(rows[0], choice_index=0, program="def f(x):\n    return x + 1\n")
    store.add([Recording(interaction=rows[0], attempts=[right])])
    store.add([Recording(interaction=row) for row in rows[1:]])
    [task] = Replay(store=store, share=1.0).tasks()
    assert task.id == f"replay/default/{rows[1].id}"
    assert tenant_of(task.id) == "default"
    assert task.reference is None
    assert Replay(store=store, share=0.0).tasks() == []
    store.close()


def test_a_request_is_held_back_or_not_however_it_is_written() -> None:
    assert held_back("Add one.", 0.5) == held_back("  add ONE", 0.5)
    share = sum(held_back(f"request {i}", 0.2) for i in range(2000)) / 2000
    assert share == pytest.approx(0.2, abs=0.03)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
