"""`/v1/fine_tuning/jobs`: improvement cycles in the words of OpenAI's fine-tuning API.

A job that is created here is a queued cycle: the improver (`journeyman up` runs one) takes it when
it is free. It learns from the record: `training_file` is `record`, or the id of an uploaded file,
whose rows are in the record too. `succeeded` means that the cycle ran to its end; whether its
adapter was promoted is told by `/v1/evals`, because a rejected candidate is no failed job. One that
runs and is paused or cancelled stops within seconds; only while its adapter goes into service (the
last stage) it is left to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from ops.errors import Conflict, NotFound, StoreError
from ops.records import Cycle, CycleEvent, CycleState, Json, new_id, now
from ops.settings import ImproverSettings
from ops.store import Store
from server.adapters import ALIAS
from server.errors import BadRequest, ConflictError, NotFoundError, RecordUnavailable
from server.limits import read_json
from server.listing import After, Limit, page
from server.openapi import body_of, errors
from server.protocol import checked_metadata, validated
from server.state import State, current
from server.uploads import PREFIX

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

T = TypeVar("T")
_PREFIX = "ftjob-"
_STATUS = {
    CycleState.QUEUED: "queued",
    CycleState.PAUSED: "paused",
    CycleState.RUNNING: "running",
    CycleState.SUCCEEDED: "succeeded",
    # OpenAI has no word for "there was too little to learn from"; `error` says it.
    CycleState.SKIPPED: "cancelled",
    CycleState.FAILED: "failed",
    CycleState.CANCELLED: "cancelled",
}
_LEVELS = {"warning": "warn", "warn": "warn", "error": "error", "critical": "error"}
MAX_LISTED = 1000
RECORD = "record"
DEMONSTRATED = ("inverse_instruct", "all")
"""The recipes that learn from a demonstration of a request without a specification."""
RECIPES = ("ilf", "gift4code", "inverse_instruct", "preferences", "all")


@router.get("", responses=errors(400, 503))
async def list_jobs(request: Request, limit: Limit = 20, after: After = None) -> dict[str, Any]:
    """List improvement cycles, newest first."""
    state = current(request)
    cycles = await _read(lambda: state.store.cycles(limit=MAX_LISTED))
    return page([_job(state, cycle) for cycle in cycles], limit, after)


class SupervisedIn(BaseModel):
    """How it is trained; `auto` leaves it to the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=100)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=100)] = "auto"


class MethodDetail(BaseModel):
    """The part of a method that names its numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hyperparameters: SupervisedIn = SupervisedIn()


class MethodIn(BaseModel):
    """The method: supervised is the one there is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["supervised"] = "supervised"
    supervised: MethodDetail = MethodDetail()


