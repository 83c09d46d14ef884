"""*Try it*: ask for a program under a specification, see it judged, and say what it is worth.

Where there is a script the answer is shown while it is written: the form is sent for an event
stream, the same as a client of the API gets. Without one, or when it is refused, the page comes
whole.

The request goes the way of `POST /v1/chat/completions`, by the same reading, generating and
recording, under the name of who is signed in; so what is said of its answer teaches like any other
feedback. The answer is shown out of the record, where it is found again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from ops.records import Json
from server import chat
from server.auth import CONSOLE
from server.console.base import Form, form_of, new_router, read, render, visitor_of
from server.console.door import Visitor
from server.console.interactions import whole
from server.errors import BadRequest, ServerError
from server.protocol import Envelope, SpecRequest, read_envelope
from server.replies import Exchange, Reply
from server.state import current

router = new_router()

PATH = f"{CONSOLE}/try"
MAX_SECONDS = 300.0
"""A browser waits that long."""
MAX_EXAMPLES = 50
STREAM = "text/event-stream"
SUGGESTED: Json = {
    "prompt": "Write a function that merges overlapping intervals.",
    "types": "(intervals: list[list[int]]) -> list[list[int]]",
    "entry_point": "merge",
    "examples": [
        ("[[[1, 3], [2, 6], [8, 9]]]", "[[1, 6], [8, 9]]", False),
        ("[[]]", "[]", True),
    ],
}


@dataclass(kw_only=True)
class Draft:
    """What stands in the form."""

    prompt: str = ""
    model: str = "code"
    types: str = ""
    entry_point: str = ""
    summary: str = ""
    examples: list[tuple[str, str, bool]] = field(default_factory=list)
    """Arguments and value as JSON, and whether it is hidden."""
    tests: str = ""
    candidates: str = ""
    raw: str = ""
    """A whole `io_spec` as JSON, in place of the fields above."""

    @classmethod
    def of(cls, form: Form) -> Draft:
        """Read the form; nothing is checked yet."""
        hidden = set(form.all("hidden"))
        rows = zip(form.all("input"), form.all("output"), strict=False)
        return cls(
            prompt=form.get("prompt"),
            model=form.get("model", "code"),
            types=form.get("types").strip(),
            entry_point=form.get("entry_point").strip(),
            summary=form.get("summary").strip(),
            examples=[
                (given.strip(), wanted.strip(), str(place) in hidden)
                for place, (given, wanted) in enumerate(rows)
            ][:MAX_EXAMPLES],
            tests=form.get("tests"),
            candidates=form.get("candidates").strip(),
            raw=form.get("raw").strip(),
        )

    def io_spec(self) -> Json | None:
        """The specification; None where the form states none.

        Raises:
            BadRequest: a part is no JSON.
        """
        if self.raw:
            return {**_object(self.raw), **self._options()}
        found: Json = {
            name: value
            for name, value in (
                ("types", self.types),
                ("entry_point", self.entry_point),
                ("summary", self.summary),
            )
            if value
        }
        examples = []
        for number, (given, wanted, hidden) in enumerate(self.examples, 1):
            if given or wanted:
                one: Json = {"input": _json(given, f"example {number}, arguments")}
                if wanted:
                    one["output"] = _json(wanted, f"example {number}, expected value")
                examples.append(one | {"hidden": hidden})
        if examples:
            found["examples"] = examples
        if tests := [line.strip() for line in self.tests.split("\n") if line.strip()]:
            found["tests"] = [{"code": line} for line in tests]
        return {**found, **self._options()} if found else None

    def _options(self) -> Json:
        options: Json = {"max_seconds": MAX_SECONDS}
        if self.candidates:
            if not self.candidates.isdecimal():
                raise BadRequest("candidates: a number is wanted")
            options["candidates"] = int(self.candidates)
        return options


@router.get(PATH)
async def show(request: Request) -> Response:
    """Show the form; with `?id=`, the answer that was given."""
    visitor = visitor_of(request)
    state = current(request)
    interaction_id = request.query_params.get("id", "")
    if not interaction_id:
        return _page(request, visitor, Draft(**SUGGESTED))
    found = await read(lambda: whole(state, interaction_id))
    return _page(request, visitor, _draft_of(found), found=found)


@router.post(PATH)
async def ask(request: Request) -> Response:
    """Ask for a program, or change the form."""
    visitor = visitor_of(request)
    form = await form_of(request, visitor)
    draft = Draft.of(form)
    if form.get("change") == "add":
        draft.examples.append(("", "", False))
        return _page(request, visitor, draft, focus=len(draft.examples) - 1)
    if form.get("change") == "clear":
        return _page(request, visitor, Draft(examples=[("", "", False)]))
    if STREAM in request.headers.get("accept", ""):
        envelope, spec = _asked(request, visitor, draft, stream=True)

        async def write(exchange: Exchange) -> None:
            await chat.answer(request, envelope, spec, exchange)

        return Reply(write)
    try:
        interaction_id = await _answer(request, visitor, draft)
    except ServerError as error:
        return _page(request, visitor, draft, error=error)
    found = await read(lambda: whole(current(request), interaction_id))
    return _page(request, visitor, draft, found=found)  # not a redirect: hidden examples stay


async def _answer(request: Request, visitor: Visitor, draft: Draft) -> str:
    """Ask the server itself, as a client would; return the interaction's id."""
    envelope, spec = _asked(request, visitor, draft)
    call = await chat.answer(request, envelope, spec, Exchange(_nowhere))
    return call.id


