"""*Adapters*: the versions and where they come from, two of them task by task, which one answers.

Promotion, trial, rejection and rollback are wishes to the registry, as the commands' are; the
server proves what it loads before it answers with it (`server.adapters`), and takes back what it
cannot prove or what is worse on live traffic (`server.canary`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ops import trials
from ops.differences import difference
from ops.records import Adapter, AdapterState, Alias, now
from ops.registry import lineage
from server.auth import CONSOLE
from server.console import charts
from server.console.base import form_of, new_router, read, render, see_other, visitor_of
from server.console.charts import Node
from server.console.door import Visitor
from server.console.examinations import BASE, Examination, examination, examinations, fate
from server.errors import BadRequest
from server.state import State, current

router = new_router()

PATH = f"{CONSOLE}/adapters"
MAX_SOURCES = 50
"""Interactions that a version was made of which are named on its page."""
MAX_TASKS = 500
CHANGES = ("gained", "lost", "both", "neither")
"""What the second of two versions did with a task, against the first."""
SHARES = (0.05, 0.1, 0.25, 0.5)
"""Of the requests, which a version may be tried on."""


@router.get(PATH)
async def show_all(request: Request) -> Response:
    """List the versions."""
    visitor = visitor_of(request)
    state = current(request)
    found = await read(lambda: _all(state))
    return render(request, "adapters.html", visitor=visitor, **found)


@router.get(f"{PATH}/compare")
async def show_difference(request: Request) -> Response:
    """Show two versions task by task."""
    visitor = visitor_of(request)
    state = current(request)
    query = request.query_params
    first, second = (_number(query.get(name, "")) for name in ("first", "second"))
    only = "changed" if query.get("only", "changed") == "changed" else "all"
    found = await read(lambda: _difference(state, first, second, only))
    return render(request, "compare.html", visitor=visitor, **found)


@router.get(f"{PATH}/{{version}}")
async def show_one(request: Request, version: str) -> Response:
    """Show a version: the decision about it, what it was made of, what became of it."""
    visitor = visitor_of(request)
    state = current(request)
    found = await read(lambda: _one(state, version))
    return render(request, "adapter.html", visitor=visitor, **found)


@router.get(f"{PATH}/{{version}}/promote")
async def ask_promote(request: Request, version: str) -> Response:
    """Say what promoting a version means, and ask."""
    visitor = visitor_of(request)
    state = current(request)
    found = await read(lambda: _one(state, version))
    return render(request, "promote.html", visitor=visitor, **found)


@router.post(f"{PATH}/{{version}}/promote")
async def promote(request: Request, version: str) -> Response:
    """Make a version the champion."""
    visitor = visitor_of(request)
    form = await form_of(request, visitor)
    registry = current(request).registry
    reason = form.get("reason").strip() or "promoted in the console"

    def move() -> Adapter:
        adapter = registry.find(version)
        force = form.get("force") == "yes"
        registry.promote(adapter.version, actor=actor(visitor), reason=reason[:500], force=force)
        return adapter

    adapter = await read(move)
    current(request).adapters.wake()
    return see_other(f"{PATH}/{adapter.version}", done="promoted")


@router.post(f"{PATH}/{{version}}/canary")
async def try_out(request: Request, version: str) -> Response:
    """Let a version answer a share of the requests, until that decides."""
    visitor = visitor_of(request)
    form = await form_of(request, visitor)
    registry = current(request).registry
    share = next((one for one in SHARES if str(one) == form.get("share")), None)
    if share is None:
        raise BadRequest(f"the share is one of {', '.join(map(str, SHARES))}")

    def move() -> Adapter:
        adapter = registry.find(version)
        reason = "tried on a share in the console"
        registry.canary(
            adapter.version, actor=actor(visitor), reason=reason, evidence={"share": share}
        )
        return adapter

    adapter = await read(move)
    current(request).adapters.wake()
    return see_other(f"{PATH}/{adapter.version}", done="tried")


@router.get(f"{PATH}/{{version}}/reject")
async def ask_reject(request: Request, version: str) -> Response:
    """Ask whether a version shall not go live."""
    visitor = visitor_of(request)
    state = current(request)
    adapter = await read(lambda: state.registry.find(version))
    return render(request, "reject.html", visitor=visitor, adapter=adapter)


@router.post(f"{PATH}/{{version}}/reject")
async def reject(request: Request, version: str) -> Response:
    """Mark a version as one that shall not go live; one on trial leaves at once."""
    visitor = visitor_of(request)
    form = await form_of(request, visitor)
    registry = current(request).registry
    reason = form.get("reason").strip() or "rejected in the console"

    def move() -> Adapter:
        adapter = registry.find(version)
        registry.reject(adapter.version, actor=actor(visitor), reason=reason[:500])
        return adapter

    adapter = await read(move)
    current(request).adapters.wake()
    return see_other(f"{PATH}/{adapter.version}", done="rejected")


@router.get(f"{CONSOLE}/rollback")
async def ask_rollback(request: Request) -> Response:
    """Say what the rollback means, and ask."""
    visitor = visitor_of(request)
    state = current(request)
    champion, back = await read(
        lambda: (state.registry.at(Alias.CHAMPION), state.registry.at(Alias.ROLLBACK))
    )
    return render(request, "rollback.html", visitor=visitor, champion=champion, back=back)


@router.post(f"{CONSOLE}/rollback")
async def rollback(request: Request) -> Response:
    """Put the previous champion back."""
    visitor = visitor_of(request)
    form = await form_of(request, visitor)
    registry = current(request).registry
    reason = form.get("reason").strip() or "rolled back in the console"

    # What was confirmed is what is done: not the rollback of a version promoted meanwhile.
    seen = _number(form.get("champion"))
    await read(lambda: registry.rollback(actor=actor(visitor), reason=reason[:500], only=seen))
    current(request).adapters.wake()
    return see_other(PATH, done="rolled-back")


def actor(visitor: Visitor) -> str:
    """Under which name what is done here stands in the history."""
    return f"console:{visitor.identity.name}"


def _number(name: str) -> int:
    """The version of a name as forms and links have it."""
    digits = name.removeprefix("code@").removeprefix("v")
    if not digits.isdecimal() or len(digits) > 9:
        raise BadRequest("versions are named by their number; 0 is the base model")
    return int(digits)


def _all(state: State) -> dict[str, Any]:
    store = state.store
    adapters = store.adapters()
    exams = {exam.candidate: exam for exam in examinations(store)}
    aliases = store.aliases()
    return {
        "adapters": adapters,
        "exams": exams,
        "aliases": {version: alias.value for alias, version in aliases.items()},
        "champion": aliases.get(Alias.CHAMPION, BASE),
        "serving": state.adapters.champion,
        "graph": charts.lineage(_nodes(adapters[::-1][-40:], exams, aliases.get(Alias.CHAMPION))),
        "receipts": store.receipts(limit=8),
        **_trial(state),
    }


def _trial(state: State) -> dict[str, Any]:
    """The trial under way, with what it says so far."""
    trial = trials.current(state.store, state.rules)
    if trial is None:
        return {"trial": None, "so_far": None, "trial_text": ""}
    elapsed_s = max(0.0, (now() - trial.since).total_seconds())
    so_far = trials.judge(state.store, trial, state.rules, elapsed_s=elapsed_s)
    return {"trial": trial, "so_far": so_far, "trial_text": trials.describe(so_far.numbers)}


def _nodes(
    adapters: list[Adapter], exams: dict[int, Examination], champion: int | None
) -> list[Node]:
    """The lineage: each version hangs on the champion it was examined against."""
    nodes, before = [], None
    for adapter in adapters:
        exam = exams.get(adapter.version)
        parent = (exam.champion or None) if exam is not None else before
        kind = "champion" if adapter.version == champion else fate(adapter, exam)
        note = f"{exam.candidate_solved}/{exam.tasks}" if exam and exam.tasks else adapter.recipe
        nodes.append(
            Node(
                version=adapter.version,
                parent=parent,
                kind=kind,
                label=f"v{adapter.version}",
                note=note,
            )
        )
        before = adapter.version if kind in ("champion", "promoted") else before
    return nodes


def _one(state: State, name: str) -> dict[str, Any]:
    store = state.store
    adapter = state.registry.find(name)
    cycle = store.cycle(adapter.cycle_id) if adapter.cycle_id else None
    made = lineage(store, adapter)
    exam = examination(cycle) if cycle is not None else None
    aliases = store.aliases()
    return {
        "adapter": adapter,
        "aliases": [alias.value for alias, at in aliases.items() if at == adapter.version],
        "champion": aliases.get(Alias.CHAMPION, BASE),
        "serving": state.adapters.champion,
        "loaded": any(other.version == adapter.version for other in state.adapters.loaded),
        "exam": exam if exam is not None and exam.candidate == adapter.version else None,
        "transitions": store.transitions(adapter.version),
        "receipts": store.receipts(version=adapter.version, limit=20),
        "rows": Counter(row.recipe for row in made.rows),
        "sources": made.interaction_ids[:MAX_SOURCES],
        "source_count": len(made.interaction_ids),
        "feedback_count": len(made.feedback_ids),
        "regular": adapter.state
        in (
            AdapterState.EXAMINED,
            AdapterState.SHADOW,
            AdapterState.CANARY,
            AdapterState.RETIRED,
        ),
        "triable": adapter.tainted_by is None
        and adapter.state in (AdapterState.EXAMINED, AdapterState.SHADOW),
        "rejectable": adapter.state
        not in (AdapterState.CHAMPION, AdapterState.REJECTED, AdapterState.ERASED),
        "shares": SHARES,
        "promotable": adapter.tainted_by is None
        and adapter.state not in (AdapterState.CHAMPION, AdapterState.ERASED),
    }


def _difference(state: State, first: int, second: int, only: str) -> dict[str, Any]:
    store = state.store
    found = difference(store, state.registry, first, second)
    counts: Counter[tuple[str, str]] = Counter()
    shown = []
    for change in CHANGES:
        for task in found["tasks"][change]:
            counts[task["suite"], change] += 1
            if only == "all" or change in CHANGES[:2]:
                shown.append((task, change))
    shown.sort(key=lambda pair: (_suite_order(pair[0]["suite"]), pair[0]["task"]))
    return {
        "first": first,
        "second": second,
        "all_versions": [adapter.version for adapter in store.adapters()],
        "made": found["made"],
        "met": found["met"],
        "judged": found["tasks"]["judged"],
        "suites": sorted({suite for suite, _ in counts}, key=_suite_order),
        "changes": CHANGES,
        "counts": counts,
        "tasks": shown[:MAX_TASKS],
        "more": max(0, len(shown) - MAX_TASKS),
        "only": only,
        "seeds": len({task["seed"] for task, _ in shown}),
    }


def _suite_order(suite: str) -> tuple[int, str]:
    known = ("target", "guard", "replay", "vault", "secrets")
    return (known.index(suite) if suite in known else len(known), suite)
