"""Directories that are complete or absent, and never change.

`seal` writes to a temporary name, adds a manifest of SHA-256 digests last, and renames. The
directory's name is the digest of its manifest, so that the same content has the same path and a
path is never used twice. `verify` reads every byte again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ops.errors import ArtifactError
from ops.records import new_id

MANIFEST = "manifest.json"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(parent: Path, write: Callable[[Path], None]) -> tuple[str, Path]:
    """Let `write` fill a directory, then make it immutable under `parent`.

    Returns:
        The digest of its manifest, and its path `parent/<digest>`. Where the same content is
        there already, nothing changes.

    Raises:
        ArtifactError: what was written holds something else than plain files.
    """
    parent.mkdir(parents=True, exist_ok=True)
    draft = parent / f".draft-{new_id()}"
    draft.mkdir()
    try:
        write(draft)
        manifest = json.dumps(_digests(draft), indent=1, sort_keys=True).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        with (draft / MANIFEST).open("wb") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        final = parent / digest
        if final.exists():
            verify(final)
        else:
            _sync(draft)
            draft.rename(final)
            _sync(parent)
        return digest, final
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def verify(directory: Path) -> str:
    """Read a sealed directory again and return its digest.

    Raises:
        ArtifactError: it is incomplete, altered, holds links or files the manifest does not
            name, or its name is not its digest.
    """
    try:
        manifest = (directory / MANIFEST).read_bytes()
        stated = json.loads(manifest)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory} has no readable manifest: {error}") from error
    digest = hashlib.sha256(manifest).hexdigest()
    if directory.name != digest:
        raise ArtifactError(f"{directory}: the manifest's digest is {digest}")
    found = _digests(directory)
    found.pop(MANIFEST, None)
    if found != stated:
        wrong = sorted(k for k in found.keys() | stated.keys() if found.get(k) != stated.get(k))
        raise ArtifactError(f"{directory}: altered, missing or unexpected: {', '.join(wrong)}")
    return digest


def _digests(directory: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(f"{path} is not a plain file")
        if path.is_file():
            digests[path.relative_to(directory).as_posix()] = file_sha256(path)
    return digests


def _sync(directory: Path) -> None:
    """Make renames and new files in a directory survive a power cut."""
    for path in [*directory.iterdir(), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
