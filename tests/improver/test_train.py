"""Training: the right tokens are learned, a killed run ends as it would have, refusals."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from improver import train, trainer
from improver.errors import TrainingError
from improver.trainer import run_training
from improver.types import STARTED_BY, TrainJob, to_json
from ops import probe

ROWS = [
    {
        "id": f"r{i}",
        "messages": [{"role": "user", "content": f"Write f{i}." + " Please." * (i % 4)}],
        "answer": f"```python\ndef f{i}():\n    return {i}\n```" + "\u2028" * (i == 5),
    }
    for i in range(12)
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster on one thread, whatever else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def job(train_job: TrainJob) -> TrainJob:
    return train_job


MADE, PROVED = {"phase": 1, "epochs": 1}, {"phase": 2, "epochs": 2}
PHASED = [
    {**row, "provenance": {} if n % 4 == 3 else (MADE, PROVED)[n % 2]} for n, row in enumerate(ROWS)
]


def prepare(
    directory: Path, job: TrainJob, held_out: int = 3, rows_of: list[dict[str, Any]] = ROWS
) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "job.json").write_text(json.dumps(to_json(job)))
    for name, rows in (("train", rows_of[held_out:]), ("held_out", rows_of[:held_out])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(text)
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(str(directory / "adapter" / "adapter_model.safetensors"))


def test_only_the_answer_and_its_end_are_learned(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = train.encode(tokenizer, [{"role": "user", "content": "hi"}], "yes")
    prompt = tokenizer.decode(row.ids[: row.prompt])
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    # The newline that the template writes after the end of the turn is never generated.
    assert tokenizer.decode(row.ids[row.prompt :]) == "yes<|im_end|>"


def test_answer_logprobs_are_those_of_the_whole_model(job: TrainJob, tmp_path: Path) -> None:
    run = train.Run(prepare(tmp_path / "a", job), job, lambda line: None)
    run.model.eval()
    rows = run.rows[:3]
    with torch.no_grad():
        found = train.answer_logprobs(run.model, rows, run.device).tolist()
        wanted = []
        for row in rows:  # one by one, unpadded, over all positions
            ids = torch.tensor([row.ids])
            logits = run.model(input_ids=ids).logits[0].float().log_softmax(-1)
            wanted += [logits[t - 1, row.ids[t]].item() for t in range(row.prompt, len(row.ids))]
    assert found == pytest.approx(wanted, abs=1e-4)


def test_gradients_by_parts_are_those_of_the_whole(job: TrainJob, tmp_path: Path) -> None:
    run = train.Run(prepare(tmp_path / "a", job), job, lambda line: None)
    run.model.eval()
    with torch.no_grad():  # LoRA's B is zero at first, and A's gradient with it
        for weight in run.weights:
            weight.add_(torch.randn_like(weight) * 0.05)
    rows = run.rows[:3]
    loss = -train.answer_logprobs(run.model, rows, run.device).sum() / 50
    loss.backward()
    wanted = [weight.grad.clone() for weight in run.weights if weight.grad is not None]
    run.optimizer.zero_grad(set_to_none=True)
    assert train.learn(run.model, rows, run.device, 50, part=7) == pytest.approx(loss.item())
    found = [weight.grad for weight in run.weights if weight.grad is not None]
    assert len(found) == len(wanted) == len(run.weights)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("started_by", "status"), [("parent", 0), ("somebody else", 1)])
def test_a_training_whose_starter_is_gone_does_not_begin(
    monkeypatch: pytest.MonkeyPatch, started_by: str, status: int
) -> None:
    by = str(os.getpid()) if started_by == "parent" else "999999999"
    monkeypatch.setenv(STARTED_BY, by)
    process = multiprocessing.get_context("fork").Process(target=train.die_with_parent)
    process.start()
    process.join()
    assert process.exitcode == status


def test_activations_may_be_computed_again_instead_of_kept(job: TrainJob, tmp_path: Path) -> None:
    passes: dict[bool, int] = {}
    found: dict[bool, list[torch.Tensor]] = {}
    for again in (False, True):
        changed = replace(job, dropout=0.0, gradient_checkpointing=again)
        run = train.Run(prepare(tmp_path / str(again), changed), changed, lambda line: None)
        torch.manual_seed(3)
        with torch.no_grad():  # LoRA's B is zero at first, and A's gradient with it
            for weight in run.weights:
                weight.add_(torch.randn_like(weight) * 0.05)
        seen: list[int] = []
        layer = run.model.get_base_model().model.layers[0].mlp.gate_proj
        layer.register_forward_hook(lambda *told, seen=seen: seen.append(1))
        run.model.train()
        train.learn(run.model, run.rows[:3], run.device, 50)
        passes[again] = len(seen)
        found[again] = [w.grad for w in run.weights if w.grad is not None]
    assert passes == {False: 1, True: 2}
    assert len(found[True]) == len(found[False]) > 0
    for one, other in zip(found[True], found[False], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_loss_falls_and_all_is_left_behind(job: TrainJob, tmp_path: Path) -> None:
    directory = prepare(tmp_path / "a", job)
    report = train.train(directory)
    assert report["loss_last"] < report["loss_first"] - 0.3
    assert report["held_out_loss"] < report["held_out_loss_base"]
    assert report["tokens_per_s"] > 0
    assert report["peak_memory_bytes"] > 0
    kept = json.loads((directory / "training.json").read_text())
    assert kept == json.loads(json.dumps(report))
    adapter = directory / "adapter"
    names = {path.name for path in adapter.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "probe.json",
        "training.json",
    }
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["r"] == 8
    assert str(tmp_path) not in (adapter / "training.json").read_text()
    texts = probe.read(adapter)
    assert len(texts) == train.PROBE_TEXTS + 1
    result = probe.compare(
        texts, [t.base_logprobs for t in texts], [t.adapter_logprobs for t in texts]
    )
    assert result.accepted, result.reason


@pytest.mark.parametrize("rows", [ROWS, PHASED], ids=["one phase", "two phases"])
def test_a_run_killed_at_any_step_ends_with_the_same_adapter(
    job: TrainJob, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    whole = prepare(tmp_path / "whole", job, rows_of=rows)
    train.train(whole)
    for stop in (1, 5):
        broken = prepare(tmp_path / f"broken{stop}", job, rows_of=rows)

        def kill(line: dict[str, Any], stop: int = stop) -> None:
            if line["step"] > stop:
                raise KeyboardInterrupt

        run = train.Run(broken, job, kill)
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert (broken / "checkpoint.pt").exists()
        train.train(broken)
        assert weights(broken).keys() == weights(whole).keys()
        for name, value in weights(whole).items():
            assert torch.equal(value, weights(broken)[name]), name
        for name in ("adapter_config.json", "probe.json"):
            assert (broken / "adapter" / name).read_bytes() == (
                whole / "adapter" / name
            ).read_bytes()


def same_adapter(broken: Path, job: TrainJob, whole: Path) -> None:
    """Check an adapter byte by byte against that of a training which nobody stopped."""
    train.train(prepare(whole, job))
    for name in ("adapter_model.safetensors", "adapter_config.json", "probe.json"):
        same = (broken / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()
        assert same, name


def test_kill_9_in_the_middle_changes_nothing(job: TrainJob, tmp_path: Path) -> None:
    broken = prepare(tmp_path / "broken", job)

    def until_killed() -> None:
        def wait(line: dict[str, Any]) -> None:
            if line["step"] == 5:
                (broken / "middle").touch()
                time.sleep(600)

        train.Run(broken, job, wait).run()

    # Forked: a fresh process would import torch for ten seconds.
    process = multiprocessing.get_context("fork").Process(target=until_killed)
    process.start()
    while not (broken / "middle").exists():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = torch.load(broken / "checkpoint.pt", weights_only=True)["progress"]["step"]
    report = train.train(broken)
    assert 0 < kept < report["steps"] == report["steps_planned"]
    same_adapter(broken, job, tmp_path / "whole")


@pytest.mark.slow
async def test_a_training_that_its_user_stops_goes_on_to_the_same_adapter(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused in the middle, it is started again, ends bit by bit the same, and is done then."""
    monkeypatch.setattr(trainer, "POLL_S", 0.02)
    job = replace(job, epochs=12, patience=1000)  # it must not be over before it is stopped
    broken = prepare(tmp_path / "broken", job)
    first: list[dict[str, Any]] = []
    # More threads than free cores make so small a model many times slower.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    training = asyncio.ensure_future(
        run_training(broken, job, nice=5, environment=alone, on_progress=first.append)
    )
    async with asyncio.timeout(300):
        while not (first and (broken / "checkpoint.pt").exists()):
            await asyncio.sleep(0.01)
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert not (broken / "training.json").exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(broken) not in running.stdout, "something trains on behind our back"
    seen = (broken / "progress.jsonl").read_text().count("\n")
    report = train.train(broken)
    told = (broken / "progress.jsonl").read_text().splitlines()[seen:]
    steps = [json.loads(line)["step"] for line in told]
    assert 1 < steps[0] < steps[-1] == report["steps"], "it began anew, or was never stopped"
    same_adapter(broken, job, tmp_path / "whole")
    # Started again it finds its work done.
    (broken / "job.json").write_text("{}")
    again = await run_training(broken, job, nice=5, environment={})
    assert again == json.loads(json.dumps(report))


