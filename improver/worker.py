"""The daemon: when a cycle runs. `python -m improver` starts it.

Queues a cycle when the clock says so or enough has been said (`schedule`), takes up what is queued
or was left behind by a killed improver, one at a time under the lease, in an idle window where that
is asked for (`idle`), and says in the store that it lives. Between cycles it finishes erasures that
had to wait for one. A stop (SIGTERM) cancels the running cycle, which stays `running` in the record
and goes on at the next start; so does one whose record could not be reached.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from improver import lease, schedule
from improver.cycle import Plan, abandoned, fail, note
from improver.errors import CycleError, ImproverError
from improver.idle import Idle
from ops.erasure import Eraser
from ops.errors import ModelError, OpsError, SettingsError, StoreError, StoreUnavailable
from ops.records import Cycle, CycleState, Heartbeat, now
from ops.registry import Registry
from ops.settings import Settings
from ops.store import Store
from sandbox.errors import SandboxError

logger = logging.getLogger(__name__)

PROCESS = "improver"
LOOK_S = 2.0
BEAT_S = 10.0
COUNT_S = 60.0
"""How often it is counted whether enough has been said."""
ERASE_S = 30.0
"""How often it is looked whether erasures are open."""
TRIES = 5
"""How often a cycle is taken up again that the record failed; then it has failed itself."""

RunCycle = Callable[[Cycle], Awaitable[Cycle]]


@dataclass
class _State:
    cycle_id: str | None = None
    finished: int = 0
    tries: Counter[str] = field(default_factory=Counter)


class Worker:
    """The daemon's loop.

    Args:
        settings: the installation's.
        store: the record.
        run_cycle: runs one cycle to its end; the lease is held meanwhile.
        idle: when a cycle may begin; None: at any time.
    """

    def __init__(
        self, settings: Settings, store: Store, run_cycle: RunCycle, idle: Idle | None = None
    ) -> None:
        self._settings = settings
        self._idle = idle
        self._registry = Registry(store, settings.adapters_dir)
        self._eraser = Eraser(
            store,
            self._registry,
            cycles_dir=settings.cycles_dir,
            evaluations_dir=settings.evaluations_dir,
            policy=settings.erasure.tainted,
        )
        self._store = store
        self._run_cycle = run_cycle
        self._erasing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._state = _State()

    async def run(self) -> None:
        """Work until `stop`, or until a side task dies."""
        scheduler, trigger = AsyncIOScheduler(), self._trigger()
        if trigger is not None:
            await self._catch_up(trigger)
            scheduler.add_job(
                self._on_the_clock,
                trigger,
                args=[trigger],
                id="clock",
                coalesce=True,
                max_instances=1,
                misfire_grace_time=int(schedule.LATE_S),
            )
        tasks = [
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self._count(), name="thresholds"),
            asyncio.create_task(self._erase(), name="erasures"),
            asyncio.create_task(self._work(), name="cycles"),
            asyncio.create_task(self._stopping.wait(), name="stop"),
        ]
        if self._idle is not None:
            tasks.append(asyncio.create_task(self._idle.watch(), name="idle"))
        scheduler.start()
        logger.info("the improver is up", extra={"action": "start", **self.gauges()})
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            scheduler.shutdown(wait=False)
            if self._state.cycle_id is not None:
                logger.info(
                    "stopping; cycle %s goes on at the next start",
                    self._state.cycle_id,
                    extra={"action": "stop", "cycle_id": self._state.cycle_id},
                )
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()  # a dead side task stops the process loudly

    def stop(self) -> None:
        """End the loop; a running cycle is left where it is."""
        self._stopping.set()

    def gauges(self) -> dict[str, object]:
        """What the heartbeat says."""
        return {
            "cycle_id": self._state.cycle_id,
            "finished": self._state.finished,
            "schedule": self._settings.improver.schedule,
            "idle": self._idle.open if self._idle is not None else None,
        }

    def _trigger(self) -> CronTrigger | None:
        crontab = self._settings.improver.schedule
        if crontab is None:
            return None
        try:
            return CronTrigger.from_crontab(crontab)
        except ValueError as error:
            raise SettingsError(f"improver.schedule: {error}") from error

    async def _catch_up(self, trigger: CronTrigger) -> None:
        """Queue what fell due since an improver was last alive."""
        due = schedule.last_due(trigger, now())
        beats = await asyncio.to_thread(self._store.heartbeats)
        alive = [beat.at for beat in beats if beat.process == PROCESS]
        if due is not None and alive and max(alive) < due:
            await self._queue(schedule.CLOCK, due)

    async def _on_the_clock(self, trigger: CronTrigger) -> None:
        try:
            await self._queue(schedule.CLOCK, schedule.last_due(trigger, now()))
        except StoreError as error:
            logger.warning("nothing queued: %s", error, extra={"action": "cycle_refused"})

    async def _count(self) -> None:
        """Queue a cycle when enough has been said since the last one."""
        plan = Plan.of(self._settings)
        while True:
            try:
                why = await asyncio.to_thread(schedule.enough, self._store, plan)
                if why is not None:
                    await self._queue(schedule.ENOUGH, None, why)
            except StoreError as error:
                logger.warning("not counted: %s", error, extra={"action": "cycle_refused"})
            await asyncio.sleep(COUNT_S)

    async def _erase(self) -> None:
        """Finish erasures that had to wait for a cycle, or whose process was killed."""
        while True:
            if self._state.cycle_id is None:  # else its files have to be waited for
                await self._finish_erasures()
            await asyncio.sleep(ERASE_S)

    async def _finish_erasures(self) -> None:
        async with self._erasing:
            try:
                for erasure in await asyncio.to_thread(self._eraser.finish_open):
                    if erasure.finished_at is not None:
                        extra = {"action": "erasure_finished", "erasure_id": erasure.id}
                        logger.info("erasure %s is finished", erasure.id, extra=extra)
            except (OpsError, OSError) as error:  # the loop's edge
                logger.warning("not erased: %s", error, extra={"action": "erasure_refused"})

    async def _queue(self, trigger: str, due: datetime | None, why: str = "the clock") -> None:
        plan, where = Plan.of(self._settings), self._settings.cycles_dir
        cycle = await asyncio.to_thread(
            schedule.queue_once, self._store, plan, where, trigger=trigger, due=due
        )
        if cycle is not None:
            await asyncio.to_thread(note, self._store, cycle.id, f"queued: {why}")
            extra = {"action": "cycle_queued", "cycle_id": cycle.id}
            logger.info("queued: %s", why, extra=extra)

    async def _work(self) -> None:
        while True:
            try:
                free = self._idle is None or self._idle.open
                if free and await asyncio.to_thread(self._anything_to_do):
                    # First, or cycles that follow each other closely would put it off for ever.
                    await self._finish_erasures()
                    await self._run_one()
            except (ImproverError, OpsError, SandboxError) as error:  # the loop's edge
                logger.warning("no cycle now: %s", error, extra={"action": "cycle_refused"})
            await asyncio.sleep(LOOK_S)

    async def _run_one(self) -> None:
        """Run the oldest waiting cycle, unless another improver is at work."""
        try:
            async with lease.held(self._store, wait_s=0):
                if await asyncio.to_thread(abandoned, self._store, self._registry):
                    await asyncio.to_thread(self._registry.nominate, None)
                cycle = await asyncio.to_thread(self._waiting)
                if cycle is None:
                    return
                self._state.cycle_id = cycle.id
                try:
                    ended = await self._run_cycle(cycle)
                except StoreUnavailable as error:
                    # The cycle is at no fault and goes on; but what fails for ever must end.
                    self._state.tries[cycle.id] += 1
                    if self._state.tries[cycle.id] < TRIES:
                        raise
                    ended = await asyncio.to_thread(fail, self._store, cycle, error)
                except (ImproverError, ModelError, SandboxError) as error:
                    # Left as it is, it would be taken up again at once, for ever.
                    ended = await asyncio.to_thread(fail, self._store, cycle, error)
                self._state.finished += ended.finished_at is not None
                logger.info(
                    "cycle %s is %s now",
                    ended.id,
                    ended.state,
                    extra={"action": "cycle_end", "cycle_id": ended.id},
                )
        except CycleError as error:
            logger.debug("%s", error, extra={"action": "cycle_busy"})
        finally:
            self._state.cycle_id = None

    def _anything_to_do(self) -> bool:
        return self._waiting() is not None or abandoned(self._store, self._registry)

    def _waiting(self) -> Cycle | None:
        """The oldest cycle that was left behind, else the oldest that is queued."""
        for state in (CycleState.RUNNING, CycleState.QUEUED):
            found = self._store.cycles(state=state)
            if found:
                return found[-1]
        return None

    async def _beat(self) -> None:
        while True:
            heartbeat = Heartbeat(
                process=PROCESS,
                at=now(),
                pid=os.getpid(),
                host=socket.gethostname(),
                state=self.gauges(),
            )
            try:
                await asyncio.to_thread(self._store.beat, heartbeat)
            except StoreError as error:
                logger.warning("no heartbeat: %s", error, extra={"action": "heartbeat"})
            await asyncio.sleep(BEAT_S)
