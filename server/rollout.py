"""Roll-out: one replica is brought to what the registry wants, version by version.

Look, unload what nobody wants, load under a new name, read back, probe. Nothing is ever loaded in
place and no name or path is used twice; a replica that knows a name from another path is not asked
for it. Only what was proved on a replica may be asked of it (`Replica.models`), and what it has
lost by a restart is loaded and proved again. Whether a failure is the adapter's fault, and when
`code` moves, is decided by `server.adapters`, which sees all replicas.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ops import metrics
from ops.errors import ArtifactError, NotFound, OpsError
from ops.records import Adapter, Json
from server.engine import LoadRefused, Model
from server.errors import EngineRefusal, EngineUnavailable, ServerError
from server.proof import preflight, run_probe
from server.replicas import Replica

log = logging.getLogger(__name__)

MAX_BACKOFF_S = 60.0

Verify = Callable[[int], Awaitable[tuple[Adapter, Path]]]
"""Version -> its row and its directory, whose bytes were compared with the row."""


@dataclass(kw_only=True)
class Phases:
    """The seconds that the phases of a swap took."""

    taken_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.taken_s[name] = time.perf_counter() - started
            metrics.adapter_swap_seconds.labels(name).observe(self.taken_s[name])


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What showed that a replica does with a version what the trainer measured."""

    adapter: Adapter
    path: str
    evidence: Json
    phases_s: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a version is not on a replica, and when that is tried again."""

    reason: str
    refused: bool
    """The replica answered, and would not have it or does not do with it what it should."""
    evidence: Json
    phases_s: dict[str, float]
    tries: int
    again_at: float
    """By the monotonic clock."""


class Unproved(Exception):
    """The engine does not do with the adapter what the trainer measured."""

    def __init__(self, reason: str, evidence: Json) -> None:
        super().__init__(reason)
        self.evidence = evidence


class Rollout:
    """What one replica has proved and failed, and the steps that change it.

    Args:
        replica: the engine.
        verify: reads a version and compares its bytes; shared by all replicas.
        digest: SHA-256 of the base model's weights at the engine's `root`, where this machine can
            read them; called in a thread.
        max_rank: the largest LoRA rank the engine was started with.
        slots: how many adapters may be asked at once.
        poll_s: the first pause after a failure; each is twice as long as the one before.
        say: told of each proof and failure.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        verify: Verify,
        digest: Callable[[str], str | None],
        max_rank: int,
        slots: Callable[[], int],
        poll_s: float,
        say: Callable[[Replica, int, Proof | Failure], Awaitable[None]],
    ) -> None:
        self.replica = replica
        self.proofs: dict[int, Proof] = {}
        self.failures: dict[int, Failure] = {}
        self._verify = verify
        self._digest = digest
        self._max_rank = max_rank
        self._slots = slots
        self._poll_s = poll_s
        self._say = say

    async def step(self, wanted: Sequence[int], kept: Collection[int]) -> None:
        """Look at the replica once, and do what it lacks.

        Args:
            wanted: the versions that shall be there, the most important first.
            kept: those that may not be unloaded, because they are wanted or still answer.
        """
        listed = await self._look()
        if listed is None or self.replica.barred:
            return
        for version in [version for version in self.proofs if version not in kept]:
            await self._drop(version)
        self.failures = {v: f for v, f in self.failures.items() if v in wanted}
        for version in wanted:
            failed = self.failures.get(version)
            if version in self.proofs or (failed and time.monotonic() < failed.again_at):
                continue
            await self._bring(version, listed)
            if self.replica.down is not None:
                return  # the next step looks again
        self.replica.current = True

    # --- looking ----------------------------------------------------------------------------------

    async def _look(self) -> dict[str, Model] | None:
        """Ask the engine what it serves and forget what it has lost; None when it is down."""
        replica = self.replica
        try:
            if not await replica.engine.healthy():
                raise EngineUnavailable("the engine does not answer its health check")
            models = await replica.engine.models()
            found = [model for model in models if model.parent is None]
            if not found:
                raise EngineUnavailable("the engine lists no base model")
        except EngineUnavailable as error:
            if replica.down is None:
                words = "the engine %s is down: %s"
                log.error(words, replica.name, error, extra={"action": "engine_down"})
            replica.lost(error.message)
            return None
        if replica.down is not None:
            await replica.engine.warm(found[0].id)
            log.info("the engine %s answers", replica.name, extra={"action": "engine_up"})
            self.failures.clear()
        replica.down = None
        metrics.replica_up.labels(replica.name).set(1)
        if replica.base is not None:
            replica.models.discard(replica.base.id)
        replica.base = found[0]
        replica.models.add(found[0].id)
        listed = {model.id: model for model in models}
        for version, proof in list(self.proofs.items()):
            name = proof.adapter.name
            root = listed[name].root if name in listed else None
            if name not in replica.models or root != proof.path:
                self._forget(version)
        return listed

    def _forget(self, version: int) -> None:
        log.warning(
            "the engine %s has lost code@v%d: it was restarted",
            self.replica.name,
            version,
            extra={"action": "adapter_lost", "version": version},
        )
        self.replica.models.discard(self.proofs.pop(version).adapter.name)
        self.replica.current = False

    # --- bringing in and out ----------------------------------------------------------------------

    async def _drop(self, version: int) -> None:
        name = self.proofs.pop(version).adapter.name
        self.replica.models.discard(name)
        await self._try_unload(name)
        words = "%s is unloaded from %s"
        extra = {"action": "adapter_unloaded", "version": version}
        log.info(words, name, self.replica.name, extra=extra)

    async def _try_unload(self, name: str) -> None:
        try:
            await self.replica.engine.unload(name)
        except EngineUnavailable as error:
            log.warning("%s stays loaded: %s", name, error, extra={"action": "adapter_unload"})

    async def _bring(self, version: int, listed: dict[str, Model]) -> None:
        """Load and prove one version; tell what came of it."""
        phases = Phases()
        try:
            proof = await self._prove(version, listed, phases)
        except (ArtifactError, LoadRefused, EngineRefusal, Unproved, NotFound) as error:
            reason = error.args[0] if error.args else str(error)
            evidence = dict(error.evidence) if isinstance(error, Unproved) else {}
            self._failed(version, str(reason), phases, evidence=evidence, refused=True)
        except (ServerError, OpsError) as error:
            self._failed(version, str(error), phases, evidence={}, refused=False)
        else:
            self.failures.pop(version, None)
            self.proofs[version] = proof
            self.replica.models.add(proof.adapter.name)
        await self._say(self.replica, version, self.proofs.get(version) or self.failures[version])

    def _failed(
        self, version: int, reason: str, phases: Phases, *, evidence: Json, refused: bool
    ) -> None:
        before = self.failures.get(version)
        tries = before.tries + 1 if before else 1
        pause_s = min(self._poll_s * 2**tries, MAX_BACKOFF_S)
        self.failures[version] = Failure(
            reason=reason,
            refused=refused,
            evidence=evidence,
            phases_s=phases.taken_s,
            tries=tries,
            again_at=time.monotonic() + pause_s,
        )

    async def _prove(self, version: int, listed: dict[str, Model], phases: Phases) -> Proof:
        base = self.replica.base
        if base is None:
            raise EngineUnavailable("the engine has not answered yet")
        with phases.phase("verify"):
            adapter, directory = await self._verify(version)
        with phases.phase("preflight"):
            digest = await asyncio.to_thread(self._digest, base.root)
            looked = await asyncio.to_thread(
                preflight, directory, adapter, max_rank=self._max_rank, base_sha256=digest
            )
        path = str(directory.resolve())
        with phases.phase("load"):
            await self._load(adapter.name, path, listed)
        try:
            with phases.phase("readback"):
                found = await self._read_back(adapter.name, path)
            with phases.phase("probe"):
                result = await run_probe(
                    self.replica.engine,
                    directory,
                    base=base.id,
                    name=adapter.name,
                    salt=adapter.sha256,
                )
            if not result.accepted:
                raise Unproved(result.reason, asdict(result))
        except (Unproved, ArtifactError, EngineRefusal) as error:
            if isinstance(error, EngineRefusal) and error.status == 404:
                raise EngineUnavailable(f"the engine lost {adapter.name}") from error
            await self._try_unload(adapter.name)
            raise
        evidence: dict[str, Any] = {
            **asdict(result),
            "sha256": adapter.sha256,
            "preflight": looked,
            "readback": {"name": found.id, "root": directory.name},
            "cache_salt": adapter.sha256,
            "max_loras": await self._room(),
        }
        return Proof(adapter=adapter, path=path, evidence=evidence, phases_s=phases.taken_s)

    async def _read_back(self, name: str, path: str) -> Model:
        models = {model.id: model for model in await self.replica.engine.models()}
        found = models.get(name)
        if found is None or found.root != path:
            raise EngineUnavailable(f"the engine does not list {name} any more")
        return found

    async def _room(self) -> int | None:
        """How many adapters the engine has room for on its device; too few are complained of."""
        found, least = await self.replica.engine.lora_slots(), self._slots()
        if found is not None and found < least:
            log.warning(
                "the engine has room for %d adapters at once, %d may be asked: start it with "
                "--max-loras %d",
                found,
                least,
                least,
                extra={"action": "slots", "max_loras": found, "needed": least},
            )
        return found

    async def _load(self, name: str, path: str, listed: dict[str, Model]) -> None:
        """Load an adapter unless the engine has it, from this very path, from before.

        Raises:
            LoadRefused: the engine read it and would not have it.
            EngineUnavailable: the engine is dying, or has another adapter of this name.
        """
        engine = self.replica.engine
        there = listed.get(name)
        if there is None:
            try:
                await engine.load(name, path)
                return
            except LoadRefused:
                # A dying engine answers 500 as well, and another server may have been faster.
                if not await engine.healthy():
                    raise EngineUnavailable("the engine died while it loaded an adapter") from None
                models = {model.id: model for model in await engine.models()}
                there = models.get(name)
                if there is None:
                    raise
        if there.root != path:
            raise EngineUnavailable(
                f"the engine knows {name} from {there.root}; a name is never used twice"
            )
