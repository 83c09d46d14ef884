"""Windows around what may hold something."""

from __future__ import annotations

import re

import pytest

from ops.spans import windows

CLUE = re.compile("x+")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("....", []),
        ("x", [(0, 1)]),
        ("...xx...", [(1, 6)]),
        ("x.....x", [(0, 2), (4, 7)]),
        ("x..x", [(0, 4)]),
        ("..x.x..x", [(0, 8)]),
    ],
)
def test_windows_lie_around_what_was_found_and_apart(
    text: str, found: list[tuple[int, int]]
) -> None:
    assert list(windows(text, CLUE, 2, 1)) == found
