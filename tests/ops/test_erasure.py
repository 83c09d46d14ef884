"""Erasure on both databases: what is a user's goes everywhere, and nobody else's."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ops import erasure as erasure_
from ops.erasure import Eraser, certificate, subject
from ops.errors import Conflict, ErasureError, NotFound, RegistryError
from ops.records import (
    Adapter,
    AdapterState,
    Alias,
    Cycle,
    CycleState,
    DatasetRow,
    Interaction,
    Tainted,
    now,
)
from ops.registry import Registry
from ops.store import Recording, Store
from tests.ops import records

SECRET = "def plans(): return 'the plans of ann'"


on_both = pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    postgresql = getattr(request, "param", "sqlite") == "postgresql"
    if postgresql:
        url = request.getfixturevalue("postgres_url")
    else:
        url = f"sqlite:///{tmp_path / 'journeyman.db'}"
    opened = Store.open(url)
    yield opened
    opened.close()
    if postgresql:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        engine.dispose()


class House:
    """An installation in which ann and bob ask, and cycles learn from both."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.directory = directory
        self.registry = Registry(store, directory / "adapters")

    def eraser(self, policy: Tainted = Tainted.ROLLBACK) -> Eraser:
        return Eraser(
            self.store,
            self.registry,
            cycles_dir=self.directory / "cycles",
            evaluations_dir=self.directory / "evaluations",
            policy=policy,
        )

    def asked(self, user: str | None, **changes: Any) -> Interaction:
        interaction = records.interaction(user=user, **changes)
        attempt = records.attempt(interaction, text=SECRET if user == "ann" else "other")
        recording = Recording(
            interaction=interaction,
            attempts=[attempt],
            executions=[records.execution(attempt)],
            feedback=[records.comment(interaction, identifier="x")],
        )
        self.store.add([recording])
        return interaction

    def cycle(self, *sources: Interaction, state: CycleState = CycleState.SUCCEEDED) -> Cycle:
        """A cycle that was made of interactions, with a row of each."""
        cycle = records.cycle(state=state)
        cycle = replace(cycle, directory=str(self.directory / "cycles" / cycle.id))
        self.store.add_cycle(cycle)
        self.learn(cycle, *sources)
        return cycle

    def learn(self, cycle: Cycle, *sources: Interaction) -> None:
        rows = []
        for source in sources:
            told = [row.id for row in self.store.feedback(source.id)]
            rows.append(
                DatasetRow(
                    cycle_id=cycle.id,
                    row_id=f"row-{source.id}",
                    recipe="ilf",
                    kept=True,
                    reason=None,
                    interaction_ids=[source.id],
                    feedback_ids=told,
                    prompt_sha256="aa",
                    program_sha256="bb",
                )
            )
        self.store.replace_dataset(cycle.id, rows)
        for stage in ("collect/cases", "build/rows", "build/journal", "dataset/train"):
            path = Path(cycle.directory, f"{stage}.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{json.dumps(self._line(s))}\n" for s in sources))
        weights = Path(cycle.directory, "train", "adapter", "adapter_model.safetensors")
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_text("weights")

    def _line(self, source: Interaction) -> dict[str, Any]:
        return {
            "id": f"row-{source.id}",
            "answer": SECRET if source.user == "ann" else "other",
            "interaction_ids": [source.id],
            "feedback_ids": [row.id for row in self.store.feedback(source.id)],
            "spec": {"examples": [{"input": [{"user": "ann"}]}]},
            "provenance": {"user": source.user, "tenant": source.tenant},
        }

    def adapter(self, cycle: Cycle, *, promote: bool = True) -> Adapter:
        def write(draft: Path) -> None:
            (draft / "adapter_model.safetensors").write_text(cycle.id)

        rows = [row.row_id for row in self.store.dataset(cycle.id)]
        adapter = self.registry.add(
            write,
            base_model="base",
            base_sha256="ff",
            rank=16,
            recipe="ilf",
            cycle_id=cycle.id,
            lineage={"rows": rows},
            actor="test",
        )
        if promote:
            self.registry.examined(adapter.version, actor="t", reason="r", evidence={})
            self.registry.promote(adapter.version, actor="t", reason="r")
        return adapter

    def state(self, adapter: Adapter) -> AdapterState:
        return self.registry.get(adapter.version).state

    def text(self) -> str:
        """All that lies in the cycles' files."""
        files = (self.directory / "cycles").rglob("*")
        return "".join(path.read_text() for path in files if path.is_file())


