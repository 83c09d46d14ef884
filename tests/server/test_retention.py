"""The record forgets the oldest first, by age, number and size, and all that hangs on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ops import metrics
from ops.errors import NotFound, SettingsError
from ops.records import DatasetRow, now
from ops.settings import EngineSettings, RetentionSettings, Settings
from ops.store import Recording, Store
from server.app import create_app
from server.recording import Recorder
from server.retention import BATCH_ROWS, Retention
from tests.fake_engine import FakeEngine
from tests.ops import records
from tests.server.conftest import SharedPool, serving


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path / 'j.db'}")
    yield opened
    opened.close()


@pytest.fixture
async def recorder(store: Store) -> AsyncIterator[Recorder]:
    running = Recorder(store)
    running.start()
    yield running
    running.close()


def _whole(**changes: Any) -> Recording:
    interaction = records.interaction(**changes)
    attempt = records.attempt(interaction)
    return Recording(
        interaction=interaction,
        attempts=[attempt],
        executions=[records.execution(attempt)],
        feedback=[records.comment(interaction)],
    )


def _swept(store: Store, recorder: Recorder, **settings: Any) -> Retention:
    return Retention(store, recorder, RetentionSettings(**settings))


async def test_what_is_old_goes_with_all_that_hangs_on_it(store: Store, recorder: Recorder) -> None:
    old = _whole(created_at=now() - timedelta(days=31))
    young = _whole(created_at=now() - timedelta(days=29))
    stray = records.execution(old.attempts[0], interaction_id=None, attempt_id=None)
    young_stray = records.execution(old.attempts[0], interaction_id=None, attempt_id=None)
    store.add([old, young])
    store.add_execution(replace(stray, created_at=now() - timedelta(days=31)))
    store.add_execution(young_stray)
    before = metrics.forgotten_total.labels("age")._value.get()
    assert await _swept(store, recorder, max_age_days=30).sweep() == 1
    with pytest.raises(NotFound):
        store.interaction(old.interaction.id)
    assert store.attempts(old.interaction.id) == []
    assert store.executions(old.interaction.id) == []
    assert store.feedback(old.interaction.id) == []
    assert store.interaction(young.interaction.id) == young.interaction
    assert len(store.feedback(young.interaction.id)) == 1
    with pytest.raises(NotFound):
        store.execution(stray.id)
    assert metrics.forgotten_total.labels("age")._value.get() == before + 1


async def test_the_oldest_above_a_number_go(store: Store, recorder: Recorder) -> None:
    rows = [_whole() for _ in range(BATCH_ROWS + 25)]
    store.add(rows)
    retention = _swept(store, recorder, max_interactions=10)
    assert await retention.sweep() == BATCH_ROWS + 15
    left = {row.id for row in store.interactions(limit=1000)}
    assert left == {row.interaction.id for row in rows[-10:]}
    assert await retention.sweep() == 0


async def test_the_oldest_make_room(store: Store, recorder: Recorder) -> None:
    text = "x" * 4000
    rows = [_whole(messages=[{"role": "user", "content": text}]) for _ in range(600)]
    store.add(rows)
    size = store.size_bytes()
    assert size is not None
    assert size > 2 << 20
    retention = _swept(store, recorder, max_bytes=1 << 20)
    forgotten = await retention.sweep()
    assert 0 < forgotten < 600
    after = store.size_bytes()
    assert after is not None
    assert after <= 1 << 20
    assert store.interaction(rows[-1].interaction.id) == rows[-1].interaction


async def test_lineage_outlives_what_it_names(store: Store, recorder: Recorder) -> None:
    cycle = records.cycle()
    store.add_cycle(cycle)
    one = _whole()
    store.add([one])
    row = DatasetRow(
        cycle_id=cycle.id,
        row_id="r1",
        recipe="ilf",
        kept=True,
        reason=None,
        interaction_ids=[one.interaction.id],
        feedback_ids=[],
        prompt_sha256="",
        program_sha256="",
    )
    store.replace_dataset(cycle.id, [row])
    assert await _swept(store, recorder, max_interactions=0).sweep() == 1
    assert store.dataset(cycle.id)[0].interaction_ids == [one.interaction.id]


async def test_without_a_limit_nothing_is_forgotten(store: Store, recorder: Recorder) -> None:
    store.add([_whole(created_at=now() - timedelta(days=10_000))])
    retention = _swept(store, recorder)
    assert not retention.wanted
    await retention.run()  # ends by itself
    assert store.count_interactions() == 1


def test_the_server_sweeps_by_itself(engine: FakeEngine, pool: SharedPool, tmp_path: Path) -> None:
    limits = {"max_interactions": 2, "sweep_every_s": 0.05}
    with serving(engine, tmp_path, checker=pool, retention=limits) as server:
        ids = [server.chat().json()["id"].removeprefix("chatcmpl-") for _ in range(5)]
        server.until(lambda: server.store.count_interactions() == 2)
        assert {row.id for row in server.store.interactions()} == set(ids[-2:])


def test_a_size_that_cannot_be_told_is_refused_at_the_start(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "size_bytes", lambda self: None)
    settings = Settings(
        data_dir=tmp_path,
        engine=EngineSettings(url=engine.url),
        retention=RetentionSettings(max_bytes=1 << 20),
    )
    app = create_app(settings, checker=pool)
    with pytest.raises(SettingsError, match="max_interactions"), TestClient(app):
        pass
