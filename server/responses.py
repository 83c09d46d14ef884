"""`POST /v1/responses`: OpenAI's responses, as the engine answers them, recorded like the others.

Nothing is kept in the engine: `store` says whether we record. A request is whole by itself: going
on from a `previous_response_id`, and answers in the background, are not offered.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.calls import RESPONSES, Call
from server.errors import BadRequest, NotFoundError
from server.limits import read_json
from server.openapi import responses_docs
from server.protocol import read_envelope
from server.replies import Exchange, Reply
from server.state import current

router = APIRouter(tags=["inference"])


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
    if body.get("background"):
        raise BadRequest("responses are not made in the background", param="background")
    if body.get("previous_response_id") is not None:
        raise NotFoundError(
            "no response is kept to go on from: send the whole conversation as input",
            param="previous_response_id",
            code="previous_response_not_found",
        )
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
            request.state.call = call
            await state.forwarder.answer(call, exchange)

    return Reply(answer)
