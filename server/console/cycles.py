"""*Cycles*: what each one does or did, stage by stage; ask for one, pause, resume, cancel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ops.records import Cycle, CycleState, Json
from server.auth import CONSOLE
from server.console.base import form_of, new_router, read, render, see_other, visitor_of, write
from server.console.examinations import examination
from server.errors import NotFoundError
from server.jobs import RECIPES, JobIn, queued
from server.state import State, current

router = new_router()

PATH = f"{CONSOLE}/cycles"
LISTED = 25
LOG_LINES = 200
TAIL_BYTES = 1 << 16
STAGES = (
    ("collect", "Collect", "what can be learned from"),
    ("build", "Build", "the recipes ask the model for rows"),
    ("screen", "Screen", "firewall, secrets, duplicates, caps"),
    ("dataset", "Dataset", "split by task, lineage"),
    ("train", "Train", "the adapter"),
    ("evaluate", "Evaluate", "champion and candidate, same tasks"),
    ("decide", "Decide", "the gate"),
    ("shadow", "Shadow", "logged requests again, seen by nobody"),
    ("release", "Release", "into service, or not"),
)
"""The stages of `improver.cycle`, in order."""
OPTIONAL = "shadow"
"""Only cycles that are told to have this stage."""
HALTED = (CycleState.QUEUED, CycleState.RUNNING)
_ACTIONS = {
    "pause": HALTED,
    "resume": (CycleState.PAUSED, CycleState.FAILED),
    "cancel": (*HALTED, CycleState.PAUSED),
}
_CONFIRMED = "cancel"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a cycle as it stands."""

    name: str
    title: str
    words: str
    state: str
    """done, running, stopped or waiting."""
    seconds: float | None
    numbers: list[tuple[str, str]]
    progress: str
    done: int | None = None
    total: int | None = None


@router.get(PATH)
async def show_all(request: Request) -> Response:
    """List cycles, newest first, and offer to ask for one."""
    visitor = visitor_of(request)
    state = current(request)
    before = request.query_params.get("before", "")
    cycles = await read(lambda: state.store.cycles(limit=LISTED + 1, before=before or None))
    return render(
        request,
        "cycles.html",
        visitor=visitor,
        cycles=cycles[:LISTED],
        more=len(cycles) > LISTED,
        exams={cycle.id: examination(cycle) for cycle in cycles[:LISTED]},
        recipes=RECIPES,
        recipe=state.improvement.settings.recipe,
    )


@router.post(PATH)
async def ask(request: Request) -> Response:
    """Ask for a cycle."""
    visitor = visitor_of(request)
    state = current(request)
    form = await form_of(request, visitor)
    wanted = JobIn(model="code", training_file="record", metadata={"recipe": form.get("recipe")})
    cycle = queued(state, wanted, trigger="console")
    await write(request, lambda: state.store.add_cycle(cycle))
    return see_other(f"{PATH}/{cycle.id}", done="queued")


@router.get(f"{PATH}/{{cycle_id}}")
async def show_one(request: Request, cycle_id: str) -> Response:
    """Show a cycle: its stages, rows and log."""
    visitor = visitor_of(request)
    state = current(request)
    found = await read(lambda: _one(state, cycle_id))
    return render(request, "cycle.html", visitor=visitor, **found)


@router.get(f"{PATH}/{{cycle_id}}/{_CONFIRMED}")
async def ask_cancel(request: Request, cycle_id: str) -> Response:
    """Ask whether a cycle shall end for good."""
    visitor = visitor_of(request)
    state = current(request)
    cycle = await read(lambda: state.store.cycle(cycle_id))
    return render(request, "cancel.html", visitor=visitor, cycle=cycle)


