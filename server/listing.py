"""Pages of OpenAI's lists: what comes after an id, at most so many, and whether there is more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query

Json = dict[str, Any]

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100, description="the last id of the page before")]


def page(rows: Sequence[Json], limit: int, after: str | None) -> Json:
    """Cut a page out of all rows; an unknown `after` begins at the front."""
    start = next((i + 1 for i, row in enumerate(rows) if row["id"] == after), 0)
    return listed(rows[start : start + limit], has_more=len(rows) > start + limit)


def listed(data: Sequence[Json], *, has_more: bool) -> Json:
    """Return a page that is cut already, as OpenAI writes it."""
    return {
        "object": "list",
        "data": list(data),
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
