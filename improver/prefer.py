"""Go on with preferences where training left off: `python -m improver.prefer DIRECTORY`.

A process of its own, started by `trainer` after `train`. It reads `job.json`, `preferences.jsonl`
and `preferences_held_out.jsonl`, begins with the adapter in `start/` where there is one, else with
a fresh one, and leaves what `train` leaves: `adapter/`, `progress.jsonl`, last `training.json`.

The losses are TRL's: DPO (arXiv 2305.18290) on pairs, KTO (arXiv 2402.01306) on answers judged one
by one, pairs among them taken apart. The reference is the base model, the adapter switched off: it
costs no memory, and an adapter is always measured by what it changes of the base.

A kill loses what was done since the last look at the held-out rows (`evaluations_per_epoch`; also
without held-out rows so many checkpoints are written): the weights, the optimiser, the schedule and
the state of the random numbers are in the checkpoint, and the rest of the epoch is drawn as before.
The early stop is by held-out loss, as in `train`, and the best step's weights are kept.

Deviation: LoRA with a learning rate above the papers'. Not covered: several devices.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from improver import train
from improver.errors import TrainingError
from improver.types import TrainJob
from ops.records import Json

LOSSES = ("dpo", "kto")
WHOLE = "complete"
"""Marks a checkpoint that was written to its end."""
AT_ONCE = {"dpo": 2, "kto": 4}
"""Rows in memory at once. KTO holds answers of one batch against each other, and needs several."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A row as it is read. At least one of `better` and `worse` is there."""

    id: str
    prompt: list[Json]
    better: str | None
    worse: str | None


