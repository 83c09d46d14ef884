"""`/v1/responses`: OpenAI's responses, as the engine answers them, recorded like the others.

Nothing is kept in the engine: `store` says whether we record, and `previous_response_id` goes on
from what was recorded, without what is taken out of the record. Answers in the background are not
offered.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ops.errors import NotFound, StoreError
from ops.records import Interaction, Json
from server.auth import Identity
from server.calls import RESPONSES, Call, bare_id
from server.errors import BadRequest, NotFoundError, RecordUnavailable
from server.limits import read_json
from server.listing import After, Limit, page
from server.openapi import errors, responses_docs
from server.protocol import MAX_ID_CHARS, Envelope, read_envelope
from server.replies import Exchange, Reply
from server.state import State, current

router = APIRouter(tags=["inference"])

_NOT_OFFERED = {
    "background": "responses are not made in the background",
    "conversation": "conversations are not kept: go on with previous_response_id",
    "prompt": "prompts are not kept here: send instructions and input",
}
"""What the engine would pass over, and why it is refused instead."""


@router.post(RESPONSES, response_model=None, **responses_docs)
async def create_response(request: Request) -> Response:
    """Answer `input` under `instructions`."""
    state = current(request)
    body = await read_json(request, state.settings.max_body_bytes)
    envelope = read_envelope(body)
    if envelope.io_spec is not None:
        raise BadRequest("io_spec belongs to /v1/chat/completions", param="io_spec")
    if not isinstance(body.get("input"), (str, list)):
        raise BadRequest("input must be a text or a list of items", param="input")
    for name, why in _NOT_OFFERED.items():
        if body.get(name):
            raise BadRequest(why, param=name, code="not_offered")
    previous = body.get("previous_response_id")
    if previous is not None:
        row = await _previous(state, request.state.identity, previous)
        envelope = _going_on(envelope, row)
    if envelope.store:
        state.recorder.require()

    async def answer(exchange: Exchange) -> None:
        who = state.who(envelope, request.state.identity)
        with state.adapters.lease(envelope.model, who) as served:
            call = Call(
                endpoint=RESPONSES,
                envelope=envelope,
                served=served,
                identity=request.state.identity,
                rewrite={"store": False},
            )
            call.rewrite["request_id"] = call.completion_id
            call.previous_response_id = previous
            request.state.call = call
            await state.forwarder.answer(call, exchange)

    return Reply(answer)


@router.get(RESPONSES + "/{response_id}", responses=errors(404, 503))
async def get_response(request: Request, response_id: str) -> dict[str, Any]:
    """Return a recorded response, without what is taken out of the record."""
    state, identity = current(request), request.state.identity
    try:
        return _public(await asyncio.to_thread(_one, state, identity, response_id))
    except NotFound as error:
        raise _missing(response_id) from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


@router.get(RESPONSES + "/{response_id}/input_items", responses=errors(400, 404, 503))
async def list_input_items(
    request: Request,
    response_id: str,
    limit: Limit = 20,
    after: After = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List what a recorded response answered, the conversation before it included."""
    state, identity = current(request), request.state.identity
    try:
        row = await asyncio.to_thread(_one, state, identity, response_id)
    except NotFound as error:
        raise _missing(response_id) from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error
    items = [_item(row, place, item) for place, item in enumerate(_asked(row))]
    return page(items if order == "asc" else items[::-1], limit, after)


@router.delete(RESPONSES + "/{response_id}", responses=errors(404, 503))
async def delete_response(request: Request, response_id: str) -> dict[str, Any]:
    """Delete a response and all that hangs on it; `adapters` names those that learned of it."""
    state, identity = current(request), request.state.identity

    try:
        taught = await state.recorder.forget(lambda: _one(state, identity, response_id))
    except NotFound as error:
        raise _missing(response_id) from error
    return {"id": response_id, "object": "response", "deleted": True, "adapters": taught}


def _missing(response_id: str) -> NotFoundError:
    return NotFoundError(f"no response {response_id[:200]}", param="response_id")


def _one(state: State, identity: Identity, response_id: str) -> Interaction:
    row = state.store.interaction(bare_id(response_id))
    if row.endpoint != RESPONSES or not (identity.is_admin or row.tenant == identity.tenant):
        raise NotFound(f"no response {response_id[:200]}")
    return row


def _public(row: Interaction) -> Json:
    """A response in OpenAI's words, as far as the record knows it."""
    choice = row.choices[0] if row.choices else {}
    output = [
        {"id": f"fc_{row.id}_{place}", "status": "completed", **item}
        if item.get("type") == "function_call"
        else _message(row, item)
        for place, item in enumerate(_output(choice.get("message") or {}))
    ]
    return {
        "id": f"resp_{row.id}",
        "object": "response",
        "created_at": int(row.created_at.timestamp()),
        "status": choice.get("finish_reason") or "completed",
        "model": f"code@v{row.adapter_version}" if row.adapter_version else row.base_model,
        "instructions": row.messages[0]["content"] if row.params.get("instructions") else None,
        "output": output,
        "usage": row.usage,
        "metadata": row.metadata,
        "tools": row.params.get("tools") or [],
        "tool_choice": row.params.get("tool_choice") or "auto",
        "parallel_tool_calls": row.params.get("parallel_tool_calls") is not False,
        "error": None,
        "incomplete_details": None,
        "episode_id": row.episode_id,
        "adapter": {
            "name": row.adapter_name,
            "version": row.adapter_version,
            "sha256": row.adapter_sha256,
        },
    }


def _item(row: Interaction, place: int, item: Json) -> Json:
    """An item of the input in OpenAI's words."""
    if item.get("type", "message") != "message":
        return {"id": f"item_{row.id}_{place}", "status": "completed", **item}
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    return {
        **item,
        "id": f"msg_{row.id}_{place}",
        "type": "message",
        "status": "completed",
        "content": content,
    }


def _asked(row: Interaction) -> list[Json]:
    """The items of a request, without its instructions."""
    return row.messages[1:] if row.params.get("instructions") else row.messages


def _message(row: Interaction, item: Json) -> Json:
    text = {"type": "output_text", "text": item["content"], "annotations": []}
    return {
        "id": f"msg_{row.id}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }


async def _previous(state: State, identity: Identity, response_id: Any) -> Interaction:
    """The recorded response of that id.

    Raises:
        BadRequest: there is none for who asks, as OpenAI says it.
    """
    missing = BadRequest(
        "no such response is in the record: send the whole conversation as input",
        param="previous_response_id",
        code="previous_response_not_found",
    )
    if not isinstance(response_id, str) or len(response_id) > MAX_ID_CHARS:
        raise missing
    try:
        return await asyncio.to_thread(_one, state, identity, response_id)
    except NotFound as error:
        raise missing from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _going_on(envelope: Envelope, row: Interaction) -> Envelope:
    """The request with the conversation before it, of its episode; without its instructions."""
    given = envelope.body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    body = {k: v for k, v in envelope.body.items() if k != "previous_response_id"}
    body["input"] = [
        *_asked(row),
        *_output(row.choices[0]["message"] if row.choices else {}),
        *items,
    ]
    return replace(envelope, body=body, episode_id=envelope.episode_id or row.episode_id)


def _output(message: Json) -> list[Json]:
    """An answer as items of the input."""
    items: list[Json] = []
    if message.get("content"):
        items.append({"role": "assistant", "content": message["content"]})
    for call in message.get("tool_calls") or ():
        function = call["function"]
        items.append(
            {
                "type": "function_call",
                "call_id": call["id"],
                "name": function["name"],
                "arguments": function["arguments"],
            }
        )
    return items
