"""Servers that share a record agree on what a key has left."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from ops.errors import StoreUnavailable
from ops.records import Share
from ops.store import Store
from server.auth import SCOPES, Identity, Key, Keys
from server.errors import RateLimited
from server.shares import Shares

KEY = Key(
    name="ide",
    sha256=hashlib.sha256(b"key").hexdigest(),
    scopes=frozenset(SCOPES),
    requests_per_minute=10,
    tokens_per_minute=1000,
)
FREE = Key(name="free", sha256=hashlib.sha256(b"free").hexdigest(), scopes=frozenset(SCOPES))


def _server(store: Store) -> tuple[Identity, Shares]:
    keys = Keys([KEY, FREE])
    return keys.holders[0], Shares(store, keys, poll_s=0.01)


async def test_what_is_taken_from_one_is_missing_at_the_other(store: Store) -> None:
    (here, ours), (there, theirs) = _server(store), _server(store)
    for _ in range(10):
        here.admit()
    here.spend(1500)
    await ours.settle()
    there.admit()  # it has not looked yet
    await theirs.settle()
    with pytest.raises(RateLimited, match="too many requests"):
        there.admit()
    assert there.buckets["requests"].level == pytest.approx(-1, abs=0.5)
    assert there.buckets["tokens"].level == pytest.approx(-500, abs=50)
    await ours.settle()
    assert here.buckets["requests"].level == pytest.approx(-1, abs=0.5)


async def test_shares_refill_for_all_and_hold_no_more_than_a_minute(store: Store) -> None:
    (here, ours), (_, theirs) = _server(store), _server(store)
    await ours.settle()
    await theirs.settle()
    assert here.buckets["requests"].level == 10
    here.spend(60_000)
    await ours.settle()
    before = here.buckets["tokens"].level
    await asyncio.sleep(0.1)
    await ours.settle()
    assert before < here.buckets["tokens"].level < before + 1000


async def test_a_record_that_does_not_answer_loses_no_count(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here, ours), (there, theirs) = _server(store), _server(store)
    works = store.settle_shares

    def silent(taken: list[Share]) -> list[Share]:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(store, "settle_shares", silent)
    for _ in range(4):
        here.admit()
    with pytest.raises(StoreUnavailable):
        await ours.settle()
    here.admit()
    monkeypatch.setattr(store, "settle_shares", works)
    await ours.settle()
    await theirs.settle()
    assert there.buckets["requests"].level == pytest.approx(5, abs=0.5)


async def test_what_is_taken_while_it_is_settled_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, ours = _server(store)
    works = store.settle_shares

    def meanwhile(taken: list[Share]) -> list[Share]:
        here.admit()
        return works(taken)

    monkeypatch.setattr(store, "settle_shares", meanwhile)
    await ours.settle()
    assert here.buckets["requests"].level == pytest.approx(9, abs=0.5)
    monkeypatch.setattr(store, "settle_shares", works)
    await ours.settle()
    assert here.buckets["requests"].level == pytest.approx(9, abs=0.5)


async def test_the_loop_settles_what_is_left_at_its_end(store: Store) -> None:
    (here, ours), (there, theirs) = _server(store), _server(store)
    ours._poll_s = 100
    running = asyncio.create_task(ours.run())
    await asyncio.sleep(0)
    here.admit()
    ours.stop()
    await running
    await theirs.settle()
    assert there.buckets["requests"].level == pytest.approx(9, abs=0.5)
