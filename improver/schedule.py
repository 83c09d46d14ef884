"""Whether a cycle is due: by the clock, or because enough has been said since the last one.

At most one cycle waits: what falls due while one is queued or runs adds none, however often, and
of several improvers one queues. Cycles are in the record anyway, and so is the last heartbeat: what
was missed while no improver was up is told from these. APScheduler's job store would keep the same
in a table of its own as pickles, which run as code whatever the database holds.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path

from apscheduler.triggers.cron import CronTrigger

from improver.cycle import Plan, start
from ops.errors import Conflict
from ops.records import Cycle, CycleState, new_id
from ops.store import Store

logger = logging.getLogger(__name__)

CLOCK = "schedule"
"""The trigger of cycles that the clock asked for."""
ENOUGH = "threshold"
"""The trigger of cycles for which enough had been said."""
LEASE = "schedule"
LEASE_S = 60.0
LATE_S = 3600.0
"""A cycle that was due while no improver was up, or the machine slept, still comes so late."""


def last_due(trigger: CronTrigger, at: datetime) -> datetime | None:
    """When the clock last asked for a cycle, if it is not too late for it."""
    due: datetime | None = None
    following = trigger.get_next_fire_time(None, at - timedelta(seconds=LATE_S))
    while following is not None and following <= at:
        due = following
        following = trigger.get_next_fire_time(due, due + timedelta(seconds=1))
    return due


def enough(store: Store, plan: Plan) -> str | None:
    """Say what there is enough of since the last cycle, or None.

    Dry runs learn nothing and do not count; a skipped, failed or cancelled cycle does, or it would
    be asked for again at once.
    """
    settings = plan.improver
    wanted = {
        "feedback": settings.after_feedback,
        "failures": settings.after_failures,
        "accepted": settings.after_accepted,
    }
    if not any(wanted.values()):
        return None
    taught = [cycle for cycle in store.cycles() if not cycle.settings.get("dry_run")]
    new = store.count_new(taught[0].created_at if taught else None)
    for name, least in wanted.items():
        if least is not None and new[name] >= least:
            return f"{new[name]} new {name}"
    return None


def queue_once(
    store: Store, plan: Plan, cycles_dir: Path, *, trigger: str, due: datetime | None = None
) -> Cycle | None:
    """Queue a cycle unless one waits or runs, or the clock's was queued since it fell due."""
    holder = new_id()
    try:
        store.take_lease(LEASE, holder, LEASE_S)
    except Conflict:
        return None  # another improver sees to it
    try:
        if any(store.cycles(state=s, limit=1) for s in (CycleState.QUEUED, CycleState.RUNNING)):
            logger.info("one cycle waits or runs already", extra={"action": "cycle_coalesced"})
            return None
        if due is not None and any(
            cycle.trigger == trigger and cycle.created_at >= due for cycle in store.cycles()
        ):
            return None
        return start(store, plan, cycles_dir, trigger=trigger, state=CycleState.QUEUED)
    finally:
        store.drop_lease(LEASE, holder)