def _asked(
    request: Request, visitor: Visitor, draft: Draft, **more: Any
) -> tuple[Envelope, SpecRequest | None]:
    """Read the form as the request that a client would send; the visitor's share pays for it.

    Raises:
        ServerError: it is refused.
    """
    state = current(request)
    if not draft.prompt.strip():
        raise BadRequest("Write what the program should do.", param="prompt")
    body: Json = {
        "model": draft.model,
        "messages": [{"role": "user", "content": draft.prompt}],
        "metadata": {"via": "console"},
        **more,
    }
    if (io_spec := draft.io_spec()) is not None:
        body["io_spec"] = io_spec
    else:
        body["max_tokens"] = state.settings.spec_max_tokens
    envelope = read_envelope(body)
    spec = chat.io_spec(envelope, state)
    visitor.identity.admit()
    state.recorder.require()
    request.state.identity = visitor.identity
    return envelope, spec


async def _nowhere(message: Message) -> None:
    """Send nothing: the page is made of the record."""


def _page(
    request: Request,
    visitor: Visitor,
    draft: Draft,
    *,
    found: dict[str, Any] | None = None,
    error: ServerError | None = None,
    focus: int | None = None,
) -> Response:
    state = current(request)
    base = state.adapters.base
    models = ["code", *(adapter.name for adapter in state.adapters.loaded)]
    return render(
        request,
        "try.html",
        visitor=visitor,
        status=200 if error is None else error.status,
        draft=draft,
        models=[*models, *([base.id] if base is not None else [])],
        found=found,
        error=error,
        focus=focus,
        defaults=state.settings,
    )


def _draft_of(found: dict[str, Any]) -> Draft:
    """The form again as it was asked with, as far as the record tells; hidden examples stay in."""
    row, spec = found["row"], found["spec"]
    shown: Json = spec["visible"] if spec else {}
    plain = (
        set(shown) <= {"types", "entry_point", "summary", "examples"} and not spec["hidden"]
        if spec
        else True
    )
    prompt = found["messages"][-1][1] if found["messages"] else ""
    if not plain:
        return Draft(
            prompt=prompt, model=row.model, raw=json.dumps(shown, ensure_ascii=False, indent=1)
        )
    return Draft(
        prompt=prompt,
        model=row.model,
        types=shown.get("types") or "",
        entry_point=shown.get("entry_point") or "",
        summary=shown.get("summary") or "",
        examples=[
            (
                json.dumps(one.get("input"), ensure_ascii=False),
                json.dumps(one["output"], ensure_ascii=False) if "output" in one else "",
                False,
            )
            for one in shown.get("examples") or ()
        ],
    )


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{place}: this is no JSON ({error})") from error


def _object(text: str) -> Json:
    found = _json(text, "io_spec")
    if not isinstance(found, dict):
        raise BadRequest("io_spec: an object is wanted")
    return found
