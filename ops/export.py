"""Exports: the record as files, and back: `journeyman export DIR`, `journeyman import DIR`.

    manifest.json          what it is, when it was made, rows and SHA-256 of each file; written last
    interactions.jsonl     one record of `ops.records` a line, as is every file below
    attempts.jsonl  executions.jsonl  feedback.jsonl
    cycles.jsonl  cycle_events.jsonl  dataset_rows.jsonl      of cycles that have ended
    erasures.jsonl         certificates: who was erased stays erased where this is imported
    datasets/CYCLE.NAME.jsonl      training rows as text, where asked for; NAME is train, held_out,
                                   preferences or preferences_held_out

All of it is one moment of the record, read while the server goes on, in pages. What was asked with
`store: false` was never recorded, and what was erased is gone; neither is in an export.

An import leaves what is there as it is, so that it may be repeated. Rows of somebody who was erased
after they were written, here or where the export was made, are left out, and so is what hangs on
them. Not exported: adapters and API keys (`ops.backup` holds them). Not imported: `datasets/`,
which are for other programs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ops.artifacts import MANIFEST, file_sha256
from ops.erasure import subject
from ops.errors import ExportError
from ops.records import (
    Attempt,
    Cycle,
    CycleEvent,
    DatasetRow,
    Erasure,
    Execution,
    Feedback,
    Interaction,
    Json,
    now,
)
from ops.store import Store

R = TypeVar("R")

FORMAT, VERSION = "journeyman-export", 1
RECORDS: dict[str, type] = {
    "erasures": Erasure,
    "interactions": Interaction,
    "attempts": Attempt,
    "executions": Execution,
    "feedback": Feedback,
    "cycles": Cycle,
    "cycle_events": CycleEvent,
    "dataset_rows": DatasetRow,
}
"""By file, in the order of an import: nothing comes before what it hangs on."""
DATASETS = "datasets"
ROWS = ("train", "held_out", "preferences", "preferences_held_out")
"""The files of a cycle's dataset (`improver.dataset`)."""
PAGE = 200
MAX_MANIFEST_BYTES = 1 << 24


def is_export(path: Path) -> bool:
    """Whether a path looks like an export, or like what is left of one."""
    return path.is_dir()


