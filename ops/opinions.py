"""Feedback from the command line: `journeyman feedback add`, said through the running server.

The server checks it, takes secrets out and keeps it, as it does with anybody's; nothing is written
to the record here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from ops.errors import FeedbackError
from ops.records import Json, Metric

TIMEOUT_S = 30.0


def read(
    *,
    accepted: bool | None = None,
    rating: float | None = None,
    comment: str | None = None,
    demonstration: Path | None = None,
) -> dict[Metric, bool | float | str]:
    """Return what was said, by its metric.

    Raises:
        FeedbackError: nothing was said, or the file cannot be read.
    """
    said: dict[Metric, bool | float | str] = {}
    if accepted is not None:
        said[Metric.ACCEPTED] = accepted
    if rating is not None:
        said[Metric.RATING] = rating
    if comment is not None:
        said[Metric.COMMENT] = comment
    if demonstration is not None:
        try:
            said[Metric.DEMONSTRATION] = demonstration.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FeedbackError(f"cannot read {demonstration}: {error}") from error
    if not said:
        raise FeedbackError(
            "nothing is said: give --accepted, --rejected, --rating, --comment or --demonstration"
        )
    return said


def send(
    url: str,
    interaction_id: str,
    said: dict[Metric, bool | float | str],
    *,
    key: str | None,
    user: str | None,
) -> list[Json]:
    """Send each piece to the server; return its id, metric and value.

    Args:
        url: of the server, without `/v1`.
        interaction_id: what it is about.
        said: by metric.
        key: an API key with the scope `feedback`.
        user: who says so.

    Raises:
        FeedbackError: no server answers there, or it refuses; pieces before are kept.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    rows: list[Json] = []
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        for metric, value in said.items():
            body = {"inference_id": interaction_id, "metric_name": metric, "value": value}
            answer = _post(client, body if user is None else body | {"user": user})
            rows.append({"id": answer.get("feedback_id"), "metric": str(metric), "value": value})
    return rows


def _post(client: httpx.Client, body: Json) -> dict[str, Any]:
    try:
        response = client.post("/v1/feedback", json=body)
        answer = response.json()
    except httpx.HTTPError as error:
        raise FeedbackError(
            f"no server answers at {client.base_url}: {error}; `journeyman up` starts one"
        ) from error
    except ValueError as error:
        raise FeedbackError(f"what answers at {client.base_url} is no Journeyman") from error
    if not isinstance(answer, dict) or response.is_error:
        said = answer.get("error", {}) if isinstance(answer, dict) else {}
        message = said.get("message") if isinstance(said, dict) else None
        raise FeedbackError(f"the server refuses: {message or f'status {response.status_code}'}")
    return answer
