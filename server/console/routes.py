"""The console's pages, in the order of its navigation."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.auth import CONSOLE
from server.console import (
    adapters,
    assets,
    cycles,
    interactions,
    learning,
    now,
    playground,
    signin,
)
from server.console.base import new_router, see_other
from server.errors import NotFoundError

router = APIRouter()
_rest = new_router()


@_rest.get("/")
async def front(request: Request) -> Response:
    """Send who opens the server in a browser to the console."""
    return see_other(CONSOLE)


@_rest.get(f"{CONSOLE}/{{rest:path}}")
async def nothing(request: Request, rest: str) -> Response:
    """Say that there is no such page, as a page."""
    raise NotFoundError("There is no such page.")


for page in (now, learning, adapters, cycles, interactions, playground, signin, assets):
    router.include_router(page.router)
router.include_router(_rest)
