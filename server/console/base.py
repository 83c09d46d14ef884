"""What the pages share: how one is read, rendered, protected, and how a failure looks.

A page is a function that reads through `ops.store` and `ops.registry` as the API does and returns
`render(…)`. Everything in a template is escaped: prompts, programs and feedback are strangers'
text. Pages work without a script; live parts are fetched again by htmx where there is one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ops.errors import ArtifactError, Conflict, NotFound, RegistryError, StoreError
from ops.records import Json, now
from server.auth import CONSOLE
from server.console import charts
from server.console.door import Door, SignInNeeded, Visitor
from server.errors import (
    BadRequest,
    ConflictError,
    NotFoundError,
    RecordUnavailable,
    ServerError,
)
from server.limits import read_body
from server.state import current

T = TypeVar("T")
MAX_FORM_BYTES = 1 << 20
SIGN_IN = f"{CONSOLE}/sign-in"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Not "no-referrer": browsers would send `Origin: null` with forms.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
NAVIGATION = (
    ("Now", CONSOLE),
    ("Learning", f"{CONSOLE}/learning"),
    ("Adapters", f"{CONSOLE}/adapters"),
    ("Cycles", f"{CONSOLE}/cycles"),
    ("Interactions", f"{CONSOLE}/interactions"),
    ("Try it", f"{CONSOLE}/try"),
)
NOTICES = {
    "promoted": "The registry points at this version now. The server proves it before it answers.",
    "rolled-back": "The registry points back. The server follows as soon as it has proved it.",
    "tried": "It is on trial. The server proves it before it answers its share of the requests.",
    "rejected": "It shall not go live.",
    "queued": "The cycle is queued; an improver takes it when it is free.",
    "pause": "The cycle is held back; it can be resumed.",
    "resume": "The cycle is queued again and goes on where it was.",
    "cancel": "The cycle is cancelled.",
    "feedback": "Kept. The next cycle can learn from it.",
    "signed-out": "You are signed out.",
}
"""What is said after a form was taken: a page names one in `?done=`, never its words."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Page(APIRoute):
    """A route whose answers, refusals included, are pages."""

    def get_route_handler(self) -> Handler:
        """Wrap the handler."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handler(request)
            except SignInNeeded:
                response = _to_sign_in(request)
            except (ServerError, RequestValidationError) as error:
                response = _refused(request, error)
            response.headers.update(HEADERS)
            response.headers.setdefault("cache-control", "no-store")
            return response

        return answer


def new_router() -> APIRouter:
    """Return a router for pages; none of them is in the OpenAPI document."""
    return APIRouter(route_class=Page, include_in_schema=False)


def door_of(request: Request) -> Door:
    """Return the door of the server that answers this request."""
    door: Door = request.state.door
    return door


def visitor_of(request: Request) -> Visitor:
    """Return who asks.

    Raises:
        SignInNeeded: nobody is signed in.
        Forbidden: see `door.Door.visitor`.
    """
    return door_of(request).visitor(request)


async def read(call: Callable[[], T]) -> T:
    """Call a function that reads or writes the record or the registry, in a thread.

    Raises:
        ServerError: what it raised, in the server's words.
    """
    try:
        return await asyncio.to_thread(call)
    except NotFound as error:
        raise NotFoundError(str(error)) from error
    except (Conflict, RegistryError, ArtifactError) as error:
        raise ConflictError(str(error)) from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


async def write(request: Request, call: Callable[[], T]) -> T:
    """Call a function that writes the record, in the writer's thread.

    Raises:
        ServerError: what it raised, in the server's words.
    """
    try:
        return await current(request).recorder.write(call)
    except NotFound as error:
        raise NotFoundError(str(error)) from error
    except Conflict as error:
        raise ConflictError(str(error)) from error


class Form:
    """The fields of a form, as they were sent."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def get(self, name: str, default: str = "") -> str:
        """Return a field, its line ends as in Python."""
        found = [value for key, value in self._pairs if key == name]
        return found[-1].replace("\r\n", "\n") if found else default

    def all(self, name: str) -> list[str]:
        """Return every field of that name, in order."""
        return [value.replace("\r\n", "\n") for key, value in self._pairs if key == name]


