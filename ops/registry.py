"""Adapter versions: what they are, what state they are in, and which one `code` means.

A version is a sealed directory (`ops.artifacts`) and a row. It never changes; only its state does,
each time with actor, reason and evidence:

    built -> examined -> shadow -> canary -> champion -> retired -> erased
                  any of these before champion -> rejected -> erased

`shadow` and `canary` are optional steps of a promotion. A shadow is loaded beside the champion and
reached by its pinned name only; a canary answers a share of the requests for `code` as well, and
what becomes of it is decided by what happens there (`ops.trials`, `server.canary`). A champion that
was promoted is watched for a while in the same way; `confirm` ends that.

The alias `champion` is what `code` should answer with; unset means the base model. The server
follows the aliases and proves each swap before it obeys (`server.adapters`); it comes back here
with `refuse` when it cannot. Every change is one transaction that compares what it was decided on,
so that of two processes one loses, and a killed one leaves either the old or the new. Files go
last: a version is erased in the record first and on disk afterwards (`sweep` ends what was begun).
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from ops import artifacts
from ops.errors import ArtifactError, Conflict, NotFound, RegistryError
from ops.records import (
    Adapter,
    AdapterState,
    Alias,
    CycleState,
    DatasetRow,
    Json,
    Transition,
    new_id,
    now,
)
from ops.store import Store

_STEPS: Mapping[AdapterState, frozenset[AdapterState]] = {
    AdapterState.EXAMINED: frozenset((AdapterState.BUILT, AdapterState.REJECTED)),
    AdapterState.SHADOW: frozenset((AdapterState.EXAMINED,)),
    AdapterState.CANARY: frozenset((AdapterState.EXAMINED, AdapterState.SHADOW)),
    AdapterState.CHAMPION: frozenset(
        (AdapterState.EXAMINED, AdapterState.SHADOW, AdapterState.CANARY, AdapterState.RETIRED)
    ),
    AdapterState.REJECTED: frozenset(
        (
            AdapterState.BUILT,
            AdapterState.EXAMINED,
            AdapterState.SHADOW,
            AdapterState.CANARY,
            AdapterState.RETIRED,
        )
    ),
    AdapterState.ERASED: frozenset(
        (
            AdapterState.BUILT,
            AdapterState.EXAMINED,
            AdapterState.RETIRED,
            AdapterState.REJECTED,
        )
    ),
}
"""From which states a state is reached without force. A champion leaves by `_leave_champion`."""
_FORCED = _STEPS[AdapterState.CHAMPION] | {AdapterState.BUILT, AdapterState.REJECTED}
_SERVING = frozenset((AdapterState.SHADOW, AdapterState.CANARY, AdapterState.CHAMPION))
ABANDONED_S = 3600.0
"""Files that nothing in the record names are swept when they are older than this."""
DRAINED_S = 3600.0
"""No request runs that long on a version that has left service."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a version was made of. Its dataset rows name interactions and feedback."""

    adapter: Adapter
    rows: list[DatasetRow]
    interaction_ids: list[str]
    feedback_ids: list[str]


