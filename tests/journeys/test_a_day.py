"""The day of `ops/bench/day.py` on a scripted engine: everything it does happens, and is told."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from improver.cycle import Plan, start
from ops.records import AdapterState, CycleState, Metric
from ops.store import Store
from tests.journeys.test_survival import House
from tests.ops.test_bench_day import day

__all__ = ["day"]
pytestmark = pytest.mark.slow


class Kept(House):
    """A house whose parts are started again when they end, as `journeyman up` does."""

    def __init__(self, directory: Path, store_url: str) -> None:
        super().__init__(directory, store_url, sandbox=True)
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._ending.wait(0.3):
            self.keep()

    def close(self) -> None:
        self._ending.set()
        self._keeper.join()
        super().close()


CASES = 16
"""Failures that were commented on: of fewer, too few rows may be left to learn from."""


def _cases(store: Store) -> int:
    return len(store.interactions(verified=False, with_feedback=Metric.COMMENT))


async def _clock(store: Store, house: House) -> None:
    """Queue two cycles as the clock would, whose minutes are too long for a test."""
    for pause_s in (0.0, 8.0):
        await asyncio.sleep(pause_s)
        async with asyncio.timeout(120):
            while await asyncio.to_thread(_cases, store) < CASES:
                await asyncio.sleep(0.2)
        plan, where = Plan.of(house.settings), house.settings.cycles_dir
        start(store, plan, where, trigger="schedule", state=CycleState.QUEUED)


async def test_a_day_ends_well(
    day: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(day, "THINK_S", 1.0)
    url = f"sqlite:///{tmp_path / 'journeyman.db'}"
    store, house = Store.open(url), Kept(tmp_path, url)
    plan = day.Plan(minutes=0.25, after=2.5, tokens=64, tasks=8)
    try:
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(house.ready):
                await asyncio.sleep(0.1)
        clock = asyncio.create_task(_clock(store, house))
        diary = await day.live(house, store, day.read_tasks(day.EXAMPLES), plan)
        await clock
        async with asyncio.timeout(30):  # the improver finishes it by itself
            while any(erasure.finished_at is None for erasure in store.erasures()):
                await asyncio.sleep(0.2)
        text = day.report(store, diary, command="test", model="scripted", minutes=plan.minutes)
        sys.stdout.write(text)
        assert day.lost(store, diary) == []
        found = day.seen(store, diary)
        assert [what for what, words in found.items() if not words] == []
        assert {a.status for a in diary.asked} <= {0, 200, 503}
        assert sum(a.status == 200 for a in diary.asked) > 20
        cycles = store.cycles()
        assert len(cycles) == 3
        assert all(cycle.state in day.ENDED for cycle in cycles)
        champions = [a for a in store.adapters() if a.state is AdapterState.CHAMPION]
        assert all(adapter.tainted_by is None for adapter in champions)
    finally:
        house.close()
        store.close()
