"""Idle windows, told from the engine's own metrics, and training that steps aside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from improver import idle
from improver.errors import TrainingError
from improver.idle import Idle, Metrics, TrainWhenIdle
from improver.types import TrainJob
from tests.fake_engine import FakeEngine

JOB: Any = None  # these trainings look at no job


def metrics(*, running: int = 0, waiting: int = 0, ended: int = 0) -> str:
    """What vLLM says."""
    return f"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}.0
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{{engine="0",finished_reason="stop",model_name="m"}} {ended}.0
vllm:request_success_total{{engine="0",finished_reason="length",model_name="m"}} 0.0
"""


class Script:
    """An engine whose metrics are set by hand; None: it does not answer."""

    def __init__(self) -> None:
        self.text: str | None = metrics()

    async def __call__(self) -> str:
        if self.text is None:
            raise httpx.ConnectError("refused")
        return self.text


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def engine() -> Script:
    return Script()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(idle, "time", made)
    return made


async def test_a_window_opens_when_nobody_has_asked_for_so_long(
    engine: Script, clock: Clock
) -> None:
    watched = Idle(engine, 60)
    await watched.see()
    assert not watched.open
    clock.at += 59
    await watched.see()
    assert not watched.open
    clock.at += 1
    await watched.see()
    assert watched.open


@pytest.mark.parametrize(
    "asked",
    [{"running": 1}, {"waiting": 2}, {"ended": 1}],
    ids=["runs", "waits", "ended between two looks"],
)
async def test_whoever_asks_closes_it(engine: Script, clock: Clock, asked: dict[str, int]) -> None:
    watched = Idle(engine, 60)
    await watched.see()
    clock.at += 60
    await watched.see()
    assert watched.open
    engine.text = metrics(**asked)
    await watched.see()
    assert not watched.open
    async with asyncio.timeout(1):
        await watched.until_busy()
    # And the whole time must pass again.
    engine.text = metrics(ended=asked.get("ended", 0))
    await watched.see()
    clock.at += 59
    await watched.see()
    assert not watched.open
    clock.at += 1
    await watched.see()
    assert watched.open


async def test_an_engine_started_anew_was_not_asked(engine: Script, clock: Clock) -> None:
    engine.text = metrics(ended=7)
    watched = Idle(engine, 60)
    await watched.see()
    engine.text = metrics()
    clock.at += 60
    await watched.see()
    assert watched.open


@pytest.mark.parametrize("text", [None, "", "no metrics", "other_metric 1.0\n"])
async def test_what_is_not_known_opens_nothing_and_stops_nothing(
    engine: Script, clock: Clock, text: str | None
) -> None:
    watched = Idle(engine, 60)
    await watched.see()
    clock.at += 60
    await watched.see()
    assert watched.open
    engine.text = text
    await watched.see()
    assert not watched.open
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watched.until_busy(), 0.01)
    engine.text = metrics()
    clock.at += 60
    await watched.see()
    assert not watched.open  # nobody knows what was asked meanwhile


async def test_an_engine_that_is_not_there_is_an_http_error() -> None:
    with pytest.raises(httpx.HTTPError):
        await Metrics("http://127.0.0.1:9")()


async def test_of_several_engines_those_that_answer_are_read() -> None:
    fake = FakeEngine()
    fake.start()
    try:
        text = await Metrics("http://127.0.0.1:9", fake.url, fake.url)()
    finally:
        fake.stop()
    assert text.count("vllm:lora_requests_info{") == 2


async def test_several_engines_are_idle_when_all_are(clock: Clock) -> None:
    engine = Script()
    engine.text = metrics() + metrics()
    watched = Idle(engine, 60)
    await watched.see()
    clock.at += 60
    await watched.see()
    assert watched.open
    engine.text = metrics() + metrics(running=1)
    await watched.see()
    assert not watched.open


class Training:
    """Takes three steps, one each time it is told to, and goes on where it was."""

    def __init__(self) -> None:
        self.steps = self.starts = self.stops = 0
        self.step = asyncio.Event()

    async def __call__(
        self,
        directory: Path,
        job: TrainJob,
        *,
        nice: int,
        environment: Mapping[str, str],
        on_progress: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        self.starts += 1
        try:
            while self.steps < 3:
                await self.step.wait()
                self.step.clear()
                self.steps += 1
                on_progress({"step": self.steps})
        except asyncio.CancelledError:
            self.stops += 1
            raise
        return {"steps": self.steps}


def call(train: TrainWhenIdle, said: list[dict[str, Any]]) -> asyncio.Future[dict[str, Any]]:
    return asyncio.ensure_future(
        train(Path(), JOB, nice=0, environment={}, on_progress=said.append)
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_training_steps_aside_for_users_and_goes_on(engine: Script, clock: Clock) -> None:
    watched, training, told = Idle(engine, 60), Training(), list[str]()
    said: list[dict[str, Any]] = []
    await watched.see()
    done = call(TrainWhenIdle(training, watched, told.append), said)
    training.step.set()
    await until(lambda: training.steps == 1)
    engine.text = metrics(running=1)
    await watched.see()
    await until(lambda: training.stops == 1)
    engine.text = metrics()
    await watched.see()
    await asyncio.sleep(0.01)
    assert training.starts == 1  # free, but not for long enough
    clock.at += 60
    await watched.see()
    await until(lambda: training.starts == 2)
    for _ in range(2):
        training.step.set()
        await until(lambda: not training.step.is_set())
    assert await done == {"steps": 3}
    assert [line["step"] for line in said] == [1, 2, 3]
    assert len(told) == 2


async def test_a_stop_ends_the_training(engine: Script) -> None:
    training = Training()
    done = call(TrainWhenIdle(training, Idle(engine, 60), lambda words: None), [])
    await until(lambda: training.starts)
    done.cancel()
    with pytest.raises(asyncio.CancelledError):
        await done
    assert training.stops == 1


async def test_a_training_that_fails_fails(engine: Script) -> None:
    async def fails(*arguments: object, **options: object) -> dict[str, Any]:
        raise TrainingError("no memory")

    with pytest.raises(TrainingError, match="no memory"):
        await call(TrainWhenIdle(fails, Idle(engine, 60), lambda words: None), [])
