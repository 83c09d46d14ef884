"""Canary and watch: what happens on live traffic decides, by itself, within seconds.

One loop for each server. It reads the trial that is under way out of the registry, has it judged by
what the record says (`ops.trials`) and makes a verdict true: a canary becomes the champion or is
rejected, a watched champion is confirmed or taken back. Whatever answers instead is loaded already,
so only an alias moves (`server.adapters`). Each of these is one transition that compares what it
was decided on: of several servers on one record one makes it, and the others find it made.

The hours of a trial are counted by a clock that does not jump, from what the wall clock said when
this server first saw the trial.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial

from ops import metrics, trials
from ops.errors import ArtifactError, Conflict, OpsError, RegistryError
from ops.records import Decision, now
from ops.registry import Registry
from ops.store import Store
from ops.trials import Kind, Rules, Trial, Verdict
from server.faults import ENOUGH

log = logging.getLogger(__name__)


class Canary:
    """The loop that judges trials and ends them.

    Args:
        store: the record.
        registry: where a verdict is made true.
        rules: what trials go by.
        faults: how many requests a canary has failed by its own fault, and the last error
            (`server.faults`).
        server: this server's name, as the actor of transitions.
        look_s: seconds between two looks.
        tell: called when something was decided.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        rules: Rules,
        *,
        faults: Callable[[int], tuple[int, str]] = lambda version: (0, ""),
        server: str,
        look_s: float,
        tell: Callable[[], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._rules = rules
        self._faults = faults
        self._actor = f"server:{server}"
        self._look_s = look_s
        self._tell = tell
        self._seen: tuple[int, datetime, float] | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Look until `stop`."""
        while not self._stopping.is_set():
            busy_s = 0.0
            try:
                ended, busy_s = await asyncio.to_thread(self._timed_look)
                if ended:
                    self._tell()
            except OpsError as error:
                log.warning("a trial cannot be judged now: %s", error, extra={"action": "trial"})
            except Exception:  # the loop's edge
                metrics.loop_errors_total.labels("canary").inc()
                log.exception("judging a trial failed", extra={"action": "trial"})
            # A long trial has much to add up: that may take a tenth of a core, and no more.
            pause_s = max(self._look_s, 10 * busy_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    def stop(self) -> None:
        """End the loop after the step it is in."""
        self._stopping.set()

    def _timed_look(self) -> tuple[bool, float]:
        """`look`, with the seconds of processor time that it took."""
        began = time.thread_time()
        return self.look(), time.thread_time() - began

    def look(self) -> bool:
        """Judge the trial that is under way, if any, once; return whether that ended it.

        Raises:
            OpsError: the record cannot be read.
        """
        trial = trials.current(self._store, self._rules)
        if trial is None:
            self._seen = None
            return False
        elapsed_s = self._elapsed(trial)
        verdict = trials.judge(self._store, trial, self._rules, elapsed_s=elapsed_s)
        verdict = self._with_faults(trial, verdict)
        if verdict.decision is Decision.CONTINUE:
            return False
        try:
            self._obey(trial, verdict)
        except (Conflict, RegistryError) as error:
            # Another server or a person was faster; the next look sees what is so now.
            log.info("%s is decided already: %s", trial.name, error, extra={"action": "trial"})
            return True
        except ArtifactError as error:
            self._give_up(trial, verdict, error)
        metrics.trials_total.labels(trial.kind, verdict.decision).inc()
        log.log(
            logging.WARNING if verdict.decision is Decision.REJECT else logging.INFO,
            "%s of %s: %s",
            trial.kind,
            trial.name,
            verdict.reason,
            extra={"action": "trial", "version": trial.version, "decision": verdict.decision},
        )
        return True

    def _with_faults(self, trial: Trial, verdict: Verdict) -> Verdict:
        """A canary that makes the engine fail is rejected, whatever its answers are like."""
        count, error = self._faults(trial.version) if trial.kind is Kind.CANARY else (0, "")
        numbers = verdict.numbers | {"faults": count}
        if count < ENOUGH:
            return replace(verdict, numbers=numbers)
        reason = (
            f"{count} requests failed under {trial.name}, twice each, which the engine answered "
            f"under the champion: {error[:200]}"
        )
        return Verdict(decision=Decision.REJECT, reason=reason, numbers=numbers)

    def _elapsed(self, trial: Trial) -> float:
        """How long the trial has been under way, in seconds; no jump of the clock counts."""
        if self._seen is None or self._seen[:2] != (trial.version, trial.since):
            before_s = max(0.0, (now() - trial.since).total_seconds())
            self._seen = trial.version, trial.since, time.monotonic() - before_s
        return time.monotonic() - self._seen[2]

    def _obey(self, trial: Trial, verdict: Verdict) -> None:
        kept = verdict.decision is Decision.PROMOTE
        act: Callable[..., object]
        if trial.kind is Kind.CANARY:
            promote = partial(self._registry.promote, over=trial.against)
            act = promote if kept else self._registry.reject
        else:
            act = self._registry.confirm if kept else self._registry.take_back
        act(trial.version, actor=self._actor, reason=verdict.reason, evidence=verdict.numbers)

    def _give_up(self, trial: Trial, verdict: Verdict, error: ArtifactError) -> None:
        """The files are damaged: a canary is rejected; a champion stays, there is no way back."""
        if trial.kind is not Kind.CANARY:
            raise error
        reason = f"{verdict.reason}, but {error}"
        self._registry.reject(
            trial.version, actor=self._actor, reason=reason, evidence=verdict.numbers
        )
