"""Spans: pieces of a text by their places, and the windows around what may hold one."""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int, str]
"""Start, end and kind of a piece of text."""


def windows(text: str, clue: re.Pattern[str], before: int, after: int) -> Iterator[tuple[int, int]]:
    """Yield the places around all matches of a clue, none of them overlapping another.

    Args:
        text: where to look.
        clue: what is quick to find, and stands wherever something may be.
        before: characters in front of a match that belong to its window.
        after: characters behind it.
    """
    start, end = -1, 0
    for match in clue.finditer(text):
        if start >= 0 and match.start() - before > end:
            yield start, end
            start = -1
        if start < 0:
            start = max(0, match.start() - before)
        end = match.end() + after
    if start >= 0:
        yield start, min(end, len(text))
