"""The daemon and the lease: one at a time, what was left behind first, a clean stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from improver import lease, worker
from improver.cycle import Plan, start
from improver.errors import CycleError
from improver.worker import Worker
from ops.errors import SettingsError
from ops.records import Cycle, CycleState
from ops.settings import ImproverSettings, Settings
from ops.store import Store, leases
from sandbox.errors import SandboxUnavailable


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOOK_S", 0.02)
    monkeypatch.setattr(worker, "BEAT_S", 0.02)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, improver=ImproverSettings(schedule=None))


def queue(store: Store, settings: Settings, state: CycleState = CycleState.QUEUED) -> Cycle:
    return start(store, Plan.of(settings), settings.cycles_dir, trigger="test", state=state)


class Runner:
    """Runs cycles in no time, or until it is told to go on."""

    def __init__(self, store: Store) -> None:
        self.ran: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._store = store

    async def __call__(self, cycle: Cycle) -> Cycle:
        self.ran.append(cycle.id)
        self._store.update_cycle(cycle.id, state=CycleState.RUNNING)
        await self.gate.wait()
        return self._store.update_cycle(cycle.id, state=CycleState.SUCCEEDED)


@asynccontextmanager
async def running(daemon: Worker) -> AsyncIterator[None]:
    task = asyncio.ensure_future(daemon.run())
    try:
        yield
    finally:
        daemon.stop()
        await asyncio.wait_for(task, 5)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_was_left_behind_comes_before_what_is_queued(
    store: Store, settings: Settings
) -> None:
    first = queue(store, settings)
    second = queue(store, settings)
    left = queue(store, settings, CycleState.RUNNING)
    runner = Runner(store)
    async with running(Worker(settings, store, runner)):
        await until(lambda: len(runner.ran) == 3)
    assert runner.ran == [left.id, first.id, second.id]


async def test_it_says_that_it_lives_and_what_it_does(store: Store, settings: Settings) -> None:
    cycle = queue(store, settings)
    runner = Runner(store)
    runner.gate.clear()
    async with running(Worker(settings, store, runner)):
        await until(lambda: store.heartbeats() and store.heartbeats()[0].state["cycle_id"])
        [beat] = store.heartbeats()
        assert beat.process == "improver"
        assert beat.state["cycle_id"] == cycle.id
        runner.gate.set()


async def test_a_stop_leaves_the_cycle_to_the_next_start(store: Store, settings: Settings) -> None:
    cycle = queue(store, settings)
    runner = Runner(store)
    runner.gate.clear()
    async with running(Worker(settings, store, runner)):
        await until(lambda: runner.ran)
    assert store.cycle(cycle.id).state is CycleState.RUNNING
    runner.gate.set()
    async with running(Worker(settings, store, runner)):
        await until(lambda: store.cycle(cycle.id).state is CycleState.SUCCEEDED)
    assert runner.ran == [cycle.id, cycle.id]


async def test_two_improvers_never_work_at_once(store: Store, settings: Settings) -> None:
    queue(store, settings)
    queue(store, settings)
    runner = Runner(store)
    runner.gate.clear()
    async with running(Worker(settings, store, runner)), running(Worker(settings, store, runner)):
        await until(lambda: runner.ran)
        await asyncio.sleep(0.2)
        assert len(runner.ran) == 1
        runner.gate.set()
        await until(lambda: len(runner.ran) == 2)


async def test_a_cycle_that_cannot_be_run_fails_once(store: Store, settings: Settings) -> None:
    cycle = queue(store, settings)
    tried: list[str] = []

    async def cannot(found: Cycle) -> Cycle:
        tried.append(found.id)
        raise SandboxUnavailable("no isolation here")

    async with running(Worker(settings, store, cannot)):
        await until(lambda: store.cycle(cycle.id).state is CycleState.FAILED)
        await asyncio.sleep(0.1)
    assert tried == [cycle.id]
    assert store.cycle(cycle.id).error == "SandboxUnavailable: no isolation here"


async def test_the_schedule_queues_a_cycle(store: Store, settings: Settings) -> None:
    daemon = Worker(settings, store, Runner(store))
    await daemon._queue()
    [cycle] = store.cycles()
    assert cycle.trigger == "schedule"
    assert cycle.state is CycleState.QUEUED


async def test_a_malformed_schedule_is_refused(store: Store, tmp_path: Path) -> None:
    wrong = Settings(data_dir=tmp_path, improver=ImproverSettings(schedule="at night"))
    with pytest.raises(SettingsError, match=r"improver\.schedule"):
        await Worker(wrong, store, Runner(store)).run()


async def test_the_lease_is_held_by_one_and_waited_for(store: Store) -> None:
    async with lease.held(store):
        with pytest.raises(CycleError, match="another improver"):
            async with lease.held(store, wait_s=0):
                pass
    async with lease.held(store, wait_s=0):
        pass


async def test_a_killed_holders_lease_ends(store: Store) -> None:
    store.take_lease(lease.NAME, "killed", 0.2)
    async with lease.held(store, wait_s=5, ttl_s=0.2):
        await asyncio.sleep(0.5)  # renewed meanwhile
        with pytest.raises(CycleError):
            async with lease.held(store, wait_s=0):
                pass


async def test_a_lost_lease_stops_the_work(store: Store) -> None:
    async def work() -> None:
        async with lease.held(store, ttl_s=0.2):
            # As if this process had slept past its time and another had taken over.
            with store._write() as connection:
                connection.execute(sa.update(leases).values(holder="thief"))
            await asyncio.sleep(5)

    with pytest.raises(CycleError, match="lost"):
        await work()
