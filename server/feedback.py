"""`/v1/feedback`: what somebody says of an answer, or of a whole episode.

One object or a batch; the same target, metric, identifier and choice overwrites. Each piece can be
read, changed and taken back by its own id. How it is kept is `feedback_log`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from starlette.requests import Request

from ops.errors import NotFound, StoreError
from ops.records import Feedback, Json
from server.auth import Identity
from server.calls import bare_id
from server.errors import BadRequest, NotFoundError, RecordUnavailable
from server.feedback_log import changed, checked, keep, require_theirs
from server.limits import read_json
from server.openapi import body_of, errors, feedback_docs
from server.protocol import MAX_FEEDBACK_BATCH, MAX_ID_CHARS, FeedbackChange, validated
from server.state import State, current

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])

T = TypeVar("T")
TargetId = Annotated[str | None, Query(max_length=MAX_ID_CHARS)]


@router.post("", **feedback_docs)
async def give_feedback(request: Request) -> dict[str, Any]:
    """Keep feedback on an interaction or an episode; durable when this returns."""
    state, identity = current(request), request.state.identity
    body = await read_json(request, state.settings.max_body_bytes)
    if "data" not in body:
        ids = await keep(state, identity, [checked(body, "")], [""])
        return {"feedback_id": ids[0]}
    items = body["data"]
    for name in body:
        if name != "data":
            raise BadRequest("unknown field", param=name, code="unknown_field")
    if not isinstance(items, list) or not 0 < len(items) <= MAX_FEEDBACK_BATCH:
        raise BadRequest(f"a list of 1 to {MAX_FEEDBACK_BATCH} is wanted", param="data")
    places = [f"data[{i}]" for i in range(len(items))]
    given = [checked(item, place) for item, place in zip(items, places, strict=True)]
    return {"data": [{"feedback_id": i} for i in await keep(state, identity, given, places)]}


@router.get("", responses=errors(400, 404, 503))
async def list_feedback(
    request: Request, inference_id: TargetId = None, episode_id: TargetId = None
) -> dict[str, Any]:
    """List what was said of one interaction or of one episode, oldest first."""
    state, identity = current(request), request.state.identity
    if (inference_id is None) == (episode_id is None):
        raise BadRequest(
            "exactly one of inference_id and episode_id is needed", param="inference_id"
        )

    def read() -> list[Feedback]:
        if inference_id is not None:
            interaction = state.store.interaction(bare_id(inference_id))
            if not identity.is_admin and interaction.tenant != identity.tenant:
                raise NotFound(f"no interaction {inference_id}")
            return state.store.feedback(interaction.id)
        tenants = state.store.episode_tenants(episode_id or "")
        if not tenants or not (identity.is_admin or tenants == {identity.tenant}):
            raise NotFound(f"no episode {episode_id}")
        return state.store.episode_feedback(episode_id or "")

    rows = await _read(read, "inference_id" if inference_id is not None else "episode_id")
    return {"object": "list", "data": [_public(row) for row in rows]}


@router.get("/{feedback_id}", responses=errors(404, 503))
async def get_feedback(request: Request, feedback_id: str) -> dict[str, Any]:
    """Return one piece of feedback."""
    state, identity = current(request), request.state.identity
    return _public(await _read(lambda: _one(state, identity, feedback_id), "feedback_id"))


@router.patch(
    "/{feedback_id}",
    openapi_extra=body_of(FeedbackChange, examples={"value": {"value": False}}),
    responses=errors(400, 404, 413, 503),
)
async def change_feedback(request: Request, feedback_id: str) -> dict[str, Any]:
    """Change the value or the tags of a piece of feedback; durable when this returns."""
    state, identity = current(request), request.state.identity
    body = await read_json(request, state.settings.max_body_bytes)
    given = validated(FeedbackChange, body, "")
    if given.value is None and given.tags is None:
        raise BadRequest("a value or tags are needed", param="value")

    def write() -> Feedback:
        row = _one(state, identity, feedback_id)
        row = state.recorder.scrubber.feedback(changed(row, value=given.value, tags=given.tags))
        state.store.update_feedback(row)
        return row

    return _public(await _write(state, write))


@router.delete("/{feedback_id}", responses=errors(404, 503))
async def delete_feedback(request: Request, feedback_id: str) -> dict[str, Any]:
    """Take feedback back."""
    state, identity = current(request), request.state.identity

    def delete() -> None:
        _one(state, identity, feedback_id)
        state.store.delete_feedback(feedback_id)

    await _write(state, delete)
    return {"id": feedback_id, "object": "feedback.deleted", "deleted": True}


def _one(state: State, identity: Identity, feedback_id: str) -> Feedback:
    row = state.store.one_feedback(feedback_id)
    try:
        require_theirs(state, identity, row)
    except NotFound as error:
        raise NotFound(f"no feedback {feedback_id}") from error
    return row


async def _read(call: Callable[[], T], param: str) -> T:
    try:
        return await asyncio.to_thread(call)
    except NotFound as error:
        raise NotFoundError(str(error), param=param) from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


async def _write(state: State, call: Callable[[], T]) -> T:
    try:
        return await state.recorder.write(call)
    except NotFound as error:
        raise NotFoundError(str(error), param="feedback_id") from error


def _public(row: Feedback) -> Json:
    return {
        "id": row.id,
        "object": "feedback",
        "created": int(row.created_at.timestamp()),
        "updated": int(row.updated_at.timestamp()),
        "inference_id": row.interaction_id,
        "episode_id": row.episode_id,
        "metric_name": row.metric,
        "value": row.value,
        "choice_index": row.choice_index,
        "identifier": row.identifier,
        "source": row.source.value,
        "user": row.user,
        "tags": row.tags,
    }