@pytest.fixture
def house(store: Store, tmp_path: Path) -> House:
    return House(store, tmp_path)


@on_both
def test_what_is_a_users_goes_everywhere_and_nobody_elses(house: House) -> None:
    anns, bobs = house.asked("ann"), house.asked("bob")
    on_bobs = records.comment(bobs, "bob is slow", user="ann", identifier="ann")
    alone = records.comment(anns, interaction_id=None, episode_id=anns.episode_id)
    house.store.put_feedback([on_bobs, alone])
    cycle = house.cycle(anns, bobs)
    erased = house.eraser().erase("ann", actor="me")
    assert erased.erasure.finished_at is not None
    assert erased.erasure.counts == {
        "interactions": 1,
        "attempts": 1,
        "executions": 1,
        "feedback": 3,
        "training_rows": 2,  # bob's row was made of ann's words as well
        "file_lines": 8,
    }
    assert [row.id for row in house.store.interactions()] == [bobs.id]
    assert house.store.count()["attempts"] == house.store.count()["executions"] == 1
    assert [row.value for row in house.store.feedback(bobs.id)] == ["It ignores negatives."]
    assert house.store.episode_feedback(str(anns.episode_id)) == []
    assert house.store.dataset(cycle.id) == []
    assert SECRET not in house.text()
    assert "weights" not in house.text()


