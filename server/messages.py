"""`POST /v1/messages`: Anthropic's messages, as the engine answers them, recorded like the others.

The key may come as `x-api-key`, as Anthropic's clients send it. `metadata.user_id` is the user.
"""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.calls import COUNT_TOKENS, MESSAGES, Call
from server.errors import BadRequest
from server.limits import read_json
from server.openapi import count_tokens_docs, messages_docs
from server.protocol import Envelope, Json, read_envelope
from server.replies import Exchange, Reply
from server.state import current

router = APIRouter(tags=["inference"])


@router.post(MESSAGES, response_model=None, **messages_docs)
async def create_message(request: Request) -> Response:
    """Answer a conversation in Anthropic's words."""
    state = current(request)
    body = await read_json(request, state.settings.max_body_bytes)
    envelope = _envelope(body)
    if not isinstance(body.get("max_tokens"), int):
        raise BadRequest("max_tokens is needed", param="max_tokens")
    if envelope.store:
        state.recorder.require()

    async def answer(exchange: Exchange) -> None:
        who = state.who(envelope, request.state.identity)
        with state.adapters.lease(envelope.model, who) as served:
            call = Call(
                endpoint=MESSAGES,
                envelope=envelope,
                served=served,
                identity=request.state.identity,
            )
            request.state.call = call
            await state.forwarder.answer(call, exchange)

    return Reply(answer)


@router.post(COUNT_TOKENS, response_model=None, **count_tokens_docs)
async def count_tokens(request: Request) -> Response:
    """Say how many tokens a conversation has; nothing is generated or recorded."""
    state = current(request)
    body = await read_json(request, state.settings.max_body_bytes)
    envelope = _envelope(body)

    async def answer(exchange: Exchange) -> None:
        who = state.who(envelope, request.state.identity)
        with state.adapters.lease(envelope.model, who) as served:
            call = Call(
                endpoint=COUNT_TOKENS,
                envelope=envelope,
                served=served,
                identity=request.state.identity,
            )
            await state.forwarder.count(call, exchange)

    return Reply(answer)


def _envelope(body: Json) -> Envelope:
    """Read our fields; Anthropic's `metadata` holds a user and may hold nothing."""
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise BadRequest("messages must be a list with a message in it", param="messages")
    for place, message in enumerate(body["messages"]):
        if not isinstance(message, dict):
            raise BadRequest(
                "a message must be an object", param=f"messages[{place}]", code="invalid_type"
            )
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        body = {**body, "metadata": {k: v for k, v in metadata.items() if v is not None}}
    envelope = read_envelope(body)
    if envelope.io_spec is not None:
        raise BadRequest("io_spec belongs to /v1/chat/completions", param="io_spec")
    user = envelope.metadata.get("user_id")
    return replace(envelope, user=envelope.user or user)