async def form_of(request: Request, visitor: Visitor) -> Form:
    """Read a form that one of our pages has sent.

    Raises:
        BadRequest: it is no form.
        TooLarge: it is longer than `MAX_FORM_BYTES`.
        Forbidden: another site has sent it, or it is out of date.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise BadRequest("a form is wanted")
    body = await read_body(request, MAX_FORM_BYTES)
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=2000
        )
    except ValueError as error:
        raise BadRequest("the form is not valid UTF-8 text, or too long") from error
    if any("\0" in part for pair in pairs for part in pair):
        raise BadRequest("the form holds a NUL character")
    form = Form(pairs)
    door_of(request).require_own_form(request, visitor, form.get("token"))
    return form


def render(
    request: Request,
    template: str,
    *,
    visitor: Visitor,
    status: int = 200,
    **values: Any,
) -> Response:
    """Render a page."""
    done = request.query_params.get("done", "")
    page = environment().get_template(template)
    text = page.render(
        visitor=visitor,
        navigation=NAVIGATION,
        path=request.url.path,
        notice=NOTICES.get(done),
        **values,
    )
    return HTMLResponse(text.encode("utf-8", "replace"), status_code=status)


def see_other(path: str, **query: str) -> Response:
    """Send the browser to a page after a form was taken."""
    more = f"?{urlencode(query)}" if query else ""
    return RedirectResponse(path + more, status_code=303)


def _to_sign_in(request: Request) -> Response:
    wanted = request.url.path if request.method == "GET" else CONSOLE
    target = f"{SIGN_IN}?next={quote(wanted)}"
    if request.headers.get("hx-request"):  # a live part: the whole page has to go
        return Response(status_code=204, headers={"HX-Redirect": target})
    return RedirectResponse(target, status_code=303)


def _refused(request: Request, error: ServerError | RequestValidationError) -> Response:
    if isinstance(error, RequestValidationError):
        error = BadRequest(str(error.errors()[0]["msg"]))
    try:
        visitor = visitor_of(request)
    except (SignInNeeded, ServerError):
        visitor = door_of(request).stranger()
    response = render(
        request, "refused.html", visitor=visitor, status=error.status, message=error.message
    )
    response.headers.update(error.headers)
    return response


# --- templates --------------------------------------------------------------------------------


@cache
def environment() -> Environment:
    """The templates. Everything is escaped, and a name that is not there is an error."""
    made = Environment(
        loader=PackageLoader("server.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "moment": moment,
        "ago": ago,
        "iso": lambda at: at.astimezone(UTC).isoformat(timespec="seconds"),
        "share": share,
        "seconds": seconds,
        "count": lambda number: f"{number:,}",
        "brief": brief,
        "pretty": pretty,
        "query": lambda values: urlencode({k: v for k, v in values.items() if v}),
    }
    made.globals |= {"asset": asset, "console": CONSOLE, "charts": charts}
    return made


@cache
def asset(name: str) -> str:
    """The address of a file of `static/`; its content is in it, so that it may be kept for ever."""
    return f"{CONSOLE}/static/{name}?v={hashlib.sha256(static(name)).hexdigest()[:12]}"


@cache
def static(name: str) -> bytes:
    """The content of a file of `static/`.

    Raises:
        NotFoundError: there is none of that name.
    """
    files = {file.name: file for file in resources.files(__package__).joinpath("static").iterdir()}
    if name not in files:
        raise NotFoundError("no such file")
    return files[name].read_bytes()


def moment(at: datetime) -> str:
    """A time for people, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(at: datetime) -> str:
    """How long ago a time was."""
    passed = (now() - at).total_seconds()
    if abs(passed) < 1:
        return "now"
    words = f"{abs(passed):.0f} s" if abs(passed) < 120 else seconds(abs(passed))
    return f"{words} ago" if passed > 0 else f"in {words}"


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def share(value: float | None) -> str:
    """A share as percent."""
    return "" if value is None else f"{value * 100:.0f} %"


def brief(text: Any, length: int = 90) -> str:
    """The beginning of a text, on one line."""
    line = re.sub(r"\s+", " ", text if isinstance(text, str) else json.dumps(text)).strip()
    return line if len(line) <= length else f"{line[: length - 1]}…"


def pretty(value: Any) -> str:
    """A value as JSON for people: a field a line, and of a list of objects one a line."""
    if not isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    lines = [f"  {json.dumps(name)}: {_field(item)}" for name, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _field(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [json.dumps(item, ensure_ascii=False, default=str) for item in value]
        return "[\n    " + ",\n    ".join(items) + "\n  ]"
    return json.dumps(value, ensure_ascii=False, default=str)


def text_of(content: Any) -> str:
    """The text of a message's content, also where it comes in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (p.get("text", "") for p in content if isinstance(p, Mapping))
        return "\n".join(str(part) for part in parts if part)
    return "" if content is None else pretty(content)


def asked_for(messages: list[Json]) -> str:
    """What a request asks for: the last words of its user."""
    said = [m for m in messages if m.get("role") in (None, "user")] or messages
    return text_of(said[-1].get("content")) if said else ""
