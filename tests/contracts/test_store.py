"""One suite over every database: what is acknowledged is there, whole, and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ops.errors import Conflict, NotFound, StoreError, StoreUnavailable
from ops.records import (
    Adapter,
    AdapterState,
    Alias,
    CycleEvent,
    CycleState,
    DatasetRow,
    Heartbeat,
    Metric,
    Source,
    SwapReceipt,
    Transition,
    new_id,
    now,
)
from ops.registry import Registry
from ops.store import Recording, Store
from ops.tables.schema import metadata
from tests.ops import records


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'journeyman.db'}"
        return
    server = request.getfixturevalue("postgres_url")
    yield server
    engine = sa.create_engine(server)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


def _recorded(store: Store, **changes: object) -> Recording:
    interaction = records.interaction(**changes)
    attempt = records.attempt(interaction)
    recording = Recording(
        interaction=interaction, attempts=[attempt], executions=[records.execution(attempt)]
    )
    store.add([recording])
    return recording


def test_a_recording_comes_back_as_it_went_in(store: Store) -> None:
    recording = _recorded(store, metadata={"ide": "x"}, user="ada")
    assert store.interaction(recording.interaction.id) == recording.interaction
    assert store.attempts(recording.interaction.id) == list(recording.attempts)
    assert store.executions(recording.interaction.id) == list(recording.executions)


def test_recordings_come_with_all_that_belongs_to_them(store: Store) -> None:
    made = [records.interaction() for _ in range(3)]
    store.add([Recording(interaction=one) for one in made[:1]])
    runs = []
    for one in made[1:]:
        attempts = [records.attempt(one, attempt_index=index) for index in (1, 0)]
        runs = [records.execution(attempts[0])]
        store.add([Recording(interaction=one, attempts=attempts, executions=runs)])
    reported = records.execution(records.attempt(made[2]), attempt_id=None, source=Source.CLIENT)
    store.add_execution(reported)
    said = records.comment(made[2])
    store.put_feedback([said])
    found = store.recordings([made[2], made[0], made[1]])
    assert [one.interaction.id for one in found] == [made[2].id, made[0].id, made[1].id]
    assert [a.attempt_index for a in found[0].attempts] == [0, 1]
    assert [e.id for e in found[0].executions] == [e.id for e in runs], "no word of a client's"
    assert list(found[0].feedback) == [said]
    assert not found[1].attempts
    assert store.recordings([]) == []


def test_objects_keep_the_order_of_their_keys(store: Store) -> None:
    """Programs iterate over what they are given, and the columns of a table have an order."""
    spec = {"examples": [{"input": [{"bb": 1, "a": 2, "ccc": {"z": 1, "y": 2}}], "output": 3}]}
    recording = _recorded(store, spec=spec, params={"zz": 1, "a": 2})
    back = store.interaction(recording.interaction.id)
    assert json.dumps(back.spec) == json.dumps(spec)
    assert list(back.params) == ["zz", "a"]


def test_times_keep_their_instant_whatever_their_zone(store: Store) -> None:
    at = datetime(2026, 11, 21, 1, 30, tzinfo=timezone(timedelta(hours=5)))
    recording = _recorded(store, created_at=at)
    back = store.interaction(recording.interaction.id).created_at
    assert back == at
    assert back.tzinfo is UTC
    with pytest.raises(StoreError, match="zone"):
        _recorded(store, created_at=datetime(2026, 11, 21))  # noqa: DTZ001


def test_a_batch_is_written_whole_or_not_at_all(store: Store) -> None:
    first = _recorded(store)
    fresh = records.interaction()
    with pytest.raises(Conflict):
        store.add([Recording(interaction=fresh), Recording(interaction=first.interaction)])
    with pytest.raises(NotFound):
        store.interaction(fresh.id)


def test_interactions_are_listed_newest_first_in_pages(store: Store) -> None:
    ids = [_recorded(store, verified=i % 2 == 0).interaction.id for i in range(5)]
    page = store.interactions(limit=2)
    assert [row.id for row in page] == ids[:2:-1]
    rest = store.interactions(limit=10, before=page[-1].id)
    assert [row.id for row in rest] == ids[2::-1]
    assert [row.id for row in store.interactions(verified=False)] == [ids[3], ids[1]]
    assert store.interactions(source=Source.IMPORTED) == []
    assert [row.id for row in store.iter_interactions(page=2)] == ids


def test_feedback_overwrites_under_the_same_identifier_only(store: Store) -> None:
    interaction = _recorded(store).interaction
    first = records.comment(interaction, "a", identifier="ed")
    [kept] = store.put_feedback([first])
    [again] = store.put_feedback([records.comment(interaction, "b", identifier="ed")])
    [other] = store.put_feedback([records.comment(interaction, "c", identifier="eve")])
    assert again == kept == first.id
    assert other != kept
    assert [row.value for row in store.feedback(interaction.id)] == ["b", "c"]
    assert store.feedback(interaction.id)[0].created_at == first.created_at


@pytest.mark.parametrize("value", [True, 0.5, "words"])
def test_feedback_values_keep_their_type(store: Store, value: object) -> None:
    interaction = _recorded(store).interaction
    store.put_feedback([records.comment(interaction, metric="any", value=value)])
    [back] = store.feedback(interaction.id)
    assert back.value == value
    assert type(back.value) is type(value)


def test_feedback_needs_its_target(store: Store) -> None:
    interaction = _recorded(store).interaction
    stray = records.comment(records.interaction())
    with pytest.raises(NotFound, match="no interaction"):
        store.put_feedback([records.comment(interaction), stray])
    assert store.feedback(interaction.id) == []
    episode = records.comment(interaction, interaction_id=None, episode_id=interaction.episode_id)
    assert store.put_feedback([episode]) == [episode.id]
    with pytest.raises(NotFound, match="no episode"):
        store.put_feedback([records.comment(interaction, interaction_id=None, episode_id="none")])


def test_feedback_can_be_deleted_once(store: Store) -> None:
    interaction = _recorded(store).interaction
    [kept] = store.put_feedback([records.comment(interaction)])
    store.delete_feedback(kept)
    assert store.feedback(interaction.id) == []
    with pytest.raises(NotFound):
        store.delete_feedback(kept)


def test_collecting_finds_what_has_feedback(store: Store) -> None:
    judged = _recorded(store, verified=False).interaction
    _recorded(store, verified=False)
    store.put_feedback([records.comment(judged)])
    found = list(store.iter_interactions(with_feedback=Metric.COMMENT, verified=False))
    assert found == [judged]


def test_cycles_and_their_lineage(store: Store) -> None:
    interaction = _recorded(store).interaction
    cycle = records.cycle()
    store.add_cycle(cycle)
    row = DatasetRow(
        cycle_id=cycle.id,
        row_id="r1",
        recipe="ilf",
        kept=True,
        reason=None,
        interaction_ids=[interaction.id],
        feedback_ids=[],
        prompt_sha256="p",
        program_sha256="q",
    )
    for _ in range(2):  # repeating a stage changes nothing
        store.replace_dataset(cycle.id, [row])
    assert store.dataset(cycle.id) == [row]
    changed = store.update_cycle(cycle.id, state=CycleState.SUCCEEDED, report={"kept": 1})
    assert changed.report == {"kept": 1}
    assert store.cycles(state=CycleState.SUCCEEDED) == [changed]
    assert store.count_cycles() == {("ilf", CycleState.SUCCEEDED): 1}
    adapter = store.add_adapter(_adapter(cycle_id=cycle.id), _built())
    assert store.adapters_taught_by(interaction.id) == [adapter]
    assert store.adapters_taught_by(new_id()) == []
    with pytest.raises(NotFound):
        store.update_cycle("none", stage="x")


def _adapter(**changes: object) -> Adapter:
    values = {
        "version": 0,
        "sha256": new_id(),
        "created_at": now(),
        "state": AdapterState.BUILT,
        "directory": "/nowhere",
        "base_model": "base",
        "base_sha256": "ff",
        "rank": 16,
        "cycle_id": None,
        "recipe": "ilf",
    }
    return Adapter(**values | changes)  # type: ignore[arg-type]


def _built(**changes: object) -> Transition:
    values = {
        "id": new_id(),
        "version": 0,
        "from_state": None,
        "to_state": AdapterState.BUILT,
        "at": now(),
        "actor": "test",
        "reason": "trained",
    }
    return Transition(**values | changes)  # type: ignore[arg-type]


def test_versions_are_counted_without_gaps_by_many_threads(store: Store) -> None:
    versions: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: versions.append(store.add_adapter(_adapter(), _built()).version)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(1, 9))


def test_a_transition_from_a_stale_state_changes_nothing(store: Store) -> None:
    adapter = store.add_adapter(_adapter(), _built())
    change = _built(
        version=adapter.version,
        from_state=AdapterState.EXAMINED,
        to_state=AdapterState.CHAMPION,
    )
    with pytest.raises(Conflict):
        store.transition([change], {Alias.CHAMPION: adapter.version})
    assert store.aliases() == {}
    assert store.adapter(adapter.version).state is AdapterState.BUILT
    assert len(store.transitions(adapter.version)) == 1


def test_a_transition_decided_on_a_moved_alias_changes_nothing(store: Store) -> None:
    adapter = store.add_adapter(_adapter(), _built())
    store.transition([], {Alias.CHAMPION: adapter.version}, require={Alias.CHAMPION: None})
    for demand in ({"require": {Alias.CHAMPION: None}}, {"unpointed": adapter.version}):
        with pytest.raises(Conflict):
            store.transition([], {Alias.CHAMPION: None}, **demand)
        assert store.aliases() == {Alias.CHAMPION: adapter.version}
    store.transition([], {Alias.CHAMPION: None}, require={Alias.CHAMPION: adapter.version})
    assert store.aliases() == {}


def test_of_two_promoters_at_once_one_wins(store: Store, tmp_path: Path) -> None:
    registries = [Registry(Store(store.url), tmp_path / "adapters") for _ in range(2)]
    for round_ in range(4):
        before = store.aliases().get(Alias.CHAMPION)
        versions = [_examined(registries[0], f"{round_}{place}") for place in "ab"]
        ready = threading.Barrier(2)
        lost: list[int] = []

        def promote(
            registry: Registry, version: int, ready: threading.Barrier, lost: list[int]
        ) -> None:
            ready.wait()
            try:
                registry.promote(version, actor="t", reason="r")
            except Conflict:
                lost.append(version)

        threads = [
            threading.Thread(target=promote, args=(registry, version, ready, lost))
            for registry, version in zip(registries, versions, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        aliases = store.aliases()
        champions = [a.version for a in store.adapters() if a.state is AdapterState.CHAMPION]
        assert champions == [aliases[Alias.CHAMPION]]
        if lost:  # both had seen the same champion
            assert [*lost, *champions] in (versions, versions[::-1])
            assert aliases.get(Alias.ROLLBACK) == before
            assert store.adapter(lost[0]).state is AdapterState.EXAMINED
        else:  # one came after the other
            assert {aliases[Alias.CHAMPION], aliases[Alias.ROLLBACK]} == set(versions)
    for registry in registries:
        registry._store.close()


def _examined(registry: Registry, content: str) -> int:
    def write(draft: Path) -> None:
        (draft / "adapter_model.safetensors").write_text(content)

    version = registry.add(
        write,
        base_model="base",
        base_sha256="ff",
        rank=8,
        recipe="ilf",
        cycle_id=None,
        lineage={},
        actor="t",
    ).version
    registry.examined(version, actor="t", reason="r", evidence={})
    return version


def test_a_lease_has_one_holder_until_it_expires(store: Store) -> None:
    store.take_lease("improver", "a", ttl_s=60)
    store.take_lease("improver", "a", ttl_s=60)
    with pytest.raises(Conflict, match="held by a"):
        store.take_lease("improver", "b", ttl_s=60)
    store.drop_lease("improver", "b")
    store.take_lease("improver", "a", ttl_s=-1)
    store.take_lease("improver", "b", ttl_s=60)
    store.drop_lease("improver", "b")
    store.take_lease("improver", "a", ttl_s=60)


def test_receipts_and_heartbeats(store: Store) -> None:
    receipt = SwapReceipt(
        id=new_id(),
        at=now(),
        server="s",
        version=3,
        from_version=0,
        accepted=True,
        reason="",
        phases_s={"load": 0.1},
    )
    store.add_receipt(receipt)
    assert store.receipts(version=3) == [receipt]
    assert store.receipts(version=4) == []
    for pid in (1, 2):
        store.beat(Heartbeat(process="server", at=now(), pid=pid, host="h"))
    assert [beat.pid for beat in store.heartbeats()] == [2]


def test_two_processes_may_open_a_new_database_at_once(url: str) -> None:
    errors: list[BaseException] = []

    def open_one() -> None:
        try:
            Store.open(url).close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_migrations_build_the_schema_the_code_states(store: Store, url: str) -> None:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_schema_from_the_future_is_refused(store: Store, url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="does not know"):
        Store.open(url)


def test_an_unreachable_database_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        Store.open(f"postgresql://nobody@/none?host={tmp_path}")


def test_activity_is_counted_by_stretches_of_time(store: Store) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    said = [(0, True), (59, False), (60, None), (7200, True)]
    for seconds, verified in said:
        at = noon + timedelta(seconds=seconds)
        _recorded(store, created_at=at, verified=verified, duration_s=float(seconds))
    _recorded(store, created_at=noon, source=Source.IMPORTED)
    found = store.activity(since=noon, bucket_s=3600)
    assert [(a.start, a.requests, a.judged, a.verified) for a in found] == [
        (noon, 3, 2, 1),
        (noon + timedelta(hours=2), 1, 1, 1),
    ]
    assert store.activity(since=noon + timedelta(days=1), bucket_s=3600) == []
    assert store.durations(since=noon, limit=2) == [7200.0, 60.0]
    assert store.verified_by_version(since=noon) == {0: (3, 2)}


@pytest.mark.parametrize("counted", ["activity", "growth", "verified_by_version", "count_new"])
def test_counts_of_interactions_are_read_from_an_index(tmp_path: Path, counted: str) -> None:
    """Or each count would read every row of the table: seconds, where there are a million."""
    store = Store.open(f"sqlite:///{tmp_path / 'journeyman.db'}")
    _recorded(store)
    plans: list[str] = []

    def explain(
        connection: object, cursor: Any, statement: str, parameters: Any, *_: object
    ) -> None:
        if statement.startswith("SELECT") and "FROM interactions" in statement:
            asked = cursor.connection.cursor()  # its own: the cursor is about to be used
            plans.extend(r[3] for r in asked.execute(f"EXPLAIN QUERY PLAN {statement}", parameters))

    sa.event.listen(store._engine, "before_cursor_execute", explain)
    since = now() - timedelta(days=1)
    ask: dict[str, Callable[[], object]] = {
        "activity": lambda: store.activity(since=since, bucket_s=3600),
        "growth": lambda: store.growth(since=since, bucket_s=3600),
        "verified_by_version": lambda: store.verified_by_version(since=since),
        "count_new": lambda: store.count_new(since),
    }
    ask[counted]()
    store.close()
    reads = [plan for plan in plans if "interactions" in plan]
    assert reads
    assert [plan for plan in reads if "COVERING INDEX" not in plan] == []


def test_growth_starts_with_what_was_there_before(store: Store) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for hours in (-5, 1, 1):
        interaction = records.interaction(created_at=noon + timedelta(hours=hours))
        store.add([Recording(interaction=interaction, feedback=[records.comment(interaction)])])
    grown = store.growth(since=noon, bucket_s=3600)
    assert grown["interactions"] == [(noon, 1), (noon + timedelta(hours=2), 3)]
    assert [total for _, total in grown["feedback"]] == [0, 3]


def test_a_text_is_found_in_requests_and_answers(store: Store) -> None:
    text = 'Grüße "mit" 100 % \\ <script>'
    asked = records.interaction(messages=[{"role": "user", "content": text}])
    answer = [{"index": 0, "message": {"role": "assistant", "content": text}}]
    answered = records.interaction(choices=answer, adapter_version=3)
    other = records.interaction()
    store.add([Recording(interaction=one) for one in (asked, answered, other)])
    for part in ("grüße", '"MIT"', "100 %", "\\ <script>"):
        assert [row.id for row in store.interactions(text=part)] == [answered.id, asked.id], part
    assert [row.id for row in store.interactions(text="Grü", adapter_version=3)] == [answered.id]
    assert [row.id for row in store.interactions(text="Grü", before=answered.id)] == [asked.id]
    for part in ("100_%", "nobody said this"):
        assert store.interactions(text=part) == []


def test_rows_are_counted_by_their_fate_and_found_by_what_they_are_made_of(store: Store) -> None:
    interaction = records.interaction()
    cycle = records.cycle()
    store.add([Recording(interaction=interaction)])
    store.add_cycle(cycle)
    rows = [
        DatasetRow(
            cycle_id=cycle.id,
            row_id=f"r{number}",
            recipe="ilf",
            kept=reason is None,
            reason=reason,
            interaction_ids=[interaction.id],
            feedback_ids=[],
            prompt_sha256="00" * 32,
            program_sha256="11" * 32,
        )
        for number, reason in enumerate([None, "duplicate", "duplicate"])
    ]
    store.replace_dataset(cycle.id, rows)
    assert store.count_dataset(cycle.id) == {(True, ""): 1, (False, "duplicate"): 2}
    assert store.rows_made_of(interaction.id) == rows
    assert store.rows_made_of("nobody") == []


def test_the_last_lines_of_a_log_keep_their_order(store: Store) -> None:
    cycle = records.cycle()
    store.add_cycle(cycle)
    for number in range(3):
        event = CycleEvent(
            id=new_id(), cycle_id=cycle.id, created_at=now(), level="info", message=f"m{number}"
        )
        store.add_event(event)
    assert [event.message for event in store.events(cycle.id, last=2)] == ["m1", "m2"]
    assert len(store.events(cycle.id)) == 3