def read_preferences(path: Path) -> list[Preference]:
    """Read the rows of a file; one that is not there has none."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows = (json.loads(line) for line in lines if line)
    return [
        Preference(
            id=row["id"],
            prompt=row["messages"],
            better=row["answer"] or None,
            worse=row.get("rejected"),
        )
        for row in rows
    ]


def of_dpo(rows: Sequence[Preference]) -> list[Json]:
    """Pairs as TRL wants them; what was judged alone is left away."""
    return [
        {"prompt": row.prompt, "chosen": _said(row.better), "rejected": _said(row.worse)}
        for row in rows
        if row.better is not None and row.worse is not None
    ]


def of_kto(rows: Sequence[Preference]) -> list[Json]:
    """Answers with a yes or no, as TRL wants them; a pair is two of them."""
    return [
        {"prompt": row.prompt, "completion": _said(answer), "label": label}
        for row in rows
        for answer, label in ((row.better, True), (row.worse, False))
        if answer is not None
    ]


def _said(answer: str | None) -> list[Json]:
    return [{"role": "assistant", "content": answer or ""}]


class _Follow(TrainerCallback):
    """Reports what TRL logs in the words of `train`, and marks checkpoints as whole."""

    def __init__(self, report: Callable[[Json], None], curve: list[Json]) -> None:
        self._report = report
        self.curve = curve
        self._began = time.monotonic()
        self._seen = 0

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        logs = more.get("logs") or {}
        held_out = "eval_loss" in logs
        if not held_out and "loss" not in logs:
            return
        prefix, name = ("eval_", "held_out_loss") if held_out else ("", "loss")
        seconds = time.monotonic() - self._began
        tokens = int(logs.get("num_tokens", self._seen))
        self._seen = max(self._seen, tokens)
        loss = float(logs[f"{prefix}loss"])
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {state.global_step}")
        line: Json = {
            "step": int(state.global_step),
            "steps": int(state.max_steps),
            "tokens_per_s": round(self._seen / max(seconds, 1e-9), 1),
            name: loss,
            f"{'held_out_' if held_out else ''}margin": logs.get(f"{prefix}rewards/margins"),
        }
        if "learning_rate" in logs:
            line["learning_rate"] = float(logs["learning_rate"])
        self.curve.append(line)
        self._report(line)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "curve.json").write_text(json.dumps(self.curve))
        (folder / WHOLE).touch()


class Run:
    """One run over preferences."""

    def __init__(self, directory: Path, job: TrainJob, report: Callable[[Json], None]) -> None:
        if job.preferences not in LOSSES:
            raise TrainingError(f"preferences = {job.preferences!r}: one of {', '.join(LOSSES)}")
        train.check_servable(job)
        self.directory, self.job = directory, job
        self._began = time.monotonic()
        self.device = train.pick_device()
        self.dtype = train.pick_dtype(job.dtype, self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(job.base_directory, local_files_only=True)
        told = read_preferences(directory / "preferences.jsonl")
        self.too_long = [row.id for row in told if self._length(row) > job.max_tokens]
        fitting = [row for row in told if row.id not in set(self.too_long)]
        held_out = [
            row
            for row in read_preferences(directory / "preferences_held_out.jsonl")
            if self._length(row) <= job.max_tokens
        ]
        form = of_dpo if job.preferences == "dpo" else of_kto
        self.rows, self.held_out = form(fitting), form(held_out)
        if len(self.rows) < AT_ONCE[job.preferences]:
            raise TrainingError(
                f"{len(self.rows)} rows for {job.preferences} fit into max_tokens = "
                f"{job.max_tokens}: too few"
            )
        self.encoded = [train.encode(self.tokenizer, row.prompt, _any(row)) for row in fitting]
        self.follow = _Follow(report, [])
        self._train_s = 0.0
        self.trainer = self._trainer()

    def _length(self, row: Preference) -> int:
        answers = [answer for answer in (row.better, row.worse) if answer is not None]
        return max(len(train.encode(self.tokenizer, row.prompt, one).ids) for one in answers)

    def _trainer(self) -> Any:
        disable_progress_bars()
        base = train.load_base(self.job, self.device, self.dtype)
        kind, config = (
            (DPOTrainer, DPOConfig) if self.job.preferences == "dpo" else (KTOTrainer, KTOConfig)
        )
        # Dropping out would make the reference and the adapter differ by chance; TRL turns it off.
        made = kind(
            model=base,
            args=config(**self._arguments()),
            train_dataset=Dataset.from_list(self.rows),
            eval_dataset=Dataset.from_list(self.held_out) if self.held_out else None,
            processing_class=self.tokenizer,
            peft_config=train.lora_config(self.job, base),
            callbacks=[
                self.follow,
                *([EarlyStoppingCallback(self.job.patience)] if self.held_out else []),
            ],
        )
        made.remove_callback(PrinterCallback)
        start = self.directory / "start" / "adapter_model.safetensors"
        if start.exists():
            set_peft_model_state_dict(made.model, load_file(str(start)))
        return made

    def _arguments(self) -> Json:
        job = self.job
        at_once = AT_ONCE[job.preferences]
        accumulate = max(1, job.batch_rows // at_once)
        steps = math.ceil(len(self.rows) / (at_once * accumulate))
        every = max(1, steps // job.evaluations_per_epoch)
        return {
            "output_dir": str(self.directory / "checkpoints"),
            "per_device_train_batch_size": at_once,
            "per_device_eval_batch_size": at_once,
            "gradient_accumulation_steps": accumulate,
            "num_train_epochs": job.preference_epochs,
            "learning_rate": job.preference_learning_rate,
            "warmup_steps": max(1, round(steps * job.preference_epochs * job.warmup_share)),
            "lr_scheduler_type": "linear",
            "beta": job.beta,
            "max_length": job.max_tokens,
            "seed": job.seed,
            "bf16": self.dtype is torch.bfloat16,
            "use_cpu": self.device.type == "cpu",
            "gradient_checkpointing": job.gradient_checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "logging_steps": 1,
            "eval_strategy": "steps" if self.held_out else "no",
            "eval_steps": every,
            "save_strategy": "steps",
            "save_steps": every,
            "save_total_limit": 2,
            "load_best_model_at_end": bool(self.held_out),
            "metric_for_best_model": "eval_loss" if self.held_out else None,
            "greater_is_better": False if self.held_out else None,
            "restore_callback_states_from_checkpoint": True,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": self.device.type != "cpu",
        }

    def run(self) -> None:
        """Train to the end or to the early stop, from the last whole checkpoint if there is one."""
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            self.follow.curve = json.loads((checkpoint / "curve.json").read_text())
        elif self.held_out:
            self.trainer.evaluate()
        began = time.monotonic()
        self.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self._train_s = time.monotonic() - began

    def _checkpoint(self) -> Path | None:
        """The last checkpoint that is whole; those that a kill left half are thrown away."""
        found = sorted(
            (self.directory / "checkpoints").glob("checkpoint-*"),
            key=lambda path: int(path.name.rsplit("-", 1)[1]),
        )
        for path in found:
            if not (path / WHOLE).exists():
                shutil.rmtree(path)
        return next((path for path in reversed(found) if path.exists()), None)

    def finish(self) -> Json:
        """Write the adapter, its probe and the report; return the report."""
        model = self.trainer.model
        texts = train.probe_texts(model, self.encoded, self.tokenizer, self.device)
        report = self._summary()
        train.leave(self.directory, model, self.job, texts, report)
        shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)
        return report

    def _summary(self) -> Json:
        state, curve = self.trainer.state, self.follow.curve
        losses = [line for line in curve if "loss" in line]
        looks = [line for line in curve if "held_out_loss" in line]
        best = min(looks[1:], key=lambda line: line["held_out_loss"], default=None)
        return {
            "job": {k: v for k, v in asdict(self.job).items() if k != "base_directory"},
            "loss": self.job.preferences,
            "rows": len(self.rows),
            "held_out_rows": len(self.held_out),
            "rows_too_long": self.too_long,
            "steps": int(state.global_step),
            "steps_planned": int(state.max_steps),
            "stopped_early": int(state.global_step) < int(state.max_steps),
            "best_step": best["step"] if best else int(state.global_step),
            "loss_first": losses[0]["loss"],
            "loss_last": losses[-1]["loss"],
            "margin_first": losses[0]["margin"],
            "margin_last": losses[-1]["margin"],
            "held_out_loss_base": looks[0]["held_out_loss"] if looks else None,
            "held_out_loss": best["held_out_loss"] if best else None,
            "held_out_margin_base": looks[0]["held_out_margin"] if looks else None,
            "held_out_margin": best["held_out_margin"] if best else None,
            "tokens_per_s": losses[-1]["tokens_per_s"],
            "train_s": round(self._train_s, 1),
            "process_s": round(time.monotonic() - self._began, 1),
            "peak_memory_bytes": train.peak_memory(self.device),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "curve": curve,
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        }


def _any(row: Preference) -> str:
    return row.better or row.worse or ""


def prefer(directory: Path) -> Json:
    """Run the job of a directory to its end and return its report.

    Raises:
        TrainingError: the job is malformed, cannot be served, or the loss is not finite.
    """
    job = train.read_job(directory)
    with (directory / "progress.jsonl").open("a", encoding="utf-8") as file:

        def report(line: Json) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        run = Run(directory, job, report)
        run.run()
        return run.finish()


def main() -> int:
    """Entry point of the process."""
    train.die_with_parent()
    # Several devices would be used as one by copying the model: that is not covered here.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = first
    try:
        prefer(Path(sys.argv[1]))
    except TrainingError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
