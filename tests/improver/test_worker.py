"""The daemon and the lease: one at a time, what was left behind first, a clean stop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from improver import idle, lease, worker
from improver.cycle import Plan, abandoned, start
from improver.errors import CycleError
from improver.idle import Idle
from improver.worker import Worker
from ops.erasure import Eraser
from ops.errors import SettingsError, StoreUnavailable
from ops.records import Alias, Cycle, CycleState, Heartbeat, Tainted, now
from ops.registry import Registry
from ops.settings import ImproverSettings, Settings
from ops.store import Recording, Store
from ops.tables.schema import leases
from sandbox.errors import SandboxUnavailable
from tests.improver.test_idle import metrics
from tests.ops import records


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOOK_S", 0.02)
    monkeypatch.setattr(worker, "BEAT_S", 0.02)
    monkeypatch.setattr(worker, "COUNT_S", 0.02)
    monkeypatch.setattr(worker, "ERASE_S", 0.02)
    monkeypatch.setattr(idle, "LOOK_S", 0.02)


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


class Clock:
    """Falls due once, ten minutes ago."""

    def __init__(self) -> None:
        self.at = now() - timedelta(minutes=10)

    def get_next_fire_time(self, previous: datetime | None, at: datetime) -> datetime | None:
        return self.at if at <= self.at else None


def beat(store: Store, ago: timedelta) -> None:
    beaten = Heartbeat(process=worker.PROCESS, at=now() - ago, pid=1, host="h", state={})
    store.beat(beaten)


async def test_the_clock_queues_one_cycle_for_all_improvers(
    store: Store, settings: Settings
) -> None:
    trigger: Any = Clock()
    for _ in range(2):  # two improvers, each with a clock of its own
        await Worker(settings, store, Runner(store))._on_the_clock(trigger)
    [cycle] = store.cycles()
    assert cycle.trigger == "schedule"
    assert cycle.state is CycleState.QUEUED
    assert [event.message for event in store.events(cycle.id)] == ["queued: the clock"]
    # It has ended before the other's clock strikes.
    store.update_cycle(cycle.id, state=CycleState.SKIPPED)
    await Worker(settings, store, Runner(store))._on_the_clock(trigger)
    assert len(store.cycles()) == 1


async def test_what_was_missed_is_made_up_for_once(store: Store, settings: Settings) -> None:
    trigger: Any = Clock()
    daemon = Worker(settings, store, Runner(store))
    await daemon._catch_up(trigger)
    assert store.cycles() == []  # never up before: nothing was missed
    beat(store, timedelta(minutes=5))
    await daemon._catch_up(trigger)
    assert store.cycles() == []  # it was up when the clock struck
    beat(store, timedelta(days=1))
    await daemon._catch_up(trigger)
    await daemon._catch_up(trigger)
    assert len(store.cycles(state=CycleState.QUEUED)) == 1


async def test_enough_feedback_begins_a_cycle(store: Store, tmp_path: Path) -> None:
    told = Settings(data_dir=tmp_path, improver=ImproverSettings(schedule=None, after_feedback=2))
    interaction = records.interaction()
    store.add([Recording(interaction=interaction)])
    store.put_feedback([records.comment(interaction), records.comment(interaction, identifier="2")])
    runner = Runner(store)
    async with running(Worker(told, store, runner)):
        await until(lambda: store.cycles(state=CycleState.SUCCEEDED))
        await asyncio.sleep(0.1)  # counted again meanwhile: nothing new
    [cycle] = store.cycles()
    assert cycle.trigger == "threshold"
    assert [event.message for event in store.events(cycle.id)] == ["queued: 2 new feedback"]


async def test_a_cycle_waits_for_an_idle_window(store: Store, settings: Settings) -> None:
    queue(store, settings)
    waiting = 1

    async def look() -> str:
        return metrics(waiting=waiting)

    runner = Runner(store)
    async with running(Worker(settings, store, runner, Idle(look, 0.05))):
        await asyncio.sleep(0.2)
        assert runner.ran == []
        waiting = 0
        await until(lambda: runner.ran)


async def test_a_cycle_that_was_paused_is_left_alone_until_it_is_resumed(
    store: Store, settings: Settings
) -> None:
    cycle = queue(store, settings)
    ran = 0

    async def run(found: Cycle) -> Cycle:
        nonlocal ran
        ran += 1
        store.move_cycle(found.id, (found.state,), CycleState.RUNNING)
        if ran == 1:
            return store.pause_cycle(found.id)
        return store.update_cycle(found.id, state=CycleState.SUCCEEDED, finished_at=now())

    daemon = Worker(settings, store, run)
    async with running(daemon):
        await until(lambda: store.cycle(cycle.id).state is CycleState.PAUSED)
        await asyncio.sleep(0.1)
        assert ran == 1
        assert daemon.gauges()["finished"] == 0
        store.resume_cycle(cycle.id)
        await until(lambda: daemon.gauges()["finished"] == 1)
    assert store.cycle(cycle.id).state is CycleState.SUCCEEDED


async def test_the_candidate_of_a_cycle_that_was_halted_while_nobody_ran_it_is_taken_back(
    store: Store, settings: Settings
) -> None:
    registry = Registry(store, settings.adapters_dir)
    cycle = queue(store, settings, CycleState.RUNNING)  # its improver was killed

    def write(draft: Path) -> None:
        (draft / "adapter_model.safetensors").write_text("a")

    adapter = registry.add(
        write,
        base_model="base",
        base_sha256="00",
        rank=8,
        recipe="ilf",
        cycle_id=cycle.id,
        lineage={},
        actor="test",
    )
    registry.nominate(adapter.version)
    assert not abandoned(store, registry)  # the cycle would go on with it
    store.cancel_cycle(cycle.id, "enough")
    runner = Runner(store)
    async with running(Worker(settings, store, runner)):
        await until(lambda: registry.at(Alias.CANDIDATE) is None)
    assert runner.ran == []


async def test_what_its_user_cancelled_does_not_fail(store: Store, settings: Settings) -> None:
    cycle = queue(store, settings)

    async def cannot(found: Cycle) -> Cycle:
        store.cancel_cycle(found.id, "enough of it")
        raise SandboxUnavailable("no isolation here")

    daemon = Worker(settings, store, cannot)
    async with running(daemon):
        await until(lambda: daemon.gauges()["finished"] == 1)
    ended = store.cycle(cycle.id)
    assert (ended.state, ended.error) == (CycleState.CANCELLED, "enough of it")


async def test_an_erasure_that_waited_for_a_cycle_is_finished_without_being_asked_again(
    store: Store, settings: Settings
) -> None:
    store.add([Recording(interaction=records.interaction(user="ann"))])
    eraser = Eraser(
        store,
        Registry(store, settings.adapters_dir),
        cycles_dir=settings.cycles_dir,
        evaluations_dir=settings.evaluations_dir,
        policy=Tainted.ROLLBACK,
    )
    cycle = queue(store, settings)
    runner = Runner(store)
    runner.gate.clear()
    async with running(Worker(settings, store, runner)):
        await until(lambda: runner.ran == [cycle.id])
        erased = await asyncio.to_thread(eraser.erase, "ann", actor="test")
        await asyncio.sleep(0.1)
        assert store.erasures()[0].finished_at is None  # its files may hold her words
        runner.gate.set()
        await until(lambda: store.erasures()[0].finished_at is not None)
    [ended] = store.erasures()
    assert ended.id == erased.erasure.id
    assert ended.actor == "test"


async def test_cycles_that_follow_each_other_put_no_erasure_off(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ERASE_S", 60.0)  # it never comes between two cycles by itself
    store.add([Recording(interaction=records.interaction(user="ann"))])
    first, second = queue(store, settings), queue(store, settings)
    open_at: dict[str, bool] = {}

    async def run(cycle: Cycle) -> Cycle:
        if cycle.id == first.id:
            eraser = Eraser(
                store,
                Registry(store, settings.adapters_dir),
                cycles_dir=settings.cycles_dir,
                evaluations_dir=settings.evaluations_dir,
                policy=Tainted.ROLLBACK,
            )
            await asyncio.to_thread(eraser.erase, "ann", actor="test")
        open_at[cycle.id] = store.erasures()[0].finished_at is None
        return store.update_cycle(cycle.id, state=CycleState.SUCCEEDED, finished_at=now())

    async with running(Worker(settings, store, run)):
        await until(lambda: len(open_at) == 2)
    assert open_at == {first.id: True, second.id: False}


@pytest.mark.parametrize(("times", "ends"), [(3, "succeeded"), (99, "failed")])
async def test_a_record_that_is_away_is_no_fault_of_the_cycle_unless_it_stays_so(
    store: Store, settings: Settings, times: int, ends: str
) -> None:
    cycle = queue(store, settings)
    tried = 0

    async def run(found: Cycle) -> Cycle:
        nonlocal tried
        tried += 1
        store.update_cycle(found.id, state=CycleState.RUNNING)
        if tried <= times:
            raise StoreUnavailable("the server closed the connection")
        return store.update_cycle(found.id, state=CycleState.SUCCEEDED, finished_at=now())

    async with running(Worker(settings, store, run)):
        await until(lambda: store.cycle(cycle.id).finished_at is not None)
        await asyncio.sleep(0.1)
    assert store.cycle(cycle.id).state == ends
    assert tried == min(times + 1, worker.TRIES)


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


def stolen(store: Store) -> None:
    """As if this process had slept past its time and another had taken over, for good."""
    row = {"holder": "thief", "expires_at": now() + timedelta(hours=1)}
    with store._write() as connection:
        connection.execute(sa.update(leases).values(row))


async def test_a_lost_lease_stops_the_work(store: Store) -> None:
    async def work() -> None:
        async with lease.held(store, ttl_s=0.2):
            stolen(store)
            await asyncio.sleep(5)

    with pytest.raises(CycleError, match="lost"):
        await work()


async def test_after_a_lost_lease_the_task_is_whole_again(store: Store) -> None:
    async def work() -> None:
        async with lease.held(store, ttl_s=0.2):
            stolen(store)
            await asyncio.sleep(5)

    with pytest.raises(CycleError, match="lost"):
        await work()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with pytest.raises(TimeoutError):  # not a cancellation
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)


async def test_a_stop_while_the_lease_is_lost_is_a_stop(store: Store) -> None:
    async def work() -> None:
        async with lease.held(store, ttl_s=0.2):
            stolen(store)
            try:
                await asyncio.sleep(5)
            finally:
                await asyncio.sleep(0.05)  # the stop comes while it winds up

    task = asyncio.ensure_future(work())
    await until(task.cancelling)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


HOLDER = """
import asyncio, sys
from improver import lease
from ops.store import Store

async def hold() -> None:
    async with lease.held(Store.open(sys.argv[1]), ttl_s=1.0):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(hold())
"""


async def test_a_killed_process_is_taken_over_from(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journeyman.db'}"
    store = Store.open(url)
    told = Settings(data_dir=tmp_path, improver=ImproverSettings(schedule=None))
    cycle = queue(store, told, CycleState.RUNNING)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE)
    runner = Runner(store)
    try:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        async with running(Worker(told, store, runner)):
            await asyncio.sleep(1.5)  # longer than its time to live: it is renewed
            assert runner.ran == []
            holder.kill()
            await until(lambda: store.cycle(cycle.id).state is CycleState.SUCCEEDED)
    finally:
        holder.kill()
        holder.communicate()
        store.close()
    assert runner.ran == [cycle.id]
