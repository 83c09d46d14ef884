"""`/v1/executions`: a client's own program, run here, and what a client saw when it ran one itself.

A program is run in the same sandbox as the model's, within the limits of the installation and the
key's quota; with `io_spec` it is judged as well. With `source: "client"` nothing is run: the body
says what happened elsewhere. Such a report is kept under that source, is never `verified`, belongs
to no attempt, and `Store.executions` leaves it out unless it is asked for.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from ops import metrics
from ops.errors import Conflict, NotFound, StoreError
from ops.records import Execution, Json, Source, new_id, now
from sandbox import values
from sandbox.errors import SandboxError, SpecError
from sandbox.extract import program_sha256
from sandbox.spec import Spec, parse_spec
from sandbox.types import INFRASTRUCTURE, Limits, Run, Verdict
from server.auth import FEEDBACK, Identity
from server.calls import EXECUTIONS, bare_id
from server.errors import BadRequest, NotFoundError, RecordUnavailable, SandboxUnavailable
from server.limits import read_json
from server.openapi import body_of, errors
from server.protocol import MAX_ID_CHARS, Whole, validated
from server.replies import Exchange, Reply
from server.state import State, current
from server.verification import Program, execution_row

router = APIRouter(tags=["executions"])

MAX_CALLS = 100
MAX_CODE_CHARS = 200_000
MAX_TEXT_CHARS = 64 << 10
CLIENT_TIER = "client"
_PREFIX = "exec-"
_REPORTABLE = tuple(verdict.value for verdict in Verdict if verdict not in INFRASTRUCTURE)

Text = Field("", max_length=MAX_TEXT_CHARS)


class LimitsIn(BaseModel):
    """What one run may use; never more than the installation allows."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    wall_s: float | None = Field(None, gt=0)
    cpu_s: Whole | None = Field(None, ge=1)
    memory_bytes: Whole | None = Field(None, ge=1 << 26)


class Target(BaseModel):
    """Which answer an execution is about, if any."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    inference_id: str | None = Field(None, max_length=MAX_ID_CHARS)
    store: bool = Field(True, description="false: nothing is kept of it")


class ExecutionIn(Target):
    """A program to be run: judged by `io_spec`, or called, or as a script with `stdin`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "anyOf": [
                {"not": {"required": ["io_spec"], "properties": {"io_spec": {"type": "object"}}}},
                {
                    "properties": {
                        "calls": {"maxItems": 0},
                        "entry_point": {"type": ["string", "null"], "maxLength": 0},
                        "stdin": {"type": "null"},
                    }
                },
            ],
            "if": {
                "required": ["entry_point"],
                "properties": {"entry_point": {"type": "string", "minLength": 1}},
            },
            "then": {"required": ["calls"], "properties": {"calls": {"minItems": 1}}},
        },
    )

    source: Literal["served"] = "served"
    code: str = Field(min_length=1, max_length=MAX_CODE_CHARS, description="Python source")
    io_spec: dict[str, Any] | None = Field(None, description="as in chat completions")
    entry_point: str | None = Field(None, max_length=200)
    calls: list[list[Any] | dict[str, Any]] = Field(
        default_factory=list,
        max_length=MAX_CALLS,
        description="positional (a list) or keyword arguments (an object) of each call",
    )
    stdin: str | None = Field(None, max_length=1 << 20)
    limits: LimitsIn = LimitsIn()


class ExecutionReport(Target):
    """What happened when a client ran a program on its own machine."""

    source: Literal["client"]
    code: str | None = Field(None, max_length=MAX_CODE_CHARS, description="only its digest is kept")
    verdict: Literal[_REPORTABLE]  # type: ignore[valid-type]
    passed: Whole = Field(0, ge=0, le=1_000_000, description="at most `total`")
    total: Whole = Field(0, ge=0, le=1_000_000)
    duration_s: float = Field(0.0, ge=0, le=86_400)
    error_type: str | None = Field(None, max_length=100)
    error_message: str | None = Field(None, max_length=2000)
    stdout: str = Text
    stderr: str = Text


