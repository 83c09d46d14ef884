"""Idle windows: nobody has asked the engine for anything for so long.

Read from the engine's own metrics: no request runs or waits, and none ended since the last look
(a short one lies between two looks). A cycle asks the engine itself while it builds rows and
examines, so users cannot be told from it then, and need not be: there the server lets them go first
(`server.limits`). In an idle window a cycle begins, and its training, the one stage that asks
nobody and takes the whole machine, is stopped when users come back and goes on from its checkpoint
in the next window. An engine that does not answer opens no window and stops
nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families

from improver.trainer import Train
from improver.types import TrainJob
from ops.records import Json

logger = logging.getLogger(__name__)

LOOK_S = 2.0
ANSWER_S = 5.0
AT_WORK = ("vllm:num_requests_running", "vllm:num_requests_waiting")
ENDED = "vllm:request_success_total"


class Look(Protocol):
    """Reads the engine's metrics as text, or fails with `httpx.HTTPError`."""

    async def __call__(self) -> str:
        """Return the text of `/metrics`."""


class Metrics:
    """Reads `/metrics` of an engine, or of all of several that answer."""

    def __init__(self, *urls: str) -> None:
        self._urls = [f"{url}/metrics" for url in urls]
        # Made once: to read the machine's certificates for every look costs more than to look.
        self._tls = httpx.create_ssl_context()

    async def __call__(self) -> str:
        """Return the text of `/metrics`, one after the other."""
        texts, failure = list[str](), None
        async with httpx.AsyncClient(timeout=ANSWER_S, verify=self._tls) as client:
            for url in self._urls:
                try:
                    texts.append((await client.get(url)).raise_for_status().text)
                except httpx.HTTPError as error:
                    failure = error
        if failure is not None and not texts:
            raise failure
        return "\n".join(texts)


class Idle:
    """Whether users leave the engine alone, and since when.

    Args:
        look: reads the engine's metrics.
        window_s: how long nobody must have asked.
    """

    def __init__(self, look: Look, window_s: float) -> None:
        self._look = look
        self._window_s = window_s
        self._free_since: float | None = None
        self._ended: float | None = None
        self._answers = True
        self._open = asyncio.Event()
        self._busy = asyncio.Event()

    @property
    def open(self) -> bool:
        """Whether an idle window is open now."""
        return self._open.is_set()

    async def until_open(self) -> None:
        """Wait for an idle window."""
        await self._open.wait()

    async def until_busy(self) -> None:
        """Wait until somebody asks the engine."""
        await self._busy.wait()

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            await self.see()
            await asyncio.sleep(LOOK_S)

    async def see(self) -> None:
        """Look once."""
        try:
            at_work, ended = _requests(await self._look())
        except (httpx.HTTPError, ValueError) as error:
            if self._answers:
                logger.warning("is the engine idle? %s", error, extra={"action": "idle_unknown"})
            self._answers = False
            self._free_since = None
            self._open.clear()
            return
        # Fewer than before: the engine was started anew, and nobody has asked it since.
        asked = at_work > 0 or (self._ended is not None and ended > self._ended)
        self._answers, self._ended = True, ended
        if asked:
            self._free_since = None
            self._open.clear()
            self._busy.set()
            return
        self._busy.clear()
        at = time.monotonic()
        self._free_since = self._free_since if self._free_since is not None else at
        if at - self._free_since >= self._window_s:
            self._open.set()


def _requests(text: str) -> tuple[float, float]:
    """How many requests run or wait, and how many have ended.

    Raises:
        ValueError: these are not vLLM's metrics.
    """
    at_work: float | None = None
    ended = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in AT_WORK:
                at_work = (at_work or 0.0) + sample.value
            elif sample.name == ENDED:
                ended += sample.value
    if at_work is None:
        raise ValueError(f"the engine's metrics have none of {', '.join(AT_WORK)}")
    return at_work, ended


class TrainWhenIdle:
    """Training that steps aside when users come back; otherwise as `train`.

    Args:
        train: trains from where it was when it is called again.
        idle: says who is there; somebody must run its `watch`.
        tell: called with words for the cycle's log.
    """

    def __init__(self, train: Train, idle: Idle, tell: Callable[[str], None]) -> None:
        self._train = train
        self._idle = idle
        self._tell = tell

    async def __call__(
        self,
        directory: Path,
        job: TrainJob,
        *,
        nice: int,
        environment: Mapping[str, str],
        on_progress: Callable[[Json], None],
    ) -> Json:
        """Train from the rows in `directory`, leave `adapter/`, return the report."""
        while True:
            training = asyncio.ensure_future(
                self._train(
                    directory, job, nice=nice, environment=environment, on_progress=on_progress
                )
            )
            users = asyncio.create_task(self._idle.until_busy(), name="users-back")
            try:
                await asyncio.wait({training, users}, return_when=asyncio.FIRST_COMPLETED)
                if training.done():
                    return training.result()
                self._tell("train: users are back; it waits at its last checkpoint")
            finally:
                for task in (training, users):
                    task.cancel()
                await asyncio.gather(training, users, return_exceptions=True)
            await self._idle.until_open()
            self._tell("train: the engine is idle; it goes on")
