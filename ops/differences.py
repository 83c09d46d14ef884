"""What sets two adapter versions apart: how they were made, and task by task what each can do.

Tasks are compared where both answered in one examination; where they never met, by the last
examination of each, on the tasks that both had. Version 0 is the base model. Nothing is asked anew,
and what retention has taken away is not there: then the report says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ops.errors import NotFound
from ops.records import Adapter, Cycle, Json
from ops.registry import Registry, lineage
from ops.store import Store

MOST_NAMED = 12
"""Tasks of one kind that are named in the text; the report has all."""
_OWN = ("task_id", "suite", "seed")

Key = tuple[str, str, int]
"""Suite, task, seed."""


@dataclass(frozen=True, kw_only=True)
class _Exam:
    """What one examination has of its two arms."""

    arms: dict[str, str]
    """Model name to arm."""
    outcomes: dict[str, dict[Key, Json]]

    def of(self, name: str) -> dict[Key, Json]:
        return self.outcomes.get(self.arms.get(name, ""), {})


def difference(store: Store, registry: Registry, older: int, newer: int) -> Json:
    """Return what sets two versions apart, as plain data with its text.

    Raises:
        NotFound: there is no such version.
    """
    one, two = (registry.get(version) if version else None for version in (older, newer))
    before, after, met = _answers(store, one, two)
    common = sorted(before.keys() & after.keys())
    judged = [k for k in common if None not in (before[k].get("passed"), after[k].get("passed"))]
    tasks = {
        word: [
            _task(key, before[key], after[key])
            for key in judged
            if _moved(word, before, after, key)
        ]
        for word in ("gained", "lost", "both", "neither")
    }
    found: Json = {
        "object": "adapter.difference",
        "from": _name(one),
        "to": _name(two),
        "made": _made(store, one, two),
        "met": met,
        "tasks": tasks | {"judged": len(judged)},
    }
    return found | {"text": text(found)}


def text(found: Json) -> str:
    """Return a difference in words."""
    before, after, tasks = found["from"], found["to"], found["tasks"]
    lines = list(found["made"])
    if not tasks["judged"]:
        lines.append("No examination has tasks that both answered.")
        return "\n".join(lines)
    where = "in one examination" if found["met"] else "in an examination of each"
    lines.append(
        f"Of {tasks['judged']} answers to the same tasks, {where}, {before} got "
        f"{len(tasks['lost']) + len(tasks['both'])} right and {after} "
        f"{len(tasks['gained']) + len(tasks['both'])}."
    )
    for word, says in (("gained", f"{after} alone"), ("lost", f"{before} alone")):
        rows = tasks[word]
        if rows:
            lines.append(f"Solved by {says}, {len(rows)}:")
            lines += [f"  {_sentence(row, word)}" for row in rows[:MOST_NAMED]]
            if len(rows) > MOST_NAMED:
                lines.append(f"  and {len(rows) - MOST_NAMED} more")
    if not tasks["gained"] and not tasks["lost"]:
        lines.append("Neither solves what the other does not.")
    return "\n".join(lines)


def _sentence(row: Json, word: str) -> str:
    failed = row["before"] if word == "gained" else row["after"]
    return f"{row['task']} ({row['suite']}): {failed} otherwise"


def _moved(word: str, before: dict[Key, Json], after: dict[Key, Json], key: Key) -> bool:
    passed = before[key]["passed"], after[key]["passed"]
    states = {
        "gained": (False, True),
        "lost": (True, False),
        "both": (True, True),
        "neither": (False, False),
    }
    return passed == states[word]


def _task(key: Key, before: Json, after: Json) -> Json:
    suite, task, seed = key
    return {
        "suite": suite,
        "task": task,
        "seed": seed,
        "before": before.get("verdict"),
        "after": after.get("verdict"),
    }


def _answers(
    store: Store, one: Adapter | None, two: Adapter | None
) -> tuple[dict[Key, Json], dict[Key, Json], bool]:
    """The answers of both, and whether they come from one examination."""
    exams = [exam for a in (two, one) if a is not None and (exam := _exam(store, a)) is not None]
    for exam in exams:
        before, after = exam.of(_name(one)), exam.of(_name(two))
        if before and after:
            return before, after, True
    if one is None or two is None:
        # The base model is nobody's candidate: it was the champion of others.
        more = (_exam(store, adapter) for adapter in store.adapters())
        met_base = (exam for exam in more if exam is not None and exam.of(_name(None)))
        exams += [exam for exam in (next(met_base, None),) if exam is not None]
    apart: list[dict[Key, Json]] = [
        next((found for exam in exams if (found := exam.of(_name(a)))), {}) for a in (one, two)
    ]
    return apart[0], apart[1], False


def _exam(store: Store, adapter: Adapter) -> _Exam | None:
    """The examination that a version went through as the candidate."""
    if adapter.cycle_id is None:
        return None
    try:
        cycle = store.cycle(adapter.cycle_id)
    except NotFound:
        return None
    evaluated = cycle.report.get("evaluate") or {}
    if evaluated.get("candidate") != adapter.name:
        return None  # the refiner of a cycle, for instance
    champion = str(evaluated.get("champion"))
    if not champion.startswith("code@v"):
        champion = _name(None)
    outcomes: dict[str, dict[Key, Json]] = {}
    for row in _lines(cycle):
        key = str(row["suite"]), str(row["task_id"]), int(row["seed"])
        outcomes.setdefault(str(row["arm"]), {})[key] = row
    return _Exam(arms={adapter.name: "candidate", champion: "champion"}, outcomes=outcomes)


def _lines(cycle: Cycle) -> Iterator[Json]:
    path = Path(cycle.directory) / "evaluate" / "outcomes.jsonl"
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if all(name in row for name in (*_OWN, "arm")):
                yield row


def _made(store: Store, one: Adapter | None, two: Adapter | None) -> list[str]:
    """How they were made, in sentences."""
    if one is None or two is None:
        adapter = two or one
        return [_origin(store, adapter)] if adapter is not None else []
    found = [_origin(store, one), _origin(store, two)]
    mine, theirs = (set(lineage(store, a).interaction_ids) for a in (one, two))
    if mine or theirs:
        found.append(
            f"{len(mine & theirs)} interactions taught both, {len(mine - theirs)} only {one.name}, "
            f"{len(theirs - mine)} only {two.name}."
        )
    if one.base_sha256 != two.base_sha256:
        found.append(f"Their base models differ: {one.base_model} and {two.base_model}.")
    before, after = (dict(_flat(a.lineage.get("settings") or {})) for a in (one, two))
    changed = [
        f"{name} {before.get(name)} → {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if changed:
        found.append(f"Settings: {'; '.join(changed)}.")
    return found


def _origin(store: Store, adapter: Adapter) -> str:
    rows = len(lineage(store, adapter).rows)
    return (
        f"{adapter.name} is {adapter.state}: {adapter.recipe}, rank {adapter.rank}, {rows} rows, "
        f"made {adapter.created_at:%Y-%m-%d %H:%M}."
    )


def _flat(value: Json, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _name(adapter: Adapter | None) -> str:
    return adapter.name if adapter is not None else "the base model"