@router.post(
    EXECUTIONS,
    response_model=None,
    openapi_extra=body_of(
        ExecutionIn,
        ExecutionReport,
        examples={
            "calls": {
                "code": "def add(a, b):\n    return a + b\n",
                "entry_point": "add",
                "calls": [[1, 2]],
            },
            "judged": {
                "code": "def add(a, b):\n    return a + b\n",
                "io_spec": {"examples": [{"input": [1, 2], "output": 3}]},
            },
            "report": {
                "source": "client",
                "inference_id": "chatcmpl-…",
                "verdict": "WRONG",
                "passed": 3,
                "total": 4,
            },
        },
    ),
    responses=errors(400, 403, 404, 413, 429, 503),
)
async def create_execution(request: Request) -> Response:
    """Run a program, or keep a client's report of a run; durable when this returns."""
    state, identity = current(request), request.state.identity
    body = await read_json(request, state.settings.max_body_bytes)

    async def answer(exchange: Exchange) -> None:
        if body.get("source") == "client":
            identity.require(FEEDBACK)
            report = validated(ExecutionReport, body, "")
            target = await _target(state, identity, report.inference_id)
            row, store = _reported(report, target, identity.tenant), report.store
            more: Json = {}
        else:
            given = validated(ExecutionIn, body, "")
            identity.admit_execution()
            if given.store:
                state.recorder.require()
            target = await _target(state, identity, given.inference_id)
            row, more = await _run(state, given, target, identity.tenant)
            store = given.store
        if store:
            await _keep(state, row)
        metrics.executions_total.labels(row.source.value, row.verdict).inc()
        await exchange.json({**execution_public(row), **more})

    return Reply(answer)


@router.get(EXECUTIONS + "/{execution_id}", responses=errors(404, 503))
async def get_execution(request: Request, execution_id: str) -> dict[str, Any]:
    """Return an execution that this key's tenant has asked for or reported."""
    state, identity = current(request), request.state.identity
    try:
        row = await asyncio.to_thread(state.store.execution, execution_id.removeprefix(_PREFIX))
    except NotFound as error:
        raise _missing(execution_id) from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error
    if not identity.is_admin and row.tenant != identity.tenant:
        raise _missing(execution_id)
    return execution_public(row)


async def _keep(state: State, row: Execution) -> None:
    kept = state.recorder.scrubber.execution(row)
    try:
        await state.recorder.write(partial(state.store.add_execution, kept))
    except Conflict as error:  # deleted while the program ran
        raise NotFoundError(f"no interaction {row.interaction_id}", param="inference_id") from error


def _missing(execution_id: str) -> NotFoundError:
    return NotFoundError(f"no execution {execution_id[:200]}", param="execution_id")


async def _target(state: State, identity: Identity, inference_id: str | None) -> str | None:
    """The interaction that an execution names, which must be there and be the tenant's."""
    if inference_id is None:
        return None
    missing = NotFoundError(f"no interaction {inference_id}", param="inference_id")
    try:
        row = await asyncio.to_thread(state.store.interaction, bare_id(inference_id))
    except NotFound as error:
        raise missing from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error
    if not identity.is_admin and row.tenant != identity.tenant:
        raise missing
    return row.id


def _reported(report: ExecutionReport, target: str | None, tenant: str) -> Execution:
    if report.passed > report.total:
        raise BadRequest("passed cannot be more than total", param="passed")
    return Execution(
        id=new_id(),
        created_at=now(),
        source=Source.CLIENT,
        interaction_id=target,
        attempt_id=None,
        program_sha256=program_sha256(report.code) if report.code is not None else "",
        verdict=report.verdict,
        verified=False,
        passed=report.passed,
        total=report.total,
        examples=[],
        tier=CLIENT_TIER,
        duration_s=report.duration_s,
        error_type=report.error_type,
        error_message=report.error_message,
        stdout=report.stdout,
        stderr=report.stderr,
        tenant=tenant,
    )


