"""The writer thread: durable before acknowledged, whatever queues up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ops.errors import NotFound, StoreUnavailable
from ops.records import new_id
from ops.store import Recording, Store
from server.errors import RecordUnavailable
from server.recording import MAX_BATCH, Recorder
from tests.ops import records
from tests.server.conftest import Running


@pytest.fixture
async def recorder(store: Store) -> AsyncIterator[Recorder]:
    recorder = Recorder(store)
    recorder.start()
    yield recorder
    recorder.close()


async def test_more_than_a_batch_at_once_is_all_written(recorder: Recorder, store: Store) -> None:
    rows = [Recording(interaction=records.interaction()) for _ in range(3 * MAX_BATCH)]
    await asyncio.gather(*(recorder.record(row) for row in rows))
    assert store.count()["interactions"] == len(rows)
    later = Recording(interaction=records.interaction())
    await recorder.record(later)
    assert store.interaction(later.interaction.id) == later.interaction


async def test_one_bad_row_does_not_take_its_neighbours_with_it(
    recorder: Recorder, store: Store
) -> None:
    first = Recording(interaction=records.interaction())
    await recorder.record(first)
    rows = [Recording(interaction=records.interaction()) for _ in range(5)]
    outcomes = await asyncio.gather(
        *(recorder.record(row) for row in [*rows[:2], first, *rows[2:]]), return_exceptions=True
    )
    assert [type(o) for o in outcomes].count(RecordUnavailable) == 1
    assert all(store.interaction(row.interaction.id) for row in rows)
    assert recorder.failure is None


async def test_closing_writes_what_is_queued(store: Store) -> None:
    recorder = Recorder(store)
    rows = [Recording(interaction=records.interaction()) for _ in range(2 * MAX_BATCH)]
    waiting = [asyncio.ensure_future(recorder.record(row)) for row in rows]
    await asyncio.sleep(0)
    recorder.start()
    await asyncio.to_thread(recorder.close)
    await asyncio.gather(*waiting)
    assert store.count()["interactions"] == len(rows)


async def test_calls_answer_with_what_they_return_or_raise(
    recorder: Recorder, store: Store
) -> None:
    assert await recorder.write(lambda: 7) == 7
    with pytest.raises(NotFound):
        await recorder.write(lambda: store.delete_feedback(new_id()))
    assert recorder.failure is None


async def test_a_full_disk_refuses_and_recovers_by_itself(
    recorder: Recorder, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, beat = store.add, store.beat

    def full(*_: object, **__: object) -> None:
        raise StoreUnavailable("database or disk is full")

    monkeypatch.setattr(store, "add", full)
    monkeypatch.setattr(store, "beat", full)
    with pytest.raises(RecordUnavailable, match="disk is full"):
        await recorder.record(Recording(interaction=records.interaction()))
    with pytest.raises(RecordUnavailable):
        recorder.require()
    monkeypatch.setattr(store, "add", add)
    monkeypatch.setattr(store, "beat", beat)
    async with asyncio.timeout(10):
        while recorder.failure is not None:
            await asyncio.sleep(0.05)
    recorder.require()
    await recorder.record(Recording(interaction=records.interaction()))


# Put together at run time, so that no scanner takes this file for a leak.
AWS = "AKIA" + "IOSFODNN7ABCDEFG"
GITHUB = "gh" + "p_" + "a1B2" * 9
MAIL = "ann@gmail.com"


def test_the_record_holds_no_secret_and_nobodys_address(server: Running) -> None:
    key, token = AWS, GITHUB
    server.engine.script = lambda body, index: (
        f"```python\nKEY = '{key}'\ndef f():\n    return KEY\n```"
    )
    spec = {"entry_point": "f", "examples": [{"input": [], "output": key}]}
    messages = [{"role": "user", "content": f"use {key}, {MAIL}"}]
    answer = server.chat(messages=messages, io_spec=spec, metadata={"k": token}).json()
    assert key in answer["choices"][0]["message"]["content"]  # the client's own
    assert answer["choices"][0]["verification"]["verified"] is True
    server.http.post(
        "/v1/feedback",
        json={
            "inference_id": answer["id"],
            "metric_name": "comment",
            "value": f"no {token} of {MAIL}",
        },
    )
    whole = server.http.get(f"/v1/interactions/{answer['id']}").text
    assert "redacted:aws_key" in whole
    assert "redacted:github_token" in whole
    server.http.close()
    data = b"".join(p.read_bytes() for p in server.settings.data_dir.glob("journeyman.db*"))
    assert key.encode() not in data
    assert token.encode() not in data
    assert MAIL.encode() not in data
