"""*Learning*: has it become better, how much is there to learn from, what starts the next cycle."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from apscheduler.triggers.cron import CronTrigger
from starlette.requests import Request
from starlette.responses import Response

from ops import learning as answer
from ops.records import Adapter, Alias, Cycle, CycleState, now
from ops.store import Store
from ops.swaps import ALIVE_S
from server.auth import CONSOLE
from server.console import charts
from server.console.base import new_router, read, render, visitor_of
from server.console.charts import Measured
from server.console.examinations import BASE, Examination, examinations, fate
from server.state import State, current

if TYPE_CHECKING:
    from ops.settings import ImproverSettings

router = new_router()

DAYS = 30
"""How far back growth is shown."""
SERVED_DAYS = 90
"""How far back answers are counted by version."""
IMPROVER = "improver"


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Something of which so much starts a cycle. `wanted` None: it starts none."""

    what: str
    found: int
    wanted: int | None


@router.get(f"{CONSOLE}/learning")
async def show(request: Request) -> Response:
    """Show whether it learns."""
    visitor = visitor_of(request)
    state = current(request)
    found = await read(lambda: _read(state))
    return render(request, "learning.html", visitor=visitor, **found)


def _read(state: State) -> dict[str, Any]:
    store, at = state.store, now()
    exams = examinations(store)
    adapters = {adapter.version: adapter for adapter in store.adapters()}
    served = store.verified_by_version(since=at - timedelta(days=SERVED_DAYS))
    settings = state.improvement.settings
    report = answer.learning(
        store,
        thresholds={
            "feedback": settings.after_feedback,
            "failures": settings.after_failures,
            "accepted": settings.after_accepted,
        },
        schedule=settings.schedule,
        at=at,
    )
    since = at - timedelta(days=DAYS)
    growth = store.growth(since=since, bucket_s=86_400)
    cycles = store.cycles()
    points = _points(exams, adapters)
    return {
        "learns": report["learning"],
        "why": report["why"],
        "exams": exams[::-1],
        "points": points,
        "chart": charts.whiskers(points),
        "served": _served(served),
        "served_chart": charts.whiskers(_served(served)),
        "served_days": SERVED_DAYS,
        "growth": growth,
        "growth_chart": charts.lines(growth, since, at),
        "days": DAYS,
        "datasets": [
            (cycle, cycle.report["dataset"]) for cycle in cycles if cycle.report.get("dataset")
        ][:12],
        "adapters": adapters,
        **_waiting(store, settings, cycles, report["new"], at),
    }


def _points(exams: list[Examination], adapters: dict[int, Adapter]) -> list[Measured]:
    """Every examined version by its newest examination, the first champion before them."""
    newest = {exam.candidate: exam for exam in exams if exam.tasks}
    points = []
    first = next((exam for exam in exams if exam.tasks), None)
    if first is not None:
        name = "base" if first.champion == BASE else f"v{first.champion}"
        points.append(_point(name, "start", first.champion_solved, first.tasks, joined=True))
    for version in sorted(newest):
        exam = newest[version]
        adapter = adapters.get(version)
        kind = fate(adapter, exam) if adapter is not None else "rejected"
        solved = exam.candidate_solved
        points.append(_point(f"v{version}", kind, solved, exam.tasks, joined=kind == "promoted"))
    return points


def _point(name: str, kind: str, solved: int, tasks: int, *, joined: bool) -> Measured:
    low, high = charts.wilson(solved, tasks)
    share = solved / tasks if tasks else 0.0
    title = f"{name} ({kind}): {solved} of {tasks}, {share:.0%} [{low:.0%} to {high:.0%}]"
    return Measured(label=name, kind=kind, title=title, solved=solved, tasks=tasks, joined=joined)


def _served(found: dict[int, tuple[int, int]]) -> list[Measured]:
    """What users got from each version."""
    return [
        _point(
            "base" if version == BASE else f"v{version}",
            "start" if version == BASE else "promoted",
            verified,
            judged,
            joined=False,
        )
        for version, (judged, verified) in sorted(found.items())
    ]


def _waiting(
    store: Store,
    settings: ImproverSettings,
    cycles: list[Cycle],
    new: dict[str, int],
    at: datetime,
) -> dict[str, Any]:
    """What the next cycle waits for, as `improver.schedule` counts it."""
    taught = [cycle for cycle in cycles if not cycle.settings.get("dry_run")]
    beat = next((b for b in store.heartbeats() if b.process == IMPROVER), None)
    return {
        "thresholds": [
            Threshold(what=what, found=new[name], wanted=wanted)
            for what, name, wanted in (
                ("pieces of feedback", "feedback", settings.after_feedback),
                ("requests whose every attempt failed", "failures", settings.after_failures),
                ("accepted answers", "accepted", settings.after_accepted),
            )
        ],
        "last": taught[0] if taught else None,
        "open": [
            cycle
            for cycle in cycles
            if cycle.state in (CycleState.RUNNING, CycleState.QUEUED, CycleState.PAUSED)
        ],
        "next_at": _next(settings.schedule, at),
        "settings": settings,
        "improver": beat if beat is not None and (at - beat.at).total_seconds() < ALIVE_S else None,
        "champion": store.aliases().get(Alias.CHAMPION, BASE),
    }


def _next(schedule: str | None, at: datetime) -> datetime | None:
    if schedule is None:
        return None
    try:
        found: datetime | None = CronTrigger.from_crontab(schedule).get_next_fire_time(None, at)
    except ValueError:
        return None
    return found
