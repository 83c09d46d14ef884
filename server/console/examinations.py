"""What cycles have found out about versions: the gate's numbers, and each task's outcome.

Read out of the reports in the record, and of the outcomes that a cycle left in its directory where
that is on this machine. Nothing here judges; that was `improver.decide`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from ops.records import Cycle, Json
from ops.store import Store

MAX_CYCLES = 200
MAX_OUTCOMES = 50_000
"""Lines of a cycle's outcomes that are read."""
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


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """How a version did on one task, with one seed."""

    suite: str
    task_id: str
    seed: int
    passed: bool | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One task under two versions; None where that one could not be judged."""

    suite: str
    task_id: str
    seed: int
    first: TaskOutcome
    second: TaskOutcome

    @property
    def change(self) -> str:
        """One word: what the second did against the first."""
        if self.first.passed is None or self.second.passed is None:
            return "not judged"
        if self.first.passed == self.second.passed:
            return "both" if self.first.passed else "neither"
        return "won" if self.second.passed else "lost"


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


def compare(store: Store, first: int, second: int) -> list[Compared] | None:
    """Set two versions side by side, on the tasks that both were asked.

    Where one was examined against the other, that examination is read; else each one's newest, and
    tasks that both had in common are left.

    Returns:
        None where the outcomes of one of them are not on this machine.
    """
    cycles = [
        (cycle, one) for cycle in store.cycles(limit=MAX_CYCLES) if (one := examination(cycle))
    ]
    for cycle, one in cycles:
        if {one.candidate, one.champion} == {first, second}:
            arms = ("champion", "candidate")
            names = arms if one.candidate == second else arms[::-1]
            return _together(*(_outcomes(cycle, arm) for arm in names))
    found = [_of(cycles, version) for version in (first, second)]
    return _together(*found)


def _of(
    cycles: Iterable[tuple[Cycle, Examination]], version: int
) -> dict[tuple[str, str, int], TaskOutcome] | None:
    """The outcomes of a version in the newest examination that has any."""
    for cycle, one in cycles:
        for arm, whose in (("candidate", one.candidate), ("champion", one.champion)):
            if whose == version and (found := _outcomes(cycle, arm)):
                return found
    return None


def _outcomes(cycle: Cycle, arm: str) -> dict[tuple[str, str, int], TaskOutcome] | None:
    path = Path(cycle.directory) / "evaluate" / "outcomes.jsonl"
    found = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in islice(file, MAX_OUTCOMES):
                row = json.loads(line)
                if row.get("arm") == arm:
                    one = TaskOutcome(
                        suite=str(row["suite"]),
                        task_id=str(row["task_id"]),
                        seed=int(row["seed"]),
                        passed=row["passed"],
                        verdict=str(row["verdict"]),
                    )
                    found[one.suite, one.task_id, one.seed] = one
    except (OSError, ValueError, KeyError, TypeError):  # tidied away, or another version's
        return None
    return found


def _together(
    first: dict[tuple[str, str, int], TaskOutcome] | None,
    second: dict[tuple[str, str, int], TaskOutcome] | None,
) -> list[Compared] | None:
    if first is None or second is None:
        return None
    return [
        Compared(suite=key[0], task_id=key[1], seed=key[2], first=first[key], second=second[key])
        for key in sorted(first.keys() & second.keys())
    ]
