"""`/v1/adapters`: the adapter versions, what became of each, and how its swap was proved."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from ops.errors import NotFound, StoreError
from ops.records import Adapter, Json
from server.errors import NotFoundError, RecordUnavailable
from server.openapi import errors
from server.state import State, current

router = APIRouter(tags=["adapters"])


@router.get("/v1/adapters", responses=errors(503))
async def list_adapters(request: Request) -> dict[str, Any]:
    """List all versions, newest first, and where the aliases point."""
    state = current(request)
    try:
        return await asyncio.to_thread(_all, state)
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


@router.get("/v1/adapters/{version}", responses=errors(404, 503))
async def get_adapter(request: Request, version: str) -> dict[str, Any]:
    """Return a version (`12`, `v12` or `code@v12`) with its transitions and swap receipts."""
    state = current(request)
    try:
        return await asyncio.to_thread(_one, state, version)
    except NotFound as error:
        raise NotFoundError(str(error), param="version") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _all(state: State) -> Json:
    aliases = state.store.aliases()
    serving = state.adapters.champion
    return {
        "object": "list",
        "data": [_out(state, adapter) for adapter in state.store.adapters()],
        "aliases": {alias.value: version for alias, version in aliases.items()},
        "serving": serving.public if serving is not None else None,
    }


def _one(state: State, version: str) -> Json:
    adapter = state.registry.find(version)
    return {
        **_out(state, adapter),
        "transitions": [
            {**asdict(row), "at": row.at.isoformat()}
            for row in state.store.transitions(adapter.version)
        ],
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
