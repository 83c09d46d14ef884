"""What cycles were trained on and how they were examined, through OpenAI's files and evals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from improver import decide, score
from improver.types import Origin, Row, write_lines
from ops import evidence
from ops.records import Cycle, CycleState
from tests.ops import records
from tests.server.conftest import Running


def _row(number: int) -> Row:
    return Row(
        id=f"r{number}",
        recipe="ilf",
        origin=next(iter(Origin)),
        task="t",
        messages=[{"role": "user", "content": "add\u2028two"}],
        answer="```python\npass\n```",
        program="pass",
        interaction_ids=["i1"],
        feedback_ids=["f1"],
        prompt_sha256="",
        program_sha256="",
    )


def _cycle(server: Running, directory: Path, **changes: Any) -> Cycle:
    cycle = records.cycle(directory=str(directory), **changes)
    server.store.add_cycle(cycle)
    return cycle


def test_the_rows_of_a_cycle_are_a_fine_tuning_file(server: Running, tmp_path: Path) -> None:
    (tmp_path / "c" / "dataset").mkdir(parents=True)
    write_lines(tmp_path / "c" / "dataset" / "train.jsonl", [_row(1), _row(2)])
    write_lines(tmp_path / "c" / "dataset" / "held_out.jsonl", [])
    cycle = _cycle(server, tmp_path / "c", report={"dataset": {"train": 2}})
    _cycle(server, tmp_path / "nothing")
    client = server.openai.files
    listed = list(client.list())
    assert [file.id for file in listed] == [f"file-{cycle.id}-train", f"file-{cycle.id}-report"]
    assert [file.id for file in client.list(purpose="fine-tune-results")] == [listed[1].id]
    file = client.retrieve(listed[0].id)
    assert file.bytes == (tmp_path / "c" / "dataset" / "train.jsonl").stat().st_size
    lines = client.content(file.id).text.removesuffix("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    assert [row["metadata"]["id"] for row in rows] == ["r1", "r2"]
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]
    assert json.loads(client.content(listed[1].id).text) == {"dataset": {"train": 2}}
    job = server.openai.fine_tuning.jobs.retrieve(f"ftjob-{cycle.id}")
    assert [job.training_file, *job.result_files] == [file.id for file in listed]


def test_preferences_are_a_file_of_better_and_worse_answers(
    server: Running, tmp_path: Path
) -> None:
    (tmp_path / "c" / "dataset").mkdir(parents=True)
    pair = replace(_row(1), recipe="preferences", rejected="worse")
    alone = replace(_row(2), recipe="preferences", answer="", rejected="worse")
    write_lines(tmp_path / "c" / "dataset" / "preferences.jsonl", [pair, alone])
    cycle = _cycle(server, tmp_path / "c", report={})
    [file] = server.openai.files.list(purpose="fine-tune")
    assert file.id == f"file-{cycle.id}-preferences"
    text = server.openai.files.content(file.id).text
    one, other = map(json.loads, text.removesuffix("\n").split("\n"))
    assert one["input"]["messages"] == pair.messages
    assert one["preferred_output"] == [{"role": "assistant", "content": pair.answer}]
    assert one["non_preferred_output"] == [{"role": "assistant", "content": "worse"}]
    assert other["preferred_output"] == []
    assert "messages" not in one


def test_no_file_outside_a_cycle_can_be_named(server: Running, tmp_path: Path) -> None:
    cycle = _cycle(server, tmp_path)
    names = ("x", "file-x-train", f"file-{cycle.id}-train", "file-..-train", f"file-{cycle.id}-x")
    for name in (*names, "file-%2e%2e%2f%2e%2e%2fetc-train"):
        for path in (f"/v1/files/{name}", f"/v1/files/{name}/content"):
            assert server.http.get(path).status_code == 404, path


def test_an_examination_is_a_run_with_what_decided(server: Running, tmp_path: Path) -> None:
    target = decide.Pairs(won=12, lost=1, errors=2)
    better = evidence.e_value(target.won, target.lost)
    report = {
        "evaluate": {"champion": "base", "candidate": "code@v3"},
        "decide": {
            "decision": "promote",
            "reason": "better than the champion",
            "numbers": {"target": target.as_json(), "e_better": better},
        },
    }
    _cycle(server, tmp_path, state=CycleState.FAILED, report={})
    open_ = {"evaluate": report["evaluate"]}
    running = _cycle(server, tmp_path, state=CycleState.RUNNING, report=open_)
    done = _cycle(server, tmp_path, state=CycleState.SUCCEEDED, report=report)
    (gate,) = server.openai.evals.list()
    assert server.openai.evals.retrieve(gate.id).name == "gate"
    runs = list(server.openai.evals.runs.list(gate.id))
    assert [run.id for run in runs] == [f"evalrun_{done.id}", f"evalrun_{running.id}"]
    assert [run.status for run in runs] == ["completed", "in_progress"]
    run = server.openai.evals.runs.retrieve(runs[0].id, eval_id=gate.id)
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (15, 12, 1, 2)
    assert run.model == "code@v3"
    comparison = run.to_dict()["comparison"]
    assert isinstance(comparison, dict)
    assert comparison["discordant"] == [12, 1]
    assert comparison["decision"] == "promote"
    assert comparison["e_value"] == pytest.approx(better)


def _score(path: Path, benchmark: str, model: str, *passed: int) -> None:
    plan = score.Plan(benchmark=benchmark, model=model, samples=2)
    tasks = [
        score.TaskScore(
            id=str(place),
            judged=2,
            passed=good,
            ran=2,
            verdicts={"OK": good, "WRONG": 2 - good},
            tokens=1,
            answer_tokens=[1],
            versions=[3],
        )
        for place, good in enumerate(passed)
    ]
    found = score.report(plan, tasks, left_out=[], prompts="", seconds=1.0, url="http://x")
    score.write(path / plan.file_name("http://x"), found)


def test_a_benchmark_that_was_run_is_an_eval(server: Running) -> None:
    directory = server.settings.evaluations_dir
    assert [e.name for e in server.openai.evals.list()] == ["gate"]
    _score(directory, "humaneval", "code", 2, 1, 0)
    _score(directory, "humaneval", "code@v3", 2, 2, 2)
    _score(directory, "my tasks", "code", 1)
    (directory / "broken.json").write_text("{")
    (directory / "other.json").write_text("[]")
    assert [e.name for e in server.openai.evals.list()] == ["gate", "humaneval", "my tasks"]
    (_, humaneval, mine) = server.openai.evals.list()
    assert server.openai.evals.retrieve(mine.id).to_dict() == mine.to_dict()
    runs = list(server.openai.evals.runs.list(humaneval.id))
    assert {run.model: run.result_counts.passed for run in runs} == {"code": 3, "code@v3": 6}
    run = next(run for run in runs if run.model == "code")
    same = server.openai.evals.runs.retrieve(run.id, eval_id=humaneval.id)
    assert same.to_dict() == run.to_dict()
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (6, 3, 3, 0)
    assert run.to_dict()["pass_at"]["1"]["mean"] == pytest.approx(0.5)  # type: ignore[index]
    for path in (f"{mine.id}/runs/{run.id}", "eval_benchmark_x", "eval_benchmark_x/runs"):
        assert server.http.get(f"/v1/evals/{path}").status_code == 404


def test_what_is_not_there_is_a_404(server: Running, tmp_path: Path) -> None:
    cycle = _cycle(server, tmp_path, report={})
    for path in ("other", "other/runs", "eval_gate/runs/x", f"eval_gate/runs/evalrun_{cycle.id}"):
        assert server.http.get(f"/v1/evals/{path}").status_code == 404, path
    with pytest.raises(openai.NotFoundError):
        server.openai.evals.retrieve("x")
