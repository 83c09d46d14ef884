"""The client: many at once, patient with a server that restarts, plain about refusals."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from improver.errors import PolicyError, PolicyUnavailable
from improver.policy import Policy
from tests.improver.conftest import BASE, StubServer

ASK = [{"role": "user", "content": "hello"}]


async def test_samples_come_in_order_and_leave_no_trace(server: StubServer) -> None:
    server.script = lambda body, index: f"answer {index}"
    async with Policy(server.url, "code@v3", api_key="key") as policy:
        samples = await policy.sample(ASK, n=3, temperature=0.8, max_tokens=9, stop=["x"])
    assert [s.text for s in samples] == ["answer 0", "answer 1", "answer 2"]
    assert samples[0].tokens == 10
    body = server.bodies[0]
    assert body["model"] == "code@v3"
    assert body["store"] is False
    assert body["stop"] == ["x"]
    assert "seed" not in body


async def test_requests_run_side_by_side_up_to_a_bound(server: StubServer) -> None:
    server.delay_s = 0.05
    async with Policy(server.url, concurrency=4) as policy:
        await asyncio.gather(*(policy.sample(ASK, temperature=0, max_tokens=1) for _ in range(12)))
    assert server.most_in_flight == 4


async def test_time_is_busy_while_any_answer_is_awaited(server: StubServer) -> None:
    server.delay_s = 0.1
    async with Policy(server.url, patience_s=1.0) as policy:
        assert policy.busy_s == 0.0
        await policy.models()
        ask = {"temperature": 0.0, "max_tokens": 5}
        await policy.sample([{"role": "user", "content": "x"}], n=24, **ask)
        assert 0.1 <= policy.busy_s < 0.9, "three requests side by side count once"


async def test_a_restarting_server_is_waited_for(server: StubServer) -> None:
    server.unavailable = 2
    async with Policy(server.url, patience_s=10) as policy:
        samples = await policy.sample(ASK, temperature=0, max_tokens=1)
    assert len(samples) == 1
    assert policy.retries == 2


async def test_patience_ends(server: StubServer) -> None:
    server.unavailable = 1000
    began = time.monotonic()
    async with Policy(server.url, patience_s=0.6) as policy:
        with pytest.raises(PolicyUnavailable, match="the engine is down"):
            await policy.sample(ASK, temperature=0, max_tokens=1)
    assert time.monotonic() - began < 5


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with Policy("http://127.0.0.1:9", patience_s=0.3) as policy:
        with pytest.raises(PolicyUnavailable, match="ConnectError"):
            await policy.models()


async def test_a_refusal_is_told_in_the_servers_words(server: StubServer) -> None:
    server.status = 400
    async with Policy(server.url) as policy:
        with pytest.raises(PolicyError, match="400 the prompt is too long"):
            await policy.sample(ASK, temperature=0, max_tokens=1)
    assert len(server.bodies) == 1


async def test_the_base_model_and_the_champion_are_found(server: StubServer) -> None:
    async with Policy(server.url) as policy:
        assert await policy.base_model() == BASE
        assert await policy.champion_version() == 0


async def test_waiting_for_users_costs_no_patience() -> None:
    asked = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked <= 4:
            error = {"message": "others first", "code": "users_first"}
            return httpx.Response(503, json={"error": error}, headers={"retry-after": "0"})
        return httpx.Response(200, json={"data": []})

    transport = httpx.MockTransport(answer)
    async with Policy("http://x", patience_s=0.4, transport=transport) as policy:
        assert await policy.models() == {}  # four pauses of 0.25 s
    assert asked == 5
