"""The application: everything that exists is built here, in order, and closed in reverse.

Read top to bottom: what a server is made of, what wraps every request, which routes there are,
how errors look. Only the routes listed here are reachable; the engine's own are not proxied.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import sandbox
from ops import metrics, tracing
from ops.erasure import Eraser
from ops.errors import ModelError, SettingsError, StoreError
from ops.keys import OWN, digest, own
from ops.models import resolve
from ops.redaction import Scrubber
from ops.registry import Registry
from ops.settings import SandboxSettings, Settings
from ops.store import Store
from ops.trials import Rules
from server import (
    chat,
    completions,
    docs,
    evals,
    events,
    executions,
    feedback,
    files,
    health,
    interactions,
    jobs,
    messages,
    models,
    releases,
    responses,
    stored,
    users,
)
from server.adapters import Adapters, Enough
from server.auth import CONSOLE, Guarded, Key, Keys
from server.auth import FEEDBACK as FEEDBACK_SCOPE
from server.auth import INFERENCE as INFERENCE_SCOPE
from server.calls import CHAT, COUNT_TOKENS, EXECUTIONS, MESSAGES, RESPONSES, TEXT
from server.canary import Canary
from server.console import playground
from server.console import routes as console
from server.console.door import Door
from server.document import describe
from server.engine import Engine
from server.errors import BadRequest, ServerError
from server.faults import Faults
from server.forwarding import Forwarder
from server.generation import Generator
from server.keyring import Keyring, good_keys
from server.limits import Gate
from server.merged import Merged
from server.protocol import param_path
from server.recording import Recorder
from server.replicas import Replicas
from server.replies import Exchange
from server.retention import Retention
from server.shares import Shares
from server.state import Improvement, State
from server.traffic import Sticky
from server.verification import Checker, Judge

log = logging.getLogger(__name__)

INFERENCE = frozenset((CHAT, TEXT, RESPONSES, MESSAGES, COUNT_TOKENS, EXECUTIONS, playground.PATH))


def create_app(
    settings: Settings, *, checker: AbstractAsyncContextManager[Checker] | None = None
) -> FastAPI:
    """Build the application; nothing is opened before its lifespan starts.

    Args:
        settings: all settings.
        checker: stands in for the sandbox pool that the settings describe.

    Raises:
        SettingsError: the server would be open to the network without keys.
    """
    require_safe(settings.server.host, _configured(settings) or _recorded(settings))
    keys = Keys(_configured(settings))
    gate = Gate(settings.server.max_concurrency, behind=settings.server.behind)
    replicas = Replicas(settings.engine_urls, timeout_s=settings.server.request_timeout_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            state = await _open(settings, checker, keys, replicas, stack)
            door = Door(keys, settings.data_dir / "console")
            yield {"server": state, "counts": health.new_counts(), "door": door}

    app = FastAPI(
        title="Journeyman",
        summary="A self-hosted code model that learns on the job",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,  # `docs` has a page that needs nothing from elsewhere
        redoc_url=None,
    )
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    routes = (
        *(chat, stored, completions, responses, messages, models),
        *(executions, feedback, events),
        *(interactions, releases, jobs, files, evals, users, health, docs),
        console,
    )
    for module in routes:
        app.include_router(module.router)
    app.add_middleware(Guarded, keys=keys)
    app.add_middleware(Observed, gate=gate)
    app.state.reload = partial(_reload, keys, gate, replicas)
    app.add_exception_handler(ServerError, _render)
    app.add_exception_handler(RequestValidationError, _render_validation)
    app.add_exception_handler(HTTPException, _render_http)
    app.add_exception_handler(ClientDisconnect, _render_gone)
    app.add_exception_handler(Exception, _render_unexpected)
    return app


def _reload(keys: Keys, gate: Gate, replicas: Replicas, settings: Settings) -> None:
    """Take over those settings that a running server can: `ops.settings.RELOADED`."""
    keys.configure(_configured(settings))
    gate.places = settings.server.max_concurrency
    replicas.change(settings.engine_urls)


def _configured(settings: Settings) -> list[Key]:
    return [
        Key(**{**key.model_dump(), "scopes": frozenset(key.scopes)}) for key in settings.server.keys
    ]


def _own(settings: Settings) -> Key:
    """The key with which the improver of this installation asks."""
    return Key(
        name=OWN,
        sha256=digest(own(settings.data_dir)),
        scopes=frozenset((INFERENCE_SCOPE, FEEDBACK_SCOPE)),
    )


def _recorded(settings: Settings) -> list[Key]:
    """The good keys of the record, where they decide whether the server may start."""
    if is_local(settings.server.host):
        return []
    try:
        store = Store.open(settings.store_url)
        try:
            return good_keys(store.api_keys())
        finally:
            store.close()
    except StoreError as error:
        raise SettingsError(f"the record cannot be asked for API keys: {error}") from error


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_safe(host: str, keys: Sequence[Key]) -> None:
    """Refuse to listen where strangers could come in unless they need a key.

    Raises:
        SettingsError: `host` is not loopback, and there is no key to ask for.
    """
    if not is_local(host) and not keys:
        raise SettingsError(
            f"server.host is {host!r}: without API keys the server listens on loopback only; "
            "`journeyman keys create NAME` makes one"
        )


async def _open(
    settings: Settings,
    checker: AbstractAsyncContextManager[Checker] | None,
    keys: Keys,
    replicas: Replicas,
    stack: AsyncExitStack,
) -> State:
    """Open all parts, in the order in which they need each other."""
    name = f"server@{socket.gethostname()}:{settings.server.port}"
    store = await asyncio.to_thread(Store.open, settings.store_url)
    stack.callback(store.close)
    keyring = Keyring(store, keys, poll_s=settings.server.poll_s)
    await keyring.read()  # before the first request
    try:
        keys.let_in(_own(settings))
    except SettingsError as error:  # the improver can be given a key by hand
        log.warning("%s", error, extra={"action": "keys"})
    _follow(keyring, "keys", stack)
    if store.kind == "postgresql":  # on SQLite there is one server
        _follow(Shares(store, keys, poll_s=settings.server.poll_s), "shares", stack)
    recorder = _recorder(settings, store, name, stack)
    await stack.enter_async_context(replicas)
    _follow(replicas, "replicas", stack)
    judge = Judge(await stack.enter_async_context(checker or _pool(settings.sandbox)))
    registry = Registry(store, settings.adapters_dir)
    rules = Rules.among(settings.release.model_dump())
    adapters = _adapters(settings, replicas, registry, store, rules, name)
    _follow(adapters, "adapters", stack)
    recorder.state = lambda: {"engines": adapters.counts()}
    poll_s = settings.server.poll_s
    faults = Faults(replicas, adapters)
    stack.push_async_callback(faults.close)
    canary = Canary(
        store, registry, rules, faults=faults.of, server=name, look_s=poll_s, tell=adapters.wake
    )
    _follow(canary, "canary", stack)
    merged = await _merged(settings, replicas, adapters, store, rules, name, stack)
    _follow(_retention(settings, store, recorder), "retention", stack)
    log.info("serving", extra={"action": "start", "sandbox": judge.tier.label})
    return State(
        settings=settings.server,
        replicas=replicas,
        store=store,
        registry=registry,
        eraser=_eraser(settings, store, registry),
        recorder=recorder,
        adapters=adapters,
        merged=merged,
        judge=judge,
        limits=_limits(settings.sandbox),
        improvement=_improvement(settings),
        evaluations_dir=settings.evaluations_dir,
        forwarder=Forwarder(replicas, recorder, adapters),
        generator=Generator(
            replicas,
            judge,
            recorder,
            adapters,
            max_tokens=settings.server.spec_max_tokens,
            temperature=settings.server.spec_temperature,
        ),
        rules=rules,
        sticky=Sticky(settings.release.sticky),
    )


class Loop(Protocol):
    """What runs beside the requests until it is told to stop."""

    async def run(self) -> None:
        """Run until stopped."""

    def stop(self) -> None:
        """Let `run` come to its end."""


def _follow(loop: Loop, name: str, stack: AsyncExitStack) -> None:
    """Start a background loop, and have it stopped and waited for at the end."""
    running = asyncio.create_task(loop.run(), name=name)

    async def stop() -> None:
        loop.stop()
        await running

    stack.push_async_callback(stop)


def _recorder(settings: Settings, store: Store, name: str, stack: AsyncExitStack) -> Recorder:
    scrubber = Scrubber(settings.scrub.personal, settings.scrub.phone_region)
    recorder = Recorder(store, scrubber, process=name)
    recorder.start()
    stack.push_async_callback(asyncio.to_thread, recorder.close)
    return recorder


def _adapters(
    settings: Settings,
    replicas: Replicas,
    registry: Registry,
    store: Store,
    rules: Rules,
    name: str,
) -> Adapters:
    return Adapters(
        replicas,
        store,
        registry,
        server=name,
        poll_s=settings.server.poll_s,
        max_rank=settings.engine.max_lora_rank,
        enough=Enough(share=settings.engine.proved_share, least=settings.engine.min_proved),
        linger_s=settings.server.request_timeout_s,
        rules=rules,
        digest=_digest,
    )


async def _merged(
    settings: Settings,
    replicas: Replicas,
    adapters: Adapters,
    store: Store,
    rules: Rules,
    name: str,
    stack: AsyncExitStack,
) -> Merged | None:
    """Follow the second engine, where there shall be one."""
    if settings.merged_url is None:
        return None
    engine = Engine(settings.merged_url, timeout_s=settings.server.request_timeout_s)
    merged = Merged(
        await stack.enter_async_context(engine),
        replicas,
        adapters,
        store,
        rules=rules,
        server=name,
        poll_s=settings.server.poll_s,
    )
    _follow(merged, "merged", stack)
    return merged


def _retention(settings: Settings, store: Store, recorder: Recorder) -> Retention:
    if settings.retention.max_bytes is not None and store.size_bytes() is None:
        raise SettingsError("retention.max_bytes needs SQLite; use retention.max_interactions")
    return Retention(store, recorder, settings.retention)


def _eraser(settings: Settings, store: Store, registry: Registry) -> Eraser:
    return Eraser(
        store,
        registry,
        cycles_dir=settings.cycles_dir,
        evaluations_dir=settings.evaluations_dir,
        policy=settings.erasure.tainted,
    )


def _improvement(settings: Settings) -> Improvement:
    return Improvement(
        settings=settings.improver,
        release=settings.release,
        engine_model=settings.engine.model,
        max_lora_rank=settings.engine.max_lora_rank,
        cycles_dir=settings.cycles_dir,
    )


def _digest(root: str) -> str | None:
    """The digest of the engine's base model, where its directory is on this machine."""
    try:
        return resolve(root).sha256 if Path(root).is_dir() else None
    except ModelError as error:
        log.warning("the base model has no digest: %s", error, extra={"action": "digest"})
        return None


