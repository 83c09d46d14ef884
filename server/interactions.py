"""`/v1/interactions`: the record, as far as it may leave the server.

Expected values and messages of hidden examples stay inside; whoever runs the database sees them
there.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from ops.errors import NotFound, StoreError
from ops.records import Attempt, Execution, Feedback, Interaction, Json, Source
from sandbox.errors import SpecError
from sandbox.spec import parse_spec
from server.calls import bare_id
from server.errors import NotFoundError, RecordUnavailable
from server.listing import After, Limit, listed
from server.openapi import errors
from server.state import State, current

router = APIRouter(tags=["record"])


@router.get("/v1/interactions", responses=errors(400, 503))
async def list_interactions(
    request: Request,
    limit: Limit = 20,
    after: After = None,
    verified: bool | None = None,
    source: Source | None = None,
) -> dict[str, Any]:
    """List interactions, newest first."""
    state = current(request)
    try:
        rows = await asyncio.to_thread(
            state.store.interactions,
            limit=limit + 1,
            before=bare_id(after) if after else None,
            verified=verified,
            source=source,
        )
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error
    return listed([interaction_out(row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get("/v1/interactions/{interaction_id}", responses=errors(404, 503))
async def get_interaction(request: Request, interaction_id: str) -> dict[str, Any]:
    """Return an interaction with its attempts, their executions and the feedback on it."""
    state = current(request)
    try:
        return await asyncio.to_thread(_whole, state, bare_id(interaction_id))
    except NotFound as error:
        raise NotFoundError(str(error), param="interaction_id") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _whole(state: State, interaction_id: str) -> Json:
    store = state.store
    return {
        **interaction_out(store.interaction(interaction_id)),
        "attempts": [attempt_out(row) for row in store.attempts(interaction_id)],
        "executions": [
            execution_out(row) for row in store.executions(interaction_id, reported=True)
        ],
        "feedback": [feedback_out(row) for row in store.feedback(interaction_id)],
    }


def interaction_out(row: Interaction) -> Json:
    """An interaction without the hidden part of its specification."""
    out = asdict(row)
    out["object"] = "interaction"
    out["created_at"] = row.created_at.isoformat()
    out["adapter"] = {
        "name": out.pop("adapter_name"),
        "version": out.pop("adapter_version"),
        "sha256": out.pop("adapter_sha256"),
    }
    if row.spec is not None:
        try:
            out["spec"] = parse_spec(row.spec).visible().to_json()
        except SpecError:
            out["spec"] = None  # written by another version: better nothing than hidden values
    return out


def attempt_out(row: Attempt) -> Json:
    """An attempt."""
    return asdict(row)


def execution_out(row: Execution) -> Json:
    """An execution without what hidden examples said."""
    out = asdict(row)
    out["created_at"] = row.created_at.isoformat()
    out["examples"] = [
        {**example, "message": None} if example.get("hidden", True) else example
        for example in row.examples
    ]
    return out


def feedback_out(row: Feedback) -> Json:
    """A piece of feedback."""
    out = asdict(row)
    out["created_at"] = row.created_at.isoformat()
    out["updated_at"] = row.updated_at.isoformat()
    return out
