"""The champion merged with its base: a second engine that is asked first, once it is proved.

`journeyman up` starts that engine (`ops.second_engine`, where `engine.merged` is set) while nothing
is on trial. Here is decided whether requests reach it: it must say that it has the champion's bytes
merged with the base it was trained on, and its log-probabilities of the champion's probe must be
those of base and adapter side by side, within `probe.MAX_MERGED_ERROR_NATS`. Until then, and as
soon as another champion comes, something is on trial or the engine fails, the first engine answers,
which keeps the adapter loaded: `server.replicas` asks it where the second one fails before a byte
of the answer has left the server. A stream that has begun breaks off with its engine, as always.

Answers name the adapter, as before; that it was merged stands in a swap receipt.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ops import merges, metrics, probe, trials
from ops.errors import ArtifactError, OpsError, StoreError
from ops.records import Adapter, Json, SwapReceipt, new_id, now
from ops.store import Store
from server.adapters import Adapters
from server.engine import Engine
from server.errors import ServerError
from server.replicas import Replica, Replicas, Role

log = logging.getLogger(__name__)

SILENT = 3
"""So many health checks in a row that fail, and nothing more is asked of it."""
ALIAS = "merged"
"""What its receipts name as the alias."""


class Merged:
    """The loop that lets requests reach the second engine, and keeps them from it.

    Args:
        engine: the second engine, entered; it need not run.
        replicas: where it joins once it is proved.
        adapters: what the first engine serves.
        store: where trials are read and receipts written.
        rules: what trials go by.
        server: this server's name in receipts.
        poll_s: seconds between two looks.
    """

    def __init__(
        self,
        engine: Engine,
        replicas: Replicas,
        adapters: Adapters,
        store: Store,
        *,
        rules: trials.Rules,
        server: str,
        poll_s: float,
    ) -> None:
        self._engine = engine
        self._replicas = replicas
        self._adapters = adapters
        self._store = store
        self._rules = rules
        self._server = server
        self._poll_s = poll_s
        self._serving: tuple[Replica, Adapter] | None = None
        self._left: tuple[Replica, Adapter] | None = None
        """What gets nothing new and still answers."""
        self._refused: str | None = None
        """The directory that was found not to be what it should."""
        self._noted = ""
        self._silent = 0
        self._stopping = asyncio.Event()

    @property
    def in_use(self) -> Json | None:
        """What the second engine answers for now, or has still to answer; None: nothing."""
        held = self._serving or self._left
        if held is None:
            return None
        replica, adapter = held
        return {"version": adapter.version, "in_flight": replica.in_flight}

    async def run(self) -> None:
        """Look until `stop`."""
        while not self._stopping.is_set():
            try:
                await self.look()
            except Exception:  # the loop's edge
                metrics.loop_errors_total.labels("merged").inc()
                log.exception("the second engine was not followed", extra={"action": "merged"})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._poll_s)

    def stop(self) -> None:
        """End the loop after the step it is in."""
        self._stopping.set()

    async def look(self) -> None:
        """Do once what the registry and the second engine call for."""
        try:
            wanted = await self._wanted()
        except StoreError as error:
            log.warning("the registry cannot be read: %s", error, extra={"action": "merged"})
            return
        if self._serving is not None:
            why = await self._why_leave(*self._serving, wanted)
            if why:
                self._leave(why)
        if self._left is not None and self._left[0].in_flight == 0:
            (replica, _), self._left = self._left, None
            await self._replicas.leave(replica)
        if wanted is not None and self._serving is None and self._left is None:
            await self._try(wanted)

    async def _wanted(self) -> Adapter | None:
        """The champion, where it may be merged and the first engine has it."""
        settled = await asyncio.to_thread(trials.settled, self._store, self._rules)
        champion = self._adapters.champion
        if settled is None or champion is None or champion.version != settled:
            return None
        loaded = [adapter for adapter in self._adapters.loaded if adapter.version == settled]
        return loaded[0] if loaded else None

    # --- on the way out -------------------------------------------------------------------------

    async def _why_leave(self, replica: Replica, adapter: Adapter, wanted: Adapter | None) -> str:
        if wanted is None or wanted.sha256 != adapter.sha256:
            return "another version comes, or something is on trial"
        if replica.down is not None:
            return f"the second engine failed: {replica.down}"
        self._silent = 0 if await self._engine.healthy() else self._silent + 1
        return "the second engine does not answer" if self._silent >= SILENT else ""

    def _leave(self, why: str) -> None:
        """Nothing new for it from now on: one assignment, between two requests."""
        if self._serving is None:
            return
        self._left, self._serving = self._serving, None
        replica, adapter = self._left
        replica.models.clear()
        metrics.merged_version.set(0)
        log.info(
            "%s is answered by the first engine again: %s",
            adapter.name,
            why,
            extra={"action": "merged_left", "version": adapter.version},
        )

    # --- on the way in --------------------------------------------------------------------------

    async def _try(self, adapter: Adapter) -> None:
        if not await self._engine.healthy():
            self._refused = None  # what comes next is another
            return
        phases_s: dict[str, float] = {}
        try:
            root = await self._root(adapter)
            if root is None or root == self._refused:
                return
            began = time.perf_counter()
            evidence, reason = await self._compare(adapter)
            phases_s["probe"] = time.perf_counter() - began
        except (ServerError, OpsError) as error:  # not its fault, or not yet: look again
            self._note(f"{adapter.name} is not proved merged: {error}")
            return
        if not reason:
            await self._enter(adapter)
        else:
            self._refused = root
        said = reason or f"{adapter.name} is answered by the second engine, merged"
        level = logging.ERROR if reason else logging.INFO
        log.log(level, "%s", said, extra={"action": "merged", "version": adapter.version})
        metrics.adapter_swaps_total.labels("merge_refused" if reason else "merged").inc()
        await self._receipt(adapter, evidence, said, phases_s, accepted=not reason)

    def _note(self, line: str) -> None:
        """Say what holds it up, once."""
        if line != self._noted:
            log.info("%s", line, extra={"action": "merged"})
            self._noted = line

    async def _root(self, adapter: Adapter) -> str | None:
        """The directory that the second engine serves, where it is of this adapter.

        Raises:
            ArtifactError: it cannot be told what that is.
        """
        for model in await self._engine.models():
            if model.id == adapter.name and model.parent is None:
                made_of = await asyncio.to_thread(merges.read, Path(model.root))
                if (made_of.adapter_sha256, made_of.base_sha256) == (
                    adapter.sha256,
                    adapter.base_sha256,
                ):
                    return model.root
                raise ArtifactError(f"{model.root} holds other weights")
        return None

    async def _compare(self, adapter: Adapter) -> tuple[Json, str]:
        """Ask both engines for the log-probabilities of the probe; say why they do not do."""
        able = [
            replica
            for replica in self._replicas.of(Role.ADAPTERS)
            if adapter.name in replica.models and replica.base is not None
        ]
        if not able or able[0].base is None:
            raise ArtifactError("no engine has it beside its base")
        first, base = able[0].engine, able[0].base.id
        texts = await asyncio.to_thread(probe.read, Path(adapter.directory))
        tokens = [text.token_ids for text in texts]
        salt = adapter.sha256
        beside = await first.token_logprobs(adapter.name, tokens, cache_salt=salt)
        merged = await self._engine.token_logprobs(adapter.name, tokens, cache_salt=salt)
        bare = await first.token_logprobs(base, tokens, cache_salt=salt)
        result = probe.compare(texts, bare, merged)
        apart = probe.apart(beside, merged)
        reason = "" if result.accepted else result.reason
        if not reason and not apart <= probe.MAX_MERGED_ERROR_NATS:
            reason = f"merged and beside its base it differs by {apart:.3f} nats a token"
        return {**asdict(result), "merged_error": apart}, reason

    async def _enter(self, adapter: Adapter) -> None:
        replica = await self._replicas.join(self._engine.url, Role.MERGED)
        replica.down, replica.current = None, True
        replica.models = {adapter.name}
        metrics.replica_up.labels(replica.name).set(1)
        metrics.merged_version.set(adapter.version)
        self._serving, self._silent = (replica, adapter), 0

    async def _receipt(
        self,
        adapter: Adapter,
        evidence: Json,
        reason: str,
        phases_s: dict[str, float],
        *,
        accepted: bool,
    ) -> None:
        receipt = SwapReceipt(
            id=new_id(),
            at=now(),
            server=self._server,
            version=adapter.version,
            from_version=adapter.version,
            accepted=accepted,
            reason=reason,
            phases_s=phases_s,
            probe=evidence
            | {"alias": ALIAS, "sha256": adapter.sha256, "replica": self._engine.url},
        )
        try:
            await asyncio.to_thread(self._store.add_receipt, receipt)
        except StoreError as error:
            log.error("a swap receipt is lost: %s", error, extra={"action": "receipt"})
