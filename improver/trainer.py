"""Start the training process and follow it.

`improver.train` runs in a process of its own (`python -m improver.train DIRECTORY`), at lower
priority and with the CPU environment of `ops.processes`, so that torch never enters the daemon and
a crash of it is an error here and no more. Killed with its parent, or ended because the call was
cancelled, it goes on from its last checkpoint when the stage is run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from improver.errors import TrainingError
from improver.types import TrainJob, to_json
from ops.records import Json

POLL_S = 0.5
LAST_WORDS_BYTES = 4000
END_S = 10.0
"""How long the process may take to end when it is asked to; then it is killed."""


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
        directory: holds `train.jsonl` and `held_out.jsonl`; gets `adapter/`.
        job: what to train.
        nice: added niceness.
        environment: of the process.
        on_progress: called with each line of progress.

    Raises:
        TrainingError: the process failed; the message has its last words.
    """
    done = directory / "training.json"
    if not done.exists():
        (directory / "job.json").write_text(json.dumps(to_json(job), indent=1))
        await _run(directory, nice, environment, on_progress)
    try:
        report: Json = json.loads(done.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"the training process left no report: {error}") from error
    return report


async def _run(
    directory: Path,
    nice: int,
    environment: Mapping[str, str],
    on_progress: Callable[[Json], None],
) -> None:
    log = directory / "train.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *("nice", "-n", str(nice)) if nice else (),
            *(sys.executable, "-m", "improver.train", str(directory)),
            env=dict(environment),
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
