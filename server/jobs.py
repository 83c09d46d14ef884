"""`/v1/fine_tuning/jobs`: improvement cycles in the words of OpenAI's fine-tuning API.

To be read only: cycles are started by the improver, on its schedule or by `journeyman improve`.
`succeeded` means that the cycle ran to its end; whether its adapter was promoted is told by
`/v1/adapters`, because a rejected candidate is no failed job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from starlette.requests import Request

from ops.errors import NotFound, StoreError
from ops.records import Cycle, CycleEvent, CycleState, Json
from ops.store import Store
from server.errors import NotFoundError, RecordUnavailable
from server.openapi import errors
from server.state import State, current

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

T = TypeVar("T")
_PREFIX = "ftjob-"
_STATUS = {
    CycleState.QUEUED: "queued",
    CycleState.RUNNING: "running",
    CycleState.SUCCEEDED: "succeeded",
    # OpenAI has no word for "there was too little to learn from"; `error` says it.
    CycleState.SKIPPED: "cancelled",
    CycleState.FAILED: "failed",
    CycleState.CANCELLED: "cancelled",
}
_LEVELS = {"warning": "warn", "warn": "warn", "error": "error", "critical": "error"}
MAX_LISTED = 1000

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100)]


@router.get("", responses=errors(400, 503))
async def list_jobs(request: Request, limit: Limit = 20, after: After = None) -> dict[str, Any]:
    """List improvement cycles, newest first."""
    state = current(request)
    cycles = await _read(lambda: state.store.cycles(limit=MAX_LISTED))
    return _page([_job(state, cycle) for cycle in cycles], limit, after)


@router.get("/{job_id}", responses=errors(404, 503))
async def get_job(request: Request, job_id: str) -> dict[str, Any]:
    """Return one improvement cycle."""
    state = current(request)
    return _job(state, await _read(lambda: state.store.cycle(_bare(job_id))))


@router.get("/{job_id}/events", responses=errors(400, 404, 503))
async def list_events(
    request: Request, job_id: str, limit: Limit = 20, after: After = None
) -> dict[str, Any]:
    """List what happened in a cycle, newest first."""
    store = current(request).store
    events = await _read(lambda: _of(store, _bare(job_id), store.events))
    return _page([_event(event) for event in reversed(events)], limit, after)


@router.get("/{job_id}/checkpoints", responses=errors(400, 404, 503))
async def list_checkpoints(
    request: Request, job_id: str, limit: Limit = 10, after: After = None
) -> dict[str, Any]:
    """List the adapters a cycle has made: the last one, or none."""
    store = current(request).store
    cycle = await _read(lambda: store.cycle(_bare(job_id)))
    return _page(_checkpoints(cycle), limit, after)


async def _read(call: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(call)
    except NotFound as error:
        raise NotFoundError(str(error), param="job_id") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _of(store: Store, cycle_id: str, read: Callable[[str], T]) -> T:
    store.cycle(cycle_id)  # a cycle that is not there has no events, but is a 404
    return read(cycle_id)


def _bare(job_id: str) -> str:
    return job_id.removeprefix(_PREFIX)


def _page(rows: list[Json], limit: int, after: str | None) -> Json:
    start = next((i + 1 for i, row in enumerate(rows) if row["id"] == after), 0)
    data = rows[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(rows) > start + limit,
    }


def _job(state: State, cycle: Cycle) -> Json:
    base = state.adapters.base
    error = None
    if cycle.error is not None or cycle.state is CycleState.SKIPPED:
        message = cycle.error or str(cycle.report.get("reason") or "there was too little to learn")
        error = {"code": cycle.state.value, "message": message, "param": None}
    return {
        "id": _PREFIX + cycle.id,
        "object": "fine_tuning.job",
        "created_at": int(cycle.created_at.timestamp()),
        "finished_at": int(cycle.finished_at.timestamp()) if cycle.finished_at else None,
        "estimated_finish": None,
        "model": base.id if base is not None else "",
        "fine_tuned_model": _name(cycle),
        "organization_id": "local",
        "status": _STATUS[cycle.state],
        "training_file": f"cycle-{cycle.id}",
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "seed": 0,
        "hyperparameters": {},
        "integrations": [],
        "metadata": {"recipe": cycle.recipe, "trigger": cycle.trigger, "stage": cycle.stage},
        "error": error,
        "report": cycle.report,
    }


def _name(cycle: Cycle) -> str | None:
    return f"code@v{cycle.adapter_version}" if cycle.adapter_version is not None else None


def _event(event: CycleEvent) -> Json:
    return {
        "id": f"ftevent-{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at.timestamp()),
        "level": _LEVELS.get(event.level.lower(), "info"),
        "message": event.message,
        "type": "metrics" if event.data else "message",
        "data": event.data,
    }


def _checkpoints(cycle: Cycle) -> list[Json]:
    name = _name(cycle)
    if name is None:
        return []
    at = cycle.finished_at or cycle.created_at
    return [
        {
            "id": f"ftckpt-{cycle.id}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(at.timestamp()),
            "fine_tuned_model_checkpoint": name,
            "fine_tuning_job_id": _PREFIX + cycle.id,
            "step_number": 0,
            "metrics": {},
        }
    ]
