"""A running cycle's user: heeded in the middle of the work, and only then."""

from __future__ import annotations

import asyncio

import pytest

from improver import orders
from improver.errors import Halted
from ops.errors import StoreUnavailable
from ops.records import Cycle, CycleState
from ops.store import Store
from tests.ops import records


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "LOOK_S", 0.01)


@pytest.fixture
def cycle(store: Store) -> Cycle:
    found = records.cycle(state=CycleState.RUNNING)
    store.add_cycle(found)
    return found


async def test_work_goes_on_while_the_cycle_runs(store: Store, cycle: Cycle) -> None:
    worked = False
    async with orders.heeded(store, cycle.id):
        await asyncio.sleep(0.1)
        worked = True
    assert worked
    store.pause_cycle(cycle.id)
    await asyncio.sleep(0.05)  # nobody watches any more
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("state", ["paused", "cancelled"])
async def test_it_is_stopped_where_it_stands(store: Store, cycle: Cycle, state: str) -> None:
    async def work() -> None:
        async with asyncio.timeout(5), orders.heeded(store, cycle.id):
            if state == "paused":
                store.pause_cycle(cycle.id)
            else:
                store.cancel_cycle(cycle.id, "enough")
            await asyncio.sleep(10)

    with pytest.raises(Halted, match=state):
        await work()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_stop_from_outside_is_no_order(store: Store, cycle: Cycle) -> None:
    async def work() -> None:
        async with orders.heeded(store, cycle.id):
            await asyncio.sleep(10)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_database_that_is_away_gives_no_orders(
    store: Store, cycle: Cycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    read = store.cycle

    def away(cycle_id: str) -> Cycle:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise StoreUnavailable("away")
        return read(cycle_id)

    store.pause_cycle(cycle.id)
    monkeypatch.setattr(store, "cycle", away)
    with pytest.raises(Halted):
        async with asyncio.timeout(5), orders.heeded(store, cycle.id):
            await asyncio.sleep(10)
    assert asked == 3
