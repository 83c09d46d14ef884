"""What our own fields of a request look like, and how they are taken out of it.

Everything else of a body belongs to the engine and is neither checked nor changed here. Pydantic
models are for what is ours alone (feedback, `io_spec` options); the hot path reads plain dicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ops.records import FeedbackSource
from sandbox.errors import SpecError
from sandbox.spec import Spec, derive_spec, parse_spec
from server.errors import BadRequest

Json = dict[str, Any]

OWN_FIELDS = ("io_spec", "store", "metadata", "episode_id")
"""Fields of an inference request that are ours; the engine never sees them."""
MAX_METADATA = 16
MAX_ID_CHARS = 100
MAX_REPAIR = 4


def whole(value: Any) -> Any:
    """An integer that is written as `3.0`, which in JSON is the same number; else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(whole)]


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Our part of an inference request, checked, and the engine's part, as it came."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    store: bool
    metadata: dict[str, str]
    episode_id: str | None
    user: str | None
    body: Json
    io_spec: Any
    priority: int = 0
    """vLLM's: lower goes first. Above 0 it goes behind everybody; nobody goes before others."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How hard to try for a verified answer."""

    candidates: int
    early_stop: bool
    repair: int
    max_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class SpecRequest:
    """An `io_spec`, read. `derived` when the client left it to us to find the checks."""

    spec: Spec
    options: Options
    derived: bool = False


def read_envelope(body: Json) -> Envelope:
    """Split an inference request into our fields and the engine's.

    Raises:
        BadRequest: one of our fields, or one that we must understand, is malformed.
    """
    rest = {key: value for key, value in body.items() if key not in OWN_FIELDS}
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("a model is needed, for instance `code`", param="model")
    stream = _optional(body, "stream", bool, "a boolean")
    n = _optional(body, "n", int, "an integer")
    if n is not None and n < 1:
        raise BadRequest("n must be at least 1", param="n")
    stream_options = _optional(body, "stream_options", dict, "an object") or {}
    store = _optional(body, "store", bool, "a boolean")
    priority = max(0, _optional(body, "priority", int, "an integer") or 0)
    if "priority" in rest:
        rest["priority"] = priority
    if n is not None:
        rest["n"] = n
    episode_id = _optional(body, "episode_id", str, "a string")
    if episode_id is not None and not 0 < len(episode_id) <= MAX_ID_CHARS:
        raise BadRequest(f"episode_id must have 1 to {MAX_ID_CHARS} characters", param="episode_id")
    return Envelope(
        model=model,
        stream=bool(stream),
        include_usage=stream_options.get("include_usage") is True,
        n=1 if n is None else n,
        store=store is not False,
        metadata=checked_metadata(body.get("metadata")),
        episode_id=episode_id,
        user=_optional(body, "user", str, "a string"),
        body=rest,
        io_spec=body.get("io_spec"),
        priority=priority,
    )


