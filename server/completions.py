"""`POST /v1/completions`: text in, text out, as the engine does it; with `suffix`, the middle."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.calls import TEXT, Call
from server.errors import BadRequest
from server.fim import fim_prompt
from server.limits import read_json
from server.openapi import completion_docs
from server.protocol import read_envelope
from server.replies import Exchange, Reply
from server.state import current

router = APIRouter(tags=["inference"])


@router.post(TEXT, response_model=None, **completion_docs)
async def create_completion(request: Request) -> Response:
    """Continue a text, or with `suffix` write what stands between two."""
    state = current(request)
    body = await read_json(request, state.settings.max_body_bytes)
    envelope = read_envelope(body)
    if envelope.io_spec is not None:
        raise BadRequest("io_spec belongs to /v1/chat/completions", param="io_spec")
    if body.get("prompt") is None:
        raise BadRequest("a prompt is needed", param="prompt")
    suffix = body.get("suffix")
    if suffix is not None and not isinstance(suffix, str):
        raise BadRequest("suffix must be a string", param="suffix", code="invalid_type")
    if envelope.store:
        state.recorder.require()

    async def answer(exchange: Exchange) -> None:
        who = state.who(envelope, request.state.identity)
        with state.adapters.lease(envelope.model, who) as served:
            rewrite = {}
            if suffix:
                model = f"{served.base} {served.base_root}"
                prompt = fim_prompt(model, body["prompt"], suffix)
                rewrite = {"prompt": prompt, "suffix": None}
            call = Call(
                endpoint=TEXT,
                envelope=envelope,
                served=served,
                identity=request.state.identity,
                rewrite=rewrite,
            )
            request.state.call = call
            await state.forwarder.answer(call, exchange)

    return Reply(answer)