def _limits(settings: SandboxSettings) -> sandbox.Limits:
    return sandbox.Limits(
        wall_s=settings.wall_s, cpu_s=settings.cpu_s, memory_bytes=settings.memory_bytes
    )


def _pool(settings: SandboxSettings) -> AbstractAsyncContextManager[Checker]:
    return sandbox.Pool(
        workers=settings.workers,
        limits=_limits(settings),
        min_tier=sandbox.Tier(settings.min_tier),
        allow_unsafe=settings.allow_unsafe,
        runtime=settings.runtime,
    )


class Observed:
    """Counts, times and logs every request, and keeps inference within its places."""

    def __init__(self, app: ASGIApp, *, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["path"] in INFERENCE and scope["method"] == "POST":
                with tracing.span("request", parent=_trace(scope), path=scope["path"]) as span:
                    await self._within_gate(scope, receive, observed_send)
                    call = scope.get("state", {}).get("call")
                    span.set(status=status, request_id=call.id if call else None)
            else:
                await self._app(scope, receive, observed_send)
        finally:
            _observe(scope, status, time.perf_counter() - started)

    async def _within_gate(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._gate.enter()
        except ServerError as error:
            await Exchange(send).error(error)
            return
        metrics.requests_in_flight.inc()
        state = scope.setdefault("state", {})
        state["gate"] = self._gate
        try:
            await self._app(scope, receive, send)
        finally:
            self._gate.leave(behind=state.get("behind", False))
            metrics.requests_in_flight.dec()


def _trace(scope: Scope) -> dict[str, str]:
    """The headers by which a request says which trace it belongs to."""
    names = (b"traceparent", b"tracestate")
    return {k.decode(): v.decode("latin-1") for k, v in scope["headers"] if k in names}


def _observe(scope: Scope, status: int, duration_s: float) -> None:
    # The route's template, never the path: a client must not be able to invent labels.
    endpoint = getattr(scope.get("route"), "path", "unmatched")
    state = scope.get("state", {})
    word = "gone" if state.get("client_gone") or status == 0 else str(status)
    verification = state.get("verification", "none")
    metrics.requests_total.labels(endpoint, word, verification).inc()
    metrics.request_seconds.labels(endpoint).observe(duration_s)
    call = state.get("call")
    extra: dict[str, Any] = {"action": "request", "endpoint": endpoint, "status": word}
    if call is not None:
        metrics.request_overhead_seconds.observe(
            max(duration_s - call.engine_s - call.sandbox_s, 0.0)
        )
        extra |= {"request_id": call.id, "model": call.served.model, "verification": verification}
    extra["duration_ms"] = round(duration_s * 1000, 1)
    looked = scope["method"] == "GET" and endpoint.startswith(CONSOLE)  # open pages ask for ever
    quiet = looked or endpoint in ("/health", "/ready", "/metrics")
    log.log(logging.DEBUG if quiet else logging.INFO, "request", extra=extra)


# --- errors -----------------------------------------------------------------------------------


async def _render(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServerError):
        error = ServerError("internal error")
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _render_validation(request: Request, error: Exception) -> Response:
    """A path or query parameter that FastAPI itself has checked."""
    if not isinstance(error, RequestValidationError):
        return await _render(request, error)
    first = error.errors()[0]
    return await _render(request, BadRequest(first["msg"], param=param_path("", first["loc"][1:])))


async def _render_http(request: Request, error: Exception) -> Response:
    """No such route, or not this method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    refused = BadRequest(
        f"{request.method} {request.url.path[:200]}: "
        + {404: "no such route", 405: _not_allowed(request)}.get(status, "refused"),
        code={404: "route_not_found", 405: "method_not_allowed"}.get(status, "refused"),
    )
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    return JSONResponse(refused.body(), status_code=status, headers=headers)


_MADE_HERE = {
    "/v1/evals": "a run is made by a cycle, or by `journeyman eval BENCHMARK`",
}
"""Why what OpenAI's clients would make there cannot be made by them here."""


def _not_allowed(request: Request) -> str:
    for path, why in _MADE_HERE.items():
        if request.url.path.startswith(path):
            return f"not allowed: {why}"
    return "not allowed"


def _allowed(request: Request) -> list[str]:
    """All methods of a path; the error knows those of one of its routes only."""
    routes = request.app.router.routes
    found = (r for r in routes if r.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in found for method in getattr(route, "methods", None) or ()})


async def _render_gone(request: Request, error: Exception) -> Response:
    """The client went away while it was still sending; nobody reads this."""
    return Response(status_code=499)


async def _render_unexpected(request: Request, error: Exception) -> Response:
    """Our own fault. The server logs the traceback; the client learns nothing of it."""
    return await _render(request, ServerError("internal error"))
