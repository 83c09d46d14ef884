"""The events that IDE plugins send of their own accord, as feedback: Tabby's and Continue's.

`POST /v1/events` takes Tabby's `view`, `select` and `dismiss`. `POST /v1/ingest/continue` takes
Continue's development data, in the envelope that Continue posts or bare. Continue knows nothing of
our ids, so an autocomplete event finds its interaction by the very prompt that was sent; what is
not found is kept as an interaction that the client reports (`source: client`). At the level
`noCode` nothing that could be code is kept, also where it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from ops.errors import NotFound, StoreError
from ops.records import Interaction, Json, Source, new_id, now
from ops.store import Recording
from server.auth import Identity
from server.calls import TEXT, bare_id
from server.errors import BadRequest, RecordUnavailable
from server.feedback_log import checked, keep
from server.limits import read_json
from server.openapi import body_of, errors
from server.protocol import MAX_ID_CHARS, FeedbackIn, Whole, validated
from server.state import State, current

router = APIRouter(tags=["feedback"])

FOUND_WITHIN_S = 900
"""How old the interaction may be that an autocomplete event is about."""
LOOKED_AT = 200
_TABBY: dict[str, tuple[str, bool]] = {
    "view": ("shown", True),
    "select": ("accepted", True),
    "dismiss": ("accepted", False),
}
_CODE = (
    *("prefix", "suffix", "prompt", "completion", "previousCode", "newCode"),
    *("userEdits", "userExcerpts", "originalEditableRange", "fileUri", "workspaceDirUri"),
    *("filepath", "gitRepo"),
)
_TAGS = ("eventName", "modelName", "modelProvider", "modelTitle", "userAgent", "time", "elapsed")
_VERDICT = {
    "autocomplete": "accepted",
    "editOutcome": "accepted",
    "nextEditOutcome": "accepted",
    "chatFeedback": "feedback",
}
"""The field of each event that says whether it was kept; other events are not feedback."""


class TabbyEvent(BaseModel):
    """An event as Tabby's plugins send it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["view", "select", "dismiss"]
    completion_id: str = Field(min_length=1, max_length=MAX_ID_CHARS)
    choice_index: Whole = Field(0, ge=0, le=127)
    view_id: str | None = Field(None, max_length=150)
    elapsed: int | None = Field(None, ge=0, description="milliseconds")


class ContinueData(BaseModel):
    """Development data as Continue posts it; `data` holds the event."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    name: str = Field(min_length=1, max_length=100)
    data: dict[str, Any]
    schema_: str | None = Field(None, alias="schema", max_length=20)
    level: Literal["all", "noCode"] = "all"
    profile_id: str | None = Field(None, alias="profileId")


@router.post(
    "/v1/events",
    openapi_extra=body_of(
        TabbyEvent,
        examples={"select": {"type": "select", "completion_id": "cmpl-…", "choice_index": 0}},
    ),
    responses=errors(400, 404, 413, 503),
)
async def tabby_event(
    request: Request, select_kind: Annotated[str | None, Query(max_length=20)] = None
) -> dict[str, Any]:
    """Keep an event of Tabby's plugins as feedback on the completion it names."""
    state, identity = current(request), request.state.identity
    event = validated(TabbyEvent, await read_json(request, state.settings.max_body_bytes), "")
    metric, value = _TABBY[event.type]
    tags = {"select_kind": select_kind, "elapsed_ms": event.elapsed, "client": "tabby"}
    given = checked(
        {
            "inference_id": event.completion_id,
            "metric_name": metric,
            "value": value,
            "choice_index": event.choice_index,
            "identifier": f"tabby:{event.view_id or ''}",
            "tags": {name: str(value) for name, value in tags.items() if value is not None},
        },
        "",
    )
    return {"feedback_ids": await keep(state, identity, [given], ["completion_id"])}


