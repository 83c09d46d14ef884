"""Exports and imports: whole, repeatable, and nothing of who was erased comes back."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ops import export
from ops.erasure import Eraser
from ops.errors import ExportError
from ops.records import (
    Attempt,
    CycleEvent,
    CycleState,
    DatasetRow,
    Erasure,
    Execution,
    Feedback,
    Interaction,
    Tainted,
    new_id,
    now,
)
from ops.registry import Registry
from ops.store import Recording, Store
from tests.databases import new_database
from tests.ops import records


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Another empty record, on either database."""
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path / 'other.db'}"
        if request.param == "postgresql":
            url = stack.enter_context(new_database(request.getfixturevalue("postgres_url")))
        opened = Store.open(url)
        stack.callback(opened.close)
        yield opened


def ask(store: Store, user: str | None = None, **changes: Any) -> Interaction:
    interaction = records.interaction(user=user, **changes)
    attempt = records.attempt(interaction)
    execution = records.execution(attempt)
    store.add([Recording(interaction=interaction, attempts=[attempt], executions=[execution])])
    return interaction


def learn(store: Store, source: Interaction, feedback_ids: list[str]) -> str:
    cycle = records.cycle(state=CycleState.SUCCEEDED, finished_at=now())
    store.add_cycle(cycle)
    event = CycleEvent(
        id=new_id(), cycle_id=cycle.id, created_at=now(), level="info", message="trained"
    )
    store.add_event(event)
    row = DatasetRow(
        cycle_id=cycle.id,
        row_id="r1",
        recipe="ilf",
        kept=True,
        reason=None,
        interaction_ids=[source.id],
        feedback_ids=feedback_ids,
        prompt_sha256="p",
        program_sha256="q",
    )
    store.replace_dataset(cycle.id, [row])
    return cycle.id


def eraser(store: Store, tmp_path: Path) -> Eraser:
    return Eraser(
        store,
        Registry(store, tmp_path / "adapters"),
        cycles_dir=tmp_path / "cycles",
        evaluations_dir=tmp_path / "evaluations",
        policy=Tainted.ROLLBACK,
    )


def everything(store: Store) -> dict[str, list[Any]]:
    with store.snapshot() as snapshot:
        return {name: list(snapshot.rows(record)) for name, record in export.RECORDS.items()}


def test_what_goes_out_comes_back_the_same(store: Store, other: Store, tmp_path: Path) -> None:
    first = ask(store, "ann", metadata={"ide": "x"}, messages=[{"role": "user", "content": "ü☃"}])
    ask(store, verified=None, spec=None, episode_id="e1")
    said = [
        records.comment(first, "it's wrong"),
        records.comment(first, metric="rating", value=4.5),
        records.comment(first, metric="accepted", value=False),
        records.comment(first, interaction_id=None, episode_id="e1", metric="accepted", value=True),
    ]
    store.put_feedback(said)
    client = records.execution(
        records.attempt(first), interaction_id=None, attempt_id=None, tenant="t"
    )
    store.add_execution(client)
    cycle = learn(store, first, [said[0].id])
    store.add_cycle(records.cycle(state=CycleState.RUNNING))  # not for anybody else to go on with
    manifest = export.write(store, tmp_path / "out")
    assert manifest["files"]["interactions.jsonl"]["rows"] == 2
    assert export.row_count(manifest) == 2 + 2 + 3 + 4 + 1 + 1 + 1

    report = export.read(other, tmp_path / "out")
    assert everything(other) == everything(store)
    assert report.imported.total() == export.row_count(manifest)
    assert other.adapters_taught_by(first.id) == []
    assert [row.row_id for row in other.dataset(cycle)] == ["r1"]
    again = export.read(other, tmp_path / "out")
    assert (again.imported.total(), again.known.total()) == (0, export.row_count(manifest))


