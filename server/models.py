"""`GET /v1/models`: the alias `code`, the base model, and every adapter that is loaded."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from server.adapters import ALIAS
from server.errors import NotFoundError
from server.openapi import errors
from server.state import State, current

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=errors(503))
async def list_models(request: Request) -> dict[str, Any]:
    """List what may be named as `model`, with lineage in `parent` and `root`."""
    return {"object": "list", "data": _entries(current(request))}


@router.get("/v1/models/{model}", responses=errors(404))
async def get_model(request: Request, model: str) -> dict[str, Any]:
    """Return one model."""
    for entry in _entries(current(request)):
        if entry["id"] == model:
            return entry
    raise NotFoundError(
        f"The model `{model[:200]}` does not exist or is not loaded.",
        param="model",
        code="model_not_found",
    )


def _entries(state: State) -> list[dict[str, Any]]:
    base, champion = state.adapters.base, state.adapters.champion
    if base is None:
        return []
    common = {"object": "model", "owned_by": "journeyman", "max_model_len": base.max_model_len}
    adapters = state.adapters.loaded
    created = {adapter.name: int(adapter.created_at.timestamp()) for adapter in adapters}
    entries = []
    if champion is not None:
        entries.append(
            {
                "id": ALIAS,
                "created": created.get(champion.model, 0),
                "root": champion.model,
                "parent": base.id if champion.version else None,
                "adapter": champion.public,
                **common,
            }
        )
    entries.append({"id": base.id, "created": 0, "root": base.root, "parent": None, **common})
    entries += [
        {
            "id": adapter.name,
            "created": created[adapter.name],
            "root": f"sha256-{adapter.sha256}",
            "parent": base.id,
            "adapter": {"name": ALIAS, "version": adapter.version, "sha256": adapter.sha256},
            **common,
        }
        for adapter in adapters
    ]
    return entries