class Registry:
    """The adapters of one installation."""

    def __init__(self, store: Store, directory: Path) -> None:
        self._store = store
        self._directory = directory

    def add(
        self,
        write: Callable[[Path], None],
        *,
        base_model: str,
        base_sha256: str,
        rank: int,
        recipe: str,
        cycle_id: str | None,
        lineage: Json,
        actor: str,
    ) -> Adapter:
        """Seal what `write` puts into a directory and register it as the next version.

        Adding the same content again returns the version it has.

        Raises:
            ArtifactError: the content cannot be sealed.
            RegistryError: a version of this content was erased; it stays erased.
        """
        digest, path = artifacts.seal(self._directory, write)
        if (known := self._of_content(digest)) is not None:
            return known
        adapter = Adapter(
            version=0,  # the store assigns it
            sha256=digest,
            created_at=now(),
            state=AdapterState.BUILT,
            directory=str(path),
            base_model=base_model,
            base_sha256=base_sha256,
            rank=rank,
            cycle_id=cycle_id,
            recipe=recipe,
            lineage=lineage,
        )
        first = _transition(adapter, None, AdapterState.BUILT, actor, "trained", {})
        try:
            return self._store.add_adapter(adapter, first)
        except Conflict:  # another process added the same content meanwhile
            known = self._of_content(digest)
            if known is None:
                raise
            return known

    def _of_content(self, digest: str) -> Adapter | None:
        known = next((a for a in self._store.adapters() if a.sha256 == digest), None)
        if known is not None and known.state is AdapterState.ERASED:
            raise RegistryError(f"{known.name} had this very content and was erased")
        return known

    def verify(self, adapter: Adapter) -> Path:
        """Read the adapter's files again and return their directory.

        Raises:
            ArtifactError: they are gone, incomplete or altered, or lie somewhere else.
        """
        path = self._place(adapter)
        if artifacts.verify(path) != adapter.sha256:
            raise ArtifactError(f"{path} is not the content of {adapter.name}")
        return path

    def _place(self, adapter: Adapter) -> Path:
        """Where an adapter lies: a directory of ours, and no way out of it."""
        path = Path(adapter.directory)
        if path.parent.resolve() != self._directory.resolve() or ".." in path.parts:
            raise ArtifactError(f"{path} is not in {self._directory}")
        if path.is_symlink():
            raise ArtifactError(f"{path} is a link")
        return path

    def get(self, version: int) -> Adapter:
        """Return a version. Raises `NotFound`."""
        return self._store.adapter(version)

    def find(self, name: str) -> Adapter:
        """Return the adapter of a pinned name (`code@v12`) or a bare version (`12`, `v12`).

        Raises:
            NotFound: the name is malformed or there is no such version.
        """
        digits = name.removeprefix("code@").removeprefix("v")
        if not digits.isdecimal() or len(digits) > 9:
            raise NotFound(f"no adapter {name!r}; versions are named code@v1, code@v2, …")
        return self._store.adapter(int(digits))

    def at(self, alias: Alias) -> Adapter | None:
        """Return the adapter an alias points at; None means the base model."""
        version = self._store.aliases().get(alias)
        return None if version is None else self._store.adapter(version)

    def lineage(self, version: int) -> Lineage:
        """Return what a version was made of; `Store.adapters_taught_by` is the way back.

        Raises:
            NotFound: there is no such version.
        """
        return lineage(self._store, self.get(version))

    def examined(self, version: int, *, actor: str, reason: str, evidence: Json) -> None:
        """Record that the gate has its numbers."""
        adapter = self.get(version)
        self._require_clean(adapter)
        self._require(adapter, _STEPS[AdapterState.EXAMINED], "examined")
        self._store.transition(
            [_transition(adapter, adapter.state, AdapterState.EXAMINED, actor, reason, evidence)]
        )

    def shadow(
        self, version: int, *, actor: str, reason: str, evidence: Json | None = None
    ) -> None:
        """Let a version answer beside the champion, for nobody to see; it is kept loaded.

        Raises:
            RegistryError: its state does not allow it.
        """
        self._beside(version, AdapterState.SHADOW, actor, reason, evidence)

    def canary(
        self, version: int, *, actor: str, reason: str, evidence: Json | None = None
    ) -> None:
        """Let a version answer a share of the requests for `code`, beside the champion.

        There is one canary at a time: one that is still under way is rejected.

        Args:
            version: the canary.
            actor: who decided.
            reason: why, in words.
            evidence: the numbers; `share` among them is the share of requests, else the settings'.

        Raises:
            RegistryError: its state does not allow it, or it learned from what was erased.
            ArtifactError: its files are gone or altered.
            Conflict: somebody else moved it meanwhile; nothing was changed.
        """
        self._beside(version, AdapterState.CANARY, actor, reason, evidence)

    def _beside(
        self, version: int, state: AdapterState, actor: str, reason: str, evidence: Json | None
    ) -> None:
        adapter = self.get(version)
        self._require_clean(adapter)
        self._require(adapter, _STEPS[state], f"made {state}")
        self.verify(adapter)
        changes = [_transition(adapter, adapter.state, state, actor, reason, evidence or {})]
        if state is AdapterState.SHADOW:
            self._store.transition(changes, {Alias.CANDIDATE: version})
            return
        at = self._store.aliases()
        moves: dict[Alias, int | None] = {Alias.CANARY: version}
        if at.get(Alias.CANDIDATE) == version:
            moves[Alias.CANDIDATE] = None
        if (other := at.get(Alias.CANARY)) is not None:
            before, why = self.get(other), f"{adapter.name} became the canary in its place"
            changes.append(_transition(before, before.state, AdapterState.REJECTED, actor, why, {}))
        self._store.transition(changes, moves, require={Alias.CANARY: other})

    def confirm(self, version: int, *, actor: str, reason: str, evidence: Json) -> None:
        """Record that the champion's watch is over and it stays.

        Raises:
            Conflict: it is not the champion any more, or somebody else was faster.
        """
        adapter = self.get(version)
        last = self._store.transitions(version)[-1]
        change = _transition(
            adapter, AdapterState.CHAMPION, AdapterState.CHAMPION, actor, reason, evidence
        )
        # The same for whoever confirms this promotion, so that the second one finds it taken.
        once = str(uuid.uuid5(uuid.UUID(last.id), "confirmed"))
        if last.from_state is AdapterState.CHAMPION:
            raise Conflict(f"{adapter.name} is confirmed already")
        self._store.transition([replace(change, id=once)], require={Alias.CHAMPION: version})

    def nominate(self, version: int | None) -> None:
        """Point the alias `candidate` at a version, or clear it: servers load it beside `code`.

        Raises:
            RegistryError: the version was erased, or learned from what was.
        """
        if version is not None:
            adapter = self.get(version)
            if adapter.state is AdapterState.ERASED:
                raise RegistryError(f"code@v{version} is erased and cannot be nominated")
            self._require_clean(adapter)
        self._store.transition([], {Alias.CANDIDATE: version})

    def promote(
        self,
        version: int,
        *,
        actor: str,
        reason: str,
        evidence: Json | None = None,
        force: bool = False,
        over: int | None = None,
    ) -> None:
        """Make a version the champion; the one before becomes the way back.

        Args:
            version: what `code` shall mean.
            actor: who decided.
            reason: why, in words.
            evidence: the numbers.
            force: also when it was never examined, or was rejected.
            over: the champion it was compared with, which must be the champion still; 0 is the
                base model.

        Raises:
            RegistryError: its state does not allow it, or it learned from what was erased.
            ArtifactError: its files are gone or altered.
            Conflict: somebody else moved it meanwhile; nothing was changed.
        """
        adapter = self.get(version)
        allowed = _FORCED if force else _STEPS[AdapterState.CHAMPION]
        self._require_clean(adapter)
        self._require(adapter, allowed, "promoted" if force else "promoted without --force")
        self.verify(adapter)
        at = self._store.aliases()
        previous = self.at(Alias.CHAMPION)
        if over is not None and over != (previous.version if previous else 0):
            raise Conflict(f"{adapter.name} was compared with code@v{over}, which does not answer")
        changes = [
            _transition(
                adapter, adapter.state, AdapterState.CHAMPION, actor, reason, evidence or {}
            )
        ]
        if previous is not None:
            why = f"{adapter.name} took its place"
            changes.append(
                _transition(previous, previous.state, AdapterState.RETIRED, actor, why, {})
            )
        way_back = previous if previous is not None and previous.tainted_by is None else None
        # Another version may be under examination, or be the canary: it stays loaded.
        arrived = {a: None for a in (Alias.CANDIDATE, Alias.CANARY) if at.get(a) == version}
        self._store.transition(
            changes,
            {
                **arrived,
                Alias.CHAMPION: version,
                Alias.ROLLBACK: way_back.version if way_back else None,
            },
            # Of two processes that promote at once, the second finds another champion and stops.
            require={Alias.CHAMPION: previous.version if previous else None},
        )

    def reject(
        self, version: int, *, actor: str, reason: str, evidence: Json | None = None
    ) -> None:
        """Record that a version shall not go live. The champion cannot be rejected: roll it back.

        Raises:
            RegistryError: its state does not allow it.
        """
        adapter = self.get(version)
        self._require(adapter, _STEPS[AdapterState.REJECTED], "rejected")
        moves: dict[Alias, int | None] = {
            alias: None
            for alias, at in self._store.aliases().items()
            if at == version and alias in (Alias.CANDIDATE, Alias.CANARY, Alias.ROLLBACK)
        }
        change = _transition(
            adapter, adapter.state, AdapterState.REJECTED, actor, reason, evidence or {}
        )
        self._store.transition([change], moves, require=dict.fromkeys(moves, version))

    def rollback(self, *, actor: str, reason: str, only: int | None = None) -> Adapter | None:
        """Put the previous champion back and return it; None means the base model.

        Args:
            actor: who decided.
            reason: why, in words.
            only: the version that must be the champion still.

        Raises:
            RegistryError: the base model answers already.
            Conflict: another version is the champion.
        """
        return self._leave_champion(AdapterState.RETIRED, actor, reason, only=only)

    def take_back(self, version: int, *, actor: str, reason: str, evidence: Json) -> Adapter | None:
        """Reject a champion that did worse on live traffic; what answers instead is returned.

        Raises:
            Conflict: it is not the champion any more; nothing was changed.
        """
        return self._leave_champion(AdapterState.REJECTED, actor, reason, evidence, only=version)

    def refuse(self, version: int, *, actor: str, reason: str, evidence: Json) -> None:
        """A server could not prove a version: reject it, and go back if it was the champion."""
        if self._store.aliases().get(Alias.CHAMPION) == version:
            self.take_back(version, actor=actor, reason=reason, evidence=evidence)
        else:
            self.reject(version, actor=actor, reason=reason, evidence=evidence)

    def _leave_champion(
        self,
        state: AdapterState,
        actor: str,
        reason: str,
        evidence: Json | None = None,
        only: int | None = None,
    ) -> Adapter | None:
        champion = self.at(Alias.CHAMPION)
        if only is not None and (champion is None or champion.version != only):
            raise Conflict(f"code@v{only} is not the champion any more")
        if champion is None:
            raise RegistryError("there is nothing to roll back: the base model answers")
        back = self.at(Alias.ROLLBACK)
        if back is not None:
            self.verify(back)
        changes = [_transition(champion, champion.state, state, actor, reason, evidence or {})]
        if back is not None:
            why = f"back in place of {champion.name}: {reason}"
            changes.append(_transition(back, back.state, AdapterState.CHAMPION, actor, why, {}))
        self._store.transition(
            changes,
            {Alias.CHAMPION: back.version if back else None, Alias.ROLLBACK: None},
            require={
                Alias.CHAMPION: champion.version,
                Alias.ROLLBACK: back.version if back else None,
            },
        )
        return back

    # --- erasure -------------------------------------------------------------------------------

    def withdraw_tainted(self, *, actor: str, reason: str, keep_champion: bool = False) -> None:
        """Take out of service what learned from data that were erased; repeating changes nothing.

        In place of a champion comes the way back, or the last clean version that was champion, or
        the base model; in place of a way back another clean one, or none. All are rejected.

        Args:
            actor: who decided.
            reason: why, in words.
            keep_champion: a tainted champion goes on answering.

        Raises:
            Conflict: somebody moved the aliases meanwhile; nothing was changed.
        """
        at = self._store.aliases()
        gone = {
            a.version: a
            for a in self._store.adapters()
            if a.tainted_by is not None
            and a.state not in (AdapterState.REJECTED, AdapterState.ERASED)
            and not (keep_champion and a.version == at.get(Alias.CHAMPION))
        }
        if not gone:
            return
        changes = [
            _transition(a, a.state, AdapterState.REJECTED, actor, reason, {"tainted": a.tainted_by})
            for a in gone.values()
        ]
        moves: dict[Alias, int | None] = {a: None for a, v in at.items() if v in gone}
        if Alias.CHAMPION in moves:
            back = self._last_clean(at)
            moves |= {Alias.CHAMPION: back.version if back else None, Alias.ROLLBACK: None}
            if back is not None:
                changes.append(
                    _transition(back, back.state, AdapterState.CHAMPION, actor, reason, {})
                )
        elif Alias.ROLLBACK in moves:
            back = self._last_clean(at)
            moves[Alias.ROLLBACK] = back.version if back else None
        self._store.transition(changes, moves, require={alias: at.get(alias) for alias in Alias})

    def _last_clean(self, at: Mapping[Alias, int]) -> Adapter | None:
        """The way back, else the version that was champion last; never a tainted or damaged one."""
        retired = [
            (a.version == at.get(Alias.ROLLBACK), self._store.transitions(a.version)[-1].at, a)
            for a in self._store.adapters()
            if a.state is AdapterState.RETIRED and a.tainted_by is None
        ]
        for _, _, adapter in sorted(retired, key=lambda entry: entry[:2], reverse=True):
            try:
                self.verify(adapter)
            except ArtifactError:
                continue
            return adapter
        return None

    @staticmethod
    def _require_clean(adapter: Adapter) -> None:
        if adapter.tainted_by is not None:
            raise RegistryError(
                f"{adapter.name} learned from data that were erased (erasure {adapter.tainted_by}) "
                "and stays out of service"
            )

    # --- retention -----------------------------------------------------------------------------

    def erase(self, version: int, *, actor: str, reason: str) -> None:
        """Erase a version: from the record first, then its files. Its history stays.

        Raises:
            RegistryError: an alias points at it, or its state does not allow it.
            ArtifactError: its row names files that are not the registry's; nothing was changed.
            Conflict: somebody else moved it meanwhile; nothing was changed.
        """
        adapter = self.get(version)
        self._require(adapter, _STEPS[AdapterState.ERASED], "erased")
        pointing = [alias for alias, at in self._store.aliases().items() if at == version]
        if pointing:
            raise RegistryError(f"{adapter.name} is the {pointing[0]} and cannot be erased")
        change = _transition(adapter, adapter.state, AdapterState.ERASED, actor, reason, {})
        place = self._place(adapter)
        self._store.transition([change], unpointed=version)
        self._remove(place)

    def expendable(
        self, *, keep_recent: int, keep_best: int, drained_s: float | None = None
    ) -> list[Adapter]:
        """Return the versions that retention would erase, newest first.

        Kept are the newest, the best by the share of target tasks they solved, whatever an alias
        points at (so never the way back), what a running cycle has in hand, and what left service
        so lately that requests may still run on it: an engine that reads it again without its
        files ends. What learned from data that were erased is kept for no other reason than that.

        Args:
            keep_recent: how many of the newest, at least 1.
            keep_best: how many of the best beside them.
            drained_s: how long requests may run; unset: `DRAINED_S`.
        """
        drained = timedelta(seconds=DRAINED_S if drained_s is None else drained_s)
        adapters = [a for a in self._store.adapters() if a.state is not AdapterState.ERASED]
        kept = set(self._store.aliases().values())
        clean = [a for a in adapters if a.tainted_by is None]
        kept |= {a.version for a in adapters if self._draining(a, drained)}
        kept |= {a.version for a in clean[: max(1, keep_recent)]}
        scored = [(score, a.version) for a in clean if (score := self._score(a)) is not None]
        kept |= {version for _, version in sorted(scored, reverse=True)[:keep_best]}
        busy = {c.id for c in self._store.cycles(state=CycleState.RUNNING)}
        return [
            a
            for a in adapters
            if a.version not in kept
            and a.cycle_id not in busy
            and a.state in _STEPS[AdapterState.ERASED]
        ]

    def retain(
        self, *, keep_recent: int, keep_best: int, actor: str, drained_s: float | None = None
    ) -> list[Adapter]:
        """Erase what `expendable` names, sweep, and return what was erased."""
        erased = []
        reason = f"not among the {keep_recent} newest or the {keep_best} best"
        for adapter in self.expendable(
            keep_recent=keep_recent, keep_best=keep_best, drained_s=drained_s
        ):
            try:
                self.erase(adapter.version, actor=actor, reason=reason)
            except (ArtifactError, Conflict, RegistryError):
                # It was promoted or nominated meanwhile, or its files are not ours to remove.
                continue
            erased.append(adapter)
        self.sweep()
        return erased

    def sweep(self, *, abandoned_s: float = ABANDONED_S) -> list[Path]:
        """Remove what killed processes left: files of erased versions, drafts, unnamed content.

        Args:
            abandoned_s: how old drafts and unnamed content must be; another process may be at it.

        Returns:
            What was removed.
        """
        if not self._directory.is_dir():
            return []
        states = {Path(a.directory).name: a.state for a in self._store.adapters()}
        before = time.time() - abandoned_s
        removed = []
        for path in sorted(self._directory.iterdir()):
            state = states.get(path.name)
            if state is AdapterState.ERASED or (state is None and path.stat().st_mtime < before):
                self._remove(path)
                removed.append(path)
        return removed

    def _remove(self, directory: Path) -> None:
        """Remove a directory so that a kill never leaves half of it under its own name."""
        away = self._directory / f".erased-{new_id()}"
        try:
            directory.rename(away)
        except FileNotFoundError:
            return
        shutil.rmtree(away, ignore_errors=True)

    def _draining(self, adapter: Adapter, drained: timedelta) -> bool:
        """Whether requests may still run on a version that left service."""
        history = self._store.transitions(adapter.version)
        served = adapter.tainted_by is not None or any(t.to_state in _SERVING for t in history)
        return served and now() - history[-1].at < drained

    def _score(self, adapter: Adapter) -> float | None:
        """Share of target tasks it solved when it was last examined."""
        found = [
            (t.evidence.get("target") or {}).get("candidate")
            for t in self._store.transitions(adapter.version)
            if t.to_state is AdapterState.EXAMINED
        ]
        return float(found[-1]) if found and isinstance(found[-1], (int, float)) else None

    @staticmethod
    def _require(adapter: Adapter, allowed: frozenset[AdapterState], verb: str) -> None:
        if adapter.state not in allowed:
            raise RegistryError(f"{adapter.name} is {adapter.state} and cannot be {verb}")


def lineage(store: Store, adapter: Adapter) -> Lineage:
    """Return what an adapter was made of, as the record has it."""
    rows = store.dataset(adapter.cycle_id) if adapter.cycle_id else []
    used = set(adapter.lineage.get("rows", [row.row_id for row in rows if row.kept]))
    taught = [row for row in rows if row.kept and row.row_id in used]
    return Lineage(
        adapter=adapter,
        rows=taught,
        interaction_ids=list(dict.fromkeys(i for row in taught for i in row.interaction_ids)),
        feedback_ids=list(dict.fromkeys(i for row in taught for i in row.feedback_ids)),
    )


def _transition(
    adapter: Adapter,
    from_state: AdapterState | None,
    to_state: AdapterState,
    actor: str,
    reason: str,
    evidence: Json,
) -> Transition:
    return Transition(
        id=new_id(),
        version=adapter.version,
        from_state=from_state,
        to_state=to_state,
        at=now(),
        actor=actor,
        reason=reason,
        evidence=evidence,
    )
