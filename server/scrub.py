"""Takes secrets out of everything before it is recorded.

What a secret is and how it is taken out is `ops.redaction`'s business; here is which fields of
which rows are looked at. What is answered to the client is not touched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ops.records import Attempt, Execution, Feedback, Interaction
from ops.redaction import scrub_text, scrub_value
from ops.store import Recording

__all__ = ["scrub_feedback", "scrub_recording", "scrub_text", "scrub_value"]

R = TypeVar("R", Interaction, Attempt, Execution, Feedback)


def _scrub_row(row: R, *names: str) -> R:
    changes = {
        name: after
        for name in names
        if (after := scrub_value(before := getattr(row, name))) is not before
    }
    return replace(row, **changes) if changes else row


def scrub_recording(recording: Recording) -> Recording:
    """Return a recording without secrets."""
    fields = ("messages", "params", "choices", "spec", "user", "metadata")
    return Recording(
        interaction=_scrub_row(recording.interaction, *fields),
        attempts=[_scrub_row(row, "text", "program") for row in recording.attempts],
        executions=[scrub_execution(row) for row in recording.executions],
        feedback=[scrub_feedback(row) for row in recording.feedback],
    )


def scrub_execution(row: Execution) -> Execution:
    """Return an execution without secrets."""
    return _scrub_row(row, "examples", "error_message", "stdout", "stderr")


def scrub_feedback(row: Feedback) -> Feedback:
    """Return feedback without secrets."""
    return _scrub_row(row, "value", "tags", "user")
