"""What cycles have found out about versions: the gate's numbers and words.

Read out of the reports in the record. Nothing here judges; that was `improver.decide`'s business.
What two versions did task by task is `ops.differences`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ops.records import Adapter, AdapterState, Cycle, Json
from ops.store import Store

MAX_CYCLES = 200
BASE = 0
"""The version that means the base model."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """One examination: a candidate beside the champion of its time, on the same tasks."""

    cycle_id: str
    at: datetime
    candidate: int
    champion: int
    tasks: int
    candidate_solved: int
    champion_solved: int
    won: int
    lost: int
    e_value: float | None
    decision: str
    reason: str
    text: str


def examinations(store: Store) -> list[Examination]:
    """Return the examinations of the newest cycles, oldest first."""
    found = (examination(cycle) for cycle in store.cycles(limit=MAX_CYCLES))
    return [one for one in found if one is not None][::-1]


def examination(cycle: Cycle) -> Examination | None:
    """Return the examination of a cycle; None where it came to none."""
    examined, decided = cycle.report.get("evaluate") or {}, cycle.report.get("decide") or {}
    numbers: Json = decided.get("numbers") or {}
    target: Json = numbers.get("target") or {}
    candidate = version_of(examined.get("candidate"))
    if not decided or not candidate:
        return None
    return Examination(
        cycle_id=cycle.id,
        at=cycle.finished_at or cycle.created_at,
        candidate=candidate,
        champion=version_of(examined.get("champion")),
        tasks=int(target.get("tasks") or 0),
        candidate_solved=int(target.get("candidate_solved") or 0),
        champion_solved=int(target.get("champion_solved") or 0),
        won=int(target.get("won") or 0),
        lost=int(target.get("lost") or 0),
        e_value=numbers.get("e_better"),
        decision=str(decided.get("decision") or ""),
        reason=str(decided.get("reason") or ""),
        text=str(decided.get("text") or ""),
    )


def version_of(name: object) -> int:
    """The version in a pinned name; `BASE` for every other name."""
    digits = str(name).removeprefix("code@v")
    return int(digits) if digits != str(name) and digits.isdecimal() else BASE


def fate(adapter: Adapter, exam: Examination | None) -> str:
    """What became of a version, in one word for legends: promoted, rejected, open."""
    if adapter.state in (AdapterState.CHAMPION, AdapterState.RETIRED):
        return "promoted"
    if adapter.state is AdapterState.ERASED:  # its files are gone, whatever it was before
        return "promoted" if exam is not None and exam.decision == "promote" else "rejected"
    return "rejected" if adapter.state is AdapterState.REJECTED else "open"
