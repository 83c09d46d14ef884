"""Start the training processes and follow them.

    sweep/RATE/    a short run for each learning rate that is on offer; the held-out rows choose
    .              `improver.train` on the rows, with the rate that was chosen
    preferred/     `improver.prefer` on the preferences, from the adapter that training left

Each step is a process of its own (`python -m improver.train DIRECTORY`), at lower priority and with
the CPU environment of `ops.processes`, so that torch never enters the daemon and a crash of it is
an error here and no more. Killed with its parent, or ended because the call was cancelled, it goes
on from its last checkpoint when the stage is run again. Steps that have nothing to do are left out.

The learning rate is swept, since the papers' values are for all weights and ours is for LoRA.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from improver.errors import TrainingError
from improver.types import STARTED_BY, TrainJob, to_json
from ops.records import Json

POLL_S = 0.5
LAST_WORDS_BYTES = 4000
END_S = 10.0
"""How long the process may take to end when it is asked to; then it is killed."""
LEAST_PREFERENCES = 8
"""Fewer beside rows to imitate are left out: they would only shake what was learned."""
SWEEP_ROWS = 96
SWEEP_HELD_OUT = 48
"""Rows of a short run: enough to see which rates learn and which do harm, not how far one gets."""


class Step(Protocol):
    """One process of the run, unless it has done its work already."""

    async def __call__(self, folder: Path, job: TrainJob, module: str = ...) -> Json:
        """Run it and return its report."""


class Train(Protocol):
    """What a cycle needs of `run_training`."""

    async def __call__(
        self,
        directory: Path,
        job: TrainJob,
        *,
        nice: int,
        environment: Mapping[str, str],
        on_progress: Callable[[Json], None],
    ) -> Json:
        """Train from the rows in `directory`, leave `adapter/`, return the report."""


async def run_training(
    directory: Path,
    job: TrainJob,
    *,
    nice: int,
    environment: Mapping[str, str],
    on_progress: Callable[[Json], None] = lambda line: None,
) -> Json:
    """Train from the rows that lie in `directory` and return `training.json`.

    Args:
        directory: holds `train.jsonl` and `held_out.jsonl`, with preferences also
            `preferences.jsonl` and `preferences_held_out.jsonl`; gets `adapter/`.
        job: what to train.
        nice: added niceness.
        environment: of the process.
        on_progress: called with each line of progress.

    Raises:
        TrainingError: the process failed; the message has its last words.
    """

    async def step(folder: Path, job: TrainJob, module: str = "improver.train") -> Json:
        done = folder / "training.json"
        if not done.exists():
            (folder / "job.json").write_text(json.dumps(to_json(job), indent=1))
            await _run(module, folder, nice, environment, on_progress)
        try:
            report: Json = json.loads(done.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"the training process left no report: {error}") from error
        return report

    imitates = bool(_lines(directory / "train.jsonl"))
    liked = len(_lines(directory / "preferences.jsonl")) if job.preferences != "none" else 0
    # With nothing else to learn the process itself says that it is too little.
    prefers = liked >= LEAST_PREFERENCES or (liked > 0 and not imitates)
    if prefers and not imitates:
        report: Json = {}
    else:
        chosen, swept = await _sweep(directory, job, step)
        report = await step(directory, chosen) | ({"sweep": swept} if swept else {})
    if liked and not prefers:
        report |= {"preferences_left_out": liked}
    if not prefers:
        return report
    return await _prefer(directory, job, report, step)


async def _sweep(directory: Path, job: TrainJob, step: Step) -> tuple[TrainJob, Json]:
    """Try the learning rates that are on offer; return the job with the best, and the numbers."""
    rates = job.learning_rates
    if len(rates) < 2:
        return job, {}
    rows = _drawn(_lines(directory / "train.jsonl"), SWEEP_ROWS, job.seed)
    held_out = _drawn(_lines(directory / "held_out.jsonl"), SWEEP_HELD_OUT, job.seed)
    if not held_out:
        return job, {"why": "no held-out rows to judge by", "learning_rate": job.learning_rate}
    tried: list[Json] = []
    for rate in rates:
        folder = directory / "sweep" / f"{rate:g}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_text("".join(rows), encoding="utf-8")
        (folder / "held_out.jsonl").write_text("".join(held_out), encoding="utf-8")
        short = replace(job, learning_rate=rate, learning_rates=(), epochs=1, preferences="none")
        try:
            found = await step(folder, short)
        except TrainingError as error:
            tried.append({"learning_rate": rate, "held_out_loss": None, "error": str(error)})
            continue
        tried.append(
            {
                "learning_rate": rate,
                "held_out_loss_base": found["held_out_loss_base"],
                "held_out_loss": found["held_out_loss"],
                "steps": found["steps"],
                "train_s": found.get("train_s", 0.0),
                "held_out_s": found.get("held_out_s", 0.0),
            }
        )
    judged = [one for one in tried if one["held_out_loss"] is not None]
    if not judged:
        raise TrainingError(f"no learning rate works: {tried[-1]['error']}")
    best = min(judged, key=lambda one: float(one["held_out_loss"]))["learning_rate"]
    told = {"learning_rate": best, "rows": len(rows), "held_out": len(held_out), "tried": tried}
    return replace(job, learning_rate=best), told


async def _prefer(directory: Path, job: TrainJob, report: Json, step: Step) -> Json:
    """Go on with the preferences and put the adapter that comes of it in place of the first."""
    folder = directory / "preferred"
    if not (folder / "training.json").exists():
        folder.mkdir(exist_ok=True)
        for name in ("preferences.jsonl", "preferences_held_out.jsonl"):
            shutil.copyfile(directory / name, folder / name)
        if report:
            shutil.copytree(directory / "adapter", folder / "start", dirs_exist_ok=True)
    told = await step(folder, job, "improver.prefer")
    shutil.copytree(folder / "adapter", directory / "adapter", dirs_exist_ok=True)
    too_long = [*report.get("rows_too_long", []), *told["rows_too_long"]]
    # Where nothing was imitated, what is said of the training is what is said of the preferences.
    first = report or {**told, "train_s": 0.0}
    return {**first, "rows_too_long": too_long, "preferred": told}


def model_s(report: Json) -> float:
    """How long the model learned and was looked at, of a report; loading it is not in that."""
    parts = [report, report.get("preferred", {}), *report.get("sweep", {}).get("tried", ())]
    return sum(float(part.get("train_s", 0)) + float(part.get("held_out_s", 0)) for part in parts)


def _lines(path: Path) -> list[str]:
    """The rows of a file as they are; one that is not there has none."""
    if not path.exists():
        return []
    # Not `splitlines`: JSON strings may hold U+2028 and its like as they are.
    return [f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n") if line]


def _drawn(lines: list[str], count: int, seed: int) -> list[str]:
    return lines if len(lines) <= count else random.Random(seed).sample(lines, count)


async def _run(
    module: str,
    directory: Path,
    nice: int,
    environment: Mapping[str, str],
    on_progress: Callable[[Json], None],
) -> None:
    log = directory / "train.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *("nice", "-n", str(nice)) if nice else (),
            *(sys.executable, "-m", module, str(directory)),
            env=dict(environment) | {STARTED_BY: str(os.getpid())},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        step_back(process.pid, nice)
        follow = asyncio.create_task(
            _follow(directory / "progress.jsonl", on_progress), name="training-progress"
        )
        try:
            status = await process.wait()
        finally:
            follow.cancel()
            if process.returncode is None:
                await _end(process)
    if status != 0:
        raise TrainingError(f"the training process ended with {status}: {_last_words(log)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process; from its last checkpoint it goes on when it is started again."""
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def step_back(pid: int, nice: int) -> None:
    """Let everybody else go before the session that a process leads.

    Linux shares the processor between sessions first and heeds niceness only within one, unless
    the session's group has it too (sched(7), "The autogroup feature"). Where the kernel does not
    group, there is nothing to do.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


async def _follow(path: Path, on_progress: Callable[[Json], None]) -> None:
    # Lines of an earlier, killed run are not news.
    seen = path.stat().st_size if path.exists() else 0
    rest = b""
    while True:
        await asyncio.sleep(POLL_S)
        if not path.exists():
            continue
        with path.open("rb") as file:
            file.seek(seen)
            data = file.read()
        seen += len(data)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            on_progress(json.loads(line))


def _last_words(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_WORDS_BYTES))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    told = [line for line in lines if line.strip() and "Loading weights" not in line]
    return " | ".join(told[-3:]) or "it said nothing"
