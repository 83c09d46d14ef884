"""Backups of an installation and their way back: `journeyman backup DIR`, `journeyman restore DIR`.

    manifest.json       what it is, when it was made, the SHA-256 of every file; written last
    record.db           SQLite, copied by its backup API while the server writes; or
    record.dump         PostgreSQL, by pg_dump in its own format
    adapters/           all versions that have their files
    cycles/             the directories of cycles that have ended
    journeyman.toml     the settings file, where there is one

Everything the installation knows is in it, keys' digests and hidden examples too: keep it as you
keep the data directory. Not in it: models (they are fetched again), logs, cycles that were running
(a restored one begins its stages anew), and the installation's own key, which is made again.

A backup of SQLite may be restored to PostgreSQL: that is the way from one to the other.

Restoring does not bring back who was erased since: certificates of the record that is replaced, or
out of a file, are applied to what comes back. Keys that were revoked since stay revoked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from pydantic import TypeAdapter

from ops.artifacts import MANIFEST, file_sha256
from ops.erasure import Eraser, subject
from ops.errors import ExportError, NotFound, OpsError
from ops.records import CycleState, Erasure, Json, Tainted, now
from ops.registry import Registry
from ops.store import Store

FORMAT, VERSION = "journeyman-backup", 1
SQLITE, POSTGRESQL = "record.db", "record.dump"
SETTINGS = "journeyman.toml"
ALL_CYCLES = 1_000_000
ACTOR = "restore"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where an installation keeps what is backed up."""

    store_url: str
    data_dir: Path
    adapters_dir: Path
    cycles_dir: Path
    evaluations_dir: Path
    settings_file: Path


@dataclass(kw_only=True)
class Restored:
    """What a restore did."""

    record: str
    adapters: int = 0
    cycles: int = 0
    erased_again: list[str] = field(default_factory=list)
    """Certificates of the erasures that were done again."""
    put_aside: str | None = None
    """Where the record that was replaced lies."""


# --- backup -----------------------------------------------------------------------------------


