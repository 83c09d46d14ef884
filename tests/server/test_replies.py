"""Answers to clients who stop reading."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Scope

from server import replies
from server.replies import Exchange, Reply


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def _ask(reply: Reply, *, slow_s: float | None) -> tuple[Scope, list[Message]]:
    """Call a reply for a client that takes so long for each piece of a stream; None: for ever."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await (_never() if slow_s is None else asyncio.sleep(slow_s))

    scope: Scope = {"type": "http"}
    async with asyncio.timeout(30):
        await reply(scope, _never, send)
    return scope, sent


async def test_a_client_that_reads_nothing_is_taken_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replies, "STUCK_S", 0.05)
    monkeypatch.setattr(replies, "LOOK_S", 0.01)
    ended = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.start({})
        try:
            await exchange.write(b"data: 1\n\n")
        finally:
            ended.set()

    scope, sent = await _ask(Reply(answer), slow_s=None)
    assert ended.is_set()
    assert scope["state"]["client_gone"]
    assert len(sent) == 2


async def test_one_that_reads_slowly_or_waits_for_long_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replies, "STUCK_S", 10.0)
    monkeypatch.setattr(replies, "LOOK_S", 0.001)

    async def answer(exchange: Exchange) -> None:
        await exchange.start({})
        for _ in range(3):
            await exchange.write(b"data: 1\n\n")
            await asyncio.sleep(0.01)
            assert not exchange.stuck
        await exchange.finish()

    scope, sent = await _ask(Reply(answer), slow_s=0.01)
    assert "client_gone" not in scope.get("state", {})
    assert len(sent) == 5
