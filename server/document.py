"""The OpenAPI document: what FastAPI derives from the routes, and what it cannot know.

FastAPI knows paths, parameters and the bodies that routes describe (`openapi`). Here stand the
answers, the errors that every route shares, the examples of inference and how to authenticate. The
document is a promise: `tests/server/test_document.py` holds answers and errors against it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.auth import OPEN_PATHS

Json = dict[str, Any]

_ERROR = {"schema": {"$ref": "#/components/schemas/ErrorBody"}}
_SHARED = {
    "400": "The request is malformed; `param` names the field.",
    "401": "No API key, or one that is not known.",
    "403": "The key does not reach that far.",
    "429": "The key has used up its share.",
    "500": "Our own fault; the server's log says more.",
    "503": "Not now: the engine, the record or a place is missing.",
}
_RETRY = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
_UNCOUNTED = frozenset(("get", "delete", "patch"))
"""Methods that cost no share of a key."""

_TEXT, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_FLAG, _THING, _THINGS = {"type": "boolean"}, {"type": "object"}, {"type": "array"}
_MAYBE_TEXT: Json = {"type": ["string", "null"]}
_MAYBE_INTEGER: Json = {"type": ["integer", "null"]}


def _object(word: str | None = None, **properties: Json) -> Json:
    """An object with these fields, all of them there, and perhaps more."""
    if word is not None:
        properties = {"object": {"const": word}, **properties}
    return {
        "type": "object",
        "required": sorted(properties),
        "properties": properties,
        "additionalProperties": True,
    }


def _page(item: Json) -> Json:
    return _object(
        "list",
        data={"type": "array", "items": item},
        first_id=_MAYBE_TEXT,
        last_id=_MAYBE_TEXT,
        has_more=_FLAG,
    )


def _list(item: Json, **more: Json) -> Json:
    return _object("list", data={"type": "array", "items": item}, **more)


_ADAPTER = _object(name=_TEXT, version=_INTEGER, sha256=_TEXT)
_COMPLETION = _object(
    "chat.completion",
    id=_TEXT,
    created=_INTEGER,
    model=_TEXT,
    choices=_THINGS,
    usage=_THING,
    metadata=_THING,
    adapter=_ADAPTER,
)
_MODEL = _object("model", id=_TEXT, created=_INTEGER, owned_by=_TEXT, root=_TEXT)
_EXECUTION = _object(
    "execution",
    id=_TEXT,
    created=_INTEGER,
    source={"enum": ["served", "client"]},
    inference_id=_MAYBE_TEXT,
    program_sha256=_TEXT,
    verdict=_TEXT,
    verified=_FLAG,
    passed=_INTEGER,
    total=_INTEGER,
    examples=_THINGS,
    error={"type": ["object", "null"]},
    stdout=_TEXT,
    stderr=_TEXT,
    duration_ms=_NUMBER,
    sandbox=_TEXT,
)
_FEEDBACK = _object(
    "feedback",
    id=_TEXT,
    created=_INTEGER,
    updated=_INTEGER,
    inference_id=_MAYBE_TEXT,
    episode_id=_MAYBE_TEXT,
    metric_name=_TEXT,
    value={"type": ["boolean", "number", "string"]},
    choice_index=_INTEGER,
    identifier=_TEXT,
    source={"enum": ["HUMAN", "MODEL", "MACHINE"]},
    tags=_THING,
)
_INTERACTION = _object(
    "interaction",
    id=_TEXT,
    created_at=_TEXT,
    source={"enum": ["served", "imported", "client"]},
    endpoint=_TEXT,
    model=_TEXT,
    messages=_THINGS,
    choices=_THINGS,
    verified={"type": ["boolean", "null"]},
    adapter=_ADAPTER,
)
_VERSION = _object("adapter", name=_TEXT, version=_INTEGER, sha256=_TEXT, state=_TEXT, loaded=_FLAG)
_VERSIONS = _list(
    _VERSION,
    aliases=_THING,
    serving={"type": ["object", "null"]},
    trial={"type": ["object", "null"]},
)
_JOB = _object(
    "fine_tuning.job",
    id=_TEXT,
    created_at=_INTEGER,
    finished_at=_MAYBE_INTEGER,
    model=_TEXT,
    fine_tuned_model=_MAYBE_TEXT,
    status={"enum": ["queued", "paused", "running", "succeeded", "failed", "cancelled"]},
    training_file=_TEXT,
    result_files=_THINGS,
    hyperparameters=_THING,
    metadata=_THING,
    error={"type": ["object", "null"]},
)
_EVENT = _object(
    "fine_tuning.job.event",
    id=_TEXT,
    created_at=_INTEGER,
    level={"enum": ["info", "warn", "error"]},
    message=_TEXT,
)
_CHECKPOINT = _object(
    "fine_tuning.job.checkpoint",
    id=_TEXT,
    created_at=_INTEGER,
    fine_tuned_model_checkpoint=_TEXT,
    fine_tuning_job_id=_TEXT,
)
_ITEM = {"type": "object", "properties": {"id": _TEXT, "type": _TEXT}, "required": ["id", "type"]}
_FILE = _object(
    "file", id=_TEXT, bytes=_INTEGER, created_at=_INTEGER, filename=_TEXT, purpose=_TEXT
)
_EVAL = _object("eval", id=_TEXT, name=_TEXT, created_at=_INTEGER, testing_criteria=_THINGS)
_RUN = _object(
    "eval.run",
    id=_TEXT,
    eval_id=_TEXT,
    status={"enum": ["in_progress", "completed", "failed", "canceled"]},
    model=_TEXT,
    result_counts=_object(total=_INTEGER, passed=_INTEGER, failed=_INTEGER, errored=_INTEGER),
    comparison={"type": ["object", "null"]},
)
_ERASURE = _object(
    "erasure",
    id=_TEXT,
    created_at=_TEXT,
    finished_at=_MAYBE_TEXT,
    actor=_TEXT,
    tenant=_MAYBE_TEXT,
    counts=_THING,
    adapters=_THINGS,
    already=_FLAG,
)
_READY = _object(ready=_FLAG, reasons={"type": "array", "items": _TEXT}, sandbox=_TEXT)
_IDS: Json = {"type": "array", "items": _TEXT}
_CHAT, _JOBS = "/v1/chat/completions", "/v1/fine_tuning/jobs"

ANSWERS: dict[tuple[str, str], Json] = {
    ("get", _CHAT): _page(_COMPLETION),
    ("get", _CHAT + "/{completion_id}"): _COMPLETION,
    ("post", _CHAT + "/{completion_id}"): _COMPLETION,
    ("delete", _CHAT + "/{completion_id}"): _object(
        "chat.completion.deleted", id=_TEXT, deleted={"const": True}, adapters=_IDS
    ),
    ("get", _CHAT + "/{completion_id}/messages"): _page(_object(id=_TEXT)),
    ("get", "/v1/responses/{response_id}"): _object(
        "response",
        id=_TEXT,
        created_at=_INTEGER,
        status={"enum": ["completed", "incomplete"]},
        model=_TEXT,
        output=_THINGS,
        usage=_THING,
        metadata=_THING,
        adapter=_ADAPTER,
    ),
    ("delete", "/v1/responses/{response_id}"): _object(
        "response", id=_TEXT, deleted={"const": True}, adapters=_IDS
    ),
    ("get", "/v1/models"): _list(_MODEL),
    ("get", "/v1/models/{model}"): _MODEL,
    ("post", "/v1/executions"): _EXECUTION,
    ("get", "/v1/executions/{execution_id}"): _EXECUTION,
    ("get", "/v1/feedback"): _list(_FEEDBACK),
    ("get", "/v1/feedback/{feedback_id}"): _FEEDBACK,
    ("patch", "/v1/feedback/{feedback_id}"): _FEEDBACK,
    ("delete", "/v1/feedback/{feedback_id}"): _object(
        "feedback.deleted", id=_TEXT, deleted={"const": True}
    ),
    ("post", "/v1/events"): _object(feedback_ids=_IDS),
    ("post", "/v1/ingest/continue"): _object(feedback_ids=_IDS),
    ("get", "/v1/interactions"): _page(_INTERACTION),
    ("get", "/v1/interactions/{interaction_id}"): _INTERACTION,
    ("get", "/v1/adapters"): _VERSIONS,
    ("get", "/v1/adapters/{version}"): _VERSION,
    ("get", "/v1/adapters/{version}/diff"): _object(
        "adapter.difference", **{"from": _TEXT}, to=_TEXT, met=_FLAG, tasks=_THING, text=_TEXT
    ),
    ("post", "/v1/adapters/rollback"): _VERSIONS,
    ("post", "/v1/adapters/{version}/promote"): _VERSION,
    ("post", "/v1/adapters/{version}/canary"): _VERSION,
    ("post", "/v1/adapters/{version}/reject"): _VERSION,
    ("get", _JOBS): _page(_JOB),
    ("post", _JOBS): _JOB,
    ("get", _JOBS + "/{job_id}"): _JOB,
    ("post", _JOBS + "/{job_id}/cancel"): _JOB,
    ("post", _JOBS + "/{job_id}/pause"): _JOB,
    ("post", _JOBS + "/{job_id}/resume"): _JOB,
    ("get", _JOBS + "/{job_id}/events"): _page(_EVENT),
    ("get", _JOBS + "/{job_id}/checkpoints"): _page(_CHECKPOINT),
    ("get", "/v1/responses/{response_id}/input_items"): _page(_ITEM),
    ("get", "/v1/files"): _page(_FILE),
    ("get", "/v1/files/{file_id}"): _FILE,
    ("post", "/v1/files"): _FILE,
    ("delete", "/v1/files/{file_id}"): _object("file", id=_TEXT, deleted={"const": True}),
    ("get", "/v1/evals"): _page(_EVAL),
    ("get", "/v1/evals/{eval_id}"): _EVAL,
    ("get", "/v1/evals/{eval_id}/runs"): _page(_RUN),
    ("get", "/v1/evals/{eval_id}/runs/{run_id}"): _RUN,
    ("get", "/v1/users/erasures"): _list(_ERASURE),
    ("delete", "/v1/users/{user_id}/data"): _ERASURE,
    ("get", "/health"): _object(status={"const": "ok"}),
    ("get", "/ready"): _READY,
}
"""The JSON answers of routes that do not describe them themselves."""

_ASK = [{"role": "user", "content": "Write a function that adds two numbers."}]
EXAMPLES: dict[str, dict[str, Json]] = {
    _CHAT: {
        "plain": {"model": "code", "messages": _ASK},
        "verified": {
            "model": "code",
            "messages": _ASK,
            "io_spec": {
                "types": "(a: int, b: int) -> int",
                "entry_point": "add",
                "examples": [
                    {"input": [1, 2], "output": 3},
                    {"input": [-1, 1], "output": 0, "hidden": True},
                ],
            },
        },
    },
    _CHAT + "/{completion_id}": {"kept": {"metadata": {"accepted": "true"}}},
    "/v1/completions": {
        "plain": {"model": "code", "prompt": "def add(a, b):\n", "max_tokens": 32},
    },
    "/v1/responses": {"plain": {"model": "code", "input": "Add two numbers."}},
    "/v1/messages": {"plain": {"model": "code", "max_tokens": 64, "messages": _ASK}},
    "/v1/messages/count_tokens": {"plain": {"model": "code", "messages": _ASK}},
    "/v1/feedback": {
        "comment": {
            "inference_id": "chatcmpl-…",
            "metric_name": "comment",
            "value": "It must also take floats.",
        },
        "batch": {
            "data": [{"inference_id": "chatcmpl-…", "metric_name": "accepted", "value": True}]
        },
    },
}
"""Bodies of routes that do not bring examples themselves. `…` stands for an id."""

_METADATA: Json = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["metadata"],
                "properties": {
                    "metadata": {
                        "type": ["object", "null"],
                        "additionalProperties": {"type": "string", "maxLength": 512},
                        "maxProperties": 16,
                    }
                },
                "additionalProperties": False,
            }
        }
    },
}


def describe(app: FastAPI) -> Json:
    """Return the whole document; made once, kept by the application."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                _complete(path, method, operation)
        components = document["components"]
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "anthropic_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema


def _complete(path: str, method: str, operation: Json) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; ours is a 400
    answer = ANSWERS.get((method, path))
    if answer is not None:
        responses["200"]["content"] = {"application/json": {"schema": answer}}
        if path == "/ready":
            responses["503"]["content"] = {"application/json": {"schema": answer}}
    if path not in OPEN_PATHS:
        # The last one: where no key is configured, none is asked for.
        operation["security"] = [{"key": []}, {"anthropic_key": []}, {}]
        _share_errors(method, responses)
    if path == _CHAT + "/{completion_id}" and method == "post":
        operation["requestBody"] = _METADATA
    if method == "post" and path in EXAMPLES:
        content = operation["requestBody"]["content"]["application/json"]
        content["examples"] = {name: {"value": body} for name, body in EXAMPLES[path].items()}


def _share_errors(method: str, responses: Json) -> None:
    for status, meaning in _SHARED.items():
        if status == "429" and method in _UNCOUNTED:
            continue
        described = responses.setdefault(status, {"description": meaning})
        described["content"] = {"application/json": _ERROR}
        if status in ("429", "503"):
            described["headers"] = _RETRY