def write(places: Places, target: Path, *, on_file: Callable[[], None] = lambda: None) -> Json:
    """Write a backup and return its manifest. The server may run meanwhile.

    Args:
        places: the installation.
        target: a directory that does not exist; complete when it does.
        on_file: called after each file, for a progress bar.

    Raises:
        ExportError: the target is there or cannot be written, or pg_dump is missing or fails.
        StoreUnavailable: the record cannot be read.
    """
    if target.exists():
        raise ExportError(f"{target} is there already; a backup makes a new directory")
    draft = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        store = Store.open(places.store_url)
        try:
            kind = store.kind
            _write_record(store, draft)
            # After the record: a directory that it names and that is gone was erased meanwhile.
            named = [Path(adapter.directory) for adapter in store.adapters()]
            _copy(named, draft / "adapters", on_file)
            _copy(_ended(store), draft / "cycles", on_file)
        finally:
            store.close()
        if places.settings_file.is_file():
            shutil.copyfile(places.settings_file, draft / SETTINGS)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        manifest: Json = {
            "format": FORMAT,
            "version": VERSION,
            "created_at": now().isoformat(),
            "database": kind,
            "data_dir": str(places.data_dir),
            "files": {str(path.relative_to(draft)): file_sha256(path) for path in files},
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        draft.rename(target)
    except OSError as error:
        raise ExportError(f"the backup cannot be written: {error}") from error
    return manifest


def _write_record(store: Store, draft: Path) -> None:
    if store.kind == "sqlite":
        store.back_up(draft / SQLITE)
    else:
        _run_postgres(store.url, "pg_dump", ["--format=custom", f"--file={draft / POSTGRESQL}"])


def _ended(store: Store) -> list[Path]:
    at_work = {CycleState.QUEUED, CycleState.PAUSED, CycleState.RUNNING}
    return [Path(c.directory) for c in store.cycles(limit=ALL_CYCLES) if c.state not in at_work]


def _copy(sources: Iterable[Path], target: Path, on_file: Callable[[], None]) -> None:
    for source in sources:
        if source.is_dir() and not source.is_symlink() and not (target / source.name).exists():
            with suppress(FileNotFoundError):  # erased meanwhile
                shutil.copytree(source, target / source.name, symlinks=True)
        on_file()


def _run_postgres(url: str, program: str, arguments: Sequence[str]) -> None:
    """Run one of PostgreSQL's programs on a database; the password goes by the environment."""
    parsed = sa.make_url(url).set(drivername="postgresql")
    environment = dict(os.environ)
    if parsed.password is not None:
        environment["PGPASSWORD"] = str(parsed.password)
    plain = parsed.set(password=None).render_as_string(hide_password=False)
    command = [program, *arguments, f"--dbname={plain}"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ExportError(
            f"{program} cannot be run: {error}; Debian: apt-get install postgresql-client"
        ) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ExportError(f"{program}: {lines[-1]}")


# --- restore ----------------------------------------------------------------------------------


def verify(source: Path) -> Json:
    """Read every byte of a backup again and return its manifest.

    Raises:
        ExportError: it is none, from a newer version, or a file is missing or altered.
    """
    path = source / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ExportError(f"{source} is no backup, or one that was not finished") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ExportError(f"{source} is not a backup of Journeyman")
    if manifest.get("version") != VERSION:
        raise ExportError(
            f"{source} has version {manifest.get('version')!r}; this Journeyman reads {VERSION}"
        )
    root = source.resolve()
    for name, digest in manifest["files"].items():
        file = source / name
        if not file.resolve().is_relative_to(root) or file.is_symlink() or not file.is_file():
            raise ExportError(f"{source}: {name} is missing")
        if file_sha256(file) != digest:
            raise ExportError(f"{source}: {name} was altered")
    return manifest


def read_certificates(path: Path) -> list[Erasure]:
    """Return erasures out of a file: `erasures.jsonl` of an export, kept apart from backups.

    Raises:
        ExportError: it cannot be read, or a line is no certificate.
    """
    adapter = TypeAdapter(Erasure)
    try:
        return [adapter.validate_json(line) for line in path.read_bytes().splitlines() if line]
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} holds no certificates: {str(error).splitlines()[0]}") from error


def restore(
    source: Path,
    places: Places,
    *,
    policy: Tainted,
    replace: bool = False,
    certificates: Sequence[Erasure] = (),
) -> Restored:
    """Put a backup in the place of an installation that does not run.

    Args:
        source: the backup.
        places: where it goes; the data directory may be another than that of the backup.
        policy: what becomes of a champion that learned from somebody who was erased since.
        replace: also where there is a record already; SQLite's is put aside, PostgreSQL's is gone.
        certificates: further erasures that are to be done again.

    Raises:
        ExportError: the backup is not whole or of another database, or there is a record already.
        StoreUnavailable: the database cannot be reached.
    """
    manifest = verify(source)
    kind = sa.make_url(places.store_url).get_backend_name()
    if manifest["database"] == "postgresql" and kind != "postgresql":
        raise ExportError(
            "this is a backup of PostgreSQL, which only PostgreSQL reads; `journeyman export` and "
            "`import` bring the record, without adapters and keys, to any database"
        )
    before = _what_is_there(places, replace=replace)
    erasures = {one.id: one for one in (*before.erasures, *certificates)}
    done = Restored(record=kind)
    if kind == "sqlite":
        done.put_aside = _put_sqlite(source / SQLITE, places)
    else:
        if before.there:
            _clear(places.store_url)
        if manifest["database"] == "sqlite":
            _carry_over(source / SQLITE, places.store_url)
        else:
            _pg_restore(source / POSTGRESQL, places.store_url)
    done.adapters = _put_back(source / "adapters", places.adapters_dir)
    done.cycles = _put_back(source / "cycles", places.cycles_dir)
    if (source / SETTINGS).is_file() and not places.settings_file.exists():
        places.settings_file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / SETTINGS, places.settings_file)
    store = Store.open(places.store_url)
    try:
        store.relocate(Path(manifest["data_dir"]), places.data_dir)
        store.keys_revoked(before.revoked)
        done.erased_again = _erase_again(store, places, list(erasures.values()), policy)
    finally:
        store.close()
    return done


