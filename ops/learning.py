"""Is it learning? The answer that `journeyman status` begins with, out of the record.

Looks and says; decides nothing. Numbers are of answers that this installation served and judged by
their own specifications: users' work, not the examination, so that versions saw different tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from ops.records import Adapter, AdapterState, Alias, Cycle, CycleState, Json
from ops.store import Store

DAYS, WEEK_S = 30, 7 * 86_400
LOOKED_AT = 50
"""The newest cycles in which the last word on learning is looked for."""
VERSIONS = 4


def learning(
    store: Store, *, thresholds: Mapping[str, int | None], schedule: str | None, at: datetime
) -> Json:
    """Return whether versions get better, what was last tried, and what is waited for.

    Args:
        store: the record.
        thresholds: what begins a cycle, by its name in `Store.count_new`; None: nothing does.
        schedule: cron of the cycles; None: none.
        at: now.
    """
    cycles = [c for c in store.cycles(limit=LOOKED_AT) if not c.settings.get("dry_run")]
    ended = [c for c in cycles if c.finished_at is not None]
    champion = store.aliases().get(Alias.CHAMPION, 0)
    adapter = store.adapter(champion) if champion else None
    return {
        **_answer(store, adapter, cycles, ended),
        "by_version": _by_version(store, at),
        "weeks": _weeks(store, at),
        "last_cycle": _told(ended[0]) if ended else None,
        "running": [c.id for c in cycles if c.state is CycleState.RUNNING],
        "new": store.count_new(cycles[0].created_at if cycles else None),
        "thresholds": dict(thresholds),
        "schedule": schedule,
    }


def _answer(
    store: Store, adapter: Adapter | None, cycles: Sequence[Cycle], ended: Sequence[Cycle]
) -> Json:
    if adapter is not None:
        change = next(
            (c for c in reversed(store.transitions(adapter.version))
             if c.to_state is AdapterState.CHAMPION),
            None,
        )  # fmt: skip
        since = f" since {change.at:%Y-%m-%d %H:%M} UTC: {change.reason}" if change else ""
        return {"learning": True, "why": f"{adapter.name} answers{since}"}
    if not cycles:
        return {"learning": False, "why": "no improvement cycle has run yet"}
    if not ended:
        return {"learning": False, "why": "the first cycle is under way"}
    return {
        "learning": False,
        "why": f"the base model answers: of {len(ended)} cycles none is in service; "
        f"the last: {_told(ended[0])['outcome']}",
    }


def _by_version(store: Store, at: datetime) -> list[Json]:
    found = store.verified_by_version(since=at - timedelta(days=DAYS))
    return [
        {"version": version, "judged": judged, "verified": verified}
        for version, (judged, verified) in sorted(found.items())
    ][-VERSIONS:]


def _weeks(store: Store, at: datetime) -> list[Json]:
    """The last seven days, and the seven before."""
    start = at - timedelta(days=14)
    weeks = [{"requests": 0, "judged": 0, "verified": 0} for _ in range(2)]
    for stretch in store.activity(since=start, bucket_s=3600):
        week = weeks[0 if (at - stretch.start).total_seconds() <= WEEK_S else 1]
        for name in week:
            week[name] += getattr(stretch, name)
    return weeks


def _told(cycle: Cycle) -> Json:
    """What came of a cycle, in words."""
    release: Any = cycle.report.get("release")
    outcome = cycle.error or str(cycle.state)
    if isinstance(release, Mapping) and release.get("reason"):
        outcome = f"{release.get('state', 'released')}: {release['reason']}"
    return {
        "id": cycle.id,
        "recipe": cycle.recipe,
        "state": str(cycle.state),
        "finished_at": cycle.finished_at,
        "outcome": outcome,
    }


def lines(report: Json, at: datetime) -> list[str]:
    """Return the answer for people: at most six lines."""
    found = [f"learning: {'yes' if report['learning'] else 'not yet'}; {report['why']}"]
    if report["by_version"]:
        shown = " · ".join(f"{_name(row['version'])} {_share(row)}" for row in report["by_version"])
        found.append(f"answers verified in {DAYS} days: {shown}")
    this, before = report["weeks"]
    found.append(f"last 7 days: {_week(this)}; the 7 before: {_week(before)}")
    if (last := report["last_cycle"]) is not None:
        hours = (at - last["finished_at"]).total_seconds() / 3600
        found.append(f"last cycle: {last['recipe']}, {hours:.0f} h ago: {last['outcome']}")
    if report["running"]:
        found.append(f"running: cycle {', '.join(report['running'])}")
    new = ", ".join(f"{count} {what}" for what, count in report["new"].items())
    found.append(f"new since the last cycle: {new}; the next one {_next(report)}")
    return found


def _name(version: int) -> str:
    return f"code@v{version}" if version else "base"


def _share(row: Json) -> str:
    return f"{row['verified'] / row['judged']:.0%} of {row['judged']}"


def _week(week: Json) -> str:
    judged = f", {_share(week)} with a spec" if week["judged"] else ""
    return f"{week['requests']} requests{judged}"


def _next(report: Json) -> str:
    begins = [f"at {n} {what}" for what, n in report["thresholds"].items() if n is not None]
    begins += [f'on "{report["schedule"]}"'] if report["schedule"] else []
    return "begins " + " or ".join(begins) if begins else "begins when asked for"
