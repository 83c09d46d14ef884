"""Ask a model through an OpenAI-compatible API: base URL and model name, nothing more.

Talks to the Journeyman server, like any client, with `store: false` so that the cycle's own
requests never enter the record it learns from, and a `priority` by which users go first. Requests
run side by side up to a bound, so that the engine batches them. An engine that restarts in the
middle of a cycle (503, lost connection) is waited for. It does not know what a program or a verdict
is: that is `attempts`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from improver.errors import PolicyError, PolicyUnavailable
from ops import tracing
from ops.records import Json

logger = logging.getLogger(__name__)

WORTH_RETRYING = frozenset((408, 425, 429, 500, 502, 503, 504))
ALIAS = "code"
"""The name that means whatever is champion."""
LONGEST_PAUSE_S = 15.0
TELL_S = 10.0
BEHIND = 10
"""The priority of our requests, vLLM's and the server's: users, who send none, go first."""
USERS_FIRST = "users_first"
"""The server's word for: others are being answered, come again."""
SAMPLES_PER_REQUEST = 8
"""More are asked in several requests, so that one slow request does not hold many back."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer of the model. `adapter_version` 0 means the base model."""

    text: str
    finish_reason: str
    tokens: int
    model: str
    adapter_version: int
    logprob: float | None = None
    """Mean log-probability per token in nats, where it was asked for."""
    logprobs: tuple[Json, ...] = ()
    """OpenAI's `logprobs.content`, one object a token, where `extra` asked for it."""
    prompt_logprobs: tuple[Json | None, ...] = ()
    """vLLM's, one object a token of the prompt, where `extra` asked for it."""