def _optional(body: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    value = body.get(name)
    if value is None:
        return None
    if kind is int:
        value = whole(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadRequest(f"{name} must be {what}", param=name, code="invalid_type")
    return value


def checked_metadata(value: Any) -> dict[str, str]:
    """Check OpenAI's limits: 16 pairs, keys of 64 characters, values of 512.

    Raises:
        BadRequest: it is no such object.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("metadata must be an object", param="metadata", code="invalid_type")
    if len(value) > MAX_METADATA:
        raise BadRequest(f"metadata holds at most {MAX_METADATA} pairs", param="metadata")
    for key, item in value.items():
        if not isinstance(item, str):
            raise BadRequest(
                "values of metadata must be strings", param=f"metadata.{key}", code="invalid_type"
            )
        if len(key) > 64 or len(item) > 512:
            raise BadRequest(
                "keys of metadata have at most 64 characters, values 512",
                param=f"metadata.{key}"[:100],
            )
    return value


# --- io_spec ----------------------------------------------------------------------------------


class SpecOptions(BaseModel):
    """The fields of `io_spec` that are not the specification itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    candidates: Whole | None = Field(
        None, ge=1, description="attempts; at least `n`, at most the installation's number"
    )
    early_stop: bool = True
    repair: Whole = Field(0, ge=0, le=MAX_REPAIR)
    max_seconds: float | None = Field(
        None, gt=0, le=3600, description="what is there by then comes back; unset: no limit"
    )


def read_spec(
    value: Any, *, prompt: str, n: int, default_candidates: int, max_candidates: int
) -> SpecRequest | None:
    """Read `io_spec`.

    Args:
        value: what the client sent: an object, or "auto" to use the doctests and asserts that
            the prompt holds.
        prompt: the text that "auto" reads.
        n: choices the client wants back.
        default_candidates: attempts where the spec has checks and the client names no number.
        max_candidates: the most attempts.

    Returns:
        None where "auto" finds nothing to check: the request is a plain one then.

    Raises:
        BadRequest: it is malformed; `param` names the place.
    """
    derived = value == "auto"
    if derived:
        spec, given = derive_spec(prompt), {}
        if spec is None:
            return None
    else:
        if not isinstance(value, dict):
            raise BadRequest(
                'io_spec must be an object or "auto"', param="io_spec", code="invalid_type"
            )
        given = {k: v for k, v in value.items() if k in SpecOptions.model_fields}
        spec = _parse({k: v for k, v in value.items() if k not in SpecOptions.model_fields})
    options = validated(SpecOptions, given, "io_spec")
    candidates = options.candidates
    if candidates is None:
        candidates = max(default_candidates if spec.has_checks else 1, n)
    elif candidates < n:
        raise BadRequest(f"candidates must be at least n ({n})", param="io_spec.candidates")
    if candidates > max_candidates:
        param = "n" if options.candidates is None else "io_spec.candidates"
        raise BadRequest(f"at most {max_candidates} candidates are made", param=param)
    return SpecRequest(
        spec=spec,
        options=Options(
            candidates=candidates,
            early_stop=options.early_stop,
            repair=options.repair,
            max_seconds=options.max_seconds,
        ),
        derived=derived,
    )


def _parse(value: Json) -> Spec:
    try:
        return parse_spec(value)
    except SpecError as error:
        raise BadRequest(error.message, param=error.param, code="invalid_io_spec") from error


# --- feedback ---------------------------------------------------------------------------------

Tag = Annotated[str, Field(max_length=512)]


class FeedbackIn(BaseModel):
    """One piece of feedback, as in TensorZero, with a choice index, an upsert key and a source."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "string"}}}
                for name in ("inference_id", "episode_id")
            ]
        },
    )

    inference_id: str | None = Field(
        None, max_length=MAX_ID_CHARS, description="the completion's id, with or without prefix"
    )
    episode_id: str | None = Field(None, max_length=MAX_ID_CHARS)
    metric_name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_.\-]*$")
    value: Any = Field(
        json_schema_extra={"anyOf": [{"type": "boolean"}, {"type": "number"}, {"type": "string"}]},
        description="its type is the metric's",
    )
    choice_index: Whole = Field(0, ge=0, le=127)
    identifier: str = Field("", max_length=200, description="same target and identifier overwrites")
    source: Literal["HUMAN", "MODEL", "MACHINE"] = FeedbackSource.HUMAN.value
    user: str | None = Field(None, max_length=200)
    tags: dict[str, Tag] = Field(default_factory=dict, max_length=32)
    dryrun: bool = False


class FeedbackChange(BaseModel):
    """What may be changed of a piece of feedback."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "anyOf": [
                {
                    "required": ["value"],
                    "properties": {"value": {"type": ["boolean", "number", "string"]}},
                },
                {"required": ["tags"], "properties": {"tags": {"type": "object"}}},
            ]
        },
    )

    value: Any = Field(
        None,
        json_schema_extra={"type": ["boolean", "number", "string", "null"]},
    )
    tags: dict[str, Tag] | None = Field(None, max_length=32)


class FeedbackOut(BaseModel):
    """Where the feedback is kept."""

    feedback_id: str


class FeedbackBatchOut(BaseModel):
    """Where each piece of a batch is kept, in order."""

    data: list[FeedbackOut]


MAX_FEEDBACK_BATCH = 1000

METRIC_TYPES: dict[str, tuple[type, ...]] = {
    "accepted": (bool,),
    "tests_passed": (bool,),
    "rating": (int, float),
    "edit_distance": (int, float),
    "comment": (str,),
    "demonstration": (str,),
}
"""Metrics with a fixed meaning and the type of their value."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class ErrorBody(BaseModel):
    """Every error, in OpenAI's shape, with the `type` at the top that Anthropic's has."""

    type: Literal["error"] = "error"
    error: ErrorDetail


M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], value: Any, location: str) -> M:
    """Validate a value of ours against its model.

    Raises:
        BadRequest: with `param` naming the first wrong field under `location`.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        unknown = first["type"] == "extra_forbidden"
        raise BadRequest(
            "unknown field" if unknown else message,
            param=param_path(location, first["loc"]),
            code="unknown_field" if unknown else "invalid_value",
        ) from error


def param_path(location: str, steps: Iterable[int | str]) -> str | None:
    """Write a place in a request: `data[0].value`."""
    path = location
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if path else step
    return path or None
