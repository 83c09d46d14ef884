"""*Now*: what is served, by which adapter, how much of it is verified, and whether all is well."""

from __future__ import annotations

from datetime import timedelta
from math import ceil
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ops import metrics, trials
from ops.records import Alias, CycleState, now
from ops.store import Activity
from ops.swaps import ALIVE_S
from server.auth import CONSOLE
from server.console import charts
from server.console.base import asked_for, new_router, read, render, visitor_of
from server.state import State, current

router = new_router()

HOURS = 24
LATEST = 8


@router.get(CONSOLE)
async def show(request: Request) -> Response:
    """Show how things are."""
    visitor = visitor_of(request)
    state = current(request)
    found = await read(lambda: _read(state))
    reasons = [*state.adapters.reasons(), *state.adapters.pending()]
    if state.recorder.failure is not None:
        reasons.append(f"the record cannot be written: {state.recorder.failure}")
    return render(
        request,
        "now.html",
        visitor=visitor,
        reasons=reasons,
        champion=state.adapters.champion,
        base=state.adapters.base,
        loaded=state.adapters.loaded,
        engines=state.adapters.counts(),
        sandbox=state.judge.tier.label,
        in_flight=_in_flight(),
        **found,
    )


def _read(state: State) -> dict[str, Any]:
    store, at = state.store, now()
    first = at.replace(minute=0, second=0, microsecond=0) - timedelta(hours=HOURS - 1)
    hours = {hour.start: hour for hour in store.activity(since=first, bucket_s=3600)}
    day = [
        hours.get(start) or Activity(start=start, requests=0, judged=0, verified=0)
        for start in (first + timedelta(hours=number) for number in range(HOURS))
    ]
    judged, verified = sum(h.judged for h in day), sum(h.verified for h in day)
    durations = sorted(store.durations(since=at - timedelta(hours=1)))
    aliases = store.aliases()
    running = [*store.cycles(state=CycleState.RUNNING, limit=3)]
    running += store.cycles(state=CycleState.QUEUED, limit=3)
    return {
        "day": day,
        "chart": charts.bars([_column(hour) for hour in day], every=3, height=180),
        "requests": sum(h.requests for h in day),
        "last_hour": day[-1].requests,
        "judged": judged,
        "verified": verified,
        "interval": charts.wilson(verified, judged),
        "p50_s": _quantile(durations, 0.5),
        "p95_s": _quantile(durations, 0.95),
        "measured": len(durations),
        "champion_wanted": aliases.get(Alias.CHAMPION, 0),
        "way_back": aliases.get(Alias.ROLLBACK),
        "candidate": aliases.get(Alias.CANDIDATE),
        "beats": [
            (beat, (at - beat.at).total_seconds() < ALIVE_S)
            for beat in store.heartbeats()
            if at - beat.at < timedelta(days=1)
        ],
        "trial": trials.current(store, state.rules),
        "cycles": running,
        "latest": [(row, asked_for(row.messages)) for row in store.interactions(limit=LATEST)],
        "counts": store.count(),
    }


def _in_flight() -> int:
    """Requests being answered by this process."""
    return sum(
        int(sample.value)
        for found in metrics.requests_in_flight.collect()
        for sample in found.samples
    )


def _column(hour: Activity) -> tuple[str, str, dict[str, int]]:
    parts = {
        "verified": hour.verified,
        "failed": hour.judged - hour.verified,
        "plain": hour.requests - hour.judged,
    }
    words = ", ".join(f"{number} {kind}" for kind, number in parts.items())
    return hour.start.strftime("%H:00"), f"{hour.start:%H:00} UTC: {words}", parts


def _quantile(ordered: list[float], part: float) -> float | None:
    return ordered[max(0, ceil(part * len(ordered)) - 1)] if ordered else None
