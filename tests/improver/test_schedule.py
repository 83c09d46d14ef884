"""When a cycle is due: the clock, what was missed, and how much has been said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger

from improver import schedule
from improver.cycle import Plan
from ops.records import CycleState, FeedbackSource, Metric, Source, now
from ops.settings import ImproverSettings
from ops.store import Recording, Store
from tests.ops import records

NIGHTLY = CronTrigger.from_crontab("0 3 * * *", timezone=UTC)
DAY = datetime(2030, 5, 6, tzinfo=UTC)


def plan(**improver: Any) -> Plan:
    settings = ImproverSettings(**{"after_feedback": None, **improver})
    return Plan(improver=settings, engine_model="tiny", max_lora_rank=16)


@pytest.mark.parametrize(
    ("minutes", "due"), [(179, None), (180, 180), (200, 180), (239, 180), (241, None)]
)
def test_the_last_strike_of_the_clock_counts_for_an_hour(minutes: int, due: int | None) -> None:
    found = schedule.last_due(NIGHTLY, DAY + timedelta(minutes=minutes))
    assert found == (None if due is None else DAY + timedelta(minutes=due))


def test_many_strikes_are_one() -> None:
    often = CronTrigger.from_crontab("*/5 * * * *", timezone=UTC)
    at = DAY + timedelta(minutes=33, seconds=20)
    assert schedule.last_due(often, at) == DAY + timedelta(minutes=30)


@pytest.mark.parametrize("state", [CycleState.QUEUED, CycleState.RUNNING])
def test_none_is_queued_while_one_waits_or_runs(
    store: Store, tmp_path: Path, state: CycleState
) -> None:
    store.add_cycle(records.cycle(state=state))
    assert schedule.queue_once(store, plan(), tmp_path, trigger="schedule") is None
    assert len(store.cycles()) == 1


def test_one_improver_queues_at_a_time(store: Store, tmp_path: Path) -> None:
    store.take_lease(schedule.LEASE, "another", 60)
    assert schedule.queue_once(store, plan(), tmp_path, trigger="schedule") is None
    store.drop_lease(schedule.LEASE, "another")
    assert schedule.queue_once(store, plan(), tmp_path, trigger="schedule") is not None


def said(store: Store, *, failed: bool = False, **changes: Any) -> None:
    interaction = records.interaction(verified=not failed, **changes)
    store.add([Recording(interaction=interaction)])
    accepted = records.comment(interaction, metric=Metric.ACCEPTED, value=True)
    store.put_feedback([records.comment(interaction), accepted])


def test_enough_of_each_kind(store: Store) -> None:
    for number in range(3):
        said(store, failed=number == 0)
    assert store.count_new(None) == {"feedback": 6, "failures": 1, "accepted": 3}
    assert schedule.enough(store, plan()) is None
    assert schedule.enough(store, plan(after_feedback=7)) is None
    assert schedule.enough(store, plan(after_feedback=6)) == "6 new feedback"
    assert schedule.enough(store, plan(after_failures=1)) == "1 new failures"
    assert schedule.enough(store, plan(after_accepted=4)) is None
    assert schedule.enough(store, plan(after_accepted=3)) == "3 new accepted"


@pytest.mark.parametrize("state", ["succeeded", "skipped", "failed", "cancelled"])
def test_only_what_came_after_the_last_cycle_counts(store: Store, state: str) -> None:
    said(store)
    store.add_cycle(records.cycle(state=CycleState(state)))
    assert schedule.enough(store, plan(after_feedback=1)) is None
    said(store)
    # A dry run has learned nothing.
    store.add_cycle(records.cycle(settings={"dry_run": True}))
    assert schedule.enough(store, plan(after_feedback=2)) == "2 new feedback"


def test_what_was_imported_or_refused_or_said_by_a_program_does_not_count(store: Store) -> None:
    said(store, source=Source.IMPORTED, failed=True)
    interaction = records.interaction(verified=None)
    store.add([Recording(interaction=interaction)])
    refused = records.comment(interaction, metric=Metric.ACCEPTED, value=False)
    machine = records.comment(interaction, source=FeedbackSource.MACHINE)
    store.put_feedback([refused, machine])
    assert store.count_new(None) == {"feedback": 1, "failures": 0, "accepted": 0}
    assert store.count_new(now()) == {"feedback": 0, "failures": 0, "accepted": 0}


def test_a_clock_that_is_set_back_strikes_once(store: Store, tmp_path: Path) -> None:
    due = DAY + timedelta(hours=3)
    began = records.cycle(
        trigger="schedule", state=CycleState.SUCCEEDED, created_at=due + timedelta(minutes=1)
    )
    store.add_cycle(began)
    again = schedule.last_due(NIGHTLY, due + timedelta(seconds=5))  # it strikes three once more
    assert again == due
    assert schedule.queue_once(store, plan(), tmp_path, trigger="schedule", due=again) is None
    tomorrow = schedule.last_due(NIGHTLY, due + timedelta(days=1, minutes=30))
    assert schedule.queue_once(store, plan(), tmp_path, trigger="schedule", due=tomorrow)


def test_a_clock_that_jumps_over_nights_strikes_once() -> None:
    assert schedule.last_due(NIGHTLY, DAY + timedelta(days=9, hours=3, minutes=2)) == (
        DAY + timedelta(days=9, hours=3)
    )