def test_training_stops_when_the_held_out_loss_rises(job: TrainJob, tmp_path: Path) -> None:
    job = replace(job, epochs=30, learning_rate=0.3, dropout=0.0)
    report = train.train(prepare(tmp_path / "a", job))
    assert report["stopped_early"]
    assert report["best_step"] < report["steps"] < report["steps_planned"]


def test_without_held_out_rows_the_last_weights_count(job: TrainJob, tmp_path: Path) -> None:
    report = train.train(prepare(tmp_path / "a", job, held_out=0))
    assert report["held_out_loss"] is None
    assert report["best_step"] == report["steps"] == report["steps_planned"]


def test_steps_take_every_row_once_an_epoch() -> None:
    rows = [train.Encoded([0] * length, 1) for length in (5, 90, 7, 80, 6, 85)]
    found = train.plan_steps(rows, epochs=2, batch_rows=3, seed=1)
    plan = found.steps
    assert len(plan) == 4
    assert (found.last_phase, found.epoch) == (0, 2)
    for epoch in (plan[:2], plan[2:]):
        assert sorted(i for step in epoch for i in step) == list(range(6))
    assert found == train.plan_steps(rows, epochs=2, batch_rows=3, seed=1)
    # Rows of like length share a step.
    assert {frozenset(step) for step in plan} == {frozenset({0, 2, 4}), frozenset({1, 3, 5})}


