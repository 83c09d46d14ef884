"""Erasure: everything of one user's goes, and what learned from it leaves service.

    record      interactions, attempts, executions, feedback, lineage of rows   one transaction
    adapters    those trained on such rows are tainted, and withdrawn as set    one transaction
    files       training rows and what recipes noted, in the cycles' directories

The first step writes the certificate, with the ids by which the others are done: killed anywhere,
the same call goes on where it was. While an improver is at work its cycle's files are left alone
and the erasure stays open; an adapter that cycle makes of such rows is tainted as it is registered.
The improver finishes what is open by itself when its cycle has ended (`improver.worker`).

What is not found: requests that named no user, runs of client programs that belong to no answer,
what an adapter wrote for others meanwhile, and copies elsewhere (backups, files of `--out`).
Weights of tainted versions are removed by `Registry.retain`, when no request can run on them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ops.errors import Conflict, ErasureError, NotFound
from ops.records import AdapterState, CycleState, Erasure, Json, Tainted, new_id, now
from ops.registry import Registry
from ops.store import Store

LEASE, IMPROVER = "erasure", "improver"
"""One erasure at a time touches files; the second lease is the one under which cycles run."""
LEASE_S = 60.0
ALL_CYCLES = 1_000_000
_WORDS = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[A-Za-z0-9_-]+")
_ROWS = "*.jsonl"
_SPENT = ("adapter", "start", "checkpoints", "checkpoint.pt", "journal.jsonl")
"""What a cycle that learned from it does not need: copies of weights, notes for resuming."""


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What a call did."""

    erasure: Erasure
    already: bool = False
    """There was nothing left: this is the certificate of the last time."""


