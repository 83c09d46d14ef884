"""`POST /v1/chat/completions`: plain, or verified when the body holds an `io_spec`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.calls import CHAT, Call
from server.errors import BadRequest
from server.generation import last_user_text
from server.limits import read_json
from server.openapi import chat_docs
from server.protocol import Envelope, SpecRequest, read_envelope, read_spec
from server.replies import Exchange, Reply
from server.state import State, current

router = APIRouter(tags=["inference"])


@router.post(CHAT, response_model=None, **chat_docs)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation; with `io_spec`, by a program that was run against it."""
    state = current(request)
    body = await read_json(request, state.settings.max_body_bytes)
    _check_messages(body.get("messages"))
    envelope = read_envelope(body)
    spec = io_spec(envelope, state)
    if envelope.store:
        state.recorder.require()

    async def write(exchange: Exchange) -> None:
        if envelope.priority > 0:
            request.state.behind = True
            async with request.state.gate.behind():
                await answer(request, envelope, spec, exchange)
        else:
            await answer(request, envelope, spec, exchange)

    return Reply(write)


async def answer(
    request: Request, envelope: Envelope, spec: SpecRequest | None, exchange: Exchange
) -> Call:
    """Answer a request that has been read, for whom its state names; return how it went.

    Raises:
        ServerError: nothing was answered.
    """
    state, identity = current(request), request.state.identity
    who = state.who(envelope, identity)
    with state.adapters.lease(envelope.model, who) as served:
        call = Call(endpoint=CHAT, envelope=envelope, served=served, identity=identity)
        request.state.call = call
        if spec is None:
            await state.forwarder.answer(call, exchange)
        else:
            request.state.verification = await state.generator.answer(call, spec, exchange)
    return call


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with a message in it", param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRequest(
                "a message must be an object", param=f"messages[{place}]", code="invalid_type"
            )


def io_spec(envelope: Envelope, state: State) -> SpecRequest | None:
    """Read the specification of a request; None where it has none.

    Raises:
        BadRequest: it is malformed.
    """
    if envelope.io_spec is None:
        return None
    return read_spec(
        envelope.io_spec,
        prompt=last_user_text(envelope.body["messages"]),
        n=envelope.n,
        default_candidates=state.settings.default_candidates,
        max_candidates=state.settings.max_candidates,
    )
