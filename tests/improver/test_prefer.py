"""Preferences are learned: the margin grows, a killed run goes on, refused rows are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from improver import prefer, train
from improver.errors import TrainingError
from improver.types import TrainJob, to_json
from ops import models, probe

pytestmark = pytest.mark.slow
"""TRL alone takes seconds to import."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row(number: int, **changes: Any) -> dict[str, Any]:
    values = {
        "id": f"p{number}",
        "messages": [{"role": "user", "content": f"Write f{number}."}],
        "answer": f"```python\ndef f{number}():\n    return {number}\n```",
        "rejected": f"```python\nprint('f{number}')\n```",
    }
    return values | changes


PAIRS = [row(n) for n in range(16)]
KEPT = [row(n, rejected=None) for n in range(16, 22)]
REFUSED = [row(n, answer="") for n in range(22, 28)]


@pytest.fixture
def job(train_job: TrainJob) -> TrainJob:
    return replace(
        train_job,
        dropout=0.0,
        epochs=1,
        preferences="dpo",
        preference_learning_rate=2e-2,
        preference_epochs=3,
    )


def prepare(directory: Path, job: TrainJob, rows: list[dict[str, Any]], held_out: int = 4) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "job.json").write_text(json.dumps(to_json(job)))
    parts = {"preferences": rows[held_out:], "preferences_held_out": rows[:held_out]}
    for name, part in parts.items():
        text = "".join(json.dumps(one) + "\n" for one in part)
        (directory / f"{name}.jsonl").write_text(text)
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(str(directory / "adapter" / "adapter_model.safetensors"))


def test_dpo_makes_the_better_answer_likelier_than_the_worse(job: TrainJob, tmp_path: Path) -> None:
    directory = prepare(tmp_path / "a", job, PAIRS)
    report = prefer.prefer(directory)
    assert report["held_out_margin_base"] == pytest.approx(0.0, abs=1e-6)
    assert report["held_out_margin"] > 0.05
    assert report["held_out_loss"] < report["held_out_loss_base"]
    assert report["steps_planned"] == 9
    assert probe.read(directory / "adapter")
    config = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == ("tiny", 8)
    told = [json.loads(line) for line in (directory / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told if "loss" in line] == list(range(1, report["steps"] + 1))
    assert all(line["tokens_per_s"] >= 0 for line in told)


def test_kto_learns_from_answers_judged_alone(job: TrainJob, tmp_path: Path) -> None:
    job = replace(job, preferences="kto")
    directory = prepare(tmp_path / "a", job, [*PAIRS[:4], *KEPT, *REFUSED], held_out=0)
    report = prefer.prefer(directory)
    assert report["rows"] == 2 * 4 + 6 + 6
    assert report["loss_last"] < report["loss_first"]
    assert report["held_out_loss"] is None


def test_it_goes_on_from_the_adapter_that_training_left(job: TrainJob, tmp_path: Path) -> None:
    directory = prepare(tmp_path / "a", job, PAIRS)
    for name in ("train", "held_out"):
        text = "".join(json.dumps(one) + "\n" for one in KEPT) if name == "train" else ""
        (directory / f"{name}.jsonl").write_text(text)
    train.train(directory)
    (directory / "adapter").rename(directory / "start")
    (directory / "training.json").unlink()
    still = replace(job, preference_learning_rate=1e-12)
    (directory / "job.json").write_text(json.dumps(to_json(still)))
    prefer.prefer(directory)
    start = load_file(str(directory / "start" / "adapter_model.safetensors"))
    for name, value in weights(directory).items():
        assert torch.allclose(value, start[name], atol=1e-6), name


@pytest.mark.parametrize("held_out", [0, 4])
def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(
    job: TrainJob, tmp_path: Path, held_out: int
) -> None:
    whole, broken = (prepare(tmp_path / name, job, PAIRS, held_out) for name in ("whole", "broken"))
    wanted = prefer.prefer(whole)

    def kill(line: dict[str, Any]) -> None:
        if line["step"] > 4:
            raise KeyboardInterrupt

    run = prefer.Run(broken, job, kill)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    kept = sorted(path.name for path in (broken / "checkpoints").iterdir())
    assert kept
    half = broken / "checkpoints" / "checkpoint-99"
    half.mkdir()
    report = prefer.prefer(broken)
    steps = [line["step"] for line in report["curve"]]
    assert steps == [line["step"] for line in wanted["curve"]]
    assert report["best_step"] == wanted["best_step"]
    if not held_out:
        assert steps == list(range(1, 13))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(broken)[name]), name
    assert not (broken / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "rows", "words"),
    [
        ({"preferences": "ppo"}, PAIRS, "one of dpo, kto"),
        ({}, KEPT, "0 rows for dpo"),
        ({"max_tokens": 4}, PAIRS, "max_tokens = 4"),
        ({"rank": 32}, PAIRS, "max_lora_rank"),
    ],
)
def test_what_cannot_be_learned_or_served_is_refused(
    job: TrainJob, tmp_path: Path, change: dict[str, Any], rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        prefer.prefer(prepare(tmp_path / "a", replace(job, **change), rows))


def test_a_starters_words_and_number_format_are_learned_in(job: TrainJob, tmp_path: Path) -> None:
    """With a real tokenizer, its own chat template, and the format that the device trains in."""
    starter = models.resolve("starter-small").directory
    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(starter, local_files_only=True)
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(shape).save_pretrained(base)
    job = replace(job, base_directory=str(base), dtype="auto", preference_epochs=2)
    report = prefer.prefer(prepare(tmp_path / "a", job, PAIRS[:5], held_out=1))
    assert report["steps"] == 2
    assert report["held_out_margin"] > 0.1 > abs(report["held_out_margin_base"])
