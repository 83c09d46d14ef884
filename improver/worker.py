"""The daemon: when a cycle runs. `python -m improver` starts it.

Queues a cycle when the schedule says so, takes up what is queued or was left behind by a killed
improver, one at a time under the lease, and says in the store that it lives. A stop (SIGTERM)
cancels the running cycle, which stays `running` in the record and goes on at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from improver import lease
from improver.cycle import Plan, fail, start
from improver.errors import CycleError, ImproverError
from ops.errors import ModelError, OpsError, SettingsError, StoreError
from ops.records import Cycle, CycleState, Heartbeat, now
from ops.settings import Settings
from ops.store import Store
from sandbox.errors import SandboxError

logger = logging.getLogger(__name__)

PROCESS = "improver"
LOOK_S = 2.0
BEAT_S = 10.0
MISFIRE_S = 3600
"""A nightly cycle that was due while the machine slept is still run this much later."""

RunCycle = Callable[[Cycle], Awaitable[Cycle]]


@dataclass
class _State:
    cycle_id: str | None = None
    finished: int = 0


class Worker:
    """The daemon's loop.

    Args:
        settings: the installation's.
        store: the record.
        run_cycle: runs one cycle to its end; the lease is held meanwhile.
    """

    def __init__(self, settings: Settings, store: Store, run_cycle: RunCycle) -> None:
        self._settings = settings
        self._store = store
        self._run_cycle = run_cycle
        self._stopping = asyncio.Event()
        self._state = _State()

    async def run(self) -> None:
        """Work until `stop`, or until a side task dies."""
        scheduler = self._scheduler()
        tasks = [
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self._work(), name="cycles"),
            asyncio.create_task(self._stopping.wait(), name="stop"),
        ]
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
        }

    def _scheduler(self) -> AsyncIOScheduler:
        scheduler = AsyncIOScheduler()
        schedule = self._settings.improver.schedule
        if schedule is not None:
            try:
                trigger = CronTrigger.from_crontab(schedule)
            except ValueError as error:
                raise SettingsError(f"improver.schedule: {error}") from error
            scheduler.add_job(
                self._queue,
                trigger,
                id="nightly",
                coalesce=True,
                max_instances=1,
                misfire_grace_time=MISFIRE_S,
            )
        return scheduler

    async def _queue(self) -> None:
        plan = Plan.of(self._settings)
        cycle = await asyncio.to_thread(
            start,
            self._store,
            plan,
            self._settings.cycles_dir,
            trigger="schedule",
            state=CycleState.QUEUED,
        )
        logger.info("queued", extra={"action": "cycle_queued", "cycle_id": cycle.id})

    async def _work(self) -> None:
        while True:
            try:
                if await asyncio.to_thread(self._waiting) is not None:
                    await self._run_one()
            except (ImproverError, OpsError, SandboxError) as error:  # the loop's edge
                logger.warning("no cycle now: %s", error, extra={"action": "cycle_refused"})
            await asyncio.sleep(LOOK_S)

    async def _run_one(self) -> None:
        """Run the oldest waiting cycle, unless another improver is at work."""
        try:
            async with lease.held(self._store, wait_s=0):
                cycle = await asyncio.to_thread(self._waiting)
                if cycle is None:
                    return
                self._state.cycle_id = cycle.id
                try:
                    ended = await self._run_cycle(cycle)
                except (ImproverError, ModelError, SandboxError) as error:
                    # Left as it is, it would be taken up again at once, for ever.
                    ended = await asyncio.to_thread(fail, self._store, cycle, error)
                self._state.finished += 1
                logger.info(
                    "cycle %s ended as %s",
                    ended.id,
                    ended.state,
                    extra={"action": "cycle_end", "cycle_id": ended.id},
                )
        except CycleError as error:
            logger.debug("%s", error, extra={"action": "cycle_busy"})
        finally:
            self._state.cycle_id = None

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
