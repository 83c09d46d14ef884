"""`/v1/feedback`: what somebody says of an answer, or of a whole episode.

One object or a batch; the same target, metric, identifier and choice overwrites. An id that was
just issued is accepted at once: only for an answer that is still streaming the feedback waits
until it is durable. Feedback on what was never recorded is a 404.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from ops import metrics
from ops.errors import NotFound
from ops.records import Feedback, FeedbackSource, new_id, now
from server.auth import Identity
from server.calls import bare_id
from server.errors import BadRequest, NotFoundError, Unavailable
from server.limits import read_json
from server.openapi import errors, feedback_docs
from server.protocol import MAX_FEEDBACK_BATCH, METRIC_TYPES, FeedbackIn, validated
from server.scrub import scrub_feedback
from server.state import State, current

STREAMING_WAIT_S = 20.0
"""How long feedback waits for the end of the answer that it is about."""

router = APIRouter(tags=["feedback"])


@router.post("/v1/feedback", **feedback_docs)
async def give_feedback(request: Request) -> dict[str, Any]:
    """Keep feedback on an interaction or an episode; durable when this returns."""
    state, identity = current(request), request.state.identity
    body = await read_json(request, state.settings.max_body_bytes)
    if "data" not in body:
        ids = await _keep(state, identity, [_checked(body, "")], [""])
        return {"feedback_id": ids[0]}
    items = body["data"]
    for name in body:
        if name != "data":
            raise BadRequest("unknown field", param=name, code="unknown_field")
    if not isinstance(items, list) or not 0 < len(items) <= MAX_FEEDBACK_BATCH:
        raise BadRequest(f"a list of 1 to {MAX_FEEDBACK_BATCH} is wanted", param="data")
    places = [f"data[{i}]" for i in range(len(items))]
    given = [_checked(item, place) for item, place in zip(items, places, strict=True)]
    return {"data": [{"feedback_id": i} for i in await _keep(state, identity, given, places)]}


@router.delete("/v1/feedback/{feedback_id}", responses=errors(404, 503))
async def delete_feedback(request: Request, feedback_id: str) -> dict[str, Any]:
    """Take feedback back."""
    state, identity = current(request), request.state.identity

    def delete() -> None:
        if not identity.is_admin:
            row = state.store.one_feedback(feedback_id)
            _require_target(state, identity, row, "")
        state.store.delete_feedback(feedback_id)

    try:
        await state.recorder.write(delete)
    except NotFound as error:
        raise NotFoundError(str(error), param="feedback_id") from error
    return {"id": feedback_id, "object": "feedback.deleted", "deleted": True}


def _checked(item: Any, place: str) -> FeedbackIn:
    """Check one piece by its shape and by what its metric takes."""

    def wrong(name: str, message: str) -> BadRequest:
        return BadRequest(message, param=f"{place}.{name}" if place else name)

    given = validated(FeedbackIn, item, place)
    if (given.inference_id is None) == (given.episode_id is None):
        raise wrong("inference_id", "exactly one of inference_id and episode_id is needed")
    metric, value = given.metric_name, given.value
    kinds = METRIC_TYPES.get(metric, (bool, int, float))
    if type(value) not in kinds:
        raise wrong("value", f"{metric} takes {_words(kinds)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong("value", "the value must be finite")
    if isinstance(value, str) and not value.strip():
        raise wrong("value", f"{metric} must not be empty")
    if metric == "demonstration" and given.inference_id is None:
        raise wrong("inference_id", "a demonstration belongs to one answer: inference_id is needed")
    return given


def _words(kinds: tuple[type, ...]) -> str:
    names = {bool: "a boolean", int: "", float: "a number", str: "a string"}
    return " or ".join(filter(None, (names[kind] for kind in kinds)))


async def _keep(
    state: State, identity: Identity, given: list[FeedbackIn], places: list[str]
) -> list[str]:
    at = now()
    rows = []
    for item in given:
        target = bare_id(item.inference_id) if item.inference_id is not None else None
        if target is not None and not await state.recorder.settled(target, STREAMING_WAIT_S):
            raise Unavailable(f"{item.inference_id} is still being answered", code="not_yet")
        value = item.value
        rows.append(
            Feedback(
                id=new_id(),
                created_at=at,
                updated_at=at,
                interaction_id=target,
                episode_id=item.episode_id,
                metric=item.metric_name,
                value=float(value) if type(value) is int else value,
                source=FeedbackSource(item.source),
                choice_index=item.choice_index,
                identifier=item.identifier,
                user=item.user,
                tags=item.tags,
            )
        )

    def write() -> list[str]:
        for row, place in zip(rows, places, strict=True):
            _require_target(state, identity, row, place)
        real = [row for row, item in zip(rows, given, strict=True) if not item.dryrun]
        ids = iter(state.store.put_feedback([scrub_feedback(row) for row in real]))
        return [row.id if item.dryrun else next(ids) for row, item in zip(rows, given, strict=True)]

    try:
        ids = await state.recorder.write(write)
    except NotFound as error:
        param = "episode_id" if "episode" in str(error) else "inference_id"
        raise NotFoundError(str(error), param=param) from error
    for item in given:
        if not item.dryrun:
            name = item.metric_name if item.metric_name in METRIC_TYPES else "other"
            metrics.feedback_total.labels(name, item.source).inc()
    return ids


def _require_target(state: State, identity: Identity, row: Feedback, place: str) -> None:
    """Refuse feedback on what belongs to others, or on a choice that was never given.

    Raises:
        NotFound: there is no such interaction or episode for who asks.
        BadRequest: the answer has fewer choices.
    """
    if row.interaction_id is None:
        tenants = state.store.episode_tenants(row.episode_id or "")
        if tenants and not identity.is_admin and tenants != {identity.tenant}:
            raise NotFound(f"no episode {row.episode_id}")
        return
    interaction = state.store.interaction(row.interaction_id)
    if not identity.is_admin and interaction.tenant != identity.tenant:
        raise NotFound(f"no interaction {row.interaction_id}")
    choices = len(interaction.choices)
    if row.choice_index >= max(choices, 1):
        raise BadRequest(
            f"the answer has {choices} choices",
            param=f"{place}.choice_index" if place else "choice_index",
        )
