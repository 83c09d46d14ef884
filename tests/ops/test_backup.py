"""Backups: everything comes back, elsewhere too, but for who was erased and what was revoked."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops import backup, export, keys
from ops.backup import Places
from ops.errors import Conflict, ExportError, StoreError
from ops.records import AdapterState, CycleState, DatasetRow, Tainted
from ops.registry import Registry
from ops.store import Recording, Store
from tests.ops import records
from tests.ops.test_export import ask, eraser

Make = Callable[[str], Places]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes installations on either database; on PostgreSQL they share one."""
    shared = None
    if request.param == "postgresql":
        if shutil.which("pg_dump") is None:
            pytest.skip("pg_dump is not installed (apt-get install postgresql-client)")
        shared = request.getfixturevalue("postgres_database")

    def make(name: str) -> Places:
        return places(tmp_path / name, shared)

    return make


def places(data_dir: Path, url: str | None = None) -> Places:
    data_dir.mkdir(exist_ok=True)
    return Places(
        store_url=url or f"sqlite:///{data_dir / 'journeyman.db'}",
        data_dir=data_dir,
        adapters_dir=data_dir / "adapters",
        cycles_dir=data_dir / "cycles",
        evaluations_dir=data_dir / "evaluations",
        settings_file=data_dir / "journeyman.toml",
    )


def opened(where: Places) -> Store:
    return Store.open(where.store_url)


def learned(where: Places, store: Store, user: str) -> tuple[str, int]:
    """A request of a user's, and the champion that learned from it."""
    asked = ask(store, user)
    cycle = records.cycle(state=CycleState.SUCCEEDED)
    folder = where.cycles_dir / cycle.id / "dataset"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(json.dumps({"interaction_ids": [asked.id]}) + "\n")
    store.add_cycle(records.cycle(**{**vars(cycle), "directory": str(folder.parent)}))
    row = DatasetRow(
        cycle_id=cycle.id, row_id="r", recipe="ilf", kept=True, reason=None,
        interaction_ids=[asked.id], feedback_ids=[], prompt_sha256="p", program_sha256="q",
    )  # fmt: skip
    store.replace_dataset(cycle.id, [row])
    registry = Registry(store, where.adapters_dir)

    def write(draft: Path) -> None:
        (draft / "adapter_model.safetensors").write_text(user)

    version = registry.add(
        write, base_model="b", base_sha256="f", rank=8, recipe="ilf", cycle_id=cycle.id,
        lineage={"rows": ["r"]}, actor="t",
    ).version  # fmt: skip
    registry.promote(version, actor="t", reason="r", force=True)
    return asked.id, version


def test_everything_comes_back_in_another_place(place: Make, tmp_path: Path) -> None:
    here = place("here")
    store = opened(here)
    asked, version = learned(here, store, "ann")
    key = keys.make("ide", created_by="t")
    store.add_key(key.key)
    running = records.cycle(directory=str(here.cycles_dir / "running"))
    store.add_cycle(running)
    Path(running.directory).mkdir()
    before = store.interaction(asked)
    store.close()
    here.settings_file.write_text("[server]\nport = 9\n")
    manifest = backup.write(here, tmp_path / "backup")
    assert not any("running" in name for name in manifest["files"])

    there = place("there")
    done = backup.restore(
        tmp_path / "backup",
        there,
        policy=Tainted.ROLLBACK,
        replace=there.store_url == here.store_url,
    )
    assert (done.adapters, done.cycles, done.erased_again) == (1, 1, [])
    store = opened(there)
    assert store.interaction(asked) == before
    assert [row.id for row in store.api_keys()] == [key.key.id]
    registry = Registry(store, there.adapters_dir)
    assert registry.verify(registry.get(version)).is_relative_to(there.adapters_dir)
    assert Path(store.cycle(store.cycles()[-1].id).directory).is_relative_to(there.cycles_dir)
    assert there.settings_file.read_text() == here.settings_file.read_text()
    store.close()


def test_who_was_erased_since_stays_erased(place: Make, tmp_path: Path) -> None:
    here = place("here")
    store = opened(here)
    asked, version = learned(here, store, "ann")
    bob = ask(store, "bob")
    key = keys.make("ide", created_by="t").key
    store.add_key(key)
    backup.write(here, tmp_path / "backup")
    eraser(store, here.data_dir).erase("ann", actor="test")
    store.revoke_key("ide")
    ask(store, "carol")
    store.close()

    with pytest.raises(ExportError, match="--replace"):
        backup.restore(tmp_path / "backup", here, policy=Tainted.ROLLBACK)
    done = backup.restore(tmp_path / "backup", here, policy=Tainted.ROLLBACK, replace=True)
    assert len(done.erased_again) == 1
    store = opened(here)
    assert [row.id for row in store.interactions()] == [bob.id]
    assert store.adapter(version).state is AdapterState.REJECTED
    assert store.api_keys()[0].revoked_at is not None
    assert all(asked not in path.read_text() for path in here.cycles_dir.rglob("*.jsonl"))
    store.close()


