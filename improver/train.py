"""Train a LoRA adapter from `train.jsonl`: `python -m improver.train DIRECTORY`.

A process of its own, at lower priority, started by `trainer`: it reads `job.json`, `train.jsonl`
and `held_out.jsonl`, and leaves `adapter/` (peft's files, `training.json`, the probe of
`ops.probe`), `progress.jsonl`, and last `training.json`, whose presence means complete. Killed at
any point it goes on from `checkpoint.pt` and ends with the very adapter it would have made.

What is done here, and why not trl's SFTTrainer: the loss is on the answer and its end-of-turn token
only, so the vocabulary projection, the largest matrix of a small model, is computed at answer
positions only; rows of like length share a microbatch; and a killed run resumes bit by bit.

Rows are trained in phases (`Phase`): the model's own making first, what is trusted last, each as
often as its row says, always from the base. The step sizes run through all phases in one arc. The
early stop, and the choice of the best step, begin with the last phase: a run must not end before
what is trusted was learned (Inverse-Instruct's ablation: the reverse order costs 12 points).

Plain cross-entropy on the answer is the objective of all three recipes (ILF, arXiv 2303.16749,
section 2.2; GIFT4Code, arXiv 2402.08073; Inverse-Instruct, arXiv 2407.05700). Deviation: LoRA
where the papers tune all weights, hence larger learning rates than theirs.

Covered: one device (CUDA, else the CPU), gradient checkpointing, early stop on a held-out split,
refusal of what the engine would refuse. Not covered: several devices. Preferences are `prefer`'s,
which goes on from what this step leaves.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from improver.errors import TrainingError
from improver.types import STARTED_BY, Phase, TrainJob, from_json
from ops import probe
from ops.records import Json
from ops.services import cpu_flags

SERVABLE_RANKS = (8, 16, 32, 64, 128)
HEAD_TOKENS = 128
"""Answer tokens whose logits are held at once: 150,000 words times four bytes each."""
NEUTRAL_TEXT = "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n"
PROBE_TEXTS = 2
PROBE_CANDIDATES = 8
PROBE_BEFORE, PROBE_AFTER = 10, 22
"""Tokens of a probe text before the answer begins and in it. The engine is asked for each token by
a request of its own, so a probe is short; an adapter acts most where the answer begins."""


@dataclass(frozen=True)
class Encoded:
    """A row as tokens: `ids` of length n, of which the first `prompt` are not learned.

    `epochs` None means as often as the job says.
    """

    ids: list[int]
    prompt: int
    phase: int = int(Phase.TRUSTED)
    epochs: int | None = None


# --- rows ----------------------------------------------------------------------------------------


def encode(tokenizer: Any, messages: Sequence[Json], answer: str) -> Encoded:
    """Write a row in the served model's chat template.

    The prompt is tokenised apart from the answer, as it is when the model is served, so that no
    token straddles the border. The answer ends with the template's end-of-turn token.

    Raises:
        TrainingError: the template does not put the answer after the prompt.
    """
    prompt = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], tokenize=False
    )
    if not whole.startswith(prompt):
        raise TrainingError("the chat template does not continue the prompt with the answer")
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    # What the template writes after the end of the turn (a newline, say) is never generated.
    end = tokenizer.eos_token_id
    if end in answer_ids:
        answer_ids = answer_ids[: len(answer_ids) - answer_ids[::-1].index(end)]
    else:
        answer_ids = [*answer_ids, end]
    return Encoded([*prompt_ids, *answer_ids], len(prompt_ids))


def read_rows(path: Path, tokenizer: Any, max_tokens: int) -> tuple[list[Encoded], list[str]]:
    """Return the rows of a file as tokens, and the ids of those that are too long."""
    rows, too_long = [], []
    # Not `splitlines`: JSON strings may hold U+2028 and its like as they are.
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for line in filter(None, lines):
        row = json.loads(line)
        encoded = encode(tokenizer, row["messages"], row["answer"])
        if len(encoded.ids) > max_tokens:
            too_long.append(row["id"])
        else:
            told = row.get("provenance") or {}
            phase, epochs = told.get("phase", int(Phase.TRUSTED)), told.get("epochs")
            if not _whole(phase) or not (epochs is None or _whole(epochs)):
                raise TrainingError(f"row {row['id']}: phase {phase!r}, epochs {epochs!r}")
            rows.append(replace(encoded, phase=phase, epochs=epochs))
    return rows, too_long


def _whole(number: Any) -> bool:
    return type(number) is int and number >= 1


@dataclass(frozen=True)
class StepPlan:
    """A whole run: for each optimiser step the indices of its rows.

    `last_phase` is the step at which the last phase begins, `epoch` the steps of its first epoch.
    """

    steps: list[list[int]]
    last_phase: int
    epoch: int


def plan_steps(rows: Sequence[Encoded], *, epochs: int, batch_rows: int, seed: int) -> StepPlan:
    """Lay out the whole run, phase by phase, each row as often as it says.

    Rows of like length share a step, so that little is padded; which ones and in what order is
    drawn anew each epoch from the seed.

    Args:
        rows: all of them.
        epochs: passes over rows that do not say how many.
        batch_rows: rows per step.
        seed: of the order.
    """
    rng = random.Random(seed)
    steps: list[list[int]] = []
    begin = epoch = 0
    for phase in sorted({row.phase for row in rows}):
        begin = len(steps)
        often = {i: row.epochs or epochs for i, row in enumerate(rows) if row.phase == phase}
        for passed in range(max(often.values())):
            left = [i for i, wanted in often.items() if wanted > passed]
            order = sorted(left, key=lambda i: len(rows[i].ids) * rng.uniform(0.8, 1.25))
            batches = [order[i : i + batch_rows] for i in range(0, len(order), batch_rows)]
            rng.shuffle(batches)
            steps += batches
            if passed == 0:
                epoch = len(batches)
    return StepPlan(steps, last_phase=begin, epoch=epoch)


def microbatches(rows: Sequence[Encoded], limit_tokens: int) -> Iterator[list[Encoded]]:
    """Split a step's rows, longest first, into groups of at most `limit_tokens` when padded."""
    group: list[Encoded] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        longest = len(group[0].ids) if group else len(row.ids)
        if group and longest * (len(group) + 1) > limit_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


