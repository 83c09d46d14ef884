"""What a request may cost: bytes of body, places in flight, shares per minute.

Refusals happen as early as they can: an oversize body is refused by its stated length before a
byte is read, one request too many before its body is parsed.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

from starlette.requests import Request

from ops import metrics
from server.errors import BadRequest, Overloaded, TooLarge, UsersFirst

_NUL = rb"\u0000"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


QUIET_S = 30.0
"""Nobody is about when nobody has asked for so long."""
WAIT_S = 60.0
"""The longest that a request waits behind others before it is told to come again."""


class Gate:
    """Counts requests in flight, refuses one more than `places`, and lets users go first.

    Args:
        places: the most requests in flight.
        behind: how many that go behind others (`behind`) run at once while somebody is about.
        quiet_s: how long nobody must have asked before all of them run.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        places: int,
        *,
        behind: int = 1,
        quiet_s: float = QUIET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.places = places
        self.in_flight = 0
        self.places_behind = behind
        self.waiting = 0
        """Requests that go behind others and have not begun."""
        self._quiet_s = quiet_s
        self._clock = clock
        self._behind = 0
        self._running_behind = 0
        self._asked_at = float("-inf")
        self._changed = asyncio.Event()

    def enter(self) -> None:
        """Take a place; `leave` gives it back.

        Raises:
            Overloaded: there is none.
        """
        if self.in_flight >= self.places:
            raise Overloaded(f"{self.places} requests are being answered; try again in a moment")
        self.in_flight += 1

    def leave(self, *, behind: bool = False) -> None:
        """Give the place back.

        Args:
            behind: it went behind others: nobody was waiting for it.
        """
        self.in_flight -= 1
        if not behind:
            self._asked_at = self._clock()

    @asynccontextmanager
    async def behind(self) -> AsyncIterator[None]:
        """Run the block of a request that is in flight behind those of users.

        While somebody is about, only a few such run at once and the others wait; so a cycle that
        samples neither stops nor fills the engine's batch before users come.

        Raises:
            UsersFirst: it has waited for `WAIT_S`, longer than which many clients would not.
        """
        self._behind += 1
        self._wait(1)
        give_up = self._clock() + WAIT_S
        try:
            while (again_s := self._wait_s()) is not None:
                left_s = give_up - self._clock()
                if left_s <= 0:
                    metrics.requests_sent_away_total.inc()
                    raise UsersFirst("others are being answered first; try again in a moment")
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min(again_s, left_s))
            self._run(1)
        except BaseException:
            self._behind -= 1
            raise
        finally:
            self._wait(-1)
        try:
            yield
        finally:
            self._behind -= 1
            self._run(-1)
            self._changed.set()

    def _wait(self, more: int) -> None:
        self.waiting += more
        metrics.requests_behind.labels("waiting").inc(more)

    def _run(self, more: int) -> None:
        self._running_behind += more
        metrics.requests_behind.labels("running").inc(more)

    def _wait_s(self) -> float | None:
        """How long to wait before asking again; None: it may run now."""
        if self._running_behind < self.places_behind:
            return None
        if self.in_flight > self._behind:
            return self._quiet_s
        left_s = self._asked_at + self._quiet_s - self._clock()
        return left_s if left_s > 0 else None


class Bucket:
    """A share per minute that refills steadily; it may be overdrawn, and is then empty for longer.

    Args:
        per_minute: how much flows in, and how much it holds.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()
        self._unsettled = 0.0

    @property
    def level(self) -> float:
        """What is left now; negative when overdrawn."""
        at = self._clock()
        self._level = min(self.per_minute, self._level + (at - self._at) * self.per_minute / 60)
        self._at = at
        return self._level

    def wait_s(self, amount: float = 1.0) -> float:
        """Seconds until `amount` is there; 0 when it is."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Take out, also more than there is."""
        self._level = self.level - amount
        self._unsettled += amount

    def unsettled(self) -> float:
        """Return what was taken since the last call, for those who share the bucket."""
        taken, self._unsettled = self._unsettled, 0.0
        return taken

    def settle(self, level: float) -> None:
        """Take over what all who share it have left, less what was taken since `unsettled`."""
        self._level = level - self._unsettled
        self._at = self._clock()

    def unsettle(self, amount: float) -> None:
        """Say that what `unsettled` returned could not be told to the others."""
        self._unsettled += amount


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
        if _NUL in data and _holds_nul(body):
            raise BadRequest("the body holds a NUL character", code="invalid_json")
    except UnicodeError as error:
        raise BadRequest("the body is not valid UTF-8 text", code="invalid_json") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return body


def _holds_nul(value: Any) -> bool:
    """Whether a text in it holds NUL, which not every database can keep."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_holds_nul, value))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