def test_what_is_trusted_comes_last_and_as_often_as_it_says() -> None:
    told = [(2, 2), (1, 1), (2, None), (1, 1), (1, 2), (2, 1)]
    rows = [train.Encoded([0] * 9, 1, phase, epochs) for phase, epochs in told]
    plan = train.plan_steps(rows, epochs=3, batch_rows=2, seed=1)
    order = [i for step in plan.steps for i in step]
    assert [rows[i].phase for i in order] == [1] * 4 + [2] * 6
    assert [order.count(i) for i in range(6)] == [2, 1, 3, 1, 2, 1]
    assert plan.last_phase == 3
    assert plan.epoch == 2


def test_a_run_never_stops_before_the_last_phase(job: TrainJob, tmp_path: Path) -> None:
    job = replace(job, epochs=30, learning_rate=0.3, dropout=0.0, patience=1)
    rows = [
        {**row, "provenance": {"phase": 1, "epochs": 12} if n % 2 else {"phase": 2}}
        for n, row in enumerate(ROWS)
    ]
    report = train.train(prepare(tmp_path / "a", job, held_out=4, rows_of=rows))
    last = report["steps_before_last_phase"]
    looked = [line for line in report["curve"] if line["step"] <= last and "held_out_loss" in line]
    assert any(b["held_out_loss"] > a["held_out_loss"] for a, b in pairwise(looked)), "it got worse"
    assert report["stopped_early"]
    assert last < report["best_step"] < report["steps"] < report["steps_planned"]
    # Only what the last phase teaches is looked at.
    assert report["held_out_rows"] == 2
    assert report["rows_by_phase"] == {1: 4, 2: 4}


@pytest.mark.parametrize("told", [{"phase": 0}, {"phase": "2"}, {"epochs": 0}, {"epochs": True}])
def test_a_row_with_a_senseless_place_is_refused(
    job: TrainJob, tmp_path: Path, told: dict[str, Any]
) -> None:
    rows = [*ROWS[:5], {**ROWS[5], "provenance": told}]
    with pytest.raises(TrainingError, match="row r5: phase"):
        train.train(prepare(tmp_path / "a", job, rows_of=rows))


def test_microbatches_stay_below_their_limit() -> None:
    rows = [train.Encoded([0] * n, 1) for n in (50, 10, 30, 45, 20)]
    groups = list(train.microbatches(rows, 100))
    assert sum(len(group) for group in groups) == 5
    assert all(len(group) * len(group[0].ids) <= 100 for group in groups)


def test_rows_that_are_too_long_are_named(job: TrainJob, tmp_path: Path) -> None:
    directory = prepare(tmp_path / "a", job)
    long = {**ROWS[0], "id": "long", "answer": "x" * 1000}
    with (directory / "train.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    assert train.train(directory)["rows_too_long"] == ["long"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 12}, "rank 12"),
        ({"rank": 32}, "max_lora_rank"),
        ({"target_modules": ("nowhere",)}, "none of the layers"),
        ({"max_tokens": 4}, "max_tokens"),
        ({"learning_rate": 1e30}, "loss is (nan|inf)"),
    ],
)
def test_what_cannot_be_served_or_learned_is_refused(
    job: TrainJob, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        train.train(prepare(tmp_path / "a", replace(job, **change)))


def test_a_directory_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"job\.json"):
        train.train(tmp_path)
