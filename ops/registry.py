"""Adapter versions: what they are, what state they are in, and which one `code` means.

A version is a sealed directory (`ops.artifacts`) and a row. It never changes; only its state does,
each time with actor, reason and evidence. The alias `champion` is what `code` should answer with;
unset means the base model. The server follows the aliases and proves each swap before it obeys
(`server.adapters`); it comes back here with `refuse` when it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ops import artifacts
from ops.errors import ArtifactError, NotFound, RegistryError
from ops.records import Adapter, AdapterState, Alias, Json, Transition, new_id, now
from ops.store import Store

_PROMOTABLE = {AdapterState.EXAMINED, AdapterState.RETIRED}
_FORCED = _PROMOTABLE | {AdapterState.BUILT, AdapterState.REJECTED}


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
        """
        digest, path = artifacts.seal(self._directory, write)
        for known in self._store.adapters():
            if known.sha256 == digest:
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
        return self._store.add_adapter(adapter, first)

    def verify(self, adapter: Adapter) -> Path:
        """Read the adapter's files again and return their directory.

        Raises:
            ArtifactError: they are gone, incomplete or altered.
        """
        path = Path(adapter.directory)
        if artifacts.verify(path) != adapter.sha256:
            raise ArtifactError(f"{path} is not the content of {adapter.name}")
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

    def examined(self, version: int, *, actor: str, reason: str, evidence: Json) -> None:
        """Record that the gate has its numbers."""
        adapter = self.get(version)
        self._require(adapter, {AdapterState.BUILT, AdapterState.REJECTED}, "examined")
        self._store.transition(
            [_transition(adapter, adapter.state, AdapterState.EXAMINED, actor, reason, evidence)]
        )

    def nominate(self, version: int | None) -> None:
        """Point the alias `candidate` at a version, or clear it: servers load it beside `code`."""
        if version is not None:
            self.get(version)
        self._store.transition([], {Alias.CANDIDATE: version})

    def promote(
        self,
        version: int,
        *,
        actor: str,
        reason: str,
        evidence: Json | None = None,
        force: bool = False,
    ) -> None:
        """Make a version the champion; the one before becomes the way back.

        Args:
            version: what `code` shall mean.
            actor: who decided.
            reason: why, in words.
            evidence: the numbers.
            force: also when it was never examined, or was rejected.

        Raises:
            RegistryError: its state does not allow it.
            ArtifactError: its files are gone or altered.
            Conflict: somebody else moved it meanwhile; nothing was changed.
        """
        adapter = self.get(version)
        allowed = _FORCED if force else _PROMOTABLE
        self._require(adapter, allowed, "promoted" if force else "promoted without --force")
        self.verify(adapter)
        previous = self.at(Alias.CHAMPION)
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
        self._store.transition(
            changes,
            {
                Alias.CHAMPION: version,
                Alias.ROLLBACK: previous.version if previous else None,
                Alias.CANDIDATE: None,
            },
        )

    def reject(
        self, version: int, *, actor: str, reason: str, evidence: Json | None = None
    ) -> None:
        """Record that a version shall not go live. The champion cannot be rejected: roll it back.

        Raises:
            RegistryError: its state does not allow it.
        """
        adapter = self.get(version)
        allowed = {AdapterState.BUILT, AdapterState.EXAMINED, AdapterState.RETIRED}
        self._require(adapter, allowed, "rejected")
        moves: dict[Alias, int | None] = {
            alias: None
            for alias, at in self._store.aliases().items()
            if at == version and alias in (Alias.CANDIDATE, Alias.ROLLBACK)
        }
        change = _transition(
            adapter, adapter.state, AdapterState.REJECTED, actor, reason, evidence or {}
        )
        self._store.transition([change], moves)

    def rollback(self, *, actor: str, reason: str) -> Adapter | None:
        """Put the previous champion back and return it; None means the base model.

        Raises:
            RegistryError: the base model answers already.
        """
        return self._leave_champion(AdapterState.RETIRED, actor, reason)

    def refuse(self, version: int, *, actor: str, reason: str, evidence: Json) -> None:
        """A server could not prove a version: reject it, and go back if it was the champion."""
        if self._store.aliases().get(Alias.CHAMPION) == version:
            self._leave_champion(AdapterState.REJECTED, actor, reason, evidence)
        else:
            self.reject(version, actor=actor, reason=reason, evidence=evidence)

    def _leave_champion(
        self, state: AdapterState, actor: str, reason: str, evidence: Json | None = None
    ) -> Adapter | None:
        champion = self.at(Alias.CHAMPION)
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
        )
        return back

    @staticmethod
    def _require(adapter: Adapter, allowed: set[AdapterState], verb: str) -> None:
        if adapter.state not in allowed:
            raise RegistryError(f"{adapter.name} is {adapter.state} and cannot be {verb}")


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