class JobIn(BaseModel):
    """A cycle that is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, max_length=200, description="`code`, or the base model")
    training_file: str = Field(
        min_length=1,
        max_length=200,
        description="`record`, for cycles learn from what this server has recorded, or an uploaded "
        "file: its rows are in the record, where the recipe `inverse_instruct` finds them",
    )
    validation_file: None = None
    suffix: Literal["code"] | None = None
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    metadata: dict[str, str] | None = Field(
        None,
        description="`recipe`: ilf, gift4code, inverse_instruct, preferences or all; "
        "unset: the settings'",
    )
    method: MethodIn | None = None
    hyperparameters: SupervisedIn | None = Field(None, description="OpenAI's older form")
    integrations: list[Any] | None = Field(None, max_length=0)


@router.post(
    "",
    openapi_extra=body_of(
        JobIn,
        examples={
            "ilf": {"model": "code", "training_file": "record", "metadata": {"recipe": "ilf"}}
        },
    ),
    responses=errors(400, 404, 413, 503),
)
async def create_job(request: Request) -> dict[str, Any]:
    """Ask for an improvement cycle."""
    state = current(request)
    body = await read_json(request, state.settings.max_body_bytes)
    given = validated(JobIn, body, "")
    base = state.adapters.base
    if given.model != ALIAS and (base is None or given.model != base.id):
        raise NotFoundError(
            f"The model `{given.model}` cannot be taught: `{ALIAS}` and the base model can.",
            param="model",
            code="model_not_found",
        )
    cycle = queued(state, await _with_recipe(state, given))
    await state.recorder.write(lambda: state.store.add_cycle(cycle))
    return _job(state, cycle)


async def _with_recipe(state: State, given: JobIn) -> JobIn:
    """Let an uploaded file be learned from by a recipe that learns from demonstrations.

    Raises:
        BadRequest: there is no such file, or its recipe learns nothing from it.
    """
    if given.training_file == RECORD:
        return given
    try:
        episode = given.training_file.removeprefix(PREFIX)
        await asyncio.to_thread(state.store.upload, episode)
    except NotFound as error:
        message = f"{error}; `{RECORD}` and the ids of uploaded files are taken"
        raise BadRequest(message, param="training_file") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error
    metadata = {"recipe": DEMONSTRATED[0], **(given.metadata or {})}
    if metadata["recipe"] not in DEMONSTRATED:
        words = " and ".join(DEMONSTRATED)
        message = f"uploaded files hold demonstrations, from which {words} learn"
        raise BadRequest(message, param="metadata.recipe")
    return given.model_copy(update={"metadata": metadata})


def queued(state: State, given: JobIn, *, trigger: str = "api") -> Cycle:
    """A cycle as it was asked for, to be written into the record.

    Raises:
        BadRequest: there is no such recipe.
    """
    settings = state.improvement.settings
    metadata = checked_metadata(given.metadata)
    recipe = metadata.get("recipe", settings.recipe)
    if recipe not in RECIPES:
        raise BadRequest(f"recipe is one of {', '.join(RECIPES)}", param="metadata.recipe")
    wanted = given.method.supervised.hyperparameters if given.method else given.hyperparameters
    train = settings.train.model_copy(update=_training(settings, wanted, given.seed))
    improver = settings.model_copy(update={"recipe": recipe, "train": train})
    cycle_id = new_id()
    return Cycle(
        id=cycle_id,
        created_at=now(),
        recipe=recipe,
        trigger=trigger,
        state=CycleState.QUEUED,
        stage="",
        settings={
            "improver": improver.model_dump(mode="json"),
            "engine_model": state.improvement.engine_model,
            "max_lora_rank": state.improvement.max_lora_rank,
            "release": state.improvement.release.model_dump(mode="json"),
        },
        directory=str(state.improvement.cycles_dir / cycle_id),
    )


def _training(settings: ImproverSettings, wanted: SupervisedIn | None, seed: int | None) -> Json:
    changes: Json = {} if seed is None else {"seed": seed}
    if wanted is None:
        return changes
    if wanted.n_epochs != "auto":
        changes["epochs"] = wanted.n_epochs
    if wanted.batch_size != "auto":
        changes["batch_rows"] = wanted.batch_size
    if wanted.learning_rate_multiplier != "auto":
        factor = wanted.learning_rate_multiplier
        changes["learning_rate"] = tuple(rate * factor for rate in settings.train.learning_rates)
    return changes


@router.post("/{job_id}/cancel", responses=errors(404, 409, 503))
async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
    """End a cycle for good, also one that runs."""
    store = current(request).store
    return await _move(request, partial(store.cancel_cycle, _bare(job_id), "cancelled by request"))


@router.post("/{job_id}/pause", responses=errors(404, 409, 503))
async def pause_job(request: Request, job_id: str) -> dict[str, Any]:
    """Hold a cycle back, also one that runs; it goes on where it was when it is resumed."""
    return await _move(request, partial(current(request).store.pause_cycle, _bare(job_id)))


@router.post("/{job_id}/resume", responses=errors(404, 409, 503))
async def resume_job(request: Request, job_id: str) -> dict[str, Any]:
    """Queue a paused cycle again, or a failed one, which goes on where it failed."""
    return await _move(request, partial(current(request).store.resume_cycle, _bare(job_id)))


async def _move(request: Request, move: Callable[[], Cycle]) -> Json:
    state = current(request)
    try:
        return _job(state, await state.recorder.write(move))
    except NotFound as error:
        raise NotFoundError(str(error), param="job_id") from error
    except Conflict as error:
        raise ConflictError(str(error), param="job_id") from error


@router.get("/{job_id}", responses=errors(404, 503))
async def get_job(request: Request, job_id: str) -> dict[str, Any]:
    """Return one improvement cycle."""
    state = current(request)
    return _job(state, await _read(lambda: state.store.cycle(_bare(job_id))))


@router.get("/{job_id}/events", responses=errors(400, 404, 503))
async def list_events(
    request: Request, job_id: str, limit: Limit = 20, after: After = None
) -> dict[str, Any]:
    """List what happened in a cycle, newest first."""
    store = current(request).store
    events = await _read(lambda: _of(store, _bare(job_id), store.events))
    return page([_event(event) for event in reversed(events)], limit, after)


@router.get("/{job_id}/checkpoints", responses=errors(400, 404, 503))
async def list_checkpoints(
    request: Request, job_id: str, limit: Limit = 10, after: After = None
) -> dict[str, Any]:
    """List the adapters a cycle has made: the last one, or none."""
    store = current(request).store
    cycle = await _read(lambda: store.cycle(_bare(job_id)))
    return page(_checkpoints(cycle), limit, after)


async def _read(call: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(call)
    except NotFound as error:
        raise NotFoundError(str(error), param="job_id") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _of(store: Store, cycle_id: str, read: Callable[[str], T]) -> T:
    store.cycle(cycle_id)  # a cycle that is not there has no events, but is a 404
    return read(cycle_id)


def _bare(job_id: str) -> str:
    return job_id.removeprefix(_PREFIX)


def _job(state: State, cycle: Cycle) -> Json:
    base = state.adapters.base
    train = (cycle.settings.get("improver") or {}).get("train") or {}
    chosen = {
        "n_epochs": train.get("epochs", "auto"),
        "batch_size": train.get("batch_rows", "auto"),
    }
    error = None
    if cycle.error is not None or cycle.state is CycleState.SKIPPED:
        message = cycle.error or str(cycle.report.get("reason") or "there was too little to learn")
        error = {"code": cycle.state.value, "message": message, "param": None}
    return {
        "id": _PREFIX + cycle.id,
        "object": "fine_tuning.job",
        "created_at": int(cycle.created_at.timestamp()),
        "finished_at": int(cycle.finished_at.timestamp()) if cycle.finished_at else None,
        "estimated_finish": None,
        "model": base.id if base is not None else "",
        "fine_tuned_model": _name(cycle),
        "organization_id": "local",
        "status": _STATUS[cycle.state],
        "training_file": f"file-{cycle.id}-train",
        "validation_file": None,
        "result_files": [f"file-{cycle.id}-report"] if cycle.report else [],
        "trained_tokens": None,
        "seed": train.get("seed", 0),
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
        "hyperparameters": chosen,
        "integrations": [],
        "metadata": {"recipe": cycle.recipe, "trigger": cycle.trigger, "stage": cycle.stage},
        "error": error,
        "report": cycle.report,
    }


def _name(cycle: Cycle) -> str | None:
    return f"code@v{cycle.adapter_version}" if cycle.adapter_version is not None else None


def _event(event: CycleEvent) -> Json:
    return {
        "id": f"ftevent-{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at.timestamp()),
        "level": _LEVELS.get(event.level.lower(), "info"),
        "message": event.message,
        "type": "metrics" if event.data else "message",
        "data": event.data,
    }


def _checkpoints(cycle: Cycle) -> list[Json]:
    name = _name(cycle)
    if name is None:
        return []
    at = cycle.finished_at or cycle.created_at
    return [
        {
            "id": f"ftckpt-{cycle.id}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(at.timestamp()),
            "fine_tuned_model_checkpoint": name,
            "fine_tuning_job_id": _PREFIX + cycle.id,
            "step_number": 0,
            "metrics": {},
        }
    ]