@router.post(f"{PATH}/{{cycle_id}}/{{action}}")
async def move(request: Request, cycle_id: str, action: str) -> Response:
    """Pause, resume or cancel a cycle."""
    visitor = visitor_of(request)
    store = current(request).store
    await form_of(request, visitor)
    if action not in _ACTIONS:
        raise NotFoundError("There is no such action.")

    def change() -> Cycle:
        if action == "pause":
            return store.pause_cycle(cycle_id)
        if action == "resume":
            return store.resume_cycle(cycle_id)
        return store.cancel_cycle(cycle_id, f"cancelled by {visitor.identity.name}")

    await write(request, change)
    return see_other(f"{PATH}/{cycle_id}", done=action)


def _one(state: State, cycle_id: str) -> dict[str, Any]:
    store = state.store
    cycle = store.cycle(cycle_id)
    rows = store.count_dataset(cycle_id)
    events = store.events(cycle_id, last=LOG_LINES)
    dropped = {reason: number for (kept, reason), number in rows.items() if not kept}
    return {
        "cycle": cycle,
        "exam": examination(cycle),
        "stages": [_stage(cycle, *stage) for stage in STAGES if _has(cycle, stage[0])],
        "kept": sum(number for (kept, _), number in rows.items() if kept),
        "dropped": sorted(dropped.items(), key=lambda item: -item[1]),
        "events": events[::-1],
        "log_lines": LOG_LINES,
        "live": cycle.state in HALTED,
        "actions": [
            name
            for name, states in _ACTIONS.items()
            if cycle.state in states and not (cycle.stage == "release" and name != "resume")
        ],
    }


def _has(cycle: Cycle, stage: str) -> bool:
    """Whether a stage is one of this cycle's."""
    wanted = (cycle.settings.get("release") or {}).get("shadow_requests")
    return stage != OPTIONAL or bool(wanted) or OPTIONAL in cycle.report


def _stage(cycle: Cycle, name: str, title: str, words: str) -> Stage:
    report: Json | None = cycle.report.get(name)
    state = "waiting"
    if report:
        state = "done"
    elif cycle.stage == name:
        state = "running" if cycle.state is CycleState.RUNNING else "stopped"
    progress, done, total = "", None, None
    if state == "running":
        progress, done, total = _progress(Path(cycle.directory) / f"{name}.partial")
    return Stage(
        name=name,
        title=title,
        words=words,
        state=state,
        seconds=report.get("seconds") if report else None,
        numbers=_numbers(report or {}),
        progress=progress,
        done=done,
        total=total,
    )


def _numbers(report: Json, prefix: str = "") -> list[tuple[str, str]]:
    """What a stage reports, as names and short values; long lists and texts stay in the report."""
    found: list[tuple[str, str]] = []
    for name, value in report.items():
        words = f"{prefix}{name}".replace("_", " ")
        if name in ("seconds", "text") or value is None or value == "" or value == {}:
            continue
        if isinstance(value, bool):
            found.append((words, "yes" if value else "no"))
        elif isinstance(value, float):
            found.append((words, f"{value:,.4g}"))
        elif isinstance(value, int):
            found.append((words, f"{value:,}"))
        elif isinstance(value, str):
            found.append((words, value[:200]))
        elif isinstance(value, list):
            if all(isinstance(item, str) for item in value):
                found.append((words, f"{', '.join(value[:8])}{' …' if len(value) > 8 else ''}"))
        elif isinstance(value, dict) and len(prefix.split(": ")) < 4:
            found += _numbers(value, f"{words}: ")
    return [(words, value) for words, value in found if value]


def _progress(directory: Path) -> tuple[str, int | None, int | None]:
    """How far a running stage is, by what it leaves in its folder, if that is on this machine."""
    line = _last_line(directory / "progress.jsonl")
    if line and "step" in line and "steps" in line:
        loss = f", loss {line['loss']:.3f}" if isinstance(line.get("loss"), float) else ""
        step, steps = int(line["step"]), int(line["steps"])
        return f"step {step} of {steps}{loss}", step, steps
    journal = directory / "journal.jsonl"
    try:
        with journal.open("rb") as file:
            answers = sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return "", None, None
    return f"{answers:,} answers so far", None, None


def _last_line(path: Path) -> Json:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
        found = json.loads(next((line for line in lines[-2::-1] if line), b"{}"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
