"""The engine: vLLM's HTTP protocol, spoken over one pool of connections.

Knows how to forward a request, read a stream, load and unload adapters and ask for probe
log-probabilities. It does not know what an interaction or a champion is. Failures to reach the
engine and its 5xx answers become `EngineUnavailable`; its 4xx answers become `EngineRefusal`, in
its own words. Cancelling a call closes its connection, at which vLLM aborts the generation.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from ops import tracing
from ops.records import new_id
from server.errors import (
    EngineFault,
    EngineLost,
    EngineRefusal,
    EngineTimeout,
    EngineUnavailable,
    EngineUntold,
)

Json = dict[str, Any]

_FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
CONTROL_TIMEOUT_S = 5.0
"""For health, the list of models and the like, which answer at once or not at all."""
LOAD_TIMEOUT_S = 120.0
WARMING = "warm-"
"""Begins the ids of requests that only warm the engine up."""
KEEPALIVE_S = 4.0
"""Shorter than the 5 s after which vLLM closes an idle connection, so that none is used dying."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A line of the engine's `/v1/models`. `parent` is None for the base model."""

    id: str
    root: str
    parent: str | None
    max_model_len: int | None


class LoadRefused(Exception):
    """The engine read the adapter and would not have it: the adapter's fault."""


class Engine:
    """One vLLM server. Enter it before use.

    Args:
        url: base URL without `/v1`.
        timeout_s: longest wait for a whole answer, or between two chunks of a stream.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Engine:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- inference --------------------------------------------------------------------------

    async def post(self, path: str, body: Json, *, request_id: str) -> Json:
        """Send a request and return the whole answer.

        Raises:
            EngineRefusal: 4xx; the client's fault unless we built the body.
            EngineUnavailable: no answer, a 5xx, or not JSON.
        """
        async with self._send(path, body, request_id=request_id) as response:
            try:
                data = await response.read()
                return _object(data)
            except _FAILURES as error:
                raise _unreachable(error) from error

    @asynccontextmanager
    async def stream(
        self, path: str, body: Json, *, request_id: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a request and yield the bytes of its event stream as they come.

        Leaving the block early closes the connection, at which the engine stops generating.

        Raises:
            EngineRefusal: 4xx before the stream began.
            EngineUnavailable: no answer or a 5xx, also in the middle of the stream.
        """
        async with self._send(path, body, request_id=request_id) as response:
            yield _chunks(response)

    @asynccontextmanager
    async def _send(
        self, path: str, body: Json, *, request_id: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        with tracing.aside("engine", path=path, request_id=request_id) as span:
            async with self._sent(path, body, request_id, span.headers()) as response:
                span.set(status=response.status)
                yield response

    @asynccontextmanager
    async def _sent(
        self, path: str, body: Json, request_id: str, trace: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        data = json.dumps(body, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id, **trace}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONTROL_TIMEOUT_S, sock_read=self._timeout_s
        )
        request = self._open().post(self.url + path, data=data, headers=headers, timeout=timeout)
        try:
            response = await request
        except _FAILURES as error:
            raise _unreachable(error) from error
        finished = False
        try:
            if response.status != 200:
                await _raise_status(response)
            yield response
            finished = response.content.at_eof()
        finally:
            # A connection with an unread rest must not go back into the pool: closing it is
            # also what tells the engine that nobody listens any more.
            if finished:
                response.release()
            else:
                response.close()

    # --- control ----------------------------------------------------------------------------

    async def healthy(self) -> bool:
        """Whether the engine answers its health check."""
        timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
        try:
            async with self._open().get(self.url + "/health", timeout=timeout) as response:
                return response.status == 200
        except _FAILURES:
            return False

    async def models(self) -> list[Model]:
        """Return what the engine serves.

        Raises:
            EngineUnavailable: no answer.
        """
        timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
        try:
            async with self._open().get(self.url + "/v1/models", timeout=timeout) as response:
                if response.status != 200:
                    raise EngineUnavailable(f"the engine answers {response.status} to /v1/models")
                listed = _object(await response.read())
        except _FAILURES as error:
            raise _unreachable(error) from error
        return [
            Model(
                id=str(entry["id"]),
                root=str(entry.get("root") or ""),
                parent=entry.get("parent"),
                max_model_len=entry.get("max_model_len"),
            )
            for entry in listed.get("data", [])
        ]

    async def lora_slots(self) -> int | None:
        """Return how many adapters fit on the device at once; None where the engine does not say.

        vLLM says so in its metrics, once an adapter has been asked for anything.
        """
        timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
        try:
            async with self._open().get(self.url + "/metrics", timeout=timeout) as response:
                text = await response.text() if response.status == 200 else ""
        except _FAILURES:
            return None
        found = re.search(r'^vllm:lora_requests_info\{[^}]*\bmax_lora="([0-9]+)"', text, re.M)
        return int(found[1]) if found is not None else None

    async def load(self, name: str, path: str) -> None:
        """Load an adapter under a name that was never used before.

        Raises:
            LoadRefused: the engine would not have it.
            EngineUnavailable: no answer.
        """
        status, text = await self._control(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, LOAD_TIMEOUT_S
        )
        if status != 200:
            # vLLM answers 404 for a missing folder and 500 for everything else it cannot load.
            raise LoadRefused(f"the engine refused {name} ({status}): {_message(text)}")

    async def unload(self, name: str) -> None:
        """Unload an adapter; one that is not there is no error.

        Raises:
            EngineUnavailable: no answer, or an unexpected one.
        """
        status, text = await self._control(
            "/v1/unload_lora_adapter", {"lora_name": name}, LOAD_TIMEOUT_S
        )
        if status not in (200, 404):
            raise EngineUnavailable(f"the engine did not unload {name}: {_message(text)}")

    async def token_logprobs(
        self, model: str, texts: Sequence[Sequence[int]], *, cache_salt: str
    ) -> list[list[float]]:
        """Return the log-probability (nats) of every token after the first, for each text.

        Raises:
            EngineUnavailable: no answer, or one without the numbers.
            EngineRefusal: the engine does not take the token ids or does not know the model.
        """
        body = {
            "model": model,
            "prompt": [list(text) for text in texts],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,  # of the prompt's own tokens only
            "cache_salt": cache_salt,
        }
        answer = await self.post("/v1/completions", body, request_id=f"probe-{new_id()}")
        try:
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            return [
                [
                    float(found[str(token)]["logprob"])
                    for token, found in zip(text[1:], choice["prompt_logprobs"][1:], strict=True)
                ]
                for text, choice in zip(texts, choices, strict=True)
            ]
        except (LookupError, TypeError, ValueError) as error:
            raise EngineUnavailable(
                f"the engine did not return the log-probabilities asked for: {error!r}"
            ) from error

    async def warm(self, model: str) -> None:
        """Ask for log-probabilities once, of nothing in particular; no answer is no error.

        vLLM compiles some of its sampler in the step of the first such request, for which every
        other request waits. So that shall not be the probe of a swap.
        """
        body = {"model": model, "prompt": [1, 2, 3], "max_tokens": 1, "prompt_logprobs": 0}
        with suppress(EngineUnavailable, EngineRefusal):
            await self.post("/v1/completions", body, request_id=WARMING + new_id())

    async def _control(self, path: str, body: Json, timeout_s: float) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._open().post(self.url + path, json=body, timeout=timeout) as response:
                return response.status, await response.text()
        except _FAILURES as error:
            raise _unreachable(error) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the engine's connections are not open: enter it first")
        return self._session


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except _FAILURES as error:
        raise _unreachable(error) from error


async def _raise_status(response: aiohttp.ClientResponse) -> None:
    try:
        data = await response.read()
    except _FAILURES as error:
        raise _unreachable(error) from error
    if 400 <= response.status < 500:
        try:
            body = _object(data)
        except EngineUnavailable:
            body = {}
        if not isinstance(body.get("error"), dict):
            body = {
                "error": {
                    "message": data.decode("utf-8", "replace")[:2000] or "refused by the engine",
                    "type": "BadRequestError",
                    "param": None,
                    "code": response.status,
                }
            }
        raise EngineRefusal(response.status, body)
    kind = EngineUnavailable if response.status == 503 else EngineFault
    raise kind(f"the engine answers {response.status}: {_message(data.decode('utf-8', 'replace'))}")


def _object(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise EngineUnavailable("the engine's answer is not JSON") from error
    if not isinstance(value, dict):
        raise EngineUnavailable("the engine's answer is not a JSON object")
    return value


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])[:500]
    except (ValueError, LookupError, TypeError):
        return text[:500]


def _unreachable(error: BaseException) -> EngineUnavailable:
    words = f"the engine cannot be reached: {type(error).__name__}"
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return EngineUntold(words)
    if isinstance(error, asyncio.TimeoutError):
        return EngineTimeout("the engine does not answer in time")
    return EngineLost(words)
