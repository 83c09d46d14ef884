"""*Interactions*: search the record; one of them with candidates, verdicts, feedback and pupils.

What `server.interactions` keeps inside is not shown here either: expected values and messages of
hidden examples.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ops.records import Execution, Feedback, Interaction, Json, Metric, Source
from sandbox.errors import SpecError
from sandbox.spec import parse_spec
from server.auth import CONSOLE
from server.calls import bare_id
from server.console.base import (
    Form,
    asked_for,
    form_of,
    new_router,
    read,
    render,
    see_other,
    text_of,
    visitor_of,
)
from server.console.door import Visitor
from server.errors import BadRequest
from server.feedback_log import checked, keep
from server.interactions import execution_out
from server.state import State, current

router = new_router()

PATH = f"{CONSOLE}/interactions"
LISTED = 25
MAX_QUERY_CHARS = 200
VERDICTS = {"verified": True, "failed": False}
FEEDBACK = tuple(metric.value for metric in Metric)


@router.get(PATH)
async def show_all(request: Request) -> Response:
    """Search the record, newest first."""
    visitor = visitor_of(request)
    state = current(request)
    asked = {
        # PostgreSQL takes no NUL in a text.
        name: request.query_params.get(name, "").replace("\0", "").strip()[:MAX_QUERY_CHARS]
        for name in ("q", "verdict", "source", "feedback", "version", "before")
    }
    wanted = _filters(asked)
    rows = await read(
        lambda: state.store.interactions(limit=LISTED + 1, before=asked["before"] or None, **wanted)
    )
    return render(
        request,
        "interactions.html",
        visitor=visitor,
        asked=asked,
        rows=[(row, asked_for(row.messages)) for row in rows[:LISTED]],
        more=len(rows) > LISTED,
        sources=[source.value for source in Source],
        metrics=FEEDBACK,
    )


@router.get(f"{PATH}/{{interaction_id}}")
async def show_one(request: Request, interaction_id: str) -> Response:
    """Show an interaction with all that belongs to it."""
    visitor = visitor_of(request)
    state = current(request)
    found = await read(lambda: whole(state, bare_id(interaction_id)))
    return render(request, "interaction.html", visitor=visitor, **found)


@router.post(f"{PATH}/{{interaction_id}}/feedback")
async def say(request: Request, interaction_id: str) -> Response:
    """Keep what was said of an answer."""
    visitor = visitor_of(request)
    state = current(request)
    form = await form_of(request, visitor)
    bare = bare_id(interaction_id)
    given = checked(_feedback(form, bare, visitor), "")
    await keep(state, visitor.identity, [given], [""])
    if form.get("back") == "try":
        return see_other(f"{CONSOLE}/try", id=bare, done="feedback")
    return see_other(f"{PATH}/{bare}", done="feedback")


def _feedback(form: Form, interaction_id: str, visitor: Visitor) -> Json:
    """A form of feedback in the shape of `POST /v1/feedback`; saying it again overwrites."""
    metric, text = form.get("metric"), form.get("value")
    value: bool | float | str = text
    if metric == Metric.ACCEPTED:
        value = text == "true"
    elif metric == Metric.RATING:
        try:
            value = float(text)
        except ValueError as error:
            raise BadRequest("a rating is a number", param="value") from error
    elif metric not in (Metric.COMMENT, Metric.DEMONSTRATION):
        raise BadRequest("accepted, rating, comment or demonstration can be said here")
    return {
        "inference_id": interaction_id,
        "metric_name": metric,
        "value": value,
        "identifier": f"console:{visitor.identity.name}",
        "tags": {"via": "console"},
    }


def _filters(asked: dict[str, str]) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    if asked["q"]:
        wanted["text"] = asked["q"]
    if asked["verdict"] in VERDICTS:
        wanted["verified"] = VERDICTS[asked["verdict"]]
    if asked["source"] in [source.value for source in Source]:
        wanted["source"] = Source(asked["source"])
    if asked["feedback"] in FEEDBACK:
        wanted["with_feedback"] = asked["feedback"]
    version = asked["version"].removeprefix("code@").removeprefix("v")
    if version.isdecimal() and len(version) <= 9:
        wanted["adapter_version"] = int(version)
    return wanted


def whole(state: State, interaction_id: str) -> dict[str, Any]:
    """Return an interaction as its page shows it.

    Raises:
        NotFound: there is none of that id.
    """
    store = state.store
    row = store.interaction(interaction_id)
    runs = store.executions(interaction_id, reported=True)
    attempts = store.attempts(interaction_id)
    by_attempt = {run.attempt_id: _run(run) for run in runs if run.attempt_id}
    by_program = {run.program_sha256: _run(run) for run in runs if run.attempt_id}
    return {
        "row": row,
        "messages": [(m.get("role", "user"), text_of(m.get("content"))) for m in row.messages],
        "answer": _answer(row),
        "spec": _spec(row),
        # Equal programs ran once.
        "attempts": sorted(
            (
                (
                    attempt,
                    by_attempt.get(attempt.id) or by_program.get(attempt.program_sha256 or ""),
                )
                for attempt in attempts
            ),
            key=lambda pair: (pair[0].choice_index is None, pair[0].choice_index or 0, pair[0].id),
        ),
        "reports": [_run(run) for run in runs if not run.attempt_id],
        "verification": (row.choices[0].get("verification") if row.choices else None) or None,
        "feedback": [(one, _words(one)) for one in store.feedback(interaction_id)],
        "episode": store.episode_feedback(row.episode_id) if row.episode_id else [],
        "made": store.rows_made_of(interaction_id),
        "pupils": store.adapters_taught_by(interaction_id),
    }


def _run(run: Execution) -> Json:
    return execution_out(run)


def _words(row: Feedback) -> str:
    if isinstance(row.value, bool):
        return "yes" if row.value else "no"
    return str(row.value)


def _answer(row: Interaction) -> str:
    if not row.choices:
        return ""
    message = row.choices[0].get("message")
    content = message.get("content") if isinstance(message, dict) else row.choices[0].get("text")
    return text_of(content if content is not None else row.choices[0])


def _spec(row: Interaction) -> Json | None:
    """The visible part of the specification, and how much of it is hidden."""
    if row.spec is None:
        return None
    try:
        spec = parse_spec(row.spec)
        shown = spec.visible()
    except SpecError:
        return None  # written by another version: better nothing than hidden values
    return {"visible": shown.to_json(), "hidden": spec.check_count - shown.check_count}
