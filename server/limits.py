"""What a request may cost before it is looked at: bytes of body, places in flight.

Refusals happen as early as they can: an oversize body is refused by its stated length before a
byte is read, one request too many before its body is parsed.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from starlette.requests import Request

from server.errors import BadRequest, Overloaded, TooLarge

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Gate:
    """Counts requests in flight and refuses one more than `places`."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.in_flight = 0

    def enter(self) -> None:
        """Take a place; `leave` gives it back.

        Raises:
            Overloaded: there is none.
        """
        if self.in_flight >= self.places:
            raise Overloaded(f"{self.places} requests are being answered; try again in a moment")
        self.in_flight += 1

    def leave(self) -> None:
        """Give the place back."""
        self.in_flight -= 1


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Read the body of a request.

    Raises:
        TooLarge: it is longer than `limit_bytes`; at most that much was read.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit_bytes:
        raise TooLarge(f"the body has {stated} bytes; at most {limit_bytes} are taken")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit_bytes:
            raise TooLarge(f"the body has more than {limit_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, limit_bytes: int) -> dict[str, Any]:
    """Read the body of a request as a JSON object.

    Raises:
        TooLarge: it is longer than `limit_bytes`.
        BadRequest: it is no JSON object, or holds what cannot be stored as text.
    """
    data = await read_body(request, limit_bytes)
    try:
        body = json.loads(data, parse_constant=_no_constant)
        if _SURROGATE.search(data):
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise BadRequest("the body is not valid UTF-8 text", code="invalid_json") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return body


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
