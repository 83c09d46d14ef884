"""Identifiers: valid, unique, and in the order they were made."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from ops.records import new_id


def test_an_id_is_a_uuid_of_version_7_and_tells_its_time() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(new_id())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before <= made.int >> 80 <= before + 1000


def test_ids_go_up_within_a_millisecond_and_when_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = new_id()
    made = [new_id() for _ in range(1000)]
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    made += [new_id() for _ in range(1000)]
    assert [first, *made] == sorted({first, *made})


def test_threads_never_share_an_id() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: new_id(), range(4000)))
    assert len(set(made)) == 4000
