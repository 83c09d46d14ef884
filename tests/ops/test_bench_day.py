"""The day's report: what was lost is seen, latencies are put to the stages they fell into."""

from __future__ import annotations

import importlib.util
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger

from improver import divergence, drift
from ops.records import CycleEvent, CycleState, new_id, now
from ops.store import Recording, Store
from tests.ops import records

FILE = Path(__file__).parents[2] / "ops" / "bench" / "day.py"
BEGAN = now() - timedelta(hours=1)


@pytest.fixture(scope="module")
def day() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_day", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_day"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def asked(day: ModuleType, at_s: float, seconds: float, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "at": BEGAN + timedelta(seconds=at_s),
        "user": "ben",
        "kind": "spec",
        "seconds": seconds,
        "status": 200,
        "verified": True,
        "version": 0,
    }
    return day.Asked(**values | changes)


def test_what_was_acknowledged_and_is_gone_is_named(day: ModuleType, store: Store) -> None:
    kept, gone, hers = (records.interaction() for _ in range(3))
    store.add([Recording(interaction=kept), Recording(interaction=hers)])
    said = records.comment(kept)
    store.put_feedback([said])
    diary = day.Diary(certificate={"id": "e"})
    diary.asked = [
        asked(day, 0, 1, interaction_id=kept.id),
        asked(day, 1, 1, interaction_id=gone.id),
        asked(day, 2, 1, interaction_id=hers.id, user=day.ERASED),
        asked(day, 3, 1, interaction_id=new_id(), user=day.ERASED),  # erased, as it should be
        asked(day, 4, 1, status=503),
    ]
    diary.feedback = {said.id: ("ben", kept.id), "lost": ("ben", kept.id)}
    assert day.lost(store, diary) == [
        f"interaction {gone.id} of ben",
        f"interaction {hers.id} of {day.ERASED}",
        "feedback lost of ben",
    ]


def test_latency_is_told_by_stage_and_outages_are_left_out(day: ModuleType, store: Store) -> None:
    cycle = records.cycle(state=CycleState.SUCCEEDED)
    store.add_cycle(cycle)
    lines = ("queued: the clock", "build: asking", "build: done in 9 s", "train: training", "ended")
    for number, message in enumerate(lines):
        store.add_event(
            CycleEvent(
                id=new_id(),
                cycle_id=cycle.id,
                created_at=BEGAN + timedelta(seconds=100 + 10 * number),
                level="info",
                message=message,
                data={},
            )
        )
    diary = day.Diary()
    diary.asked = [
        *(asked(day, 10 * n, 2.0, verified=n % 2 == 0) for n in range(10)),
        asked(day, 112, 3.0),  # build
        asked(day, 131, 3.0),  # train
        asked(day, 300, 90.0),  # waited for the engine
        asked(day, 310, 0.1, status=503, problem="the engine is down"),
    ]
    outage = (BEGAN + timedelta(seconds=299), BEGAN + timedelta(seconds=380))
    diary.outages = [outage]
    text = day.report(store, diary, command="c", model="m", minutes=6.0)
    assert "| no cycle runs | 10 | 2.00 | 2.00 |" in text
    assert "| a cycle runs | 2 | 3.00 | 3.00 |" in text
    assert "| … its stage is build | 1 | 3.00 | 3.00 |" in text
    assert "**1.50** (target: at most 1.5)" in text
    assert "| requests failed | 1 ({'503': 1}) |" in text
    assert "| of those while the engine was down | 1 |" in text
    assert "| the base model | 13 | 8 (62%) |" in text


def test_what_did_not_happen_is_said_to_be_not_seen(day: ModuleType, store: Store) -> None:
    found = day.seen(store, day.Diary())
    assert len(found) == 6
    assert not any(found.values())
    for report, seen in (
        ({"decision": "continue", "reason": "too little"}, ""),
        ({"decision": "reject", "reason": "it only says la la la"}, "it only says la la la"),
    ):
        cycle = records.cycle(state=CycleState.SUCCEEDED, trigger="api", report={"decide": report})
        store.add_cycle(cycle)
        assert day.seen(store, day.Diary())["a bad candidate, rejected by the gate"] == seen
    for trigger in ("schedule", "schedule"):
        assert not day.seen(store, day.Diary())["two scheduled cycles, each to its decision"]
        decided = {"decide": {"decision": "continue", "reason": "too little"}}
        store.add_cycle(records.cycle(state=CycleState.SUCCEEDED, trigger=trigger, report=decided))
    text = day.report(store, day.Diary(), command="c", model="m", minutes=6.0)
    assert "| two scheduled cycles, each to its decision | 2 |" in text
    assert "| a kill of the improver | **not seen** |" in text
    assert "since nothing was promoted" in text


@pytest.mark.parametrize("minutes", [6.0, 25.0, 30.0])
def test_the_clock_asks_soon_and_again_until_the_day_is_over(
    day: ModuleType, minutes: float
) -> None:
    plan = day.Plan(minutes=minutes, after=15.0, tokens=96, tasks=12)
    began = now().replace(minute=57, second=30)
    trigger = CronTrigger.from_crontab(plan.schedule(began), timezone="UTC")
    first = trigger.get_next_fire_time(None, began)
    second = trigger.get_next_fire_time(first, first + timedelta(seconds=1))
    assert timedelta(minutes=1) < first - began < timedelta(minutes=1 + 0.25 * minutes)
    assert timedelta(minutes=2) <= second - first <= timedelta(minutes=0.5 * minutes)


def test_a_ruined_candidate_can_be_told_by_what_the_gate_is_asked(
    day: ModuleType, tmp_path: Path
) -> None:
    plan = day.Plan(minutes=25.0, after=15.0, tokens=24, tasks=4)
    given = day.Installation(tmp_path, "starter-small", plan).env
    guard = int(given["JOURNEYMAN_IMPROVER__GATE__GUARD_TASKS"])
    assert guard * divergence.POINTS >= 1.5 * drift.LEAST_POINTS


def test_people_ask_for_what_the_annotations_hold(day: ModuleType) -> None:
    tasks = day.read_tasks(day.EXAMPLES)
    assert len(tasks) == 20
    assert tasks[0].tests[0] == "assert median_of_three(3, 1, 2) == 2"
    assert ">>>" not in tasks[0].text
