"""What the OpenAPI document says of routes whose bodies are read by hand.

Bodies of inference belong to the engine: here stand the fields that are ours, and the rest is
open. Nothing here is checked at run time.
"""

from __future__ import annotations

from typing import Any

from sandbox.spec import Spec
from server.protocol import (
    ErrorBody,
    FeedbackBatchOut,
    FeedbackIn,
    FeedbackOut,
    SpecOptions,
)

_MEANING = {
    400: "The request is malformed; `param` names the field.",
    401: "No API key, or one that is not known.",
    403: "The key does not reach that far.",
    404: "What the request names does not exist.",
    409: "It is not in a state in which that can be done.",
    413: "The body is too long.",
    429: "The key has used up its share; see `Retry-After`.",
    503: "Not now: the engine, the record or a place is missing. See `Retry-After`.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route."""
    return {s: {"model": ErrorBody, "description": _MEANING[s]} for s in statuses}


def _inline(model: Any) -> dict[str, Any]:
    """A model's JSON schema without references out of itself."""
    schema: dict[str, Any] = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
            return {key: resolve(value) for key, value in node.items()}
        if isinstance(node, list):
            return [resolve(value) for value in node]
        return node

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def body_of(*models: Any, examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """The request body of a route that checks it by one of these models itself."""
    schemas = [_inline(model) for model in models]
    content: dict[str, Any] = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _io_spec() -> dict[str, Any]:
    spec, options = _inline(Spec), _inline(SpecOptions)
    spec["properties"] = {**spec["properties"], **options["properties"]}
    spec["title"] = "IoSpec"
    spec["description"] = (
        "What goes in and what must come out. Examples marked `hidden` never enter a prompt or a "
        "message; they decide all the same."
    )
    kinds = [spec, {"const": "auto"}, {"type": "null"}]
    return {"anyOf": kinds, "description": spec["description"]}


_COMMON = {
    "model": {
        "type": "string",
        "description": "`code`, a pinned version such as `code@v3`, or the base model",
    },
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {"type": ["object", "null"]},
    "priority": {
        "type": ["integer", "null"],
        "description": "above 0 it waits behind the others; below 0 is taken as 0",
    },
    "n": {"type": ["integer", "null"], "minimum": 1},
    "store": {
        "type": ["boolean", "null"],
        "description": "false: nothing of this request is recorded, nor learned from",
    },
    "metadata": {
        "type": ["object", "null"],
        "additionalProperties": {"type": "string", "maxLength": 512},
        "maxProperties": 16,
    },
    "episode_id": {"type": ["string", "null"], "minLength": 1, "maxLength": 100},
    "user": {"type": ["string", "null"]},
}
_VERIFICATION = {
    "type": "object",
    "properties": {
        "verified": {"type": "boolean"},
        "status": {"enum": ["Success", "Failed", "TimeLimitExceeded", "SandboxError", "Unchecked"]},
        "verdict": {"type": ["string", "null"]},
        "passed": {"type": "integer"},
        "total": {"type": "integer"},
        "examples": {"type": "array", "items": {"type": "object"}},
        "message": {"type": ["string", "null"]},
        "duration_ms": {"type": "number"},
        "sandbox": {"type": "string"},
    },
}


def _body(required: list[str], **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": required,
        "properties": {**_COMMON, **properties},
        "additionalProperties": True,
        "description": "Every other field is passed to vLLM unchanged.",
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _answer(object_: str, **choice: Any) -> dict[int | str, dict[str, Any]]:
    schema = {
        "type": "object",
        "required": ["id", "object", "model", "choices", "adapter", "system_fingerprint"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": object_},
            "model": {"type": "string"},
            "episode_id": {"type": "string"},
            "system_fingerprint": {"type": "string"},
            "adapter": {
                "type": "object",
                "required": ["name", "version", "sha256"],
                "properties": {
                    "name": {"type": "string"},
                    "version": {"type": "integer", "description": "0 is the base model"},
                    "sha256": {"type": "string"},
                },
            },
            "choices": {"type": "array", "items": {"type": "object", "properties": choice}},
            "usage": {"type": ["object", "null"]},
        },
        "additionalProperties": True,
    }
    ok = {
        "description": "The answer, or a stream of chunks.",
        "content": {
            "application/json": {"schema": schema},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    return {200: ok, **errors(400, 404, 413, 503)}


chat_docs: dict[str, Any] = {
    "openapi_extra": _body(
        ["model", "messages"],
        messages={"type": "array", "minItems": 1, "items": {"type": "object"}},
        io_spec=_io_spec(),
    ),
    "responses": _answer("chat.completion", verification=_VERIFICATION),
}
completion_docs: dict[str, Any] = {
    "openapi_extra": _body(
        ["model", "prompt"],
        prompt={
            "anyOf": [{"type": "string"}, {"type": "array", "items": {}}],
            "description": "text, token ids, or lists of either",
        },
    ),
    "responses": _answer("text_completion"),
}


def _passed_on(required: list[str], answer: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """The description of an endpoint whose answers are the engine's own."""
    ok = {
        "description": "The answer, or a stream of events.",
        "content": {
            "application/json": {"schema": answer},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    return {
        "openapi_extra": _body(required, **properties),
        "responses": {200: ok, **errors(400, 404, 413, 429, 503)},
    }


_STAMPED = {
    "type": "object",
    "required": ["id", "adapter", "system_fingerprint"],
    "properties": {"id": {"type": "string"}, "adapter": {"type": "object"}},
    "additionalProperties": True,
}
_CONVERSATION: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object"},
}
responses_docs = _passed_on(
    ["model", "input"],
    _STAMPED,
    input={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
    instructions={"type": ["string", "null"]},
    previous_response_id={
        "type": ["string", "null"],
        "description": "a recorded response to go on from; its instructions are not taken over",
    },
    background={"enum": [False, None], "description": "answers in the background are not offered"},
    conversation={"type": "null", "description": "not offered: use previous_response_id"},
    prompt={"type": "null", "description": "not offered"},
)
messages_docs = _passed_on(
    ["model", "messages", "max_tokens"],
    _STAMPED,
    messages=_CONVERSATION,
    max_tokens={"type": "integer", "minimum": 1},
    metadata={"type": ["object", "null"], "description": "`user_id` is the user"},
)
count_tokens_docs = _passed_on(
    ["model", "messages"],
    {
        "type": "object",
        "required": ["input_tokens"],
        "properties": {"input_tokens": {"type": "integer"}},
    },
    messages=_CONVERSATION,
)


def _feedback() -> dict[str, Any]:
    one = _inline(FeedbackIn)
    batch = {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "array", "items": one, "minItems": 1, "maxItems": 1000}},
        "additionalProperties": False,
    }
    content = {"application/json": {"schema": {"anyOf": [one, batch]}}}
    return {"requestBody": {"required": True, "content": content}}


feedback_docs: dict[str, Any] = {
    "openapi_extra": _feedback(),
    "response_model": FeedbackOut | FeedbackBatchOut,
    "responses": errors(400, 404, 413, 503),
}
