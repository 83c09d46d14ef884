"""`/v1/adapters`: the adapter versions, what became of each, how its swap was proved; moving them.

For admins. Moving an alias is a wish: the answer says what the registry has then, and the receipts
of `GET /v1/adapters/{version}` what the servers made of it, moments later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request

from ops import trials
from ops.differences import difference
from ops.errors import ArtifactError, Conflict, NotFound, RegistryError, StoreError
from ops.records import Adapter, AdapterState, Alias, Json, now
from server.errors import ConflictError, NotFoundError, RecordUnavailable
from server.openapi import errors
from server.state import State, current

router = APIRouter(tags=["adapters"])

Reason = Annotated[str, Query(min_length=1, max_length=500, description="why, for the history")]


@router.get("/v1/adapters", responses=errors(503))
async def list_adapters(request: Request) -> dict[str, Any]:
    """List all versions, newest first, where the aliases point, and the trial under way."""
    state = current(request)
    return await _read(lambda: _all(state))


@router.get("/v1/adapters/{version}", responses=errors(404, 503))
async def get_adapter(request: Request, version: str) -> dict[str, Any]:
    """Return a version (`12`, `v12` or `code@v12`) with its transitions and swap receipts."""
    state = current(request)
    return await _read(lambda: _one(state, version))


@router.get("/v1/adapters/{version}/diff", responses=errors(404, 503))
async def diff_adapter(
    request: Request,
    version: str,
    against: Annotated[
        str | None, Query(max_length=40, description="another version; `base`; unset: the champion")
    ] = None,
) -> dict[str, Any]:
    """Return how a version differs from another one: how it was made, and task by task."""
    state = current(request)

    def read() -> Json:
        newer = state.registry.find(version).version
        if against is None:
            older = state.store.aliases().get(Alias.CHAMPION, 0)
        else:
            older = 0 if against == "base" else state.registry.find(against).version
        return difference(state.store, state.registry, older, newer)

    return await _read(read)


@router.post("/v1/adapters/rollback", responses=errors(404, 409, 503))
async def roll_back(
    request: Request,
    reason: Reason = "rolled back by request",
    version: Annotated[
        str | None, Query(max_length=40, description="only if this one is the champion")
    ] = None,
) -> dict[str, Any]:
    """Put the previous champion back, or the base model where there was none; return all."""
    state = current(request)

    def move() -> Json:
        only = None if version is None else state.registry.find(version).version
        state.registry.rollback(actor=_actor(request), reason=reason, only=only)
        return _all(state)

    return await _moved(state, move)


@router.post("/v1/adapters/{version}/promote", responses=errors(404, 409, 503))
async def promote_adapter(
    request: Request,
    version: str,
    reason: Reason = "promoted by request",
    force: Annotated[
        bool, Query(description="also when it was rejected or never examined")
    ] = False,
) -> dict[str, Any]:
    """Make a version the champion; it answers once a server has proved it."""
    state = current(request)

    def move() -> Json:
        adapter = state.registry.find(version)
        state.registry.promote(adapter.version, actor=_actor(request), reason=reason, force=force)
        return _one(state, version)

    return await _moved(state, move)


@router.post("/v1/adapters/{version}/canary", responses=errors(404, 409, 503))
async def canary_adapter(
    request: Request,
    version: str,
    reason: Reason = "canary by request",
    share: Annotated[
        float | None, Query(gt=0, le=0.5, description="of the requests; unset: as set")
    ] = None,
) -> dict[str, Any]:
    """Let an examined version answer a share of the requests for `code`, until that decides."""
    state = current(request)

    def move() -> Json:
        adapter = state.registry.find(version)
        evidence = {} if share is None else {"share": share}
        state.registry.canary(
            adapter.version, actor=_actor(request), reason=reason, evidence=evidence
        )
        return _one(state, version)

    return await _moved(state, move)


@router.post("/v1/adapters/{version}/reject", responses=errors(404, 409, 503))
async def reject_adapter(
    request: Request, version: str, reason: Reason = "rejected by request"
) -> dict[str, Any]:
    """Mark a version as one that shall not go live; a canary leaves at once."""
    state = current(request)

    def move() -> Json:
        adapter = state.registry.find(version)
        state.registry.reject(adapter.version, actor=_actor(request), reason=reason)
        return _one(state, version)

    return await _moved(state, move)


async def _read(work: Callable[[], Json]) -> Json:
    try:
        return await asyncio.to_thread(work)
    except NotFound as error:
        raise NotFoundError(str(error), param="version") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


async def _moved(state: State, work: Callable[[], Json]) -> Json:
    """Move something in the registry and look at once what it calls for."""
    try:
        found = await asyncio.to_thread(work)
    except NotFound as error:
        raise NotFoundError(str(error), param="version") from error
    except (Conflict, RegistryError, ArtifactError) as error:
        raise ConflictError(str(error), param="version") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error
    state.adapters.wake()
    return found


def _actor(request: Request) -> str:
    return f"key:{request.state.identity.name}"


def _all(state: State) -> Json:
    aliases = state.store.aliases()
    serving = state.adapters.champion
    return {
        "object": "list",
        "data": [_out(state, adapter) for adapter in state.store.adapters()],
        "aliases": {alias.value: version for alias, version in aliases.items()},
        "serving": serving.public if serving is not None else None,
        "engines": state.adapters.engines(),
        "trial": _trial(state),
    }


def _trial(state: State) -> Json | None:
    """The trial under way, with what it says so far."""
    trial = trials.current(state.store, state.rules)
    if trial is None:
        return None
    elapsed_s = max(0.0, (now() - trial.since).total_seconds())
    so_far = trials.judge(state.store, trial, state.rules, elapsed_s=elapsed_s)
    return {
        "kind": str(trial.kind),
        "version": trial.version,
        "against": trial.against,
        "share": trial.share,
        "since": trial.since.isoformat(),
        "reason": so_far.reason,
        "numbers": so_far.numbers,
        "text": trials.describe(so_far.numbers),
    }


def _one(state: State, version: str) -> Json:
    adapter = state.registry.find(version)
    history = state.store.transitions(adapter.version)
    examined = [t for t in history if t.to_state is AdapterState.EXAMINED]
    return {
        **_out(state, adapter),
        "decision": examined[-1].evidence.get("text") if examined else None,
        "transitions": [{**asdict(row), "at": row.at.isoformat()} for row in history],
        "receipts": [
            {**asdict(row), "at": row.at.isoformat()}
            for row in state.store.receipts(version=adapter.version)
        ],
    }


def _out(state: State, adapter: Adapter) -> Json:
    out = asdict(adapter)
    out["object"] = "adapter"
    out["name"] = adapter.name
    out["created_at"] = adapter.created_at.isoformat()
    out["loaded"] = any(adapter.version == other.version for other in state.adapters.loaded)
    del out["directory"]  # a path of this machine
    return out