@router.post(
    "/v1/ingest/continue",
    openapi_extra=body_of(
        ContinueData,
        examples={
            "autocomplete": {
                "name": "autocomplete",
                "schema": "0.2.0",
                "level": "noCode",
                "data": {"accepted": True, "completionId": "…", "modelName": "code"},
            }
        },
    ),
    responses=errors(400, 404, 413, 503),
)
async def continue_data(request: Request) -> dict[str, Any]:
    """Keep development data of Continue; events that are no feedback are taken and dropped."""
    state, identity = current(request), request.state.identity
    blob = _blob(await read_json(request, state.settings.max_body_bytes))
    verdict = blob.data.get(_VERDICT.get(blob.name, ""))
    if not isinstance(verdict, bool):
        return {"feedback_ids": []}
    event = {k: v for k, v in blob.data.items() if blob.level == "all" or k not in _CODE}
    found = await _found(state, identity, event)
    about = None if found is not None else _reported(event, blob.name, identity)
    target = found if found is not None else about.interaction.id if about is not None else ""
    given = _feedback(event, blob.name, verdict, target)
    ids = await keep(state, identity, given, [""] * len(given), about=about)
    return {"feedback_ids": ids, "inference_id": target}


def _blob(body: Json) -> ContinueData:
    if "data" in body:
        return validated(ContinueData, body, "")
    if "eventName" not in body:
        raise BadRequest("an event of Continue has a name and data", param="name")
    # A blob of its own, as Continue writes them into files: without code it was noCode.
    level = "all" if any(name in body for name in ("prompt", "completion")) else "noCode"
    return validated(ContinueData, {"name": body["eventName"], "data": body, "level": level}, "")


async def _found(state: State, identity: Identity, event: Json) -> str | None:
    """The interaction of ours that an event is about, where it can be told for certain."""
    try:
        return await asyncio.to_thread(_find, state, identity, event)
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _find(state: State, identity: Identity, event: Json) -> str | None:
    named = event.get("completionId")
    if isinstance(named, str):
        with contextlib.suppress(NotFound):
            row = state.store.interaction(bare_id(named))
            if row.tenant == identity.tenant:
                return row.id
    prompt = event.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        return None
    prompt = state.recorder.scrubber.text(prompt)
    since = now() - timedelta(seconds=FOUND_WITHIN_S)
    for row in state.store.interactions(limit=LOOKED_AT, since=since, source=Source.SERVED):
        asked = row.messages[0].get("content") if row.messages else None
        if row.endpoint == TEXT and row.tenant == identity.tenant and asked == prompt:
            return row.id
    return None


def _reported(event: Json, name: str, identity: Identity) -> Recording:
    """What the client says was asked and answered; nothing of it where it says nothing."""
    prompt, completion = event.get("prompt"), event.get("completion")
    model = str(event.get("modelName") or event.get("modelTitle") or "unknown")[:200]
    return Recording(
        interaction=Interaction(
            id=new_id(),
            created_at=now(),
            source=Source.CLIENT,
            endpoint=f"continue/{name}",
            model=model,
            base_model=model,
            adapter_name="",
            adapter_version=0,
            adapter_sha256="",
            messages=[{"role": "user", "content": prompt}] if isinstance(prompt, str) else [],
            params={},
            choices=[{"index": 0, "message": {"role": "assistant", "content": completion}}]
            if isinstance(completion, str)
            else [],
            usage={},
            tenant=identity.tenant,
        )
    )


def _feedback(event: Json, name: str, accepted: bool, target: str) -> list[FeedbackIn]:
    tags = {k: str(event[k])[:512] for k in _TAGS if event.get(k) not in (None, "")}
    mark = event.get("completionId") or event.get("sessionId") or event.get("timestamp") or ""
    common = {
        "inference_id": target,
        "identifier": f"continue:{name}:{mark}"[:200],
        "tags": tags | {"client": "continue"},
    }
    given = [{**common, "metric_name": "accepted", "value": accepted}]
    code = event.get("newCode")
    if accepted and isinstance(code, str) and code.strip():
        given.append({**common, "metric_name": "demonstration", "value": code})
    return [checked(item, "") for item in given]
