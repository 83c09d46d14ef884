"""`/v1/evals`: the examination of candidates, in the words of OpenAI's evals API.

The eval `gate` is always there; each cycle that came to an examination is a run of it. A task that
could not be judged is `errored`, never `failed`. What decides is in `comparison`: the tasks that
one arm alone solved, and the evidence drawn from them (`improver.decide`). Beside it stands each
benchmark of `journeyman eval` (`scores`). To be read only: cycles and that command make runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request

from ops.errors import NotFound, StoreError
from ops.records import Cycle, CycleState, Json
from server import scores
from server.errors import NotFoundError, RecordUnavailable
from server.listing import After, Limit, page
from server.openapi import errors
from server.state import current

router = APIRouter(prefix="/v1/evals", tags=["evals"])

T = TypeVar("T")
GATE = "eval_gate"
MAX_CYCLES = 1000
_PREFIX = "evalrun_"
_RUNNING = frozenset((CycleState.QUEUED, CycleState.RUNNING, CycleState.PAUSED))
_EVAL: Json = {
    "id": GATE,
    "object": "eval",
    "name": "gate",
    "created_at": 0,
    "data_source_config": {"type": "custom", "schema": {"type": "object"}},
    "testing_criteria": [
        {
            "type": "python",
            "id": "execution",
            "name": "execution",
            "source": "# every check of the task, run in the sandbox",
        }
    ],
    "metadata": {},
}


@router.get("", responses=errors(400))
async def list_evals(request: Request, limit: Limit = 20, after: After = None) -> dict[str, Any]:
    """List the evals: the examination of candidates, and the benchmarks."""
    found = await asyncio.to_thread(scores.benchmarks, current(request).evaluations_dir)
    return page([_EVAL, *found], limit, after)


@router.get("/{eval_id}", responses=errors(404))
async def get_eval(request: Request, eval_id: str) -> dict[str, Any]:
    """Return an eval."""
    if eval_id == GATE:
        return _EVAL
    found = await asyncio.to_thread(scores.benchmarks, current(request).evaluations_dir)
    return _one(found, eval_id, "eval_id")


@router.get("/{eval_id}/runs", responses=errors(400, 404, 503))
async def list_runs(
    request: Request, eval_id: str, limit: Limit = 20, after: After = None
) -> dict[str, Any]:
    """List the examinations, or the results of a benchmark, newest first."""
    state = current(request)
    if eval_id != GATE:
        found = await asyncio.to_thread(scores.runs, state.evaluations_dir, eval_id)
        if not found:
            raise NotFoundError(f"no eval {eval_id[:200]}", param="eval_id")
        return page(found, limit, after)
    store = state.store
    cycles = await _read(lambda: store.cycles(limit=MAX_CYCLES))
    return page([_run(cycle) for cycle in cycles if "evaluate" in cycle.report], limit, after)


@router.get("/{eval_id}/runs/{run_id}", responses=errors(404, 503))
async def get_run(request: Request, eval_id: str, run_id: str) -> dict[str, Any]:
    """Return an examination, or a result of a benchmark."""
    state = current(request)
    if eval_id != GATE:
        found = await asyncio.to_thread(scores.runs, state.evaluations_dir, eval_id)
        return _one(found, run_id, "run_id")
    store = state.store
    cycle = await _read(lambda: store.cycle(run_id.removeprefix(_PREFIX)))
    if "evaluate" not in cycle.report:
        raise NotFoundError(f"no run {run_id[:200]}", param="run_id")
    return _run(cycle)


def _one(rows: list[Json], wanted: str, param: str) -> Json:
    for row in rows:
        if row["id"] == wanted:
            return row
    raise NotFoundError(f"no {param.removesuffix('_id')} {wanted[:200]}", param=param)


async def _read(call: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(call)
    except NotFound as error:
        raise NotFoundError(str(error), param="run_id") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _run(cycle: Cycle) -> Json:
    examined, decided = cycle.report["evaluate"], cycle.report.get("decide") or {}
    numbers: Json = decided.get("numbers") or {}
    model = str(examined.get("candidate") or "")
    counts = _counts(numbers.get("target") or {})
    return {
        "id": _PREFIX + cycle.id,
        "object": "eval.run",
        "eval_id": GATE,
        "created_at": int(cycle.created_at.timestamp()),
        "name": model,
        "model": model,
        "status": _status(cycle, decided),
        "data_source": {
            "type": "completions",
            "model": model,
            "source": {"type": "file_id", "id": "gate"},
        },
        "error": {"code": "", "message": cycle.error or ""},
        "metadata": {"recipe": cycle.recipe, "cycle": cycle.id},
        "per_model_usage": [],
        "per_testing_criteria_results": [
            {"testing_criteria": name, "passed": found["passed"], "failed": found["failed"]}
            for name, suite in numbers.items()
            if isinstance(suite, dict) and "candidate_solved" in suite
            for found in [_counts(suite)]
        ],
        "report_url": f"/v1/fine_tuning/jobs/ftjob-{cycle.id}",
        "result_counts": counts,
        "comparison": _comparison(examined, decided, numbers),
    }


def _status(cycle: Cycle, decided: Json) -> str:
    if decided:
        return "completed"
    if cycle.state in _RUNNING:
        return "in_progress"
    return "canceled" if cycle.state is CycleState.CANCELLED else "failed"


def _counts(suite: Json) -> Json:
    judged, errored = int(suite.get("tasks") or 0), int(suite.get("errors") or 0)
    passed = int(suite.get("candidate_solved") or 0)
    return {
        "total": judged + errored,
        "passed": passed,
        "failed": judged - passed,
        "errored": errored,
    }


def _comparison(examined: Json, decided: Json, numbers: Json) -> Json | None:
    if not decided:
        return None
    target = numbers.get("target") or {}
    return {
        "baseline": examined.get("champion"),
        "discordant": [target.get("won", 0), target.get("lost", 0)],
        "e_value": numbers.get("e_better"),
        "decision": decided.get("decision"),
        "reason": decided.get("reason"),
    }