def test_it_is_one_moment_of_the_record(store: Store, tmp_path: Path) -> None:
    ask(store)

    def meanwhile() -> None:
        ask(store)

    manifest = export.write(store, tmp_path / "out", on_row=meanwhile)
    assert manifest["files"]["interactions.jsonl"]["rows"] == 1
    assert manifest["files"]["attempts.jsonl"]["rows"] == 1
    assert store.count_interactions() > 1


def test_only_a_tenant_s_or_only_what_is_new(store: Store, tmp_path: Path) -> None:
    old = ask(store, tenant="a", created_at=now() - timedelta(days=9))
    new = ask(store, tenant="a")
    store.put_feedback([records.comment(other) for other in (old, new, ask(store, tenant="b"))])
    learn(store, new, [])
    export.write(store, tmp_path / "a", tenant="a", since=now() - timedelta(days=1))
    rows = {
        name: [
            json.loads(line) for line in (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in export.RECORDS
    }
    assert [row["id"] for row in rows["interactions"]] == [new.id]
    for name in ("attempts", "executions", "feedback"):
        assert [row["interaction_id"] for row in rows[name]] == [new.id]
    assert rows["cycles"] == rows["dataset_rows"] == []


def test_who_was_erased_does_not_come_back(store: Store, other: Store, tmp_path: Path) -> None:
    hers = ask(store, "ann")
    his = ask(store, "bob")
    kept, gone = records.comment(his, user="bob"), records.comment(his, user="ann", identifier="a")
    store.put_feedback([kept, gone, records.comment(hers, user="bob")])
    cycle = learn(store, hers, [])
    learn(store, his, [gone.id])
    learn(store, his, [kept.id])
    export.write(store, tmp_path / "old")
    eraser(store, tmp_path).erase("ann", actor="test")
    later = ask(store, "ann")  # asks again, afterwards
    export.write(store, tmp_path / "new")

    before = everything(store)
    report = export.read(store, tmp_path / "old")  # where she was erased
    assert everything(store) == before
    assert report.erased == {
        "interactions": 1, "attempts": 1, "executions": 1, "feedback": 2, "dataset_rows": 2,
    }  # fmt: skip

    export.read(other, tmp_path / "new")  # the certificate travels
    report = export.read(other, tmp_path / "old")
    assert report.erased["interactions"] == 1
    assert {row.id for row in other.interactions()} == {his.id, later.id}
    assert [row.id for row in other.feedback(his.id)] == [kept.id]
    assert other.dataset(cycle) == []


def test_an_erasure_in_one_tenant_leaves_the_name_alone_in_another(
    store: Store, tmp_path: Path
) -> None:
    ask(store, "ann", tenant="a")
    there = ask(store, "ann", tenant="b")
    export.write(store, tmp_path / "old")
    eraser(store, tmp_path).erase("ann", actor="test", tenant="a")
    store.delete([there.id])
    report = export.read(store, tmp_path / "old")
    assert report.erased["interactions"] == 1
    assert [row.tenant for row in store.interactions()] == ["b"]


def test_what_hangs_on_nothing_is_left_out(store: Store, tmp_path: Path) -> None:
    ask(store)
    export.write(store, tmp_path / "out")
    (tmp_path / "out" / "interactions.jsonl").write_text("")
    restate(tmp_path / "out")
    store.delete([row.id for row in store.interactions()])
    report = export.read(store, tmp_path / "out")
    assert report.orphans == {"attempts": 1, "executions": 1}
    assert store.count()["attempts"] == 0


def restate(source: Path) -> None:
    """Make the manifest agree with the files."""
    manifest = json.loads((source / "manifest.json").read_text())
    for name, stated in manifest["files"].items():
        stated["sha256"] = export.file_sha256(source / name)
    (source / "manifest.json").write_text(json.dumps(manifest))


def test_training_rows_are_copied_where_asked_for(store: Store, tmp_path: Path) -> None:
    made = tmp_path / "cycles" / "c1" / "dataset"
    made.mkdir(parents=True)
    (made / "train.jsonl").write_text('{"prompt": "p"}\n')
    (made / "preferences.jsonl").write_text('{"prompt": "p"}\n' * 2)
    (made / "other.jsonl").write_text("x")
    manifest = export.write(store, tmp_path / "out", cycles_dir=tmp_path / "cycles")
    rows = {name: told["rows"] for name, told in manifest["files"].items() if "datasets" in name}
    assert rows == {"datasets/c1.train.jsonl": 1, "datasets/c1.preferences.jsonl": 2}
    assert export.read(store, tmp_path / "out").imported.total() == 0
    with pytest.raises(ExportError, match="mix tenants"):
        export.write(store, tmp_path / "t", tenant="a", cycles_dir=tmp_path / "cycles")
    erasure = Erasure(
        id=new_id(), created_at=now(), actor="t", tenant=None, subject_sha256="0",
        policy=Tainted.KEEP,
    )  # fmt: skip
    store.take_in([erasure])
    with pytest.raises(ExportError, match="not finished"):
        export.write(store, tmp_path / "e", cycles_dir=tmp_path / "cycles")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda out: (out / "manifest.json").unlink(), "not finished"),
        (lambda out: (out / "manifest.json").write_text("[1"), "cannot be read"),
        (lambda out: (out / "manifest.json").write_text('{"format": "x"}'), "not an export"),
        (lambda out: (out / "feedback.jsonl").unlink(), "feedback.jsonl is missing"),
        (lambda out: (out / "attempts.jsonl").write_text("{}\n"), "altered"),
    ],
)
def test_an_export_that_is_not_whole_is_refused(
    store: Store, tmp_path: Path, harm: Any, words: str
) -> None:
    ask(store)
    out = tmp_path / "out"
    export.write(store, out)
    store.delete([row.id for row in store.interactions()])
    harm(out)
    with pytest.raises(ExportError, match=words):
        export.read(store, out)
    assert store.count_interactions() == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 2: "),
        ("[]", "not a record"),
        ('{"id": "x"}', "line 2: "),
        ('{"id": "x", "evil": 1}', "not a record of this version"),
    ],
)
def test_a_line_that_is_no_record_is_named(
    store: Store, tmp_path: Path, line: str, words: str
) -> None:
    ask(store)
    out = tmp_path / "out"
    export.write(store, out)
    with (out / "interactions.jsonl").open("a") as file:
        file.write(line + "\n")
    restate(out)
    with pytest.raises(ExportError, match=words):
        export.read(store, out)