def test_other_rows_of_a_cycle_stay_as_they_are(house: House) -> None:
    anns, bobs = house.asked("ann"), house.asked("bob")
    cycle = house.cycle(anns, bobs)
    other = house.cycle(bobs)
    before = Path(other.directory, "dataset", "train.jsonl").read_bytes()
    house.eraser().erase("ann", actor="me")
    assert [row.interaction_ids for row in house.store.dataset(cycle.id)] == [[bobs.id]]
    # bob's row has {"user": "ann"} in an example: data, not a user
    lines = Path(cycle.directory, "dataset", "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["interaction_ids"] for line in lines] == [[bobs.id]]
    assert Path(other.directory, "dataset", "train.jsonl").read_bytes() == before
    assert Path(other.directory, "train", "adapter").exists()


@on_both
def test_a_tainted_champion_gives_way_to_the_last_clean_one(house: House) -> None:
    clean = house.adapter(house.cycle(house.asked("bob")))
    old = house.adapter(house.cycle(house.asked("ann")))
    champion = house.adapter(house.cycle(house.asked("ann"), house.asked("bob")))
    erased = house.eraser().erase("ann", actor="me").erasure
    assert house.store.aliases() == {Alias.CHAMPION: clean.version}
    assert [house.state(a) for a in (clean, old, champion)] == [
        AdapterState.CHAMPION,
        AdapterState.REJECTED,
        AdapterState.REJECTED,
    ]
    assert [(a["name"], a["in_service"]) for a in erased.adapters] == [
        (old.name, False),
        (champion.name, False),
    ]
    last = house.store.transitions(champion.version)[-1]
    assert (last.actor, erased.id in last.reason) == ("me", True)
    for refused in (house.registry.promote, house.registry.canary):
        with pytest.raises(RegistryError, match="learned from data that were erased"):
            refused(champion.version, actor="me", reason="again")
    with pytest.raises(RegistryError, match="learned from data that were erased"):
        house.registry.promote(champion.version, actor="me", reason="again", force=True)
    with pytest.raises(RegistryError, match="learned from data that were erased"):
        house.registry.nominate(champion.version)


def test_without_a_clean_one_the_base_model_answers(house: House) -> None:
    house.adapter(house.cycle(house.asked("ann")))
    house.eraser().erase("ann", actor="me")
    assert house.store.aliases() == {}


def test_a_clean_champion_keeps_its_place_and_gets_a_clean_way_back(house: House) -> None:
    clean = house.adapter(house.cycle(house.asked("bob")))
    house.adapter(house.cycle(house.asked("ann")))
    champion = house.adapter(house.cycle(house.asked("bob")))
    house.eraser().erase("ann", actor="me")
    aliases = {Alias.CHAMPION: champion.version, Alias.ROLLBACK: clean.version}
    assert house.store.aliases() == aliases


def test_kept_until_retrained_it_answers_and_is_never_the_way_back(house: House) -> None:
    tainted = house.adapter(house.cycle(house.asked("ann")))
    erased = house.eraser(Tainted.KEEP).erase("ann", actor="me").erasure
    assert house.store.aliases() == {Alias.CHAMPION: tainted.version}
    assert [a["in_service"] for a in erased.adapters] == [True]
    assert house.registry.get(tainted.version).tainted_by == erased.id
    successor = house.adapter(house.cycle(house.asked("bob")))
    assert house.store.aliases() == {Alias.CHAMPION: successor.version}


def test_weights_of_tainted_versions_go_when_no_request_can_run_on_them(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    tainted = house.adapter(house.cycle(house.asked("ann")))
    house.eraser().erase("ann", actor="me")
    assert house.registry.retain(keep_recent=9, keep_best=9, actor="me") == []
    monkeypatch.setattr("ops.registry.DRAINED_S", 0.0)
    gone = house.registry.retain(keep_recent=9, keep_best=9, actor="me")
    assert [a.version for a in gone] == [tainted.version]
    assert not Path(tainted.directory).exists()


def test_a_second_time_nothing_is_left_and_the_certificate_is_shown(house: House) -> None:
    house.asked("ann")
    house.asked("bob")
    first = house.eraser().erase("ann", actor="me")
    second = house.eraser().erase("ann", actor="you")
    assert (second.already, second.erasure.id) == (True, first.erasure.id)
    assert len(house.eraser().certificates()) == 1
    house.asked("ann")  # she came back
    third = house.eraser().erase("ann", actor="me")
    assert (third.already, third.erasure.counts["interactions"]) == (False, 1)


def test_a_certificate_names_nobody(house: House) -> None:
    house.cycle(house.asked("ann@example.org"))
    erased = house.eraser().erase("ann@example.org", actor="me")
    shown = json.dumps(certificate(erased))
    assert "ann" not in shown
    assert erased.erasure.subject_sha256 == subject(erased.erasure.id, "ann@example.org")
    (kept,) = house.store.erasures()
    assert (kept.traces, kept.finished_at) == ({}, erased.erasure.finished_at)


@pytest.mark.parametrize("name", ["carol", "", "ANN", "ann%", "' OR 1=1 --"])
def test_nobody_of_that_name(house: House, name: str) -> None:
    house.asked("ann")
    with pytest.raises(NotFound, match="no user"):
        house.eraser().erase(name, actor="me")
    assert house.store.erasures() == []
    assert house.store.count_interactions() == 1


@on_both
def test_a_name_in_two_tenants_needs_the_tenant(house: House) -> None:
    house.asked("ann", tenant="one")
    two = house.asked("ann", tenant="two")
    bobs = house.asked("bob", tenant="two")
    said = [records.comment(i, user="ann", identifier="ann", value=i.tenant) for i in (two, bobs)]
    house.store.put_feedback(said)
    with pytest.raises(ErasureError, match="one, two"):
        house.eraser().erase("ann", actor="me")
    with pytest.raises(NotFound, match="three"):
        house.eraser().erase("ann", actor="me", tenant="three")
    erased = house.eraser().erase("ann", actor="me", tenant="one").erasure
    assert (erased.tenant, erased.counts["interactions"]) == ("one", 1)
    assert {row.tenant for row in house.store.interactions()} == {"two"}
    assert len(house.store.feedback(bobs.id)) == 2
    assert house.eraser().certificates(tenant="two") == []


@on_both
def test_a_dry_run_counts_and_changes_nothing(house: House) -> None:
    adapter = house.adapter(house.cycle(house.asked("ann")))
    before = (house.store.count(), house.text(), house.store.aliases())
    dry = house.eraser().erase("ann", actor="me", dry_run=True).erasure
    assert (house.store.count(), house.text(), house.store.aliases()) == before
    assert house.store.erasures() == []
    assert house.registry.get(adapter.version).tainted_by is None
    assert [a["name"] for a in dry.adapters] == [adapter.name]
    done = house.eraser().erase("ann", actor="me").erasure
    assert done.counts == dry.counts


def test_what_the_record_forgot_is_still_found_in_files(house: House) -> None:
    anns = house.asked("ann")
    adapter = house.adapter(house.cycle(anns))
    house.store.delete([anns.id])
    erased = house.eraser().erase("ann", actor="me").erasure
    assert erased.counts["interactions"] == 0
    assert erased.counts["file_lines"] == 4
    assert house.state(adapter) is AdapterState.REJECTED
    assert SECRET not in house.text()


def test_an_unfinished_stage_begins_anew(house: House) -> None:
    failed = house.cycle(house.asked("ann"), state=CycleState.FAILED)
    partial = Path(failed.directory, "train.partial")
    partial.mkdir()
    (partial / "checkpoint.pt").write_text("weights")
    other = house.cycle(house.asked("bob"), state=CycleState.FAILED)
    noted = Path(other.directory, "build.partial")
    noted.mkdir()
    (noted / "journal.jsonl").write_text('{"key": "gift4code:0", "data": {}}\n')
    kept = Path(other.directory, "evaluate.partial")
    kept.mkdir()
    house.eraser().erase("ann", actor="me")
    assert (partial.exists(), noted.exists(), kept.exists()) == (False, False, True)


def test_where_preference_training_began_goes_too(house: House) -> None:
    made = house.cycle(house.asked("ann"))
    preferred = Path(made.directory, "train", "preferred")
    for name in ("start", "adapter", "checkpoints"):
        (preferred / name).mkdir(parents=True)
        (preferred / name / "adapter_model.safetensors").write_text("weights")
    house.eraser().erase("ann", actor="me")
    assert list(preferred.iterdir()) == []


def test_an_examination_that_quotes_the_user_goes_whole(house: House) -> None:
    anns = house.asked("ann")
    folder = house.directory / "evaluations"
    folder.mkdir()
    (folder / "replay.json").write_text(json.dumps({"task": f"replay/default/{anns.id}"}))
    (folder / "builtin.json").write_text("{}")
    house.eraser().erase("ann", actor="me")
    assert [path.name for path in folder.iterdir()] == ["builtin.json"]


@on_both
def test_a_running_cycle_is_waited_for_and_what_it_makes_is_tainted(house: House) -> None:
    anns = house.asked("ann")
    running = house.cycle(anns, state=CycleState.RUNNING)
    house.store.take_lease("improver", "an improver", 60)
    erased = house.eraser().erase("ann", actor="me").erasure
    assert erased.finished_at is None
    assert house.store.count_interactions() == 0
    # the cycle still has it in memory: it writes its lineage, and makes an adapter of it
    house.learn(running, anns)
    adapter = house.adapter(running, promote=False)
    assert adapter.tainted_by == erased.id
    with pytest.raises(RegistryError, match="learned from data that were erased"):
        house.registry.nominate(adapter.version)
    again = house.eraser().erase("ann", actor="me").erasure
    assert (again.id, again.finished_at, len(house.store.erasures())) == (erased.id, None, 1)
    house.store.update_cycle(running.id, state=CycleState.FAILED)
    house.store.drop_lease("improver", "an improver")
    ended = house.eraser().erase("ann", actor="me").erasure
    assert (ended.id, ended.finished_at is None) == (erased.id, False)
    assert [a["name"] for a in ended.adapters] == [adapter.name]
    assert house.state(adapter) is AdapterState.REJECTED
    assert SECRET not in house.text()
    house.store.take_lease("improver", "the next", 60)  # it was given back


def test_two_at_once_do_not_touch_the_same_files(house: House) -> None:
    house.cycle(house.asked("ann"))
    house.asked("bob")
    house.store.take_lease("erasure", "another process", 60)
    erased = house.eraser().erase("ann", actor="me").erasure
    assert erased.finished_at is None
    assert SECRET in house.text()
    house.store.drop_lease("erasure", "another process")
    house.eraser().erase("bob", actor="me")  # whoever comes next goes on with it
    assert SECRET not in house.text()
    assert all(e.finished_at is not None for e in house.store.erasures())
    assert house.eraser().erase("ann", actor="me").erasure.id == erased.id


def test_somebody_who_promotes_meanwhile_is_met_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    tainted = house.adapter(house.cycle(house.asked("ann")))
    clean = house.adapter(house.cycle(house.asked("bob")), promote=False)
    eraser = house.eraser()
    transition, calls = house.store.transition, []

    def disturbed(*arguments: Any, **more: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            house.store.transition([], {Alias.CANDIDATE: clean.version})
        transition(*arguments, **more)

    monkeypatch.setattr(house.store, "transition", disturbed)
    eraser.erase("ann", actor="me")
    assert house.store.aliases() == {Alias.CANDIDATE: clean.version}
    assert house.state(tainted) is AdapterState.REJECTED
    monkeypatch.setattr(house.registry, "withdraw_tainted", _always_moved)
    house.asked("ann")
    with pytest.raises(Conflict):
        eraser.erase("ann", actor="me")


def _always_moved(**_: Any) -> None:
    raise Conflict("moved")


def test_nothing_can_be_read_from_the_file_afterwards(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'journeyman.db'}")
    house = House(store, tmp_path)
    house.asked("ann", messages=[{"role": "user", "content": "the plans of ann " * 900}])
    house.eraser().erase("ann", actor="me")
    store.close()
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"the plans of ann" not in left
    assert b"ann" not in left


# --- killed --------------------------------------------------------------------------------------

STEPS = ("erase_user", "withdraw", "sweep", "rewrite", "late_rows", "finish")
KILLS = [("sqlite", step) for step in STEPS] + [
    ("postgresql", "erase_user"),
    ("postgresql", "sweep"),
]


def _kill_at(step: str) -> None:
    """Make this process die at a step of the erasure."""

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if step == "rewrite":
        erasure_._rewrite = die
    elif step == "sweep":
        erasure_._sweep = die  # type: ignore[assignment]
    elif step == "withdraw":
        Registry.withdraw_tainted = die  # type: ignore[method-assign]
    else:
        name = {"erase_user": "_insert", "late_rows": "erase_late_rows", "finish": "truncate_log"}
        setattr(Store, name[step], die)


@pytest.mark.parametrize(("store", "step"), KILLS, indirect=["store"])
def test_a_killed_erasure_goes_on_where_it_was(house: House, step: str) -> None:
    clean = house.adapter(house.cycle(house.asked("bob")))
    house.adapter(house.cycle(house.asked("ann"), house.asked("bob")))
    url, directory = str(house.store.url), house.directory
    child = os.fork()
    if child == 0:
        _kill_at(step)
        erasure_.LEASE_S = -1.0  # the dead one's leases have run out
        House(Store(url), directory).eraser().erase("ann", actor="me")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    whole = house.store.count_interactions() == 3
    assert whole == (step == "erase_user")
    assert whole == (house.store.erasures() == [])
    erased = house.eraser().erase("ann", actor="me").erasure
    assert erased.finished_at is not None
    assert len(house.store.erasures()) == 1
    assert house.store.count_interactions() == 2
    assert house.store.aliases() == {Alias.CHAMPION: clean.version}
    assert erased.counts["interactions"] == 1
    assert SECRET not in house.text()
    assert house.eraser().erase("ann", actor="me").already


def test_time_is_kept(house: House) -> None:
    house.asked("ann")
    before = now()
    erased = house.eraser().erase("ann", actor="me").erasure
    assert erased.finished_at is not None
    assert before <= erased.created_at <= erased.finished_at <= now()
