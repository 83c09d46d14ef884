"""Adapters: follows the registry's aliases and decides which model name a request runs under.

The swap protocol: verify the bytes, preflight, load under a new name, read back and probe on every
replica (`server.rollout`); when enough of them have proved it, flip; drain by reference count,
unload. What cannot be proved is refused in the registry with the reason, and serving goes on with
what it had. A version that answers already is never refused because of one replica: that one is
not asked for it. After an engine restart everything is loaded and proved again; where no engine
has the champion, `code` is answered with 503 rather than by the wrong weights.

While a version is on trial (`ops.trials`), a share of the requests for `code` goes to it, or to
what it took the place of; who asks decides which (`server.traffic`). Judging the trial is
`canary`'s, training and examining are the improver's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ops import metrics, swaps, trials
from ops.errors import OpsError, StoreError
from ops.records import Adapter, AdapterState, Alias, SwapReceipt, Transition, new_id, now
from ops.registry import Registry
from ops.slots import needed
from ops.store import Store
from server import traffic
from server.engine import Model
from server.errors import EngineRefusal, EngineUnavailable, NotFoundError, ServerError
from server.replicas import Replica, Replicas, Role
from server.rollout import Failure, Phases, Proof, Rollout
from server.traffic import Split

log = logging.getLogger(__name__)

ALIAS = trials.ALIAS
_PIN = re.compile(r"^code@v([1-9][0-9]{0,8})$")
_KEPT = (Alias.CHAMPION, Alias.CANARY, Alias.CANDIDATE, Alias.ROLLBACK)
"""What stays loaded, in the order in which it is brought in."""


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


@dataclass(frozen=True, kw_only=True)
class Enough:
    """How many replicas must have proved a version before it answers."""

    share: float = 1.0
    """Of those that answer."""
    least: int = 1

    def of(self, up: int) -> int:
        """How many that are when so many answer."""
        return max(self.least, math.ceil(round(self.share * up, 6)))


@dataclass(kw_only=True)
class _Loaded:
    """A version that enough replicas have proved."""

    served: Served
    adapter: Adapter
    probe: dict[str, Any]
    phases_s: dict[str, float]
    """How long it took to bring it in; told once, by its first receipt."""
    references: int = 0
    left_at: float | None = None


class Adapters:
    """What the engines serve, and the loop that keeps it what the registry says.

    Args:
        replicas: the engines.
        store: where aliases are read and receipts written.
        registry: where a version is verified, and refused when it cannot be proved.
        server: this server's name in receipts.
        poll_s: seconds between two looks at the registry and the engines.
        max_rank: the largest LoRA rank the engines were started with.
        enough: how many replicas must have proved a version before it answers.
        linger_s: how long a version that is left stays loaded while there are other servers, whose
            requests this one does not know.
        rules: what share of the requests for `code` a version on trial gets.
        digest: SHA-256 of the base model's weights at an engine's `root`, where this machine
            can read them; called in a thread.
    """

    def __init__(
        self,
        replicas: Replicas,
        store: Store,
        registry: Registry,
        *,
        server: str,
        poll_s: float,
        max_rank: int,
        enough: Enough | None = None,
        linger_s: float = 0.0,
        rules: trials.Rules | None = None,
        digest: Callable[[str], str | None] = lambda root: None,
    ) -> None:
        self._replicas = replicas
        self._store = store
        self._registry = registry
        self._server = server
        self._poll_s = poll_s
        self._max_rank = max_rank
        self._enough = enough or Enough()
        self._linger_s = linger_s
        self._rules = rules or trials.Rules()
        self._split: Split | None = None
        self._digest = digest
        self._base: Model | None = None
        self._rollouts: dict[Replica, Rollout] = {}
        self._steps: dict[Replica, asyncio.Task[None]] = {}
        self._verifying: dict[int, asyncio.Task[tuple[Adapter, Path]]] = {}
        self._loaded: dict[int, _Loaded] = {}
        self._champion: int | None = None
        """What `code` means; 0 is the base; None: not known yet, or lost with the engines."""
        self._aliases: dict[Alias, int] | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        replicas.on_change = self._wake.set

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

    def _arm(self, who: str | None) -> tuple[Served | None, traffic.Role]:
        """The arm of a trial that is not the champion, where it is this one's turn."""
        split = self._split
        if split is not None and who is not None and split.takes(who):
            if split.version == 0 and self._base is not None:
                return self._base_served(self._base), split.role
            loaded = self._loaded.get(split.version)
            here = self._is_there(split.version)
            if loaded is not None and here and loaded.left_at is None:
                return loaded.served, split.role
        return None, traffic.Role.CHAMPION

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
        """Why `code` cannot be answered; empty when it can."""
        champion = self.champion
        if self._down is not None or champion is None:
            return [self._why_not_ready()]
        if not any(self._answers(replica, champion.model) for replica in self._replicas):
            return [self._why_missing(champion.version)]
        return []

    def pending(self) -> list[str]:
        """What the registry wants and enough engines do not have yet, and why."""
        wanted = sorted(set((self._aliases or {}).values()))
        return [self._why_missing(version) for version in wanted if not self._is_there(version)]

    def _is_there(self, version: int) -> bool:
        loaded = self._loaded.get(version)
        return loaded is not None and self._replicas.know(loaded.served.model)

    def engines(self) -> list[dict[str, Any]]:
        """The engines, and what is proved on each."""
        champion = self.champion
        return [
            {
                "name": replica.name,
                "role": str(replica.role),
                "answers": champion is not None and self._answers(replica, champion.model),
                "why_not": replica.down,
                "in_flight": replica.in_flight,
                "models": sorted(replica.models),
                "failures": self._failures(replica),
            }
            for replica in self._replicas
        ]

    def counts(self) -> dict[str, int]:
        """How many engines there are, and how many answer as `code`; from any thread."""
        champion, every = self.champion, list(self._replicas)
        serving = champion is not None and [r for r in every if self._answers(r, champion.model)]
        return {"serving": len(serving or ()), "all": len(every)}

    def _failures(self, replica: Replica) -> dict[str, str]:
        rollout = self._rollouts.get(replica)
        failures = rollout.failures if rollout is not None else {}
        return {f"{ALIAS}@v{version}": failure.reason for version, failure in failures.items()}

    @staticmethod
    def _answers(replica: Replica, model: str) -> bool:
        return replica.down is None and not replica.barred and model in replica.models

    @property
    def _down(self) -> str | None:
        """Why no engine answers; None when one does."""
        if any(replica.down is None and not replica.barred for replica in self._replicas):
            return None
        reasons = {replica.down or "it serves another base model" for replica in self._replicas}
        return "; ".join(sorted(reasons)) or "there is no engine"

    def _why_not_ready(self) -> str:
        if self._down is not None:
            return self._down
        if self._aliases is None:
            return "the registry has not been read yet"
        champion = self._aliases.get(Alias.CHAMPION)
        return self._why_missing(champion) if champion else "the engine is being looked at"

    def _why_missing(self, version: int) -> str:
        several = len(self._rollouts) > 1
        reasons = [
            f"{replica.name}: {failure.reason}" if several else failure.reason
            for replica, rollout in self._rollouts.items()
            if (failure := rollout.failures.get(version)) is not None
        ]
        return f"code@v{version} is not loaded" + (f": {'; '.join(reasons)}" if reasons else " yet")

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
        for step in self._steps.values():
            step.cancel()
        await asyncio.gather(*self._steps.values(), return_exceptions=True)

    def stop(self) -> None:
        """End the loop after the step it is in."""
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        """Look at the registry at once: something was moved there."""
        self._wake.set()

    async def sync(self) -> None:
        """Look once at the engines and the registry and do what they call for."""
        try:
            aliases = await asyncio.to_thread(self._store.aliases)
            trial = await asyncio.to_thread(trials.current, self._store, self._rules)
        except StoreError as error:
            log.warning("the registry cannot be read: %s", error, extra={"action": "adapters"})
            await self._step((), {v for r in self._rollouts.values() for v in r.proofs})
            self._compare_bases()
            return
        self._aliases = aliases
        if self._champion is not None and self._down is None:
            await self._decide(aliases, trial)  # what is loaded already waits for nothing
        wanted = {aliases[alias]: alias for alias in reversed(_KEPT) if alias in aliases}
        wanted = dict(reversed(wanted.items()))
        await self._step(tuple(wanted), self._loaded.keys() | wanted.keys())
        self._compare_bases()
        if self._down is not None:
            return
        self._forget_lost()
        for version, alias in wanted.items():
            if version not in self._loaded:
                await self._settle(version, alias)
        await self._decide(aliases, trial)
        self._show(aliases)

    async def _step(self, wanted: Sequence[int], kept: Collection[int]) -> None:
        """Let every replica do what it lacks; who takes long is not waited for by the others."""
        there = self._replicas.of(Role.ADAPTERS)
        for gone in [replica for replica in self._rollouts if replica not in there]:
            del self._rollouts[gone]
            if (step := self._steps.pop(gone, None)) is not None:
                step.cancel()
        for replica in there:
            if replica not in self._rollouts:
                self._rollouts[replica] = self._rollout(replica)
            if replica not in self._steps:
                work = self._rollouts[replica].step(wanted, frozenset(kept))
                self._steps[replica] = asyncio.create_task(work, name=f"step {replica.name}")
        if not self._steps:
            return
        done, late = await asyncio.wait(self._steps.values(), timeout=self._poll_s)
        self._steps = {r: step for r, step in self._steps.items() if step in late}
        for step in late:
            step.add_done_callback(lambda _: self._wake.set())
        for step in done:
            if not step.cancelled() and (error := step.exception()) is not None:
                # One engine's defect is not the others'.
                metrics.loop_errors_total.labels("adapters").inc()
                log.error(
                    "%s failed", step.get_name(), exc_info=error, extra={"action": "adapters"}
                )

    def _rollout(self, replica: Replica) -> Rollout:
        return Rollout(
            replica,
            verify=self._verify,
            digest=self._digest,
            max_rank=self._max_rank,
            slots=self._slots,
            poll_s=self._poll_s,
            say=self._say,
        )

    async def _verify(self, version: int) -> tuple[Adapter, Path]:
        """Compare the bytes of a version with its row; replicas that ask at once share the work."""

        def verify() -> tuple[Adapter, Path]:
            adapter = self._registry.get(version)
            return adapter, self._registry.verify(adapter)

        if version not in self._verifying:
            work = asyncio.create_task(asyncio.to_thread(verify))
            self._verifying[version] = work
            work.add_done_callback(lambda _: self._verifying.pop(version, None))
        return await asyncio.shield(self._verifying[version])

    def _slots(self) -> int:
        return needed(divided=self._split is not None or self._rules.canary_share > 0).device

    def _compare_bases(self) -> None:
        """Take one base model for all, and ask no engine that serves another one."""
        up = [replica for replica in self._rollouts if replica.down is None]
        metrics.engine_up.set(bool(up))
        if not up:
            return
        ids = [replica.base.id for replica in up if replica.base is not None]
        kept = self._base is not None and self._base.id in ids
        known = self._base.id if self._base is not None and kept else ids[0]
        for replica in reversed(up):
            other = replica.base is None or replica.base.id != known
            if other and not replica.barred:
                words = "the engine %s serves another base model than %s; it is not asked"
                log.error(words, replica.name, known, extra={"action": "other_base"})
            replica.barred = other
            metrics.replica_up.labels(replica.name).set(not other)
            if not other:
                self._base = replica.base

    def _forget_lost(self) -> None:
        for version in list(self._loaded):
            proved = any(version in rollout.proofs for rollout in self._rollouts.values())
            if not proved and not self._replicas.know(self._loaded[version].served.model):
                del self._loaded[version]
                if self._champion == version:
                    self._champion = None

    async def _settle(self, version: int, alias: Alias) -> None:
        """Let a version in when enough replicas have proved it; refuse it when too few can."""
        up = [r for p, r in self._rollouts.items() if p.down is None and not p.barred]
        enough = self._enough.of(len(up))
        proved = [rollout for rollout in up if version in rollout.proofs]
        if len(proved) >= enough:
            await self._admit(version, alias, proved)
            return
        failures = [r.failures[version] for r in up if version in r.failures]
        refused = [failure for failure in failures if failure.refused]
        awaited = max(0, self._enough.least - len(up))
        if refused and len(up) - len(refused) + awaited < enough:
            await self._refuse(version, alias, refused[0])

    async def _admit(self, version: int, alias: Alias, proved: Sequence[Rollout]) -> None:
        base, first = self._base, proved[0].proofs[version]
        if base is None:
            return
        served = Served(
            model=first.adapter.name,
            version=version,
            sha256=first.adapter.sha256,
            base=base.id,
            base_root=base.root,
        )
        evidence = dict(first.evidence)
        if len(self._rollouts) > 1:
            evidence["replicas"] = [rollout.replica.name for rollout in proved]
        loaded = _Loaded(
            served=served, adapter=first.adapter, probe=evidence, phases_s=dict(first.phases_s)
        )
        self._loaded[version] = loaded
        if alias is not Alias.CHAMPION:
            # The champion's receipt is written when `code` means it.
            given = loaded.probe | {"alias": alias.value}
            await self._receipt(version, given, "proved", phases_s=loaded.phases_s)
            loaded.phases_s = {}
        log.info(
            "%s is loaded and proved as %s",
            served.model,
            alias.value,
            extra={"action": "adapter_loaded", "version": version, "phases_s": first.phases_s},
        )

    async def _say(self, replica: Replica, version: int, found: Proof | Failure) -> None:
        """Write down what came of a version on one replica, unless `_settle` says it for all."""
        alone, live = len(self._rollouts) == 1, version in self._loaded
        alias = next((a.value for a, v in (self._aliases or {}).items() if v == version), None)
        evidence = found.evidence | {"alias": alias}
        if not alone:
            evidence["replica"] = replica.name
        if isinstance(found, Proof):
            metrics.adapter_swaps_total.labels("proved").inc()
            if live or not alone:
                reason = f"proved on {replica.name}"
                await self._receipt(version, evidence, reason, phases_s=found.phases_s)
            return
        if found.refused and alone:
            return
        if not found.refused:
            metrics.adapter_swaps_total.labels("postponed").inc()
        await self._receipt(
            version, evidence, found.reason, phases_s=found.phases_s, accepted=False
        )
        log.warning(
            "code@v%d cannot be loaded now by %s: %s",
            version,
            replica.name,
            found.reason,
            extra={"action": "adapter_postponed", "version": version},
        )

    async def _refuse(self, version: int, alias: Alias, failure: Failure) -> None:
        """The adapter's fault: take it out of the registry's aliases, for good."""
        evidence, reason = failure.evidence, failure.reason
        given = evidence | {"alias": alias.value}
        await self._receipt(version, given, reason, phases_s=failure.phases_s, accepted=False)
        metrics.adapter_swaps_total.labels("refused").inc()
        log.error(
            "code@v%d is refused: %s",
            version,
            reason,
            extra={"action": "adapter_refused", "version": version},
        )

        def refuse() -> None:
            actor = f"server:{self._server}"
            self._registry.refuse(version, actor=actor, reason=reason, evidence=evidence)

        try:
            await asyncio.to_thread(refuse)
        except OpsError as failed:
            # For instance the way back is damaged too: the alias stays, we keep what we have.
            for rollout in self._rollouts.values():
                if (before := rollout.failures.get(version)) is not None:
                    words = f"{before.reason} (and the registry: {failed})"
                    rollout.failures[version] = replace(before, refused=False, reason=words)
            log.error("the refusal failed: %s", failed, extra={"action": "adapter_refused"})
        else:
            self._wake.set()

    async def _decide(self, aliases: dict[Alias, int], trial: trials.Trial | None) -> None:
        """Move the alias and the split to what is wanted, as far as it is loaded."""
        if trial is None or trial.split not in (0, *aliases.values()):
            await self._divide(None)
        await self._flip(aliases.get(Alias.CHAMPION))
        await self._divide(trial)
        await self._leave_unwanted(set(aliases.values()))

    async def _flip(self, target: int | None) -> None:
        """Let `code` mean the champion: one assignment, between two requests; then say so."""
        version = target or 0
        if version == self._champion or (version and version not in self._loaded):
            return
        loaded, phases = self._loaded.get(version), Phases()
        if loaded is not None:
            phases.taken_s |= loaded.phases_s
            loaded.phases_s = {}
        with phases.phase("flip"):
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
                version,
                evidence | {"alias": Alias.CHAMPION.value},
                f"code is now {name}",
                phases_s=phases.taken_s,
                from_version=before or 0,
            )

    async def _divide(self, trial: trials.Trial | None) -> None:
        """Send the share of a trial to its arm: one assignment, between two requests."""
        split = None
        if trial is not None and trial.share > 0 and self._champion is not None:
            canary = trial.kind is trials.Kind.CANARY
            role = traffic.Role.CANARY if canary else traffic.Role.CONTROL
            split = Split(
                version=trial.split,
                share=trial.share,
                role=role,
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
        if before is not None and before.role is traffic.Role.CANARY:
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

    async def _leave_unwanted(self, wanted: set[int]) -> None:
        """Let go of what nobody wants or uses; the replicas' next steps unload it."""
        idle: list[int] = []
        for version, loaded in self._loaded.items():
            if version in wanted or version == self._champion:
                loaded.left_at = None
                continue
            if loaded.left_at is None:
                loaded.left_at = time.monotonic()
            if loaded.references == 0:
                idle.append(version)
        linger_s = self._linger_s if idle and await self._has_company() else 0.0
        for version in idle:
            left_s = time.monotonic() - (self._loaded[version].left_at or 0.0)
            if left_s >= linger_s and self._loaded[version].references == 0:
                metrics.adapter_swap_seconds.labels("drain").observe(left_s)
                del self._loaded[version]
                self._wake.set()

    async def _has_company(self) -> bool:
        """Whether other servers may be asking the same engines."""
        try:
            found = await asyncio.to_thread(swaps.living_servers, self._store)
        except StoreError:
            return True
        return any(name != self._server for name in found)

    async def _receipt(
        self,
        version: int,
        evidence: dict[str, Any],
        reason: str,
        *,
        phases_s: dict[str, float],
        accepted: bool = True,
        from_version: int | None = None,
    ) -> None:
        receipt = SwapReceipt(
            id=new_id(),
            at=now(),
            server=self._server,
            version=version,
            from_version=(self._champion or 0) if from_version is None else from_version,
            accepted=accepted,
            reason=reason,
            phases_s=dict(phases_s),
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