def test_a_manifest_reaches_no_file_outside(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.write(store, out)
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"rows": 1, "sha256": "x"}
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"\.\./secret is missing"):
        export.verify(out)


def test_an_export_from_the_future_is_refused(store: Store, tmp_path: Path) -> None:
    export.write(store, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ExportError, match="reads 1"):
        export.verify(tmp_path / "out")


def test_a_target_that_is_there_is_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="there already"):
        export.write(store, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export.write(store, tmp_path / "file" / "out")


def test_memory_stays_flat(store: Store, tmp_path: Path) -> None:
    text = "x" * 20_000
    for _ in range(5):
        rows = [
            records.interaction(messages=[{"role": "user", "content": text}]) for _ in range(200)
        ]
        store.add([Recording(interaction=row) for row in rows])
    tracemalloc.start()
    export.write(store, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "out" / "interactions.jsonl").stat().st_size
    assert size > 20_000_000
    assert peak < size / 2


def test_records_of_every_kind_survive_json() -> None:
    interaction = records.interaction()
    attempt = records.attempt(interaction)
    kinds = (interaction, attempt, records.execution(attempt), records.comment(interaction))
    for row in (*kinds, replace(kinds[-1], value=True), replace(kinds[-1], value=1.0)):
        adapter = export._adapters()[type(row)]
        back = adapter.validate_json(adapter.dump_json(row))
        assert back == row
        if isinstance(row, Feedback):
            assert type(back.value) is type(row.value)
    assert {type(row) for row in kinds} == {Interaction, Attempt, Execution, Feedback}