async def _run(
    state: State, given: ExecutionIn, target: str | None, tenant: str
) -> tuple[Execution, Json]:
    """Run a program; return its row, and what is answered but not kept (the values)."""
    limits = _limits(given.limits, state.limits)
    digest = program_sha256(given.code)
    if given.io_spec is not None:
        if given.calls or given.entry_point or given.stdin is not None:
            raise BadRequest("io_spec says itself what is called", param="io_spec")
        spec = _spec(given.io_spec)
        program = Program(source=given.code, sha256=digest)
        judgement = await state.judge.judge(program, spec, limits=limits)
        row = execution_row(judgement, interaction_id=target, attempt_id=None)
        if row is None:
            raise SandboxUnavailable("the sandbox failed; this says nothing about the program")
        return replace(row, tenant=tenant), {"verification": judgement.public(state.judge.tier)}
    calls = [_arguments(call, place) for place, call in enumerate(given.calls)]
    if given.entry_point and not calls:
        raise BadRequest("entry_point needs calls", param="calls")
    try:
        run = await state.judge.run(
            given.code, entry=given.entry_point, calls=calls, stdin=given.stdin, limits=limits
        )
    except SandboxError as error:
        metrics.sandbox_errors_total.labels(type(error).__name__).inc()
        raise SandboxUnavailable(
            "the sandbox failed; this says nothing about the program"
        ) from error
    return _row(run, digest, target, tenant), {"values": [_value(value) for value in run.values]}


def _limits(given: LimitsIn, most: Limits) -> Limits:
    wanted = given.model_dump(exclude_none=True)
    for name, value in wanted.items():
        if value > getattr(most, name):
            raise BadRequest(
                f"{name} is at most {getattr(most, name)} here", param=f"limits.{name}"
            )
    return replace(most, **wanted)


def _spec(value: Json) -> Spec:
    try:
        return parse_spec(value)
    except SpecError as error:
        raise BadRequest(error.message, param=error.param, code="invalid_io_spec") from error


def _arguments(call: list[Any] | Json, place: int) -> list[Any] | Json:
    try:
        if isinstance(call, dict):
            return {name: values.decode(value) for name, value in call.items()}
        return [values.decode(value) for value in call]
    except ValueError as error:
        raise BadRequest(str(error), param=f"calls[{place}]") from error


def _value(value: object) -> Json:
    if isinstance(value, values.CallError):
        return {"error": {"type": value.error_type, "message": value.message}}
    if isinstance(value, values.Opaque):
        return {"value": {"$opaque": value.type_name}}
    return {"value": values.encode(value)}


def _row(run: Run, digest: str, target: str | None, tenant: str) -> Execution:
    return Execution(
        id=new_id(),
        created_at=now(),
        source=Source.SERVED,
        interaction_id=target,
        attempt_id=None,
        program_sha256=digest,
        verdict=run.verdict.value,
        verified=False,
        passed=0,
        total=0,
        examples=[],
        tier=run.tier.label,
        duration_s=run.duration_s,
        error_type=run.error_type,
        error_message=run.error_message,
        stdout=run.stdout,
        stderr=run.stderr,
        tenant=tenant,
    )


def execution_public(row: Execution) -> Json:
    """What a client may see of its execution: of hidden examples no message."""
    return {
        "id": _PREFIX + row.id,
        "object": "execution",
        "created": int(row.created_at.timestamp()),
        "source": row.source.value,
        "inference_id": row.interaction_id,
        "program_sha256": row.program_sha256,
        "verdict": row.verdict,
        "verified": row.verified,
        "passed": row.passed,
        "total": row.total,
        "examples": [
            {**example, "message": None} if example.get("hidden", True) else example
            for example in row.examples
        ],
        "error": {"type": row.error_type, "message": row.error_message}
        if row.error_type or row.error_message
        else None,
        "stdout": row.stdout,
        "stderr": row.stderr,
        "duration_ms": round(row.duration_s * 1000, 3),
        "sandbox": row.tier,
    }
