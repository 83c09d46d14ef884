"""Replicas: the engines behind the server, and which of them answers a request.

A request goes to a replica that has proved the model it names (`Replica.models`, kept by
`server.rollout`), to the one that has answered the same conversation before while it is not much
busier than the least busy one, so that the prefix cache serves it again (rendezvous hashing). Where
that one fails before a byte of the answer has left the server, another one is asked: any number of
times while nothing was asked of the failed one, once when it may have been at work already, never
after a timeout. What a replica shall serve is not decided here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ops import metrics
from server.engine import Engine, Model
from server.errors import EngineLost, EngineRefusal, EngineTimeout, EngineUnavailable, EngineUntold
from server.traffic import beginning

log = logging.getLogger(__name__)

Json = dict[str, Any]
T = TypeVar("T")

BY_NAME = "dns+"
"""Before a URL: every address of its host is a replica."""
LOOK_UP_S = 10.0
"""Seconds between two looks at a name's addresses."""
AHEAD = 4
"""So many more requests than the least busy one a replica may have and keep its conversations."""


class Role(StrEnum):
    """What an engine is there for."""

    ADAPTERS = "adapters"
    """The base model and the adapters that are loaded into it."""
    MERGED = "merged"
    """One version, merged with its base; asked first for what it serves."""


