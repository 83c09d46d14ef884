"""Takes secrets and personal data out of everything that is recorded.

What they are is found by `credentials` and `personal`. A secret becomes
`[redacted:<kind>:<8 hex digits>]`, the same secret always the same text. A piece of personal data
becomes `[redacted:<kind>:<number>]`, numbered within one row: a digest of a telephone number could
be undone by trying them all. What is answered to the client is not touched. The name by which a
client knows its user (`user`) stays, but for secrets: the user's data is erased by it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from ops import metrics
from ops.credentials import find_credentials
from ops.personal import find_personal
from ops.records import Attempt, Execution, Feedback, Interaction, PersonalKind
from ops.spans import Span
from ops.store import Recording

R = TypeVar("R", Interaction, Attempt, Execution, Feedback)
Numbers = dict[str, int]
"""The pieces of personal data of one row, in the order in which they were met."""

_MARK = re.compile(r"\[redacted:\w+:[0-9a-f]{1,8}\]")


class Scrubber:
    """Takes out what should not be recorded.

    Args:
        personal: the kinds of personal data to take out; secrets always are.
        phone_region: two letters of the country whose telephone numbers are known without `+`.
    """

    def __init__(
        self, personal: Collection[PersonalKind] = tuple(PersonalKind), phone_region: str = "US"
    ) -> None:
        self._personal = frozenset(personal)
        self._region = phone_region

    def text(self, text: str) -> str:
        """Return a text without what should not be recorded; each piece taken out is counted.

        What no database keeps (NUL, halves of surrogate pairs, as a model may write them) is
        replaced.
        """
        return self._text(text, {})

    def value(self, value: Any) -> Any:
        """Return a JSON value whose texts are scrubbed; what is clean is not copied."""
        return self._value(value, {})

    def recording(self, recording: Recording) -> Recording:
        """Return a recording as it may be kept."""
        numbers: Numbers = {}
        fields = ("messages", "params", "choices", "spec", "metadata")
        interaction = self._row(recording.interaction, numbers, *fields)
        if interaction.user is not None:
            interaction = replace(interaction, user=scrub_secrets(interaction.user))
        return Recording(
            interaction=interaction,
            attempts=[self._row(row, numbers, "text", "program") for row in recording.attempts],
            executions=[self.execution(row, numbers) for row in recording.executions],
            feedback=[self.feedback(row, numbers) for row in recording.feedback],
        )

    def execution(self, row: Execution, numbers: Numbers | None = None) -> Execution:
        """Return an execution as it may be kept."""
        found = {} if numbers is None else numbers
        return self._row(row, found, "examples", "error_message", "stdout", "stderr")

    def feedback(self, row: Feedback, numbers: Numbers | None = None) -> Feedback:
        """Return feedback as it may be kept."""
        row = self._row(row, {} if numbers is None else numbers, "value", "tags")
        return row if row.user is None else replace(row, user=scrub_secrets(row.user))

    def _row(self, row: R, numbers: Numbers, *names: str) -> R:
        changes = {
            name: after
            for name in names
            if (after := self._value(before := getattr(row, name), numbers)) is not before
        }
        return replace(row, **changes) if changes else row

    def _value(self, value: Any, numbers: Numbers) -> Any:
        if isinstance(value, str):
            return self._text(value, numbers)
        if isinstance(value, list):
            items = [self._value(item, numbers) for item in value]
            return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
        if isinstance(value, dict):
            pairs = {
                self._text(str(key), numbers): self._value(item, numbers)
                for key, item in value.items()
            }
            same = len(pairs) == len(value) and all(pairs.get(k) is v for k, v in value.items())
            return value if same else pairs
        return value

    def _text(self, text: str, numbers: Numbers) -> str:
        text = _storable(text)
        if len(text) < LEAST_CHARS:
            return text
        found = list(find_credentials(text))
        if self._personal:
            found += find_personal(text, self._personal, phone_region=self._region)
        return _without(text, found, numbers) if found else text


LEAST_CHARS = 6
"""No secret and no piece of personal data is shorter."""


def scrub_secrets(text: str) -> str:
    """Return a text without secrets; personal data stays."""
    text = _storable(text)
    return _without(text, list(find_credentials(text)), {})


def secrets_in(text: str) -> list[str]:
    """Return the kinds of secrets that a text holds, in their order.

    The mark of anything that was taken out before counts as `redacted`.
    """
    kinds = [kind for _, _, kind in _apart(text, list(find_credentials(text)))]
    return kinds + ["redacted"] * len(_MARK.findall(text))


def _storable(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _apart(text: str, found: list[Span]) -> Iterator[Span]:
    """The pieces in their order: of those that overlap the first and longest, of marks none."""
    if not found:
        return
    taken = 0
    marks = [(*match.span(), "") for match in _MARK.finditer(text)]
    for start, end, kind in sorted([*marks, *found], key=lambda span: (span[0], -span[1])):
        if start < taken:
            continue
        if kind:
            yield start, end, kind
        taken = end


def _without(text: str, found: list[Span], numbers: Numbers) -> str:
    parts, done = [], 0
    for start, end, kind in _apart(text, found):
        parts += [text[done:start], _mark(kind, text[start:end], numbers)]
        done = end
    return "".join([*parts, text[done:]])


def _mark(kind: str, piece: str, numbers: Numbers) -> str:
    metrics.scrubbed_total.labels(kind).inc()
    if kind in _PERSONAL:
        return f"[redacted:{kind}:{numbers.setdefault(piece, len(numbers) + 1)}]"
    digest = hashlib.sha256(piece.encode("utf-8", "surrogatepass")).hexdigest()
    return f"[redacted:{kind}:{digest[:8]}]"


_PERSONAL = frozenset(kind.value for kind in PersonalKind)