# --- loss ----------------------------------------------------------------------------------------


def answer_states(
    model: Any, rows: Sequence[Encoded], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states that predict the rows' answers, and the tokens they should predict.

    Padding is on the right: under a causal mask it changes nothing to its left, so no attention
    mask is passed and the faster kernels stay available.

    Returns:
        States (answers, width) and targets (answers), all rows one after the other.
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)  # (batch, seq)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
    ids = ids.to(device)
    inner = model.get_base_model()
    hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state  # (batch, seq, width)
    # The token at t is predicted from the state at t - 1.
    states = torch.cat([hidden[i, row.prompt - 1 : len(row.ids) - 1] for i, row in enumerate(rows)])
    targets = torch.cat([ids[i, row.prompt : len(row.ids)] for i, row in enumerate(rows)])
    return states, targets


def _logprobs(model: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = model.get_base_model().lm_head(states).float()  # (answers, vocabulary)
    return -F.cross_entropy(logits, targets, reduction="none")


def answer_logprobs(model: Any, rows: Sequence[Encoded], device: torch.device) -> torch.Tensor:
    """Return the log-probabilities of all answer tokens of `rows`, in one flat tensor."""
    states, targets = answer_states(model, rows, device)
    parts = zip(states.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)
    return torch.cat([_logprobs(model, *part) for part in parts])


def learn(
    model: Any, rows: Sequence[Encoded], device: torch.device, answers: int, part: int = HEAD_TOKENS
) -> float:
    """Add the gradient of the rows' summed loss over `answers` to the weights; return that loss.

    The vocabulary is taken `part` tokens at a time, forward and backward, and only then the rest of
    the model backward: a 0.5B model's logits would else be most of the memory.
    """
    states, targets = answer_states(model, rows, device)
    leaf = states.detach().requires_grad_()
    total = 0.0
    for some, wanted in zip(leaf.split(part), targets.split(part), strict=True):
        loss = -_logprobs(model, some, wanted).sum() / answers
        loss.backward()
        total += loss.item()
    states.backward(leaf.grad)
    return total


def mean_loss(
    model: Any, rows: Sequence[Encoded], device: torch.device, limit_tokens: int
) -> float:
    """Return nats per answer token over `rows`, without learning from them."""
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for group in microbatches(rows, limit_tokens):
            values = answer_logprobs(model, group, device)
            total -= values.sum().item()
            count += values.numel()
    model.train()
    return total / max(count, 1)


# --- model ---------------------------------------------------------------------------------------


def check_servable(job: TrainJob) -> None:
    """Refuse what the engine would refuse when the adapter is loaded.

    Raises:
        TrainingError: names the setting.
    """
    if job.rank not in SERVABLE_RANKS:
        raise TrainingError(f"rank {job.rank} cannot be served; one of {SERVABLE_RANKS}")
    if job.rank > job.max_lora_rank:
        raise TrainingError(
            f"rank {job.rank} is above engine.max_lora_rank = {job.max_lora_rank}: "
            "the engine would refuse the adapter"
        )


def check_modules(model: Any, wanted: Sequence[str]) -> list[str]:
    """Return those of the wanted linear layers that the model has.

    Raises:
        TrainingError: it has none of them.
    """
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    found = [name for name in wanted if name in names]
    if not found:
        raise TrainingError(f"the base model has none of the layers {', '.join(wanted)}")
    return found


def pick_device() -> torch.device:
    """CUDA where there is some, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it natively, else fp32.

    On a CPU without `avx512_bf16` or AMX, bf16 is emulated and slower than fp32.
    """
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = cpu_flags() & {"avx512_bf16", "amx_bf16"}
    return torch.bfloat16 if native else torch.float32


def load_base(job: TrainJob, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the base model.

    Raises:
        TrainingError: it cannot be loaded, or is no decoder that is known here.
    """
    try:
        base = AutoModelForCausalLM.from_pretrained(
            job.base_directory, dtype=dtype, local_files_only=True, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load {job.base_directory}: {error}") from error
    if not hasattr(base, "lm_head") or not hasattr(base, "model"):
        raise TrainingError(f"{type(base).__name__} is not a decoder this step knows")
    return base.to(device)


def lora_config(job: TrainJob, base: Any) -> LoraConfig:
    """What the adapter is like."""
    return LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        target_modules=check_modules(base, job.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def load_model(job: TrainJob, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the base and put fresh LoRA layers into it; their weights stay fp32."""
    base = load_base(job, device, dtype)
    if job.gradient_checkpointing:
        # Not the reentrant kind: with frozen embeddings it would find nothing to learn.
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return get_peft_model(base, lora_config(job, base))


# --- the run -------------------------------------------------------------------------------------


@dataclass
class Progress:
    """All that a checkpoint keeps beside the weights."""

    step: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    busy_s: float = 0.0
    looked_s: float = 0.0
    evaluations: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0
    stopped_early: bool = False


class Run:
    """One training run, resumable at every step."""

    def __init__(self, directory: Path, job: TrainJob, report: Callable[[Json], None]) -> None:
        check_servable(job)
        self.directory = directory
        self.job = job
        self._report = report
        self._began = time.monotonic()
        torch.manual_seed(job.seed)
        self.device = pick_device()
        self.dtype = pick_dtype(job.dtype, self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(job.base_directory, local_files_only=True)
        self.rows, self.too_long = read_rows(
            directory / "train.jsonl", self.tokenizer, job.max_tokens
        )
        held_out, _ = read_rows(directory / "held_out.jsonl", self.tokenizer, job.max_tokens)
        if not self.rows:
            raise TrainingError(f"no row fits into max_tokens = {job.max_tokens}")
        # What the last phase teaches decides when to stop; other rows do where it holds out none.
        last = max(row.phase for row in self.rows)
        self.held_out = [row for row in held_out if row.phase == last] or held_out
        self.plan = plan_steps(
            self.rows, epochs=job.epochs, batch_rows=job.batch_rows, seed=job.seed
        )
        self.steps = self.plan.steps
        self.model = load_model(job, self.device, self.dtype)
        self.model.train()
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in weights)
        self.weights = weights
        self.optimizer = torch.optim.AdamW(weights, lr=job.learning_rate, weight_decay=0.0)
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self.curve: list[Json] = []

    @property
    def checkpoint(self) -> Path:
        """Where the run is kept between kills."""
        return self.directory / "checkpoint.pt"

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to a tenth."""
        steps = len(self.steps)
        warm = max(1, round(steps * self.job.warmup_share))
        if step < warm:
            return self.job.learning_rate * (step + 1) / warm
        left = (steps - step) / max(1, steps - warm)
        return self.job.learning_rate * (0.1 + 0.9 * left)

    def run(self) -> None:
        """Train to the end or to the early stop, from the checkpoint where there is one."""
        resumed = self._load()
        every = self._evaluate_every()
        if not resumed and self.held_out:
            self._evaluate()
        saved = time.monotonic()
        while self.progress.step < len(self.steps) and not self.progress.stopped_early:
            self._step()
            step = self.progress.step
            if self.held_out and (step % every == 0 or step == len(self.steps)):
                self._evaluate()
            if time.monotonic() - saved >= self.job.checkpoint_s or step == len(self.steps):
                self._save()
                saved = time.monotonic()
        if self.best:
            set_peft_model_state_dict(self.model, self.best)

    def _evaluate_every(self) -> int:
        return max(1, self.plan.epoch // self.job.evaluations_per_epoch)

    def _step(self) -> None:
        began = time.monotonic()
        progress, job = self.progress, self.job
        rate = self.learning_rate(progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = [self.rows[i] for i in self.steps[progress.step]]
        answers = sum(len(row.ids) - row.prompt for row in rows)
        total = 0.0
        for microbatch in microbatches(rows, job.microbatch_tokens):
            total += learn(self.model, microbatch, self.device, answers)
            progress.padded_tokens += len(microbatch) * len(microbatch[0].ids)
        if not math.isfinite(total):
            raise TrainingError(f"the loss is {total} at step {progress.step}")
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += sum(len(row.ids) for row in rows)
        progress.busy_s += time.monotonic() - began
        self._note({"loss": total, "learning_rate": rate})

    def _evaluate(self) -> None:
        progress, began = self.progress, time.monotonic()
        loss = mean_loss(self.model, self.held_out, self.device, self.job.microbatch_tokens)
        progress.looked_s += time.monotonic() - began
        progress.evaluations += 1
        # Looks at the untouched base and before the last phase: marks on the curve, no candidates.
        candidate = progress.step > self.plan.last_phase
        if candidate and loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.worse = loss, progress.step, 0
            self.best = adapter_weights(self.model)
        elif candidate:
            progress.worse += 1
            progress.stopped_early = progress.worse >= self.job.patience
        self._note({"held_out_loss": loss})

    def _note(self, what: Json) -> None:
        progress = self.progress
        line = {
            "step": progress.step,
            "steps": len(self.steps),
            "tokens_per_s": round(progress.tokens / progress.busy_s, 1) if progress.busy_s else 0,
            **what,
        }
        self.curve.append(line)
        self._report(line)

    def _save(self) -> None:
        draft = self.checkpoint.with_suffix(".draft")
        with draft.open("wb") as file:
            torch.save(
                {
                    "progress": asdict(self.progress),
                    "curve": self.curve,
                    "weights": adapter_weights(self.model),
                    "best": self.best,
                    "optimizer": self.optimizer.state_dict(),
                    "rng": torch.get_rng_state(),
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.checkpoint)

    def _load(self) -> bool:
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.progress = Progress(**state["progress"])
        self.curve = state["curve"]
        self.best = state["best"]
        set_peft_model_state_dict(self.model, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        return True

    # --- what is left behind ---------------------------------------------------------------------

    def finish(self) -> Json:
        """Write the adapter, its probe and the report; return the report."""
        texts = probe_texts(self.model, self.rows, self.tokenizer, self.device)
        report = self._summary()
        leave(self.directory, self.model, self.job, texts, report)
        return report

    def _summary(self) -> Json:
        progress = self.progress
        losses = [line["loss"] for line in self.curve if "loss" in line]
        held_out = [line["held_out_loss"] for line in self.curve if "held_out_loss" in line]
        return {
            "job": {k: v for k, v in asdict(self.job).items() if k != "base_directory"},
            "rows": len(self.rows),
            "held_out_rows": len(self.held_out),
            "rows_too_long": self.too_long,
            "answer_tokens": sum(len(row.ids) - row.prompt for row in self.rows),
            "steps": progress.step,
            "steps_planned": len(self.steps),
            "steps_before_last_phase": self.plan.last_phase,
            "rows_by_phase": dict(Counter(int(row.phase) for row in self.rows)),
            "stopped_early": progress.stopped_early,
            "best_step": progress.best_step or progress.step,
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "held_out_loss_base": held_out[0] if held_out else None,
            "held_out_loss": progress.best_loss if held_out else None,
            "trainable_parameters": self.trainable,
            "tokens": progress.tokens,
            "tokens_per_s": round(progress.tokens / max(progress.busy_s, 1e-9), 1),
            "padding_share": round(1 - progress.tokens / max(progress.padded_tokens, 1), 3),
            "train_s": round(progress.busy_s, 1),
            "held_out_s": round(progress.looked_s, 1),
            "process_s": round(time.monotonic() - self._began, 1),
            "peak_memory_bytes": peak_memory(self.device),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "curve": self.curve,
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        }


def leave(
    directory: Path, model: Any, job: TrainJob, texts: Sequence[probe.ProbeText], report: Json
) -> None:
    """Write what a run leaves: `adapter/`, and last `training.json`."""
    draft = directory / "adapter"
    draft.mkdir(exist_ok=True)
    save_file(adapter_weights(model), str(draft / "adapter_model.safetensors"))
    config = model.peft_config["default"].to_dict()
    config |= {
        "base_model_name_or_path": job.base_name,
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
    }
    text = json.dumps(config, indent=1, sort_keys=True, default=_plain)
    (draft / "adapter_config.json").write_text(text + "\n")
    probe.write(draft, texts)
    text = json.dumps(report, indent=1, sort_keys=True) + "\n"
    (draft / "training.json").write_text(text)
    (directory / "training.json.draft").write_text(text)
    (directory / "training.json.draft").replace(directory / "training.json")


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights by name, as they are written."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {
        name: value.detach().to("cpu", torch.float32).clone().contiguous()
        for name, value in sorted(state.items())
    }


def probe_texts(
    model: Any, rows: Sequence[Encoded], tokenizer: Any, device: torch.device
) -> list[probe.ProbeText]:
    """Texts at which the adapter acts: the rows it shifts most, and a neutral one."""
    model.eval()
    shortest = sorted(rows, key=lambda row: len(row.ids))[:PROBE_CANDIDATES]
    texts = [_probe_text(model, _opening(row), device) for row in shortest]
    texts.sort(key=lambda text: -_shift(text))
    neutral = tokenizer(NEUTRAL_TEXT, add_special_tokens=False)["input_ids"]
    return [*texts[:PROBE_TEXTS], _probe_text(model, neutral, device)]


def _probe_text(model: Any, ids: list[int], device: torch.device) -> probe.ProbeText:
    row = [Encoded(ids, 1)]
    with torch.no_grad():
        tuned = answer_logprobs(model, row, device).tolist()
        with model.disable_adapter():
            base = answer_logprobs(model, row, device).tolist()
    return probe.ProbeText(token_ids=ids, base_logprobs=base, adapter_logprobs=tuned)


def _opening(row: Encoded) -> list[int]:
    return row.ids[max(0, row.prompt - PROBE_BEFORE) : row.prompt + PROBE_AFTER]


def _shift(text: probe.ProbeText) -> float:
    pairs = zip(text.adapter_logprobs, text.base_logprobs, strict=True)
    return sum(abs(a - b) for a, b in pairs) / len(text.base_logprobs)


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def peak_memory(device: torch.device) -> int:
    """The most memory that was in use: the device's, on a CPU the process's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def die_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is gone, or end at once.

    Importing torch takes seconds. Whoever was killed meanwhile may have been started again, and
    two must not train in one directory.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig, sigterm = 1, 15
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, sigterm, 0, 0, 0)
    if os.environ.get(STARTED_BY, str(os.getppid())) != str(os.getppid()):
        raise SystemExit("whoever started this training is gone")


def read_job(directory: Path) -> TrainJob:
    """Read what is to be trained.

    Raises:
        TrainingError: there is no such file, or it is malformed.
    """
    try:
        return from_json(TrainJob, json.loads((directory / "job.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{directory} has no readable job.json: {error}") from error


def train(directory: Path) -> Json:
    """Run the job of a directory to its end and return its report.

    Raises:
        TrainingError: the job is malformed, cannot be served, or the loss is not finite.
    """
    job = read_job(directory)
    with (directory / "progress.jsonl").open("a", encoding="utf-8") as file:

        def report(line: Json) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        run = Run(directory, job, report)
        run.run()
        return run.finish()


def main() -> int:
    """Entry point of the process."""
    die_with_parent()
    try:
        train(Path(sys.argv[1]))
    except TrainingError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
