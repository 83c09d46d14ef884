"""`/console/static/…`: the stylesheet and the scripts. They hold no secret and ask for no key."""

from __future__ import annotations

from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response

from server.auth import CONSOLE
from server.console.base import new_router, static

router = new_router()

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@router.get(f"{CONSOLE}/static/{{name}}")
async def get_file(request: Request, name: str) -> Response:
    """Return a file of `static/`; its address changes with its content."""
    kind = _TYPES.get(PurePath(name).suffix, "text/plain")
    return Response(
        static(name),
        media_type=kind,
        headers={"cache-control": "public, max-age=31536000, immutable"},
    )
