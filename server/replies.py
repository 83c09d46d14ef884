"""Answers that stop working when nobody listens any more.

`Reply` runs a handler beside a watch on the connection and cancels it when the client goes away,
which closes the engine's connection and kills sandbox runs. The handler decides late whether it
answers with JSON, an error or an event stream, so an engine that refuses a streamed request still
gets a proper status. Writing waits for slow readers: nothing is queued for them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import ServerError

STUCK_S = 60.0
"""A client that reads nothing for this long is taken to be gone."""
LOOK_S = 10.0
"""How often it is looked whether it has."""


class Exchange:
    """One answer on its way. Either `json` once, or `start`, any `write`s, `finish`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self._typed = False
        self._writing_since: float | None = None

    @property
    def stuck(self) -> bool:
        """Whether the client has read nothing of a stream for `STUCK_S`."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > STUCK_S

    async def json(
        self, body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole JSON answer."""
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        data = text.encode("utf-8", "replace")
        await self._start(
            status, "application/json", {**(headers or {}), "content-length": str(len(data))}
        )
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def error(self, error: ServerError, headers: Mapping[str, str] | None = None) -> None:
        """Send an error in OpenAI's shape."""
        await self.json(
            error.body(), status=error.status, headers={**(headers or {}), **error.headers}
        )

    async def start(self, headers: Mapping[str, str], *, typed: bool = False) -> None:
        """Begin an event stream; `typed` when its events have names."""
        self._typed = typed
        # Proxies that buffer would turn a stream into one late block.
        await self._start(
            200,
            "text/event-stream; charset=utf-8",
            {**headers, "cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def write(self, data: bytes) -> None:
        """Send bytes of a stream; waits while the client reads slowly."""
        # A clock is read, no timer set: this is done for every token.
        self._writing_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._writing_since = None

    async def fail(self, error: ServerError) -> None:
        """End a stream that has begun with an error; no end marker of the stream follows."""
        data = json.dumps(error.body(), separators=(",", ":")).encode()
        name = b"event: error\n" if self._typed else b""
        await self.write(name + b"data: " + data + b"\n\n")
        await self.finish()

    async def finish(self) -> None:
        """End a stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.started = True
        pairs = [(b"content-type", content_type.encode())]
        pairs += [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})


Handler = Callable[[Exchange], Awaitable[None]]


class Reply(Response):
    """An answer made by `handler` for as long as the client is there.

    Args:
        handler: writes the answer. A `ServerError` raised before it has begun is rendered; one
            raised in the middle of a stream becomes a last event `data: {"error": …}`.
        headers: for an error that is raised before the handler has begun to answer.
    """

    def __init__(self, handler: Handler, headers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._handler = handler
        self._error_headers = dict(headers or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI)."""
        exchange = Exchange(send)
        work = asyncio.create_task(self._work(exchange), name="reply")
        gone = asyncio.create_task(_until_gone(receive), name="client")
        try:
            while not (gone.done() or work.done() or exchange.stuck):
                await asyncio.wait(
                    {work, gone}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
            if not work.done():
                scope.setdefault("state", {})["client_gone"] = True
                work.cancel()
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait({work, gone})
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error

    async def _work(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except ServerError as error:
            if not exchange.started:
                await exchange.error(error, self._error_headers)
            else:
                await exchange.fail(error)


async def _until_gone(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
