"""A cycle's directory: one folder per stage, complete or not there.

A stage works in `<stage>.partial/`. When it is done, its report is written to `report.json` in
there, last, and the folder is renamed to `<stage>/`. A killed cycle therefore finds complete stages
as they were, and in the unfinished one whatever that stage keeps for going on: the trainer's
checkpoint, or a `Journal` of what was done one by one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Self, TextIO

from ops.records import Json

REPORT = "report.json"


class Workspace:
    """The stages of one cycle on disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str) -> Path:
        """Where a complete stage's files are."""
        return self.directory / name

    def done(self, name: str) -> bool:
        """Whether a stage is complete."""
        return (self.stage(name) / REPORT).exists()

    def begin(self, name: str) -> Path:
        """Return the folder in which an unfinished stage works; it may hold earlier work."""
        partial = self.directory / f"{name}.partial"
        partial.mkdir(exist_ok=True)
        return partial

    def finish(self, name: str, report: Json) -> None:
        """Make a stage complete."""
        partial = self.begin(name)
        with (partial / REPORT).open("w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.stage(name))

    def report(self, name: str) -> Json:
        """Return a complete stage's report, or nothing where it is not complete."""
        if not self.done(name):
            return {}
        report: Json = json.loads((self.stage(name) / REPORT).read_text(encoding="utf-8"))
        return report


class Journal:
    """What a stage has done so far, one JSON line each, so that a killed stage goes on.

    An unfinished last line, as a kill leaves it, is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: dict[str, Json] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        good = 0
        if self._path.exists():
            with self._path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    entry = json.loads(line)
                    self.done[entry["key"]] = entry["data"]
                    good += len(line)
            os.truncate(self._path, good)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: str, data: Json) -> None:
        """Note that `key` is done."""
        if self._file is None:
            raise ValueError("the journal is not open")
        self._file.write(json.dumps({"key": key, "data": data}, ensure_ascii=False) + "\n")
        self._file.flush()
        self.done[key] = data
