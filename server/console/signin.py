"""Sign in with an admin key, and sign out."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from server.auth import CONSOLE
from server.console.base import SIGN_IN, door_of, form_of, new_router, render, see_other
from server.console.door import COOKIE, SESSION_S, SignInNeeded
from server.errors import Forbidden, ServerError, Unauthorized

router = new_router()


@router.get(SIGN_IN)
async def show(request: Request) -> Response:
    """Ask for a key; where none is needed, or one was given, go on."""
    door = door_of(request)
    wanted = _inside(request.query_params.get("next", ""))
    try:
        door.visitor(request)
    except SignInNeeded:
        return _page(request, wanted)
    return see_other(wanted)


@router.post(SIGN_IN)
async def sign_in(request: Request) -> Response:
    """Begin a session."""
    door = door_of(request)
    form = await form_of(request, door.stranger())
    wanted = _inside(form.get("next"))
    try:
        cookie = door.sign_in(form.get("key"))
    except (Unauthorized, Forbidden) as error:
        return _page(request, wanted, error)
    response = see_other(wanted)
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=SESSION_S,
        path=CONSOLE,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.post(f"{CONSOLE}/sign-out")
async def sign_out(request: Request) -> Response:
    """End the session."""
    door = door_of(request)
    await form_of(request, door.visitor(request))
    door.sign_out(request)
    response = see_other(SIGN_IN, done="signed-out")
    response.delete_cookie(COOKIE, path=CONSOLE, httponly=True, samesite="strict")
    return response


def _page(request: Request, wanted: str, error: ServerError | None = None) -> Response:
    return render(
        request,
        "sign_in.html",
        visitor=door_of(request).stranger(),
        status=200 if error is None else error.status,
        wanted=wanted,
        error=error.message if error is not None else None,
    )


def _inside(wanted: str) -> str:
    """A page of the console, whatever was asked for."""
    inside = wanted == CONSOLE or wanted.startswith(f"{CONSOLE}/")
    return wanted if inside and "\\" not in wanted and "//" not in wanted else CONSOLE
