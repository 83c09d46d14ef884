"""Merged weights on disk: a base model with an adapter added to it, and what both were.

    <data_dir>/merged/<adapter's sha256>/<digest>/   sealed (`ops.artifacts`); merge.json is in it

`improver.merge` makes them, the second engine of `journeyman up` serves them (`ops.second_engine`),
and a server reads here what such an engine was started with. They can be made again at any time, so
they are kept only for the champion. Nothing is computed here.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from ops import artifacts
from ops.errors import ArtifactError

FILE = "merge.json"


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What was merged, and the number format that it was written in."""

    adapter_sha256: str
    base_sha256: str
    dtype: str


def write(directory: Path, merge: Merge) -> None:
    """Say in a draft what it was made of."""
    (directory / FILE).write_text(json.dumps(asdict(merge)))


def read(directory: Path) -> Merge:
    """Return what merged weights were made of.

    Raises:
        ArtifactError: these are none, or they are incomplete.
    """
    if not (directory / artifacts.MANIFEST).is_file():
        raise ArtifactError(f"{directory} is incomplete")
    try:
        return Merge(**json.loads((directory / FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{directory} has no readable {FILE}: {error}") from error


def find(folder: Path, merge: Merge) -> Path | None:
    """Return the directory of a merge, where it is complete; its bytes are not read."""
    for directory in sorted((folder / merge.adapter_sha256).glob("*")):
        try:
            if not directory.name.startswith(".") and read(directory) == merge:
                return directory
        except ArtifactError:
            continue
    return None


def keep_only(folder: Path, adapter_sha256: str | None) -> None:
    """Remove all merged weights but those of one adapter; None: all."""
    if folder.is_dir():
        for directory in folder.iterdir():
            if directory.name != adapter_sha256:
                shutil.rmtree(directory, ignore_errors=True)