@dataclass(kw_only=True)
class _Before:
    """What a restore takes over from the record that it replaces."""

    there: bool = False
    erasures: list[Erasure] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)


def _what_is_there(places: Places, *, replace: bool) -> _Before:
    if not _is_there(places.store_url):
        return _Before()
    if not replace:
        raise ExportError("there is a record already: `--replace` puts the backup in its place")
    try:
        store = Store.open(places.store_url)
    except OpsError as error:
        raise ExportError(
            f"the record that would be replaced cannot be asked who was erased: {error}; move it "
            "away, and give its certificates with --erasures where you have them"
        ) from error
    try:
        revoked = [key.id for key in store.api_keys() if key.revoked_at is not None]
        return _Before(there=True, erasures=store.erasures(), revoked=revoked)
    finally:
        store.close()


def _is_there(url: str) -> bool:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return parsed.database is not None and Path(parsed.database).exists()
    store = Store(url)
    try:
        return store.has_schema()
    finally:
        store.close()


def _clear(url: str) -> None:
    store = Store(url)
    try:
        store.clear()
    finally:
        store.close()


def _pg_restore(dump: Path, url: str) -> None:
    arguments = ["--single-transaction", "--exit-on-error", "--no-owner", "--clean", "--if-exists"]
    _run_postgres(url, "pg_restore", [*arguments, str(dump)])


def _carry_over(database: Path, url: str) -> None:
    """Copy an SQLite record into an empty database of another kind."""
    with tempfile.TemporaryDirectory() as scratch:
        # Opening it brings its schema up to date, and a backup stays as it is.
        copy = shutil.copyfile(database, Path(scratch) / SQLITE)
        old = Store.open(f"sqlite:///{copy}")
        try:
            new = Store.open(url)
            try:
                new.copy_from(old)
            finally:
                new.close()
        finally:
            old.close()


def _put_sqlite(backup: Path, places: Places) -> str | None:
    database = sa.make_url(places.store_url).database
    if database is None:
        raise ExportError("store.url names no file")
    final = Path(database)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f"{final.name}.restoring")
    shutil.copyfile(backup, draft)
    aside = None
    if final.exists():
        aside = final.with_name(f"{final.name}.before-{now():%Y%m%dT%H%M%SZ}")
        for suffix in ("-wal", "-shm", ""):
            part = Path(f"{final}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
    draft.rename(final)
    return str(aside) if aside else None


def _put_back(source: Path, target: Path) -> int:
    """Copy directories that are not there; each appears whole or not at all."""
    count = 0
    for directory in sorted(source.iterdir()) if source.is_dir() else ():
        final = target / directory.name
        if final.exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        draft = target / f".restoring-{directory.name}"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(directory, draft, symlinks=True)
        draft.rename(final)
        count += 1
    return count


def _erase_again(
    store: Store, places: Places, erasures: Sequence[Erasure], policy: Tainted
) -> list[str]:
    known = {erasure.id for erasure in store.erasures()}
    missing = [erasure for erasure in erasures if erasure.id not in known]
    store.take_in(missing)
    eraser = Eraser(
        store,
        Registry(store, places.adapters_dir),
        cycles_dir=places.cycles_dir,
        evaluations_dir=places.evaluations_dir,
        policy=policy,
    )
    done = []
    for user, tenant in store.users():
        of_them = [e for e in missing if e.subject_sha256 == subject(e.id, user)]
        if any(e.tenant in (None, tenant) for e in of_them):
            with suppress(NotFound):
                erased = eraser.erase(user, actor=ACTOR, tenant=tenant)
                done.append(erased.erasure.id)
    return done