class Replica:
    """One engine, what it may be asked for, and how busy it is.

    Args:
        engine: the engine, entered.
        role: what it is there for.
    """

    def __init__(self, engine: Engine, role: Role = Role.ADAPTERS) -> None:
        self.engine = engine
        self.role = role
        self.name = engine.url.partition("://")[2]
        self.models: set[str] = set()
        """The model names that were proved here and may be asked for."""
        self.base: Model | None = None
        self.in_flight = 0
        self.down: str | None = "the engine has not answered yet"
        """Why it cannot be asked."""
        self.barred = False
        """It answers, but serves something else: it is never asked, also where no other is up."""
        self.current = False
        """It has been brought to what the registry wants since it was last down."""
        self.leaving = False
        """It finishes what it does and gets nothing new."""
        self._gauge = metrics.replica_in_flight.labels(self.name)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request while the block runs."""
        self.in_flight += 1
        self._gauge.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self._gauge.set(self.in_flight)

    def lost(self, reason: str) -> None:
        """Take it out of the traffic until it has been looked at again."""
        self.down = reason
        self.current = False
        metrics.replica_up.labels(self.name).set(0)


class Replicas:
    """All engines. Enter it before use; `run` follows names whose addresses change.

    Speaks to the one it chooses as `Engine` does (`post`, `stream`).

    Args:
        urls: base URLs without `/v1`; one that begins with `dns+` stands for all addresses of its
            host.
        timeout_s: longest wait for a whole answer, or between two chunks of a stream.
    """

    def __init__(self, urls: Sequence[str], *, timeout_s: float) -> None:
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._timeout_s = timeout_s
        self._all: list[Replica] = []
        self._open = False
        self._stopping = False
        self._again = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when a replica came, left, failed or had lost something."""
        self.on_failure: Callable[[str, Json, str, Exception], None] = lambda *request: None
        """Called with path, body, id and error of a request that could not be answered."""

    async def __aenter__(self) -> Replicas:
        self._open = True
        await self._follow()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._open = False
        for replica in self._all:
            await replica.engine.__aexit__()
        self._all.clear()

    # --- which there are --------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Replica]:
        """The replicas that stay, in the order of the settings."""
        return iter([replica for replica in self._all if not replica.leaving])

    def of(self, role: Role) -> list[Replica]:
        """The replicas of a role that stay."""
        return [replica for replica in self if replica.role is role]

    def know(self, model: str) -> bool:
        """Whether a model was proved on one of them, and not lost since."""
        return any(model in replica.models and not replica.barred for replica in self)

    async def join(self, url: str, role: Role = Role.ADAPTERS) -> Replica:
        """Add an engine; it is asked nothing before something was proved of it."""
        replica = Replica(await Engine(url, timeout_s=self._timeout_s).__aenter__(), role)
        self._all.append(replica)
        self.on_change()
        return replica

    async def leave(self, replica: Replica) -> None:
        """Give an engine nothing new, and let go of it when its last request has ended."""
        replica.leaving = True
        self.on_change()
        await self._let_go()

    def change(self, urls: Sequence[str]) -> None:
        """Have other engines from now on; those that are no more among them are drained."""
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._again.set()

    async def run(self) -> None:
        """Follow the URLs until `stop`."""
        while not self._stopping:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), LOOK_UP_S)
            self._again.clear()
            if not self._stopping:
                await self._follow()

    def stop(self) -> None:
        """End `run`."""
        self._stopping = True
        self._again.set()

    async def _follow(self) -> None:
        wanted: list[str] = []
        for url in self._urls:
            wanted += await self._addresses(url) if url.startswith(BY_NAME) else [url]
        mine = {r.engine.url: r for r in self._all if r.role is Role.ADAPTERS and not r.leaving}
        for url in dict.fromkeys(wanted):
            if url not in mine:
                joined = await self.join(url)
                log.info("replica %s", joined.name, extra={"action": "replica_joins"})
        for url, replica in mine.items():
            if url not in wanted:
                log.info("replica %s leaves", replica.name, extra={"action": "replica_leaves"})
                await self.leave(replica)
        await self._let_go()

    async def _addresses(self, url: str) -> list[str]:
        """The URLs of all addresses of a host; those known already where it cannot be asked."""
        parts = urlsplit(url.removeprefix(BY_NAME))
        host, port = parts.hostname or "", parts.port or 80
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            log.warning("%s has no address: %s", host, error, extra={"action": "replica_names"})
            return [r.engine.url for r in self if r.role is Role.ADAPTERS]
        hosts = sorted({str(address[0]) for *_, address in found})
        return [f"http://[{h}]:{port}" if ":" in h else f"http://{h}:{port}" for h in hosts]

    async def _let_go(self) -> None:
        for replica in [r for r in self._all if r.leaving and r.in_flight == 0]:
            self._all.remove(replica)
            await replica.engine.__aexit__()
            for gauge in (metrics.replica_up, metrics.replica_in_flight):
                with suppress(KeyError):
                    gauge.remove(replica.name)

    # --- requests ---------------------------------------------------------------------------------

    async def post(self, path: str, body: Json, *, request_id: str) -> Json:
        """Send a request and return the whole answer.

        Raises:
            EngineRefusal: 4xx; the client's fault unless we built the body.
            EngineUnavailable: no replica could answer.
        """
        async with self._told(path, body, request_id), AsyncExitStack() as stack:

            async def ask(replica: Replica, attempt: AsyncExitStack) -> Json:
                return await replica.engine.post(path, body, request_id=request_id)

            return await self._somewhere(ask, body, stack)

    @asynccontextmanager
    async def stream(
        self, path: str, body: Json, *, request_id: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a request and yield the bytes of its event stream as they come.

        Leaving the block early closes the connection, at which the engine stops generating.

        Raises:
            EngineRefusal: 4xx before the stream began.
            EngineUnavailable: no replica could answer, or the one that did broke off.
        """
        async with self._told(path, body, request_id), AsyncExitStack() as stack:

            async def ask(replica: Replica, attempt: AsyncExitStack) -> AsyncIterator[bytes]:
                sending = replica.engine.stream(path, body, request_id=request_id)
                chunks = await attempt.enter_async_context(sending)
                if not self._able(body, (replica,)):
                    return chunks
                # Until the first bytes are here, another one may still be asked.
                return _after(await anext(chunks, b""), chunks)

            yield await self._somewhere(ask, body, stack)

    @asynccontextmanager
    async def _told(self, path: str, body: Json, request_id: str) -> AsyncIterator[None]:
        """Tell of the failure of the block."""
        try:
            yield
        except (EngineRefusal, EngineUnavailable) as error:
            self.on_failure(path, body, request_id, error)
            raise

    async def _somewhere(
        self,
        ask: Callable[[Replica, AsyncExitStack], Awaitable[T]],
        body: Json,
        stack: AsyncExitStack,
    ) -> T:
        """Ask one replica after the other as far as that is allowed; keep open what answered."""
        tried: list[Replica] = []
        again = True
        failure: Exception | None = None
        while (replica := self._choose(body, tried)) is not None:
            tried.append(replica)
            async with AsyncExitStack() as attempt:
                attempt.enter_context(replica.busy())
                try:
                    answer = await ask(replica, attempt)
                except (EngineUnavailable, EngineRefusal) as error:
                    failure = error
                    if not self._elsewhere(replica, body, error, again=again):
                        raise
                    again = again and isinstance(error, (EngineUntold, EngineRefusal))
                    continue
                metrics.replica_requests_total.labels(replica.name, "answered").inc()
                stack.push_async_exit(attempt.pop_all().__aexit__)
                return answer
        raise failure or EngineUnavailable(self.why_not(str(body.get("model"))))

    def _elsewhere(self, replica: Replica, body: Json, error: Exception, *, again: bool) -> bool:
        """Whether another replica may be asked after this failure; remembers what it says."""
        if isinstance(error, EngineRefusal):
            model = body.get("model")
            if error.status != 404 or model not in replica.models or _is_base(replica, model):
                return False
            replica.models.discard(model)  # it was restarted
            outcome, more = "forgotten", True
        elif isinstance(error, (EngineUntold, EngineLost)):
            replica.lost(error.message)
            outcome, more = "lost", again or isinstance(error, EngineUntold)
        else:
            outcome, more = "failed", again and not isinstance(error, EngineTimeout)
        metrics.replica_requests_total.labels(replica.name, outcome).inc()
        if outcome != "failed":
            self.on_change()
        return more

    def _able(self, body: Json, tried: Sequence[Replica]) -> list[Replica]:
        """The replicas that could answer, as far as is known."""
        model = body.get("model")
        able = [r for r in self if model in r.models and not r.barred and r not in tried]
        # One that seemed down may be back, where there is no other.
        able = [r for r in able if r.down is None] or able
        able = [r for r in able if r.current] or able
        return [r for r in able if r.role is Role.MERGED] or able

    def _choose(self, body: Json, tried: Sequence[Replica]) -> Replica | None:
        able = self._able(body, tried)
        if len(able) < 2:
            return able[0] if able else None
        least = min(replica.in_flight for replica in able)
        key = beginning(body)
        faithful = max(able, key=lambda replica: _weight(key, replica.name))
        if faithful.in_flight <= least + max(AHEAD, least // 4):
            return faithful
        return next(replica for replica in able if replica.in_flight == least)

    def why_not(self, model: str) -> str:
        """Why nothing answers for a model."""
        reasons = {replica.down for replica in self if replica.down is not None}
        return "; ".join(sorted(reasons)) or f"no engine serves {model} now"


def _is_base(replica: Replica, model: object) -> bool:
    return replica.base is not None and replica.base.id == model


def _weight(key: str, name: str) -> bytes:
    return hashlib.sha256(f"{name}\0{key}".encode("utf-8", "surrogatepass")).digest()


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
