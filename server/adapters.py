"""Adapters: follows the registry's aliases and decides which model name a request runs under.

The swap protocol: verify the bytes, preflight, load under a new name, read back, probe, flip, drain
by reference count, unload. Nothing is ever loaded in place and no name or path is used twice. What
cannot be proved is refused in the registry with the reason, and serving goes on with what it had.
After an engine restart everything is loaded and proved again; until then `code` is answered with
503 rather than by the wrong weights.

While a version is on trial (`ops.trials`), a share of the requests for `code` goes to it, or to
what it took the place of; who asks decides which (`server.traffic`). Judging the trial is
`canary`'s, training and examining are the improver's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from ops import metrics, trials
from ops.errors import ArtifactError, NotFound, OpsError, StoreError
from ops.records import Adapter, AdapterState, Alias, SwapReceipt, Transition, new_id, now
from ops.registry import Registry
from ops.slots import needed
from ops.store import Store
from server.engine import Engine, LoadRefused, Model
from server.errors import EngineRefusal, EngineUnavailable, NotFoundError, ServerError
from server.proof import preflight, run_probe
from server.traffic import Role, Split

log = logging.getLogger(__name__)

ALIAS = trials.ALIAS
_PIN = re.compile(r"^code@v([1-9][0-9]{0,8})$")
_KEPT = (Alias.CHAMPION, Alias.CANARY, Alias.CANDIDATE, Alias.ROLLBACK)
"""What stays loaded, in the order in which it is brought in."""
MAX_BACKOFF_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """What answers a request: version 0 is the base model."""

    model: str
    """The engine's name of it."""
    version: int
    sha256: str
    base: str
    base_root: str

    @property
    def name(self) -> str:
        """The family: `code` for adapters, `base` for the base model."""
        return ALIAS if self.version else "base"

    @property
    def fingerprint(self) -> str:
        """Base and adapter in one short word, for `system_fingerprint`."""
        base = hashlib.sha256(f"{self.base}\0{self.base_root}".encode()).hexdigest()
        return f"fp_{base[:10]}_{self.sha256[:12] or 'base'}"

    @property
    def public(self) -> dict[str, Any]:
        """The `adapter` field of every answer."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}

    def salt(self, given: object, *, tenant: str) -> str | None:
        """The prefix-cache salt.

        No block computed under one adapter, or for one tenant, serves another. None where
        neither says anything: the base model for the default tenant.
        """
        own = isinstance(given, str) and bool(given)
        parts = [tenant if tenant != "default" else "", str(given) if own else ""]
        if not any(parts):
            return self.sha256 or None
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return f"{self.sha256}-{digest[:32]}" if self.sha256 else digest


@dataclass(kw_only=True)
class _Loaded:
    served: Served
    adapter: Adapter
    probe: dict[str, Any]
    phases_s: dict[str, float]
    """How long it took to bring it in; told once, by its first receipt."""
    references: int = 0
    left_at: float | None = None


@dataclass(kw_only=True)
class _Trouble:
    tries: int
    again_at: float
    reason: str


@dataclass(kw_only=True)
class _Try:
    """One attempt to bring a version in, with the seconds of its phases."""

    version: int
    from_version: int
    phases_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phases_s[name] = time.perf_counter() - started
            metrics.adapter_swap_seconds.labels(name).observe(self.phases_s[name])


class Adapters:
    """What the engine serves, and the loop that keeps it what the registry says.

    Args:
        engine: the engine.
        store: where aliases are read and receipts written.
        registry: where a version is verified, and refused when it cannot be proved.
        server: this server's name in receipts.
        poll_s: seconds between two looks at the registry and the engine.
        max_rank: the largest LoRA rank the engine was started with.
        rules: what share of the requests for `code` a version on trial gets.
        digest: SHA-256 of the base model's weights at the engine's `root`, where this machine
            can read them; called in a thread.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        registry: Registry,
        *,
        server: str,
        poll_s: float,
        max_rank: int,
        rules: trials.Rules | None = None,
        digest: Callable[[str], str | None] = lambda root: None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._registry = registry
        self._server = server
        self._poll_s = poll_s
        self._max_rank = max_rank
        self._rules = rules or trials.Rules()
        self._split: Split | None = None
        self._digest = digest
        self._base: Model | None = None
        self._loaded: dict[int, _Loaded] = {}
        self._champion: int | None = None
        """What `code` means; 0 is the base; None: not known yet, or lost with the engine."""
        self._aliases: dict[Alias, int] | None = None
        self._trouble: dict[int, _Trouble] = {}
        self._down: str | None = "the engine has not answered yet"
        self._wake = asyncio.Event()
        self._stopping = False

    # --- for requests ----------------------------------------------------------------------------

    @contextmanager
    def lease(self, model: str, who: str | None = None) -> Iterator[Served]:
        """Resolve a model name and hold what it means loaded until the block is left.

        Args:
            model: as the client asks for it.
            who: decides over the arm while a version is on trial; None: the champion answers.

        Raises:
            NotFoundError: there is no such model; the engine is never asked.
            EngineUnavailable: there is, but it cannot answer now.
        """
        served = self._resolve(model, who)
        loaded = self._loaded.get(served.version)
        if loaded is None:
            yield served
            return
        loaded.references += 1
        gauge = metrics.adapter_inflight.labels(str(served.version))
        gauge.inc()
        try:
            yield served
        finally:
            loaded.references -= 1
            gauge.dec()
            if loaded.left_at is not None and loaded.references == 0:
                self._wake.set()

    def _resolve(self, model: str, who: str | None) -> Served:
        if model == ALIAS:
            champion = self.champion
            if champion is None:
                raise EngineUnavailable(self._why_not_ready())
            arm, role = self._arm(who)
            metrics.alias_requests_total.labels(role).inc()
            return arm or champion
        if self._base is not None and model == self._base.id:
            return self._base_served(self._base)
        pin = _PIN.match(model)
        if pin is not None:
            loaded = self._loaded.get(int(pin[1]))
            if loaded is not None and loaded.left_at is None:
                return loaded.served
            if self._aliases is not None and int(pin[1]) in self._aliases.values():
                raise EngineUnavailable(f"{model} is being loaded")
        if self._base is None:
            raise EngineUnavailable(self._why_not_ready())
        raise NotFoundError(
            f"The model `{model[:200]}` does not exist or is not loaded.",
            param="model",
            code="model_not_found",
        )

    def _arm(self, who: str | None) -> tuple[Served | None, Role]:
        """The arm of a trial that is not the champion, where it is this one's turn."""
        split = self._split
        if split is not None and who is not None and split.takes(who):
            if split.version == 0 and self._base is not None:
                return self._base_served(self._base), split.role
            loaded = self._loaded.get(split.version)
            if loaded is not None and loaded.left_at is None:
                return loaded.served, split.role
        return None, Role.CHAMPION

    def _base_served(self, base: Model) -> Served:
        return Served(model=base.id, version=0, sha256="", base=base.id, base_root=base.root)

    def explain(self, served: Served, error: EngineRefusal) -> ServerError:
        """Tell a client's mistake from an engine that was restarted and lost what it served."""
        if error.status != 404:
            return error
        self._wake.set()
        return EngineUnavailable(f"the engine lost {served.model}; it is being loaded again")

    # --- for the status routes -------------------------------------------------------------------

    @property
    def base(self) -> Model | None:
        """The engine's base model, once it has answered."""
        return self._base

    @property
    def champion(self) -> Served | None:
        """What `code` means now; None while nothing can answer it."""
        if self._champion is None or self._base is None:
            return None
        if self._champion == 0:
            return self._base_served(self._base)
        return self._loaded[self._champion].served

    @property
    def split(self) -> Split | None:
        """The share of the requests for `code` that something beside the champion answers."""
        return self._split

    @property
    def loaded(self) -> list[Adapter]:
        """The adapters that answer under their pinned names, oldest first."""
        return [
            self._loaded[version].adapter
            for version in sorted(self._loaded)
            if self._loaded[version].left_at is None
        ]

    def reasons(self) -> list[str]:
        """Why the server is not ready; empty when it is."""
        if self._down is not None:
            return [self._down]
        if self._champion is None:
            return [self._why_not_ready()]
        wanted = set((self._aliases or {}).values())
        missing = sorted(wanted - self._loaded.keys())
        return [self._why_missing(version) for version in missing]

    def _why_not_ready(self) -> str:
        if self._down is not None:
            return self._down
        if self._aliases is None:
            return "the registry has not been read yet"
        champion = self._aliases.get(Alias.CHAMPION)
        return self._why_missing(champion) if champion else "the engine is being looked at"

    def _why_missing(self, version: int) -> str:
        trouble = self._trouble.get(version)
        return f"code@v{version} is not loaded" + (f": {trouble.reason}" if trouble else " yet")

    # --- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the registry until `stop`."""
        while not self._stopping:
            try:
                await self.sync()
            except Exception:  # the loop's edge
                metrics.loop_errors_total.labels("adapters").inc()
                log.exception("following the registry failed", extra={"action": "adapters"})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._poll_s)
            self._wake.clear()

    def stop(self) -> None:
        """End the loop after the step it is in."""
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        """Look at the registry at once: something was moved there."""
        self._wake.set()

    async def sync(self) -> None:
        """Look once at the engine and the registry and do what they call for."""
        listed = await self._look()
        if listed is None:
            return
        try:
            aliases = await asyncio.to_thread(self._store.aliases)
            trial = await asyncio.to_thread(trials.current, self._store, self._rules)
        except StoreError as error:
            log.warning("the registry cannot be read: %s", error, extra={"action": "adapters"})
            return
        self._aliases = aliases
        if trial is None or trial.split not in (0, *aliases.values()):
            await self._divide(None)
        for alias in _KEPT:
            version = aliases.get(alias)
            if version is not None and version not in self._loaded:
                await self._bring(version, alias, listed)
        await self._flip(aliases.get(Alias.CHAMPION))
        await self._divide(trial)
        await self._unload_unwanted(set(aliases.values()))
        self._show(aliases)

    async def _look(self) -> dict[str, Model] | None:
        """Ask the engine what it serves and forget what it has lost; None when it is down."""
        try:
            if not await self._engine.healthy():
                raise EngineUnavailable("the engine does not answer its health check")
            models = await self._engine.models()
            bases = [model for model in models if model.parent is None]
            if not bases:
                raise EngineUnavailable("the engine lists no base model")
        except EngineUnavailable as error:
            if self._down is None:
                log.error("the engine is down: %s", error, extra={"action": "engine_down"})
            self._down = error.message
            metrics.engine_up.set(0)
            return None
        if self._down is not None:
            log.info("the engine answers", extra={"action": "engine_up"})
            self._trouble.clear()
        self._down = None
        metrics.engine_up.set(1)
        self._base = bases[0]
        listed = {model.id: model for model in models}
        for version in list(self._loaded):
            if self._loaded[version].served.model not in listed:
                self._forget(version)
        return listed

    def _forget(self, version: int) -> None:
        log.warning(
            "the engine has lost code@v%d: it was restarted",
            version,
            extra={"action": "adapter_lost", "version": version},
        )
        del self._loaded[version]
        if self._champion == version:
            self._champion = None

    async def _bring(self, version: int, alias: Alias, listed: dict[str, Model]) -> None:
        """Load and prove one version; on failure refuse it, or try again later."""
        trouble = self._trouble.get(version)
        if trouble is not None and time.monotonic() < trouble.again_at:
            return
        this = _Try(version=version, from_version=self._champion or 0)
        try:
            adapter = await asyncio.to_thread(self._registry.get, version)
            loaded = await self._prove(this, adapter, listed)
        except (ArtifactError, LoadRefused, EngineRefusal, _Unproved, NotFound) as error:
            await self._refuse(this, alias, error)
        except (ServerError, OpsError) as error:
            await self._postpone(this, alias, error)
        else:
            self._trouble.pop(version, None)
            self._loaded[version] = loaded
            if alias is not Alias.CHAMPION:
                # The champion's receipt is written when `code` means it.
                await self._receipt(this, loaded.probe | {"alias": alias.value}, "proved")
                loaded.phases_s = {}
            metrics.adapter_swaps_total.labels("proved").inc()
            log.info(
                "%s is loaded and proved as %s",
                adapter.name,
                alias.value,
                extra={"action": "adapter_loaded", "version": version, "phases_s": this.phases_s},
            )

    async def _prove(self, this: _Try, adapter: Adapter, listed: dict[str, Model]) -> _Loaded:
        base = self._base
        if base is None:
            raise EngineUnavailable("the engine has not answered yet")
        with this.phase("verify"):
            directory = await asyncio.to_thread(self._registry.verify, adapter)
        with this.phase("preflight"):
            digest = await asyncio.to_thread(self._digest, base.root)
            looked = await asyncio.to_thread(
                preflight, directory, adapter, max_rank=self._max_rank, base_sha256=digest
            )
        path = str(directory.resolve())
        with this.phase("load"):
            await self._load(adapter.name, path, listed)
        try:
            with this.phase("readback"):
                models = {model.id: model for model in await self._engine.models()}
                found = models.get(adapter.name)
                if found is None or found.root != path:
                    raise EngineUnavailable(f"the engine does not list {adapter.name} any more")
            with this.phase("probe"):
                result = await run_probe(
                    self._engine,
                    directory,
                    base=base.id,
                    name=adapter.name,
                    salt=adapter.sha256,
                )
            if not result.accepted:
                raise _Unproved(result.reason, asdict(result))
        except (_Unproved, ArtifactError, EngineRefusal) as error:
            if isinstance(error, EngineRefusal) and error.status == 404:
                raise EngineUnavailable(f"the engine lost {adapter.name}") from error
            await self._try_unload(adapter.name)
            raise
        served = Served(
            model=adapter.name,
            version=adapter.version,
            sha256=adapter.sha256,
            base=base.id,
            base_root=base.root,
        )
        evidence = {
            **asdict(result),
            "sha256": adapter.sha256,
            "preflight": looked,
            "readback": {"name": found.id, "root": directory.name},
            "cache_salt": served.salt(None, tenant="default"),
            "max_loras": await self._slots(),
        }
        return _Loaded(served=served, adapter=adapter, probe=evidence, phases_s=dict(this.phases_s))

    async def _slots(self) -> int | None:
        """How many adapters the engine has room for on its device; too few are complained of."""
        found = await self._engine.lora_slots()
        least = needed(divided=self._split is not None or self._rules.canary_share > 0).device
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
        there = listed.get(name)
        if there is None:
            try:
                await self._engine.load(name, path)
                return
            except LoadRefused:
                # A dying engine answers 500 as well, and another server may have been faster.
                if not await self._engine.healthy():
                    raise EngineUnavailable("the engine died while it loaded an adapter") from None
                models = {model.id: model for model in await self._engine.models()}
                there = models.get(name)
                if there is None:
                    raise
        if there.root != path:
            raise EngineUnavailable(
                f"the engine knows {name} from {there.root}; a name is never used twice"
            )

    async def _refuse(self, this: _Try, alias: Alias, error: Exception) -> None:
        """The adapter's fault: take it out of the registry's aliases, for good."""
        reason = error.args[0] if error.args else str(error)
        evidence = dict(error.evidence) if isinstance(error, _Unproved) else {}
        await self._receipt(this, evidence | {"alias": alias.value}, str(reason), accepted=False)
        metrics.adapter_swaps_total.labels("refused").inc()
        log.error(
            "code@v%d is refused: %s",
            this.version,
            reason,
            extra={"action": "adapter_refused", "version": this.version},
        )

        def refuse() -> None:
            self._registry.refuse(
                this.version,
                actor=f"server:{self._server}",
                reason=str(reason),
                evidence=evidence,
            )

        try:
            await asyncio.to_thread(refuse)
        except OpsError as failed:
            # For instance the way back is damaged too: the alias stays, we keep what we have.
            self._later(this.version, f"{reason} (and the registry: {failed})")
            log.error("the refusal failed: %s", failed, extra={"action": "adapter_refused"})
        else:
            self._wake.set()

    async def _postpone(self, this: _Try, alias: Alias, error: Exception) -> None:
        """Not the adapter's fault: try again, ever more rarely."""
        self._later(this.version, str(error))
        await self._receipt(this, {"alias": alias.value}, str(error), accepted=False)
        metrics.adapter_swaps_total.labels("postponed").inc()
        log.warning(
            "code@v%d cannot be loaded now: %s",
            this.version,
            error,
            extra={"action": "adapter_postponed", "version": this.version},
        )

    def _later(self, version: int, reason: str) -> None:
        before = self._trouble.get(version)
        tries = before.tries + 1 if before else 1
        pause_s = min(self._poll_s * 2**tries, MAX_BACKOFF_S)
        self._trouble[version] = _Trouble(
            tries=tries, again_at=time.monotonic() + pause_s, reason=reason
        )

    async def _flip(self, target: int | None) -> None:
        """Let `code` mean the champion: one assignment, between two requests; then say so."""
        version = target or 0
        if version == self._champion or (version and version not in self._loaded):
            return
        this = _Try(version=version, from_version=self._champion or 0)
        loaded = self._loaded.get(version)
        if loaded is not None:
            this.phases_s |= loaded.phases_s
            loaded.phases_s = {}
        with this.phase("flip"):
            before, self._champion = self._champion, version
        metrics.adapter_swaps_total.labels("flipped").inc()
        name = f"code@v{version}" if version else "the base model"
        log.info(
            "code is now %s",
            name,
            extra={"action": "flip", "version": version, "from_version": before},
        )
        if before and (self._aliases or {}).get(Alias.ROLLBACK) != before:
            # Who is followed by another becomes the way back; who is left does not.
            left = (AdapterState.RETIRED, AdapterState.REJECTED)
            await self._time_rollback(before, left)
        if before is not None or version:
            evidence = loaded.probe if loaded is not None else {}
            await self._receipt(
                this, evidence | {"alias": Alias.CHAMPION.value}, f"code is now {name}"
            )

    async def _divide(self, trial: trials.Trial | None) -> None:
        """Send the share of a trial to its arm: one assignment, between two requests."""
        split = None
        if trial is not None and trial.share > 0 and self._champion is not None:
            split = Split(
                version=trial.split,
                share=trial.share,
                role=Role.CANARY if trial.kind is trials.Kind.CANARY else Role.CONTROL,
                draw=f"{trial.kind}:{trial.version}:{trial.since.isoformat()}",
            )
        if split == self._split:
            return
        before, self._split = self._split, split
        if split is not None:
            log.info(
                "%s answers %.0f %% of the requests for code",
                f"code@v{split.version}" if split.version else "the base model",
                100 * split.share,
                extra={"action": "split", "version": split.version, "role": split.role},
            )
        if before is not None and before.role is Role.CANARY:
            await self._time_rollback(before.version, (AdapterState.REJECTED,))

    async def _time_rollback(self, left: int, states: tuple[AdapterState, ...]) -> None:
        """Measure how long ago it was decided to leave a version, where it was."""

        def last() -> Transition | None:
            return self._store.transitions(left)[-1] if left else None

        try:
            found = await asyncio.to_thread(last)
        except StoreError:
            return  # nothing but a measurement
        if found is not None and found.to_state in states:
            seconds = max(0.0, (now() - found.at).total_seconds())
            metrics.rollback_seconds.observe(seconds)

    async def _unload_unwanted(self, wanted: set[int]) -> None:
        for version, loaded in list(self._loaded.items()):
            if version in wanted or version == self._champion:
                loaded.left_at = None
                continue
            if loaded.left_at is None:
                loaded.left_at = time.monotonic()
            if loaded.references == 0:
                metrics.adapter_swap_seconds.labels("drain").observe(
                    time.monotonic() - loaded.left_at
                )
                await self._try_unload(loaded.served.model)
                del self._loaded[version]
                log.info(
                    "%s is unloaded",
                    loaded.served.model,
                    extra={"action": "adapter_unloaded", "version": version},
                )

    async def _try_unload(self, name: str) -> None:
        try:
            await self._engine.unload(name)
        except EngineUnavailable as error:
            log.warning("%s stays loaded: %s", name, error, extra={"action": "adapter_unload"})

    async def _receipt(
        self, this: _Try, evidence: dict[str, Any], reason: str, *, accepted: bool = True
    ) -> None:
        receipt = SwapReceipt(
            id=new_id(),
            at=now(),
            server=self._server,
            version=this.version,
            from_version=this.from_version,
            accepted=accepted,
            reason=reason,
            phases_s=dict(this.phases_s),
            probe=evidence,
        )
        try:
            await asyncio.to_thread(self._store.add_receipt, receipt)
        except StoreError as error:
            log.error("a swap receipt is lost: %s", error, extra={"action": "receipt"})

    def _show(self, aliases: dict[Alias, int]) -> None:
        metrics.adapter_info.clear()
        roles = {version: alias.value for alias, version in reversed(aliases.items())}
        for version, loaded in self._loaded.items():
            metrics.adapter_info.labels(
                ALIAS, str(version), loaded.served.sha256, roles.get(version, "draining")
            ).set(1)
        if self._champion == 0:
            metrics.adapter_info.labels("base", "0", "", Alias.CHAMPION.value).set(1)


class _Unproved(Exception):
    """The engine does not do with the adapter what the trainer measured."""

    def __init__(self, reason: str, evidence: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.evidence = evidence or {}
