"""Tell how a cycle goes: bars in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

logger = logging.getLogger(__name__)

QUIET_S = 15.0


class Show(Protocol):
    """Where progress goes."""

    def stage(self, name: str, words: str) -> None:
        """A stage begins."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """So much of the stage is done."""

    def end(self, words: str) -> None:
        """The stage ended."""

    def close(self) -> None:
        """There is no more to tell."""


class LogShow:
    """Log lines: one at the start and end of a stage, and one every while."""

    def __init__(self, cycle_id: str) -> None:
        self._cycle_id = cycle_id
        self._stage = ""
        self._last = 0.0

    def stage(self, name: str, words: str) -> None:
        """Log the stage."""
        self._stage, self._last = name, time.monotonic()
        self._log(words)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Log the progress, not too often."""
        if time.monotonic() - self._last >= QUIET_S:
            self._last = time.monotonic()
            self._log(f"{done} of {total} {note}".rstrip())

    def end(self, words: str) -> None:
        """Log the outcome."""
        self._log(words)

    def close(self) -> None:
        """Nothing to do."""

    def _log(self, words: str) -> None:
        extra = {"action": "cycle", "cycle_id": self._cycle_id, "stage": self._stage}
        logger.info("%s: %s", self._stage, words, extra=extra)


class TerminalShow:
    """A bar for each stage."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._progress.start()

    def stage(self, name: str, words: str) -> None:
        """Add a bar."""
        self._task = self._progress.add_task(name, total=None, note=words)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)

    def end(self, words: str) -> None:
        """Fill the bar."""
        if self._task is not None:
            task = next(t for t in self._progress.tasks if t.id == self._task)
            total = task.total or 1
            self._progress.update(self._task, completed=total, total=total, note=words)
            self._progress.stop_task(self._task)
            self._task = None

    def close(self) -> None:
        """Leave the bars standing."""
        self._progress.stop()
