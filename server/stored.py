"""Stored completions: the record in the words of OpenAI's chat completions API.

List and read what was answered, and change its `metadata`, which many clients use to say what
became of an answer. Deleting takes everything that hangs on it along, and says which adapters had
learned from it: those are not changed by it.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request

from ops.errors import NotFound, StoreError
from ops.records import Interaction, Json
from server.auth import FEEDBACK, Identity
from server.calls import CHAT, bare_id
from server.errors import BadRequest, NotFoundError, RecordUnavailable
from server.feedback_log import from_metadata
from server.limits import read_json
from server.listing import After, Limit, listed, page
from server.openapi import errors
from server.protocol import checked_metadata
from server.state import State, current

router = APIRouter(prefix=CHAT, tags=["stored completions"])

PAGE_ROWS = 200
SCANNED_ROWS = 20_000
"""How far back a list looks for rows that fit."""

Order = Literal["desc"]


@router.get("", responses=errors(400, 503))
async def list_stored(
    request: Request,
    limit: Limit = 20,
    after: After = None,
    model: Annotated[str | None, Query(max_length=200)] = None,
    order: Order = "desc",
) -> dict[str, Any]:
    """List completions, narrowed by `model` and `metadata[key]=value`; newest first only."""
    state, identity = current(request), request.state.identity
    wanted = {
        # As it was written down: the record holds no address that one might look for.
        name[len("metadata[") : -1]: state.recorder.scrubber.text(value)
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    rows = await _in_thread(lambda: _find(state, identity, limit + 1, after, model, wanted))
    return listed([_completion(row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get("/{completion_id}", responses=errors(404, 503))
async def get_stored(request: Request, completion_id: str) -> dict[str, Any]:
    """Return one completion."""
    state, identity = current(request), request.state.identity
    return _completion(await _in_thread(lambda: _one(state, identity, completion_id)))


@router.get("/{completion_id}/messages", responses=errors(400, 404, 503))
async def list_messages(
    request: Request, completion_id: str, limit: Limit = 20, after: After = None
) -> dict[str, Any]:
    """List the messages that were sent, oldest first."""
    state, identity = current(request), request.state.identity
    row = await _in_thread(lambda: _one(state, identity, completion_id))
    messages = [
        {"id": f"{completion_id}-{place}", **message} for place, message in enumerate(row.messages)
    ]
    return page(messages, limit, after)


@router.post("/{completion_id}", responses=errors(400, 404, 413, 503))
async def update_stored(request: Request, completion_id: str) -> dict[str, Any]:
    """Replace the metadata of a completion; durable when this returns.

    `accepted`, `rating`, `comment` and the other metrics among it are feedback as well.
    """
    state, identity = current(request), request.state.identity
    body = await read_json(request, state.settings.max_body_bytes)
    for name in body:
        if name != "metadata":
            raise BadRequest("unknown field", param=name, code="unknown_field")
    if "metadata" not in body:
        raise BadRequest("metadata is needed; null takes all of it back", param="metadata")
    metadata: dict[str, str] = state.recorder.scrubber.value(checked_metadata(body.get("metadata")))

    def update() -> Interaction:
        row = _one(state, identity, completion_id)
        state.store.set_metadata(row.id, metadata)
        if identity.may(FEEDBACK):
            from_metadata(state, row.id, metadata)
        return state.store.interaction(row.id)

    try:
        return _completion(await state.recorder.write(update))
    except NotFound as error:
        raise _missing(completion_id) from error


@router.delete("/{completion_id}", responses=errors(404, 503))
async def delete_stored(request: Request, completion_id: str) -> dict[str, Any]:
    """Delete a completion and all that hangs on it; `adapters` names those that learned of it."""
    state, identity = current(request), request.state.identity

    try:
        taught = await state.recorder.forget(lambda: _one(state, identity, completion_id))
    except NotFound as error:
        raise _missing(completion_id) from error
    return {
        "id": completion_id,
        "object": "chat.completion.deleted",
        "deleted": True,
        "adapters": taught,
    }


async def _in_thread(call: Any) -> Any:
    try:
        return await asyncio.to_thread(call)
    except NotFound as error:
        raise NotFoundError(str(error), param="completion_id") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _missing(completion_id: str) -> NotFoundError:
    return NotFoundError(f"no completion {completion_id[:200]}", param="completion_id")


def _one(state: State, identity: Identity, completion_id: str) -> Interaction:
    row = state.store.interaction(bare_id(completion_id))
    if not _may_see(identity, row):
        raise NotFound(f"no completion {completion_id[:200]}")
    return row


def _may_see(identity: Identity, row: Interaction) -> bool:
    if row.endpoint != CHAT:
        return False
    return identity.is_admin or row.tenant == identity.tenant


def _find(
    state: State,
    identity: Identity,
    wanted: int,
    after: str | None,
    model: str | None,
    metadata: dict[str, str],
) -> list[Interaction]:
    found: list[Interaction] = []
    before = bare_id(after) if after else None
    for _ in range(SCANNED_ROWS // PAGE_ROWS):
        rows = state.store.interactions(limit=PAGE_ROWS, before=before)
        for row in rows:
            fits = model is None or model == row.model
            if fits and metadata.items() <= row.metadata.items() and _may_see(identity, row):
                found.append(row)
                if len(found) == wanted:
                    return found
        if len(rows) < PAGE_ROWS:
            break
        before = rows[-1].id
    return found


def _completion(row: Interaction) -> Json:
    return {
        "id": f"chatcmpl-{row.id}",
        "object": "chat.completion",
        "created": int(row.created_at.timestamp()),
        "model": f"code@v{row.adapter_version}" if row.adapter_version else row.base_model,
        "choices": [{"logprobs": None, **choice} for choice in row.choices],
        "usage": row.usage,
        "metadata": row.metadata,
        "episode_id": row.episode_id,
        "adapter": {
            "name": row.adapter_name,
            "version": row.adapter_version,
            "sha256": row.adapter_sha256,
        },
    }
