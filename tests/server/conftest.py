"""A running server for each test: real HTTP, real store, the fake engine, a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

import sandbox
from ops.registry import Registry
from ops.settings import (
    EngineSettings,
    ReleaseSettings,
    RetentionSettings,
    ServerSettings,
    Settings,
    StoreSettings,
)
from ops.store import Store
from server.app import create_app
from server.verification import Checker
from tests.databases import new_database
from tests.fake_engine import FakeEngine

POLL_S = 0.05
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of this machine: left to itself httpx reads all certificates for each, in 23 ms."""


def environment() -> dict[str, str]:
    """The environment of a server in a process of its own: it may keep its compiled modules."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@dataclass
class Running:
    """A server, and what a test needs to talk to it and to look behind it."""

    url: str
    settings: Settings
    engine: FakeEngine
    store: Store
    registry: Registry
    http: httpx.Client
    openai: openai.OpenAI

    def chat(self, **body: Any) -> httpx.Response:
        """Ask for a chat completion with as little as it takes."""
        given = {"model": "code", "messages": [{"role": "user", "content": "add two numbers"}]}
        return self.http.post("/v1/chat/completions", json=given | body)

    def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait for something that happens in the background."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)

    def ready(self) -> None:
        """Wait until it answers, with all that the registry wants loaded."""
        self.until(self._settled)

    def _settled(self) -> bool:
        response = self.http.get("/ready")
        return response.status_code == 200 and not response.json()["pending"]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    fake.start()
    yield fake
    fake.stop()


class SharedPool:
    """The real sandbox pool, kept warm in a loop of its own for all tests of a session."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._pool = sandbox.Pool(workers=2)
        self._run(self._pool.__aenter__())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    @property
    def tier(self) -> sandbox.Tier:
        return self._pool.tier

    def gauges(self) -> dict[str, float]:
        return self._pool.gauges()

    async def check(self, code: str, spec: sandbox.Spec, **more: Any) -> sandbox.Verification:
        work = asyncio.run_coroutine_threadsafe(self._pool.check(code, spec, **more), self._loop)
        return await asyncio.wrap_future(work)

    async def run(self, code: str, **more: Any) -> sandbox.Run:
        work = asyncio.run_coroutine_threadsafe(self._pool.run(code, **more), self._loop)
        return await asyncio.wrap_future(work)

    async def __aenter__(self) -> SharedPool:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    def close(self) -> None:
        self._run(self._pool.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def pool() -> Iterator[SharedPool]:
    shared = SharedPool()
    yield shared
    shared.close()


class _Databases:
    """A database on PostgreSQL for each data directory, once there is a server for them."""

    def __init__(self) -> None:
        self.server_url: str | None = None
        self._made = contextlib.ExitStack()
        self._of: dict[Path, str] = {}

    def of(self, data_dir: Path) -> str | None:
        """The URL of the directory's record; None: SQLite in it."""
        if self.server_url is not None and data_dir not in self._of:
            self._of[data_dir] = self._made.enter_context(new_database(self.server_url))
        return self._of.get(data_dir)

    def close(self) -> None:
        self.server_url = None
        self._of.clear()
        self._made.close()


_databases = _Databases()


@pytest.fixture(scope="session", autouse=True)
def databases(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `JOURNEYMAN_TEST_DATABASE=postgresql` every server's record is on PostgreSQL."""
    if os.environ.get("JOURNEYMAN_TEST_DATABASE") == "postgresql":
        _databases.server_url = request.getfixturevalue("postgres_url")
    yield
    _databases.close()


def record_url(data_dir: Path) -> str:
    """The URL of the record that a server on this data directory has."""
    return _databases.of(data_dir) or f"sqlite:///{data_dir / 'journeyman.db'}"


@contextlib.contextmanager
def serving(
    engine: FakeEngine,
    data_dir: Path,
    *,
    checker: AbstractAsyncContextManager[Checker] | None = None,
    retention: dict[str, Any] | None = None,
    release: ReleaseSettings | None = None,
    store_url: str | None = None,
    engines: dict[str, Any] | None = None,
    **server: Any,
) -> Iterator[Running]:
    """Run a server in a thread until the block is left; then it shuts down gracefully."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    settings = Settings(
        data_dir=data_dir,
        store=StoreSettings(url=store_url or _databases.of(data_dir)),
        engine=EngineSettings(**(engines or {"url": engine.url})),
        retention=RetentionSettings(**(retention or {})),
        release=release or ReleaseSettings(),
        server=ServerSettings(**{"port": port, "poll_s": POLL_S, **server}),
    )
    app = create_app(settings, checker=checker)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, loop="uvloop", http="httptools", lifespan="on"
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not runner.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    store = Store.open(settings.store_url)
    url = f"http://127.0.0.1:{port}"
    http = httpx.Client(base_url=url, timeout=30, verify=NO_TLS)
    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        timeout=30,
        http_client=openai.DefaultHttpxClient(verify=NO_TLS),
    )
    running = Running(
        url=url,
        settings=settings,
        engine=engine,
        store=store,
        registry=Registry(store, settings.adapters_dir),
        http=http,
        openai=client,
    )
    try:
        running.ready()
        yield running
    finally:
        http.close()
        client.close()
        runner.should_exit = True
        thread.join(30)
        store.close()
        listening.close()
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def server(engine: FakeEngine, pool: SharedPool, tmp_path: Path) -> Iterator[Running]:
    """A ready server."""
    with serving(engine, tmp_path, checker=pool) as running:
        yield running