class Policy:
    """A client of one server. Enter it before use.

    Args:
        url: base URL without `/v1`.
        model: default model: `code`, a base model's id, or a version such as `code@v12`.
        api_key: sent as bearer token where given.
        concurrency: requests in flight at once.
        timeout_s: longest wait for one answer.
        patience_s: how long a server that does not answer is tried again.
        transport: for tests.
    """

    def __init__(
        self,
        url: str,
        model: str = ALIAS,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 600.0,
        patience_s: float = 900.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self._patience_s = patience_s
        self._slots = asyncio.Semaphore(concurrency)
        self._client = httpx.AsyncClient(
            base_url=f"{self.url}/v1/",
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=concurrency + 2),
            transport=transport,
        )
        self._told = -TELL_S
        self.requests = 0
        self.retries = 0
        self.tokens = 0
        self.busy_s = 0.0
        """How long at least one answer was being waited for."""
        self._in_flight, self._since = 0, 0.0

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(exc_type, exc, traceback)

    async def sample(
        self,
        messages: Sequence[Json],
        *,
        n: int = 1,
        temperature: float,
        max_tokens: int,
        seed: int | None = None,
        model: str | None = None,
        stop: Sequence[str] = (),
        extra: Json | None = None,
    ) -> list[Sample]:
        """Ask for `n` answers to a conversation, in the order the server gave them.

        Args:
            messages: the conversation, as it is sent; no specification is added to it.
            n: answers wanted.
            temperature: 0 is greedy.
            max_tokens: longest answer.
            seed: makes the sampling repeatable as far as the engine can.
            model: another than the default one.
            stop: texts at which an answer ends.
            extra: further fields of the request as they are, such as `top_logprobs` or vLLM's
                `continue_final_message`.

        Raises:
            PolicyError: the server refused the request.
            PolicyUnavailable: it did not answer within `patience_s`.
        """
        shares = [min(SAMPLES_PER_REQUEST, n - asked) for asked in range(0, n, SAMPLES_PER_REQUEST)]
        answers = await asyncio.gather(
            *(
                self._ask(
                    {
                        "model": model or self.model,
                        "messages": list(messages),
                        "n": share,
                        "temperature": temperature,
                        "max_tokens": max_tokens,
                        "store": False,
                        "priority": BEHIND,
                        **({} if seed is None else {"seed": seed + 7919 * number}),
                        **({"stop": list(stop)} if stop else {}),
                        **(extra or {}),
                    }
                )
                for number, share in enumerate(shares)
            )
        )
        return [sample for samples in answers for sample in samples]

    async def models(self) -> dict[str, Json]:
        """Return what the server answers to, by name.

        Raises:
            PolicyError, PolicyUnavailable: as in `sample`.
        """
        body = await self._request("GET", "models", None)
        try:
            return {str(model["id"]): model for model in body["data"]}
        except (KeyError, TypeError) as error:
            raise PolicyError(f"{self.url} sent a list of models of an unknown shape") from error

    async def base_model(self) -> str:
        """Return the name under which the base model answers.

        Raises:
            PolicyError, PolicyUnavailable: as in `sample`; or the server lists no base model.
        """
        for name, model in (await self.models()).items():
            if name != ALIAS and not name.startswith(f"{ALIAS}@") and not model.get("parent"):
                return name
        raise PolicyError(f"{self.url} lists no base model")

    async def champion_version(self) -> int | None:
        """Return the version `code` means; 0 is the base model, None that nothing answers it.

        Raises:
            PolicyError, PolicyUnavailable: as in `sample`.
        """
        alias = (await self.models()).get(ALIAS)
        if alias is None:
            return None
        return int((alias.get("adapter") or {}).get("version") or 0)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        if not self._in_flight:
            self._since = time.monotonic()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self.busy_s += time.monotonic() - self._since

    async def _ask(self, body: Json) -> list[Sample]:
        async with self._slots:
            with self._asking():
                answer = await self._request("POST", "chat/completions", body)
        try:
            choices = answer["choices"]
            usage = answer.get("usage") or {}
            tokens = int(usage.get("completion_tokens") or 0)
            self.tokens += tokens
            adapter = answer.get("adapter") or {}
            return [
                Sample(
                    text=choice["message"].get("content") or "",
                    finish_reason=str(choice.get("finish_reason") or ""),
                    tokens=tokens // max(len(choices), 1),
                    model=str(answer.get("model") or body["model"]),
                    adapter_version=int(adapter.get("version") or 0),
                    logprob=_mean(logprobs := _logprobs(choice)),
                    logprobs=logprobs,
                    prompt_logprobs=tuple(
                        choice.get("prompt_logprobs") or answer.get("prompt_logprobs") or ()
                    ),
                )
                for choice in choices
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PolicyError(f"{self.url} sent an answer of an unknown shape") from error

    async def _request(self, method: str, path: str, body: Json | None) -> Any:
        give_up = time.monotonic() + self._patience_s
        pause = 0.25
        while True:
            self.requests += 1
            try:
                response = await self._client.request(
                    method, path, json=body, headers=tracing.headers()
                )
            except httpx.TransportError as error:
                problem, wait = f"{type(error).__name__}: {error}", pause
            else:
                if response.status_code < 400:
                    return _json(response)
                problem = _problem(response)
                if response.status_code not in WORTH_RETRYING:
                    raise PolicyError(f"{self.url} refused: {problem}")
                if _code(response) == USERS_FIRST:  # it answers, and not us yet
                    give_up, pause = time.monotonic() + self._patience_s, 0.25
                wait = max(pause, _retry_after(response))
            if time.monotonic() + wait > give_up:
                raise PolicyUnavailable(f"{self.url} did not answer: {problem}")
            self.retries += 1
            self._tell(problem)
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _tell(self, problem: str) -> None:
        """Log a retry; with many requests in flight not each of them."""
        if time.monotonic() - self._told >= TELL_S:
            self._told = time.monotonic()
            logger.warning(
                "the server does not answer, trying again: %s",
                problem,
                extra={"action": "policy_retry", "retries": self.retries},
            )


def _logprobs(choice: Json) -> tuple[Json, ...]:
    return tuple((choice.get("logprobs") or {}).get("content") or ())


def _mean(logprobs: tuple[Json, ...]) -> float | None:
    if not logprobs:
        return None
    return sum(float(token["logprob"]) for token in logprobs) / len(logprobs)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise PolicyError(f"{response.url} sent something else than JSON") from error


def _problem(response: httpx.Response) -> str:
    try:
        return f"{response.status_code} {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.text[:200]}"


def _code(response: httpx.Response) -> str | None:
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return None


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("retry-after", "0")), LONGEST_PAUSE_S)
    except ValueError:
        return 0.0
