"""Import: whole rows or none, each once, bad ones named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from improver.errors import ImportFileError
from improver.importer import import_file, read_ilf
from ops.records import FeedbackSource, Metric, Source
from ops.store import Store
from sandbox.spec import extend_prompt
from tests.improver.conftest import ExecJudge

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples" / "feedback.jsonl"
ROW = {
    "task_id": 602,
    "paper_split": "MBPP_Train",
    "prompt": '"""\r\nWrite a function to halve.\r\n\r\n>>> Example: halve(3) = 1.5\r\n"""\r\n\r\n'
    "import math\r\ndef halve(x, y=2):\r\n",
    "original": '"""\r\nWrite a function to halve.\r\n"""\r\n'
    "def halve(x, y=2):\r\n    return x\r\n",
    "feedback": "It returns x unchanged.\r\nDivide by two.",
    "refinement": '"""\nWrite a function to halve.\n"""\ndef halve(x, y=2):\n    return x / y\n',
    "test": "from pytest import approx\n\ndef check(candidate):\n"
    '\tassert candidate(3) ==approx( 1.5), "message"\n'
    "\tassert candidate(8) ==approx( 4), 'message'\n",
}


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


async def test_a_row_of_the_paper_becomes_an_interaction(
    store: Store, judge: ExecJudge, tmp_path: Path
) -> None:
    done = await import_file(write(tmp_path / "f", ROW), "ilf", store, judge)
    assert done.as_json() == {
        "rows": 1,
        "imported": 1,
        "known_already": 0,
        "verified": 0,
        "skipped": {},
        "bad": 0,
        "problems": [],
    }
    [interaction] = store.interactions()
    assert interaction.source is Source.IMPORTED
    assert interaction.messages == [{"role": "user", "content": "Write a function to halve."}]
    assert interaction.verified is False
    assert interaction.metadata["task_id"] == "MBPP/602"
    [attempt] = store.attempts(interaction.id)
    assert attempt.program == "def halve(x, y=2):\n    return x\n"
    [execution] = store.executions(interaction.id)
    assert (execution.passed, execution.total) == (0, 2)
    given = {f.metric: f for f in store.feedback(interaction.id)}
    assert given[Metric.COMMENT].value == "It returns x unchanged.\nDivide by two."
    assert given[Metric.COMMENT].source is FeedbackSource.HUMAN
    assert given[Metric.DEMONSTRATION].value == "def halve(x, y=2):\n    return x / y\n"


def test_only_the_first_assert_is_shown() -> None:
    entry = read_ilf(ROW)
    assert entry.spec is not None
    assert [e.hidden for e in entry.spec.examples] == [False, True]
    assert entry.spec.examples[0].tolerance == pytest.approx(1.5e-6)
    prompt = extend_prompt(entry.messages[0]["content"], entry.spec)
    assert "halve(3) == 1.5" in prompt
    assert "halve(8)" not in prompt
    assert "import math" not in prompt


async def test_the_same_file_twice_is_imported_once(store: Store, judge: ExecJudge) -> None:
    first = await import_file(EXAMPLES, "ilf", store, judge)
    before = store.count()
    checks = judge.checks
    second = await import_file(EXAMPLES, "ilf", store, judge)
    assert first.imported == second.known == 20
    assert second.imported == 0
    assert store.count() == before
    assert judge.checks == checks


async def test_test_rows_are_left_out_and_counted(
    store: Store, judge: ExecJudge, tmp_path: Path
) -> None:
    rows = [{**ROW, "paper_split": split} for split in ("MBPP_Test", "prompt", "MBPP_Refine")]
    done = await import_file(write(tmp_path / "f", *rows), "ilf", store, judge)
    assert done.imported == 1
    assert done.skipped == {"split Test": 1, "split prompt": 1}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "not JSON"),
        ("[1]", "a JSON object is wanted"),
        ({**ROW, "feedback": ""}, "feedback: text is wanted"),
        ({**ROW, "prompt": "no docstring"}, "prompt: a docstring"),
        ({**ROW, "test": "def check(candidate):\n    assert candidate(1) == 2\n"}, "hold back"),
        ({**ROW, "test": "def check(c):\n    import os\n    os.remove('x')\n"}, "not an assert"),
        ({**ROW, "test": "def check("}, "test: not Python"),
    ],
)
async def test_a_bad_row_is_named_and_stops_nothing(
    store: Store, judge: ExecJudge, tmp_path: Path, row: Any, words: str
) -> None:
    done = await import_file(write(tmp_path / "f", row, ROW), "ilf", store, judge)
    assert done.imported == 1
    assert done.problems[0].startswith("line 1: ")
    assert words in done.problems[0]
    assert store.count()["interactions"] == store.count()["attempts"] == 1


async def test_a_sandbox_that_fails_leaves_nothing_behind(
    store: Store, judge: ExecJudge, tmp_path: Path
) -> None:
    judge.broken = True
    done = await import_file(write(tmp_path / "f", ROW), "ilf", store, judge)
    assert done.imported == 0
    assert "the sandbox is broken" in done.problems[0]
    assert store.count()["interactions"] == 0


PLAIN: dict[str, Any] = {
    "id": "a-1",
    "prompt": "Double a number.",
    "answer": "Sure.\n```python\ndef double(x):\n    return x\n```",
    "spec": {"entry_point": "double", "examples": [{"input": [2], "output": 4}]},
    "comment": "It must return twice the number.",
    "demonstration": "def double(x):\n    return 2 * x\n",
    "accepted": False,
    "rating": 0.2,
    "user": "ada",
    "metadata": {"team": "x"},
    "created_at": "2026-11-01T10:00:00+00:00",
}


async def test_the_plain_shape(store: Store, judge: ExecJudge, tmp_path: Path) -> None:
    no_spec = {"messages": [{"role": "user", "content": "hi"}], "program": "x = 1"}
    done = await import_file(write(tmp_path / "f", PLAIN, no_spec), "jsonl", store, judge)
    assert done.problems == []
    found = {i.verified: i for i in store.interactions()}
    assert found[False].user == "ada"
    assert found[False].created_at.isoformat() == "2026-11-01T10:00:00+00:00"
    given = {f.metric: f.value for f in store.feedback(found[False].id)}
    assert given == {
        Metric.COMMENT: PLAIN["comment"],
        Metric.DEMONSTRATION: PLAIN["demonstration"],
        Metric.ACCEPTED: False,
        Metric.RATING: 0.2,
    }
    assert found[None].spec is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "colour: not a field"),
        ({"accepted": "yes"}, "accepted: bool is wanted"),
        ({"rating": True}, "rating: int or float"),
        ({"spec": {"examples": [{"input": 3}]}}, "spec.examples[0].input"),
        ({"prompt": None, "messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "a role is"),
        ({"answer": "I do not know."}, "no program"),
        ({"metadata": {"a": 1}}, "metadata: values are text"),
        ({"created_at": "2026-11-01T10:00:00"}, "without a zone"),
    ],
)
async def test_a_malformed_plain_row_names_its_field(
    store: Store, judge: ExecJudge, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    done = await import_file(write(tmp_path / "f", {**PLAIN, **change}), "jsonl", store, judge)
    assert words in done.problems[0]
    assert store.count()["interactions"] == 0


async def test_a_file_that_cannot_be_read(store: Store, judge: ExecJudge, tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="cannot read"):
        await import_file(tmp_path / "absent", "ilf", store, judge)
    with pytest.raises(ImportFileError, match="no shape"):
        await import_file(EXAMPLES, "csv", store, judge)


async def test_what_is_imported_holds_no_secret_and_nobodys_address(
    store: Store, judge: ExecJudge, tmp_path: Path
) -> None:
    key = "AKIA" + "IOSFODNN7ABCDEFG"
    row = ROW | {"feedback": f"Ask ann@gmail.com for {key}."}
    await import_file(write(tmp_path / "f", row), "ilf", store, judge)
    [interaction] = store.interactions()
    [comment] = [f for f in store.feedback(interaction.id) if f.metric == Metric.COMMENT]
    assert str(comment.value).startswith("Ask [redacted:email:1] for [redacted:aws_key:")