def test_certificates_are_taken_from_a_file_where_the_record_is_lost(tmp_path: Path) -> None:
    here = places(tmp_path / "here")
    store = opened(here)
    ask(store, "ann")
    backup.write(here, tmp_path / "backup")
    eraser(store, here.data_dir).erase("ann", actor="test")
    export.write(store, tmp_path / "later")
    store.close()
    known = backup.read_certificates(tmp_path / "later" / "erasures.jsonl")
    new = places(tmp_path / "new")
    backup.restore(tmp_path / "backup", new, policy=Tainted.KEEP, certificates=known)
    store = opened(new)
    assert store.interactions() == []
    store.close()
    (tmp_path / "bad").write_text("{}\n")
    for path in (tmp_path / "bad", tmp_path / "none"):
        with pytest.raises(ExportError, match="no certificates"):
            backup.read_certificates(path)


def test_what_was_replaced_is_put_aside(tmp_path: Path) -> None:
    here = places(tmp_path / "here")
    store = opened(here)
    backup.write(here, tmp_path / "backup")
    late = ask(store)
    store.close()
    done = backup.restore(tmp_path / "backup", here, policy=Tainted.KEEP, replace=True)
    assert done.put_aside is not None
    store = Store.open(f"sqlite:///{done.put_aside}")
    assert store.interaction(late.id) == late
    store.close()


def test_a_backup_is_sound_while_others_write(tmp_path: Path) -> None:
    here = places(tmp_path / "here")
    store = opened(here)
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            row = records.interaction(messages=[{"role": "user", "content": "x" * 5000}])
            store.add([Recording(interaction=row, attempts=[records.attempt(row)])])

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        for number in range(3):
            backup.write(here, tmp_path / str(number))
    finally:
        stop.set()
        writer.join()
        store.close()
    copy = Store.open(f"sqlite:///{tmp_path / '2' / 'record.db'}")
    count = copy.count()
    copy.close()
    assert count["interactions"] == count["attempts"] > 0


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda out: (out / "manifest.json").unlink(), "not finished"),
        (lambda out: (out / "manifest.json").write_text("{"), "cannot be read"),
        (lambda out: (out / "manifest.json").write_text("{}"), "not a backup"),
        (lambda out: (out / "record.db").unlink(), "record.db is missing"),
        (lambda out: (out / "record.db").write_bytes(b"x"), "record.db was altered"),
    ],
)
def test_a_backup_that_is_not_whole_is_refused(tmp_path: Path, harm: Any, words: str) -> None:
    here = places(tmp_path / "here")
    backup.write(here, tmp_path / "out")
    harm(tmp_path / "out")
    new = places(tmp_path / "new")
    with pytest.raises(ExportError, match=words):
        backup.restore(tmp_path / "out", new, policy=Tainted.KEEP)
    assert list(new.data_dir.iterdir()) == []


@pytest.mark.skipif(shutil.which("pg_dump") is None, reason="apt-get install postgresql-client")
def test_an_installation_moves_from_sqlite_to_postgresql(
    postgres_database: str, tmp_path: Path
) -> None:
    here = places(tmp_path / "here")
    store = opened(here)
    asked, version = learned(here, store, "ann")
    store.put_feedback([records.comment(store.interaction(asked))])
    store.add_key(keys.make("ide", created_by="t").key)
    before = (store.interaction(asked), store.feedback(asked), store.adapters(), store.aliases())
    counts, rows = store.count(), store.api_keys()
    store.close()
    backup.write(here, tmp_path / "backup")
    there = Places(**{**vars(here), "store_url": postgres_database})
    backup.restore(tmp_path / "backup", there, policy=Tainted.KEEP)
    store = opened(there)
    after = (store.interaction(asked), store.feedback(asked), store.adapters(), store.aliases())
    assert after == before
    assert (store.count(), store.api_keys()) == (counts, rows)
    assert [one.version for one in store.adapters_taught_by(asked)] == [version]
    with pytest.raises(Conflict):
        store.copy_from(store)
    store.close()
    with pytest.raises(ExportError, match="already"):
        backup.restore(tmp_path / "backup", there, policy=Tainted.KEEP)

    backup.write(there, tmp_path / "back")
    with pytest.raises(ExportError, match="only PostgreSQL reads"):
        backup.restore(tmp_path / "back", places(tmp_path / "new"), policy=Tainted.KEEP)


def test_a_target_that_is_there_is_left_alone(tmp_path: Path) -> None:
    here = places(tmp_path / "here")
    with pytest.raises(ExportError, match="there already"):
        backup.write(here, here.data_dir)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        backup.write(here, tmp_path / "file" / "out")


def test_postgresql_is_not_copied_as_a_file(postgres_database: str, tmp_path: Path) -> None:
    store = Store.open(postgres_database)
    with pytest.raises(StoreError, match="pg_dump"):
        store.back_up(tmp_path / "x")
    store.close()
