"""The feedback log: one place where every kind of feedback is checked, given its target and kept.

`/v1/feedback`, the events of IDEs and OpenAI's metadata updates all end here as the same typed
rows. Feedback on an answer that is still on its way is taken at once: it is durable when the call
returns, and the interaction takes it up in the transaction that records it. Feedback on what was
never recorded is a 404.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ops import metrics
from ops.errors import NotFound
from ops.records import Feedback, FeedbackSource, new_feedback, now
from ops.store import Recording
from server.auth import Identity
from server.calls import bare_id
from server.errors import BadRequest, NotFoundError
from server.protocol import METRIC_TYPES, FeedbackIn, validated
from server.state import State


def checked(item: Any, place: str) -> FeedbackIn:
    """Check one piece by its shape and by what its metric takes.

    Raises:
        BadRequest: with `param` naming the field under `place`.
    """

    def wrong(name: str, message: str) -> BadRequest:
        return BadRequest(message, param=f"{place}.{name}" if place else name)

    given = validated(FeedbackIn, item, place)
    if (given.inference_id is None) == (given.episode_id is None):
        raise wrong("inference_id", "exactly one of inference_id and episode_id is needed")
    problem = value_problem(given.metric_name, given.value)
    if problem is not None:
        raise wrong("value", problem)
    if given.metric_name == "demonstration" and given.inference_id is None:
        raise wrong("inference_id", "a demonstration belongs to one answer: inference_id is needed")
    return given


def value_problem(metric: str, value: Any) -> str | None:
    """Say what is wrong with a value for a metric; None where nothing is."""
    kinds = METRIC_TYPES.get(metric, (bool, int, float))
    if type(value) not in kinds:
        return f"{metric} takes {_words(kinds)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "the value must be finite"
    if isinstance(value, str) and not value.strip():
        return f"{metric} must not be empty"
    return None


def _words(kinds: tuple[type, ...]) -> str:
    names = {bool: "a boolean", int: "", float: "a number", str: "a string"}
    return " or ".join(filter(None, (names[kind] for kind in kinds)))


async def keep(
    state: State,
    identity: Identity,
    given: Sequence[FeedbackIn],
    places: Sequence[str],
    *,
    about: Recording | None = None,
) -> list[str]:
    """Keep pieces of feedback, all or none, and return their ids, in order.

    Args:
        state: the server's.
        identity: who gives them.
        given: what `checked` returned.
        places: where each stands in the request, for messages.
        about: an interaction that a client reports, written before the feedback on it.

    Raises:
        NotFoundError: there is no such interaction or episode for who asks.
        BadRequest: the answer has fewer choices.
        RecordUnavailable: nothing was written.
    """
    rows = [_row(item) for item in given]

    scrub = state.recorder.scrubber

    def write() -> list[str]:
        if about is not None:
            state.store.add([scrub.recording(about)])
        ahead = {
            str(row.interaction_id)
            for row, place in zip(rows, places, strict=True)
            if not _find_target(state, identity, row, place)
        }
        state.recorder.expect(ahead)
        real = [row for row, item in zip(rows, given, strict=True) if not item.dryrun]
        ids = iter(state.store.put_feedback([scrub.feedback(row) for row in real], ahead=ahead))
        return [row.id if item.dryrun else next(ids) for row, item in zip(rows, given, strict=True)]

    try:
        ids = await state.recorder.write(write)
    except NotFound as error:
        param = "episode_id" if "episode" in str(error) else "inference_id"
        raise NotFoundError(str(error), param=param) from error
    for item in given:
        if not item.dryrun:
            name = item.metric_name if item.metric_name in METRIC_TYPES else "other"
            metrics.feedback_total.labels(name, item.source).inc()
    return ids


def _row(item: FeedbackIn) -> Feedback:
    return new_feedback(
        item.metric_name,
        float(item.value) if type(item.value) is int else item.value,
        FeedbackSource(item.source),
        interaction_id=bare_id(item.inference_id) if item.inference_id is not None else None,
        episode_id=item.episode_id,
        choice_index=item.choice_index,
        identifier=item.identifier,
        user=item.user,
        tags=item.tags,
    )


def _find_target(state: State, identity: Identity, row: Feedback, place: str) -> bool:
    """Look for what feedback is about; False where that is an answer still on its way.

    Runs in the writer thread. An answer leaves the list of those on their way only after it was
    recorded by this same thread, so looking into the record first misses none.

    Raises:
        NotFound: there is no such interaction or episode for who asks.
        BadRequest: the answer has fewer choices.
    """
    if row.interaction_id is None:
        require_theirs(state, identity, row)
        return True
    missing = NotFound(f"no interaction {row.interaction_id}")
    try:
        interaction = state.store.interaction(row.interaction_id)
        tenant, choices = interaction.tenant, len(interaction.choices)
    except NotFound:
        issued = state.recorder.issued(row.interaction_id)
        if issued is None:
            raise missing from None
        interaction, tenant, choices = None, issued.tenant, issued.choices
    if not identity.is_admin and tenant != identity.tenant:
        raise missing
    if row.choice_index >= max(choices, 1):
        raise BadRequest(
            f"the answer has {choices} choices",
            param=f"{place}.choice_index" if place else "choice_index",
        )
    return interaction is not None


def require_theirs(state: State, identity: Identity, row: Feedback) -> None:
    """Refuse feedback that is about what belongs to others.

    Raises:
        NotFound: there is no such thing for who asks.
    """
    if identity.is_admin:
        return
    if row.interaction_id is not None:
        tenants = {state.store.interaction(row.interaction_id).tenant}
    elif row.episode_id is not None:
        tenants = state.store.episode_tenants(row.episode_id)
    else:  # its answer never came to its end, so nobody can say any more whose it was
        raise NotFound("no such feedback")
    if tenants and tenants != {identity.tenant}:
        raise NotFound(f"no episode {row.episode_id}" if row.episode_id else "no such feedback")


METADATA_IDENTIFIER = "openai:metadata"
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def from_metadata(state: State, interaction_id: str, metadata: dict[str, str]) -> None:
    """Make the metadata of an answer agree with the log: `accepted`, `rating` and the like.

    Keys that are no metrics of ours, and values that are none of their metric's, stay mere
    metadata. A key that is gone takes its feedback back. Runs in the writer thread.
    """
    at = now()
    stated = {name: _read(name, text) for name, text in metadata.items() if name in METRIC_TYPES}
    rows = [
        new_feedback(
            name,
            value,
            FeedbackSource.HUMAN,
            interaction_id=interaction_id,
            at=at,
            identifier=METADATA_IDENTIFIER,
        )
        for name, value in stated.items()
        if value is not None and value_problem(name, value) is None
    ]
    for old in state.store.feedback(interaction_id):
        if old.identifier == METADATA_IDENTIFIER and old.metric not in {r.metric for r in rows}:
            state.store.delete_feedback(old.id)
    state.store.put_feedback([state.recorder.scrubber.feedback(row) for row in rows])
    for row in rows:
        metrics.feedback_total.labels(row.metric, row.source.value).inc()


def _read(metric: str, text: str) -> bool | float | str | None:
    kinds = METRIC_TYPES[metric]
    if bool in kinds:
        return _BOOLEANS.get(text.strip().lower())
    if float in kinds:
        try:
            return float(text)
        except ValueError:
            return None
    return text


def changed(row: Feedback, *, value: Any, tags: dict[str, str] | None) -> Feedback:
    """A piece of feedback with another value or other tags.

    Raises:
        BadRequest: the value is none of its metric's.
    """
    if value is not None and (problem := value_problem(row.metric, value)) is not None:
        raise BadRequest(problem, param="value")
    return replace(
        row,
        value=row.value if value is None else float(value) if type(value) is int else value,
        tags=row.tags if tags is None else tags,
        updated_at=now(),
    )