class Eraser:
    """Erases users' data from one installation.

    Args:
        store: the record.
        registry: the adapters.
        cycles_dir: where cycles keep their files.
        evaluations_dir: where `journeyman eval` leaves its answers.
        policy: what becomes of a tainted champion.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        cycles_dir: Path,
        evaluations_dir: Path,
        policy: Tainted,
    ) -> None:
        self._store = store
        self._registry = registry
        self._cycles_dir = cycles_dir
        self._evaluations_dir = evaluations_dir
        self._policy = policy

    def erase(
        self, user: str, *, actor: str, tenant: str | None = None, dry_run: bool = False
    ) -> Erased:
        """Erase what is a user's. What they ask from now on is recorded again.

        Erasures that are still open, of whomever, are gone on with first.

        Args:
            user: the name under which requests and feedback were sent.
            actor: who asked for it.
            tenant: only in this one.
            dry_run: only count; the certificate has no end and is not kept.

        Raises:
            NotFound: nobody of that name is, or was, in the record.
            ErasureError: the name is in several tenants and none was given.
        """
        earlier = [e for e in self._of(user) if tenant in (None, e.tenant)]
        open_ = [e for e in self._store.erasures() if e.finished_at is None]
        ended = [] if dry_run else [self._finish(erasure) for erasure in reversed(open_)]
        ended = [e for e in ended if e.id in {known.id for known in earlier}]
        tenant = tenant if tenant is not None else self._only_tenant(user)
        draft = Erasure(
            id=new_id(),
            created_at=now(),
            actor=actor,
            tenant=tenant,
            subject_sha256="",
            policy=self._policy,
            traces=self._remembered(user, tenant, open_),
        )
        draft = replace(draft, subject_sha256=subject(draft.id, user))
        found = self._store.erase_user(draft, user, dry_run=True)
        anything = any(found.counts.values()) or any(draft.traces.values())
        if not anything and not earlier:
            raise NotFound(f"no user {user[:100]!r}" + (f" in tenant {tenant!r}" if tenant else ""))
        if dry_run:
            lines = self._count(_ids(found))
            return Erased(erasure=replace(found, counts=found.counts | lines, traces={}))
        if anything:
            ended.append(self._finish(self._store.erase_user(draft, user)))
        if ended:
            return Erased(erasure=ended[-1])
        return Erased(erasure=earlier[0], already=True)

    def finish_open(self) -> list[Erasure]:
        """Go on with every erasure that is open, the oldest first, and return them as they are now.

        What is waited for (a cycle at work, another process at the same) leaves them open.
        """
        open_ = [e for e in self._store.erasures() if e.finished_at is None]
        return [self._finish(erasure) for erasure in reversed(open_)]

    def certificates(self, *, tenant: str | None = None) -> list[Erasure]:
        """Return the erasures, newest first; only those within a tenant, if given."""
        return [e for e in self._store.erasures() if tenant in (None, e.tenant)]

    # --- what there is --------------------------------------------------------------------------

    def _of(self, user: str) -> list[Erasure]:
        """Earlier erasures of a user, newest first."""
        return [e for e in self._store.erasures() if e.subject_sha256 == subject(e.id, user)]

    def _only_tenant(self, user: str) -> str | None:
        tenants = sorted(self._store.tenants_of(user))
        if len(tenants) > 1:
            raise ErasureError(
                f"there are users of this name in the tenants {', '.join(tenants)}: say in which"
            )
        return tenants[0] if tenants else None

    def _remembered(
        self, user: str, tenant: str | None, open_: Collection[Erasure]
    ) -> dict[str, list[str]]:
        """Ids of a user's that files hold, and perhaps the record not; but for those under way."""
        own: set[str] = set()
        said: set[str] = set()
        for path in self._row_files():
            for line in _lines(path):
                if b'"user"' in line and (row := _parsed(line)) and _is_of(row, user, tenant):
                    own |= _named(row, ("interaction_id", "interaction_ids"))
                    said |= _named(row, ("feedback_ids", "demonstration_ids"))
        under_way = {one.decode() for erasure in open_ for one in _ids(erasure)}
        return {"interactions": sorted(own - under_way), "feedback": sorted(said - under_way)}

    def _count(self, ids: Collection[bytes]) -> dict[str, int]:
        return {"file_lines": sum(_hits(path, ids) for path in self._row_files())}

    def _row_files(self) -> Iterator[Path]:
        for directory in self._directories():
            yield from _within(directory, _ROWS)

    def _directories(self) -> list[Path]:
        """Every cycle's directory on this machine, whether the record knows it or not."""
        known = {Path(cycle.directory) for cycle in self._store.cycles(limit=ALL_CYCLES)}
        if self._cycles_dir.is_dir():
            known |= {self._cycles_dir / path.name for path in self._cycles_dir.iterdir()}
        return sorted(path for path in known if path.is_dir() and not path.is_symlink())

    # --- what is done ---------------------------------------------------------------------------

    def _finish(self, erasure: Erasure) -> Erasure:
        """Do what is left of an erasure that is in the record."""
        self._withdraw(erasure)
        holder = f"erasure:{os.getpid()}:{new_id()}"
        if not self._hold(LEASE, holder):
            return erasure  # another process is at this, or was until it was killed
        try:
            # While this holds it, no cycle runs.
            alone = self._hold(IMPROVER, holder)
            counts = self._sweep(erasure, holder, alone=alone)
            marked = set(self._store.erase_late_rows(erasure.id))
            # One that was registered meanwhile was marked then, and its rows are gone by now.
            marked |= {a.version for a in self._store.adapters() if a.tainted_by == erasure.id}
            self._withdraw(erasure)
            return self._end(erasure, counts, marked, finished=alone)
        finally:
            for name in (IMPROVER, LEASE):
                self._store.drop_lease(name, holder)

    def _sweep(self, erasure: Erasure, holder: str, *, alone: bool) -> dict[str, int]:
        """Take the user out of all files, but for those of cycles that may be at work."""
        at_rest = {CycleState.SUCCEEDED, CycleState.SKIPPED, CycleState.FAILED}
        known = self._store.cycles(limit=ALL_CYCLES)
        in_hand = {cycle.id for cycle in known if cycle.state not in at_rest}
        counts, ids = dict(erasure.counts), _ids(erasure)
        for directory in self._directories():
            self._store.take_lease(LEASE, holder, LEASE_S)
            if alone:
                self._store.take_lease(IMPROVER, holder, LEASE_S)
            elif directory.name in in_hand:
                continue
            counts["file_lines"] = counts.get("file_lines", 0) + _sweep(directory, ids)
            self._store.update_erasure(erasure.id, counts=counts)
        for path in _within(self._evaluations_dir, "*"):
            if _hits(path, ids):
                path.unlink()
                counts["evaluations"] = counts.get("evaluations", 0) + 1
        return counts

    def _end(
        self, erasure: Erasure, counts: dict[str, int], marked: Collection[int], *, finished: bool
    ) -> Erasure:
        self._store.truncate_log()
        ended = replace(
            erasure,
            counts=counts,
            adapters=self._became(marked),
            finished_at=now() if finished else None,
            traces={} if finished else erasure.traces,
        )
        self._store.update_erasure(
            ended.id,
            counts=ended.counts,
            adapters=ended.adapters,
            finished_at=ended.finished_at,
            traces=ended.traces,
        )
        return ended

    def _hold(self, name: str, holder: str) -> bool:
        """Take a lease; False where somebody else has it."""
        try:
            self._store.take_lease(name, holder, LEASE_S)
        except Conflict:
            return False
        return True

    def _withdraw(self, erasure: Erasure) -> None:
        for left in (3, 2, 1, 0):
            try:
                self._registry.withdraw_tainted(
                    actor=erasure.actor,
                    reason=f"erasure {erasure.id}: it learned from data that were erased",
                    keep_champion=erasure.policy is Tainted.KEEP,
                )
                return
            except Conflict:  # somebody promoted or rolled back meanwhile
                if not left:
                    raise

    def _became(self, versions: Collection[int]) -> list[Json]:
        """The adapters that learned from it, and where they stand now."""
        adapters = [self._registry.get(version) for version in sorted(versions)]
        return [
            {
                "name": adapter.name,
                "version": adapter.version,
                "state": str(adapter.state),
                "in_service": adapter.state is AdapterState.CHAMPION,
            }
            for adapter in adapters
        ]