def write(
    store: Store,
    target: Path,
    *,
    tenant: str | None = None,
    since: datetime | None = None,
    cycles_dir: Path | None = None,
    on_row: Callable[[], None] = lambda: None,
) -> Json:
    """Write an export and return its manifest.

    Args:
        store: the record.
        target: a directory that does not exist; complete when it does.
        tenant: only what is this tenant's.
        since: only interactions from then on.
        cycles_dir: also the training rows of its cycles, as text; with neither tenant nor erasures
            under way.
        on_row: called after each row, for a progress bar.

    Raises:
        ExportError: the target is there, or cannot be written, or an erasure is not finished.
        StoreUnavailable: the record cannot be read.
    """
    if target.exists():
        raise ExportError(f"{target} is there already; an export makes a new directory")
    if cycles_dir is not None:
        _require_whole(store, tenant)
    draft = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        files: dict[str, Json] = {}
        with store.snapshot() as snapshot:
            for name, record in RECORDS.items():
                rows: Iterator[Any] = snapshot.rows(record, tenant=tenant, since=since)
                files[f"{name}.jsonl"] = _write_rows(draft / f"{name}.jsonl", record, rows, on_row)
        if cycles_dir is not None:
            files |= _copy_datasets(cycles_dir, draft / DATASETS)
        manifest: Json = {
            "format": FORMAT,
            "version": VERSION,
            "created_at": now().isoformat(),
            "tenant": tenant,
            "since": since.isoformat() if since else None,
            "files": files,
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        draft.rename(target)
    except OSError as error:
        raise ExportError(f"the export cannot be written: {error}") from error
    return manifest


def _require_whole(store: Store, tenant: str | None) -> None:
    if tenant is not None:
        raise ExportError("training rows mix tenants: they are exported for all of them only")
    for erasure in store.erasures():
        if erasure.finished_at is None:
            raise ExportError(
                f"the erasure {erasure.id} is not finished, so that files may hold what it erases; "
                "repeat `journeyman users erase`, then this"
            )


def _write_rows(path: Path, record: type, rows: Iterator[Any], on_row: Callable[[], None]) -> Json:
    digest, count, dump = hashlib.sha256(), 0, _adapters()[record].dump_json
    with path.open("wb") as file:
        for row in rows:
            line = dump(row) + b"\n"
            file.write(line)
            digest.update(line)
            count += 1
            on_row()
    return {"rows": count, "sha256": digest.hexdigest()}


def _copy_datasets(cycles_dir: Path, target: Path) -> dict[str, Json]:
    files: dict[str, Json] = {}
    target.mkdir()
    for source in sorted(cycles_dir.glob("*/dataset/*.jsonl")):
        if source.stem not in ROWS or source.is_symlink():
            continue
        copy = target / f"{source.parents[1].name}.{source.name}"
        shutil.copyfile(source, copy)
        with copy.open("rb") as file:
            rows = sum(1 for _ in file)
        files[f"{DATASETS}/{copy.name}"] = {"rows": rows, "sha256": file_sha256(copy)}
    return files


# --- import -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ImportReport:
    """What became of the rows of an export, by file."""

    imported: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    """Were there already; left as they are."""
    erased: Counter[str] = field(default_factory=Counter)
    """Of somebody who was erased."""
    orphans: Counter[str] = field(default_factory=Counter)
    """Hang on what is not there."""

    def as_json(self) -> Json:
        """The report as plain data."""
        return {
            "imported": dict(self.imported),
            "known_already": dict(self.known),
            "of_erased_users": dict(self.erased),
            "without_their_interaction": dict(self.orphans),
        }


def read_manifest(source: Path) -> Json:
    """Return the manifest of an export.

    Raises:
        ExportError: there is none that is ours, or it is from a newer version.
    """
    path = source / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ExportError(f"{path} is too long for a manifest")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ExportError(f"{source} is no export, or one that was not finished") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ExportError(f"{source} is not an export of Journeyman")
    if manifest.get("version") != VERSION:
        raise ExportError(
            f"{source} has version {manifest.get('version')!r}; this Journeyman reads {VERSION}"
        )
    if not isinstance(manifest.get("files"), dict):
        raise ExportError(f"{path} names no files")
    return manifest


def verify(source: Path) -> Json:
    """Read every byte of an export again and return its manifest.

    Raises:
        ExportError: a file is missing, altered, or not of an export.
    """
    manifest = read_manifest(source)
    for name, stated in manifest["files"].items():
        path = source / str(name)
        inside = path.resolve().is_relative_to(source.resolve()) and not path.is_symlink()
        if not inside or not path.is_file():
            raise ExportError(f"{source}: {name} is missing")
        if not isinstance(stated, dict) or file_sha256(path) != stated.get("sha256"):
            raise ExportError(f"{source}: {name} was altered, or is not whole")
    missing = [name for name in RECORDS if f"{name}.jsonl" not in manifest["files"]]
    if missing:
        raise ExportError(f"{source}: the manifest names no {missing[0]}.jsonl")
    return manifest


def read(store: Store, source: Path, *, on_row: Callable[[], None] = lambda: None) -> ImportReport:
    """Take an export into the record. Killed midway, the same call goes on.

    Args:
        store: the record.
        source: the export.
        on_row: called after each row, for a progress bar.

    Raises:
        ExportError: the export is not whole (nothing was taken in), or a row of it is no record.
        StoreUnavailable: the record cannot be written; rows before are in.
    """
    verify(source)
    intake = _Intake(store, [*store.erasures(), *_records(source, Erasure)])
    for name, record in RECORDS.items():
        page: list[Any]
        for page in _pages(_records(source, record)):
            intake.take(name, page)
            for _ in page:
                on_row()
    return intake.report


class _Intake:
    """Takes rows in, but for those that must stay out."""

    def __init__(self, store: Store, erasures: Sequence[Erasure]) -> None:
        self._store = store
        self._erasures = {erasure.id: erasure for erasure in erasures}.values()
        self._subjects: dict[str, list[Erasure]] = {}
        self._out: set[str] = set()
        """Interactions and feedback of erased users: rows made of them stay out, too."""
        self.report = ImportReport()

    def take(self, name: str, rows: Sequence[Any]) -> None:
        allowed = [row for row in rows if not self._is_erased(row)]
        whole = self._with_their_interaction(allowed)
        new = self._store.take_in(whole)
        report = self.report
        for counter, count in (
            (report.erased, len(rows) - len(allowed)),
            (report.orphans, len(allowed) - len(whole)),
            (report.imported, new),
            (report.known, len(whole) - new),
        ):
            if count:
                counter[name] += count

    def _is_erased(self, row: Any) -> bool:
        if isinstance(row, Interaction):
            gone = self._was_erased(row.user, row.tenant, row.created_at)
        elif isinstance(row, Feedback):
            gone = self._was_erased(row.user, None, row.created_at)
            gone = gone or row.interaction_id in self._out
        elif isinstance(row, DatasetRow):
            return not self._out.isdisjoint((*row.interaction_ids, *row.feedback_ids))
        else:
            return getattr(row, "interaction_id", None) in self._out
        if gone:
            self._out.add(row.id)
        return gone

    def _was_erased(self, user: str | None, tenant: str | None, at: datetime) -> bool:
        """Whether a user was erased after a moment; of feedback no tenant is known: in any."""
        if user is None:
            return False
        if user not in self._subjects:
            self._subjects[user] = [
                e for e in self._erasures if e.subject_sha256 == subject(e.id, user)
            ]
        return any(
            at <= erasure.created_at
            and (None in (tenant, erasure.tenant) or erasure.tenant == tenant)
            for erasure in self._subjects[user]
        )

    def _with_their_interaction(self, rows: Sequence[Any]) -> list[Any]:
        wanted = {row.interaction_id for row in rows if getattr(row, "interaction_id", None)}
        episodes = {row.episode_id for row in rows if isinstance(row, Feedback) and row.episode_id}
        there = self._store.present(Interaction, wanted) if wanted else set()
        held = self._store.episodes_present(episodes) if episodes else set()
        return [
            row
            for row in rows
            if (getattr(row, "interaction_id", None) in (None, *there))
            and (not isinstance(row, Feedback) or row.episode_id in (None, *held))
        ]


def _records(source: Path, record: type[R]) -> Iterator[R]:
    """Yield the records of a file.

    Raises:
        ExportError: a line is none; names it.
    """
    name = next(name for name, known in RECORDS.items() if known is record)
    path, adapter = source / f"{name}.jsonl", _adapters()[record]
    known = {one.name for one in fields(record)}  # type: ignore[arg-type]
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield _record(f"{path}, line {number}", line, adapter, known)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error}") from error


def _record(place: str, line: bytes, adapter: TypeAdapter[R], known: set[str]) -> R:
    try:
        given = json.loads(line)
        if not isinstance(given, dict) or given.keys() - known:
            raise ExportError(f"{place}: not a record of this version")
        return adapter.validate_json(line)
    except (ValidationError, ValueError, RecursionError) as error:
        raise ExportError(f"{place}: {str(error).splitlines()[0]}") from error


def _pages(rows: Iterator[R]) -> Iterator[list[R]]:
    page: list[R] = []
    for row in rows:
        page.append(row)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


@cache
def _adapters() -> dict[type, TypeAdapter[Any]]:
    return {record: TypeAdapter(record) for record in RECORDS.values()}


def row_count(manifest: Json) -> int:
    """Return how many records an export says it holds."""
    stated = [manifest["files"].get(f"{name}.jsonl") for name in RECORDS]
    counts = [one.get("rows") for one in stated if isinstance(one, dict)]
    return sum(count for count in counts if isinstance(count, int))