def subject(erasure_id: str, user: str) -> str:
    """Return the digest by which an erasure is known to be a user's; another for each erasure."""
    return hashlib.sha256(f"{erasure_id}\n{user}".encode()).hexdigest()


def certificate(erased: Erased) -> Json:
    """Return what was done as plain data, without a text of the user's."""
    erasure = erased.erasure
    return {
        "id": erasure.id,
        "object": "erasure",
        "created_at": erasure.created_at.isoformat(),
        "finished_at": erasure.finished_at.isoformat() if erasure.finished_at else None,
        "actor": erasure.actor,
        "tenant": erasure.tenant,
        "subject_sha256": erasure.subject_sha256,
        "policy": str(erasure.policy),
        "counts": erasure.counts,
        "adapters": erasure.adapters,
        "already": erased.already,
    }


# --- files ------------------------------------------------------------------------------------


def _ids(erasure: Erasure) -> frozenset[bytes]:
    names = ("interactions", "feedback")
    return frozenset(one.encode() for name in names for one in erasure.traces.get(name, ()))


def _within(directory: Path, pattern: str) -> Iterator[Path]:
    """Files below a directory that fit; links are not followed."""
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            path = Path(folder, name)
            if path.match(pattern) and path.is_file() and not path.is_symlink():
                yield path


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:  # a running cycle renames its folders
        return


def _names_any(line: bytes, ids: Collection[bytes]) -> bool:
    return any(word in ids for word in _WORDS.findall(line))


def _hits(path: Path, ids: Collection[bytes]) -> int:
    return sum(_names_any(line, ids) for line in _lines(path)) if ids else 0


def _sweep(directory: Path, ids: Collection[bytes]) -> int:
    """Take every line that names one of the ids out of a cycle's files; return how many.

    Lines go last: as long as one is left, the next call finds what else was to be done.
    """
    hits = {path: found for path in _within(directory, _ROWS) if (found := _hits(path, ids))}
    # What recipes note while they build has texts that nothing there tells the origin of; a
    # finished stage does not need it, and an unfinished one begins anew.
    (directory / "build" / "journal.jsonl").unlink(missing_ok=True)
    for partial in directory.glob("*.partial"):
        if hits or partial.name == "build.partial":
            shutil.rmtree(partial)
    if hits:
        for name in _SPENT:
            for path in sorted(directory.rglob(name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in hits:
        if path.exists():
            _rewrite(path, ids)
    return sum(hits.values())


def _rewrite(path: Path, ids: Collection[bytes]) -> None:
    draft = path.with_name(f"{path.name}.erasing")
    with draft.open("wb") as file:
        file.writelines(line for line in _lines(path) if not _names_any(line, ids))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # the last line of a killed writer
        return None


def _parts_of(line: Any) -> Iterator[dict[str, Any]]:
    """A line's own object, the training row within it, and where that says it comes from.

    Nothing deeper: what users sent may have fields of the same names.
    """
    if not isinstance(line, dict):
        return
    yield line
    for name in ("row", "provenance"):
        if isinstance(line.get(name), dict):
            yield from _parts_of(line[name])


def _is_of(line: Any, user: str, tenant: str | None) -> bool:
    return any(
        one.get("user") == user and (tenant is None or one.get("tenant") in (None, tenant))
        for one in _parts_of(line)
    )


def _named(line: Any, names: Collection[str]) -> set[str]:
    found: set[str] = set()
    for one in _parts_of(line):
        for name in names:
            value = one.get(name)
            found |= {v for v in (value if isinstance(value, list) else [value]) if v}
    return found
