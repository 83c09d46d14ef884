from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Thread

import pytest
import sqlalchemy as sa

from ops.errors import ArtifactError, Conflict, NotFound, RegistryError, StoreError
from ops.records import Adapter, AdapterState, Alias, DatasetRow, now
from ops.registry import Registry
from ops.store import Store
from ops.tables.schema import metadata
from tests.ops.records import cycle


def _add(registry: Registry, content: str) -> Adapter:
    return registry.add(
        lambda draft: (draft / "adapter_model.safetensors").write_text(content) and None,
        base_model="base",
        base_sha256="ff",
        rank=16,
        recipe="ilf",
        cycle_id=None,
        lineage={"seed": 7},
        actor="test",
    )


def _promoted(registry: Registry, content: str) -> Adapter:
    adapter = _add(registry, content)
    registry.examined(adapter.version, actor="gate", reason="e = 21", evidence={"e": 21})
    registry.promote(adapter.version, actor="gate", reason="better")
    return registry.get(adapter.version)


def test_an_adapter_is_numbered_once_by_its_content(registry: Registry) -> None:
    first, again, second = (_add(registry, text) for text in ("a", "a", "b"))
    assert (first.version, again.version, second.version) == (1, 1, 2)
    assert first.name == "code@v1"
    assert registry.find("code@v2") == registry.find("v2") == registry.find("2") == second


@pytest.mark.parametrize("name", ["code@v9", "code", "", "v-1", "code@v1x", "٣", "9" * 40])
def test_unknown_names_are_not_found(registry: Registry, name: str) -> None:
    with pytest.raises(NotFound):
        registry.find(name)


def test_promotion_needs_an_examination_unless_forced(registry: Registry) -> None:
    adapter = _add(registry, "a")
    with pytest.raises(RegistryError, match="built and cannot be promoted without --force"):
        registry.promote(adapter.version, actor="me", reason="hope")
    registry.promote(adapter.version, actor="me", reason="hope", force=True)
    assert registry.at(Alias.CHAMPION) == registry.get(adapter.version)


def test_rollback_goes_to_the_one_before_then_to_the_base(registry: Registry, store: Store) -> None:
    first, second = _promoted(registry, "a"), _promoted(registry, "b")
    assert store.aliases() == {Alias.CHAMPION: second.version, Alias.ROLLBACK: first.version}
    assert registry.get(first.version).state is AdapterState.RETIRED
    back = registry.rollback(actor="me", reason="worse")
    assert back is not None
    assert back.version == first.version
    assert registry.get(first.version).state is AdapterState.CHAMPION
    assert registry.rollback(actor="me", reason="worse still") is None
    assert store.aliases() == {}
    with pytest.raises(RegistryError, match="nothing to roll back"):
        registry.rollback(actor="me", reason="again")
    reasons = [t.reason for t in store.transitions(first.version)]
    assert reasons[:3] == ["trained", "e = 21", "better"]
    assert "back in place of code@v2" in reasons[4]


def test_a_refused_champion_gives_way_to_the_one_before(registry: Registry, store: Store) -> None:
    first, second = _promoted(registry, "a"), _promoted(registry, "b")
    registry.refuse(second.version, actor="server", reason="rank 999", evidence={})
    assert store.aliases() == {Alias.CHAMPION: first.version}
    assert registry.get(second.version).state is AdapterState.REJECTED


def test_a_refused_candidate_leaves_the_champion_alone(registry: Registry, store: Store) -> None:
    first, second = _promoted(registry, "a"), _add(registry, "b")
    registry.nominate(second.version)
    registry.refuse(second.version, actor="server", reason="no probe", evidence={})
    assert store.aliases() == {Alias.CHAMPION: first.version}
    assert registry.get(second.version).state is AdapterState.REJECTED


def test_altered_files_are_never_promoted(registry: Registry, store: Store) -> None:
    adapter = _add(registry, "a")
    (Path(adapter.directory) / "adapter_model.safetensors").write_text("b")
    with pytest.raises(ArtifactError, match="altered"):
        registry.promote(adapter.version, actor="me", reason="x", force=True)
    assert store.aliases() == {}


def test_the_champion_cannot_be_rejected_or_promoted_again(registry: Registry) -> None:
    champion = _promoted(registry, "a")
    with pytest.raises(RegistryError, match="champion and cannot be rejected"):
        registry.reject(champion.version, actor="me", reason="x")
    with pytest.raises(RegistryError, match="champion and cannot be promoted"):
        registry.promote(champion.version, actor="me", reason="x", force=True)


def test_a_way_back_whose_files_are_gone_is_not_taken(registry: Registry, store: Store) -> None:
    first, second = _promoted(registry, "a"), _promoted(registry, "b")
    (Path(first.directory) / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError):
        registry.rollback(actor="me", reason="x")
    assert store.aliases()[Alias.CHAMPION] == second.version


# --- steps of a promotion -------------------------------------------------------------------------


def test_a_promotion_may_go_by_shadow_and_canary(registry: Registry, store: Store) -> None:
    adapter = _add(registry, "a")
    version = adapter.version
    with pytest.raises(RegistryError, match="built and cannot be made shadow"):
        registry.shadow(version, actor="me", reason="x")
    registry.examined(version, actor="gate", reason="e = 21", evidence={"e": 21})
    registry.shadow(version, actor="me", reason="idle night")
    assert registry.at(Alias.CANDIDATE) == registry.get(version)
    registry.canary(version, actor="me", reason="5 %", evidence={"share": 0.05})
    assert store.aliases() == {Alias.CANARY: version}
    with pytest.raises(RegistryError, match="canary and cannot be made shadow"):
        registry.shadow(version, actor="me", reason="x")
    registry.promote(version, actor="gate", reason="no worse")
    assert store.aliases() == {Alias.CHAMPION: version}
    history = store.transitions(version)
    assert [t.to_state for t in history] == ["built", "examined", "shadow", "canary", "champion"]
    assert (history[3].actor, history[3].reason, history[3].evidence) == (
        "me",
        "5 %",
        {"share": 0.05},
    )


def test_a_canary_can_be_rejected_and_is_not_loaded_any_more(
    registry: Registry, store: Store
) -> None:
    version = _add(registry, "a").version
    registry.examined(version, actor="gate", reason="r", evidence={})
    registry.canary(version, actor="me", reason="r")
    registry.reject(version, actor="me", reason="slow")
    assert store.aliases() == {}


def test_a_newer_canary_takes_the_place_of_one_under_way(registry: Registry, store: Store) -> None:
    first, second = (_scored(registry, text, 0.5) for text in "ab")
    registry.canary(first, actor="me", reason="r")
    registry.nominate(second)
    registry.canary(second, actor="me", reason="r")
    assert store.aliases() == {Alias.CANARY: second}
    assert registry.get(first).state is AdapterState.REJECTED
    assert store.transitions(first)[-1].reason == "code@v2 became the canary in its place"


def test_a_canary_that_learned_from_what_was_erased_leaves(
    registry: Registry, store: Store
) -> None:
    champion = _promoted(registry, "a").version
    canary = _scored(registry, "b", 0.5)
    registry.canary(canary, actor="me", reason="r")
    with store._engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE adapters SET tainted_by = 'e' WHERE version = {canary}")
    registry.withdraw_tainted(actor="erasure", reason="erased")
    assert store.aliases() == {Alias.CHAMPION: champion}
    assert registry.get(canary).state is AdapterState.REJECTED
    with pytest.raises(RegistryError, match="data that were erased"):
        registry.canary(canary, actor="me", reason="r")


def test_promoting_one_version_leaves_the_others_where_they_are(
    registry: Registry, store: Store
) -> None:
    canary, examined, chosen = (_scored(registry, text, 0.5) for text in "abc")
    registry.canary(canary, actor="me", reason="r")
    registry.nominate(examined)
    registry.promote(chosen, actor="me", reason="r")
    assert store.aliases() == {
        Alias.CHAMPION: chosen,
        Alias.CANARY: canary,
        Alias.CANDIDATE: examined,
    }
    with pytest.raises(Conflict, match="compared with code@v0"):
        registry.promote(canary, actor="me", reason="r", over=0)
    registry.promote(canary, actor="me", reason="r", over=chosen)
    assert store.aliases() == {
        Alias.CHAMPION: canary,
        Alias.ROLLBACK: chosen,
        Alias.CANDIDATE: examined,
    }


def test_a_champion_is_taken_back_once_and_only_itself(registry: Registry, store: Store) -> None:
    first, second = _promoted(registry, "a"), _promoted(registry, "b")
    registry.take_back(second.version, actor="server:a", reason="worse", evidence={"e": 99})
    assert store.aliases() == {Alias.CHAMPION: first.version}
    assert registry.get(second.version).state is AdapterState.REJECTED
    with pytest.raises(Conflict, match="code@v2 is not the champion any more"):
        registry.take_back(second.version, actor="server:b", reason="worse", evidence={"e": 99})
    with pytest.raises(Conflict, match="not the champion any more"):
        registry.rollback(actor="me", reason="r", only=second.version)
    assert store.aliases() == {Alias.CHAMPION: first.version}
    assert store.transitions(second.version)[-1].evidence == {"e": 99}


def test_a_champion_is_confirmed_once(registry: Registry, store: Store) -> None:
    champion = _promoted(registry, "a")
    registry.confirm(champion.version, actor="server:a", reason="not worse", evidence={"n": 1})
    with pytest.raises(Conflict):
        registry.confirm(champion.version, actor="server:b", reason="not worse", evidence={})
    last = store.transitions(champion.version)[-1]
    assert (last.from_state, last.to_state, last.reason) == ("champion", "champion", "not worse")
    assert registry.get(champion.version).state is AdapterState.CHAMPION


def test_a_history_stays_in_order_when_the_clock_is_set_back(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = _promoted(registry, "a")
    monkeypatch.setattr("ops.registry.now", lambda: now() - timedelta(days=300))
    registry.rollback(actor="me", reason="r")
    states = [t.to_state for t in store.transitions(champion.version)]
    assert states == ["built", "examined", "champion", "retired"]
    monkeypatch.setattr("ops.registry.now", lambda: now() + timedelta(days=300))
    registry.promote(champion.version, actor="me", reason="r")
    monkeypatch.undo()
    registry.rollback(actor="me", reason="r")
    assert [t.to_state for t in store.transitions(champion.version)][-2:] == ["champion", "retired"]


def test_a_state_that_a_newer_version_wrote_is_named(registry: Registry, store: Store) -> None:
    _add(registry, "a")
    with store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE adapters SET state = 'ascended'")
    with pytest.raises(StoreError, match=r"AdapterState 'ascended'.*a newer one has written it"):
        registry.get(1)


def test_lineage_goes_both_ways(registry: Registry, store: Store) -> None:
    made = cycle()
    store.add_cycle(made)
    rows = [
        DatasetRow(
            cycle_id=made.id,
            row_id=f"r{i}",
            recipe="ilf",
            kept=i < 2,
            reason=None,
            interaction_ids=["i1", f"i{i}"],
            feedback_ids=["f1"],
            prompt_sha256="",
            program_sha256="",
        )
        for i in range(3)
    ]
    store.replace_dataset(made.id, rows)
    adapter = registry.add(
        lambda draft: (draft / "x").write_text("x") and None,
        base_model="base",
        base_sha256="ff",
        rank=8,
        recipe="ilf",
        cycle_id=made.id,
        lineage={"rows": ["r0"]},
        actor="test",
    )
    found = registry.lineage(adapter.version)
    assert [row.row_id for row in found.rows] == ["r0"]
    assert (found.interaction_ids, found.feedback_ids) == (["i1", "i0"], ["f1"])
    assert store.adapters_taught_by("i0") == [adapter]
    assert registry.lineage(_add(registry, "b").version).rows == []


# --- retention ------------------------------------------------------------------------------------


def _scored(registry: Registry, content: str, score: float) -> int:
    version = _add(registry, content).version
    numbers = {"target": {"candidate": score}}
    registry.examined(version, actor="gate", reason="r", evidence=numbers)
    return version


def test_retention_keeps_recent_and_best_and_never_the_way_back(
    registry: Registry, store: Store
) -> None:
    first, second = _promoted(registry, "a"), _promoted(registry, "b")
    best, *others = [_scored(registry, f"s{i}", 0.9 - i / 10) for i in range(5)]
    erased = registry.retain(keep_recent=2, keep_best=1, actor="me")
    assert [a.version for a in erased] == others[1::-1]
    kept = {a.version for a in store.adapters() if a.state is not AdapterState.ERASED}
    assert kept == {first.version, second.version, best, *others[2:]}
    for adapter in store.adapters():
        assert Path(adapter.directory).exists() is (adapter.version in kept)
    assert registry.retain(keep_recent=2, keep_best=1, actor="me") == []
    assert store.transitions(others[0])[-1].reason == "not among the 2 newest or the 1 best"
    back = registry.rollback(actor="me", reason="x")
    assert back is not None
    assert back.version == first.version


def test_what_requests_may_still_run_on_is_kept(registry: Registry) -> None:
    first = _promoted(registry, "a")
    for content in "bc":
        _promoted(registry, content)
    assert registry.retain(keep_recent=1, keep_best=0, actor="me") == []
    registry.verify(first)
    erased = registry.retain(keep_recent=1, keep_best=0, actor="me", drained_s=0)
    assert [a.version for a in erased] == [first.version]


def test_what_a_running_cycle_has_in_hand_is_kept(registry: Registry, store: Store) -> None:
    running = cycle(state="running")
    store.add_cycle(running)
    mine = registry.add(
        lambda draft: (draft / "x").write_text("x") and None,
        base_model="base",
        base_sha256="ff",
        rank=8,
        recipe="ilf",
        cycle_id=running.id,
        lineage={},
        actor="test",
    )
    _add(registry, "b")
    assert registry.retain(keep_recent=1, keep_best=0, actor="me") == []
    store.update_cycle(running.id, state="failed")
    assert [a.version for a in registry.expendable(keep_recent=1, keep_best=0)] == [mine.version]


def test_what_is_pointed_at_is_not_erased(registry: Registry) -> None:
    first, second = _promoted(registry, "a"), _promoted(registry, "b")
    with pytest.raises(RegistryError, match="is the rollback"):
        registry.erase(first.version, actor="me", reason="x")
    with pytest.raises(RegistryError, match="champion and cannot be erased"):
        registry.erase(second.version, actor="me", reason="x")


def test_erased_content_does_not_come_back(registry: Registry) -> None:
    version = _add(registry, "a").version
    registry.erase(version, actor="me", reason="x")
    with pytest.raises(RegistryError, match="was erased"):
        _add(registry, "a")
    with pytest.raises(RegistryError, match="is erased"):
        registry.nominate(version)
    with pytest.raises(RegistryError, match="erased and cannot be promoted"):
        registry.promote(version, actor="me", reason="x", force=True)
    registry.sweep()
    assert not Path(registry.get(version).directory).exists()


@pytest.mark.parametrize("where", ["/etc", "../outside", "elsewhere"])
def test_files_that_are_not_the_registrys_are_neither_served_nor_removed(
    registry: Registry, store: Store, tmp_path: Path, where: str
) -> None:
    version = _add(registry, "a").version
    inside = Path(registry.get(version).directory)
    outside = tmp_path / "outside"
    shutil.copytree(inside, outside / inside.name)
    path = {
        "/etc": Path("/etc"),
        "../outside": inside.parent / ".." / "outside" / inside.name,
        "elsewhere": outside / inside.name,
    }[where]
    with store._engine.begin() as connection:
        connection.execute(sa.update(metadata.tables["adapters"]).values(directory=str(path)))
    with pytest.raises(ArtifactError, match="is not in"):
        registry.promote(version, actor="me", reason="r", force=True)
    with pytest.raises(ArtifactError, match="is not in"):
        registry.erase(version, actor="me", reason="r")
    assert registry.get(version).state is AdapterState.BUILT
    assert (outside / inside.name / "adapter_model.safetensors").exists()


def test_a_version_that_became_a_link_is_refused(registry: Registry, tmp_path: Path) -> None:
    version = _add(registry, "a").version
    inside = Path(registry.get(version).directory)
    inside.rename(tmp_path / "moved")
    inside.symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="is a link"):
        registry.promote(version, actor="me", reason="r", force=True)


# --- two processes, and kill -9 -------------------------------------------------------------------


def test_of_two_that_promote_at_once_one_loses(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    for round_ in range(4):
        versions = [_scored(registry, f"{round_}{side}", 0.5) for side in "ab"]
        barrier, lost = Barrier(2), []

        def promote(version: int, barrier: Barrier = barrier, lost: list[int] = lost) -> None:
            other = Store(store.url)
            barrier.wait()
            try:
                Registry(other, tmp_path / "adapters").promote(version, actor="me", reason="x")
            except Conflict:
                lost.append(version)
            finally:
                other.close()

        threads = [Thread(target=promote, args=(version,)) for version in versions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        champions = [a.version for a in store.adapters() if a.state is AdapterState.CHAMPION]
        assert champions == [store.aliases()[Alias.CHAMPION]]
        # Either they met, and one lost; or one came after the other, and took its place.
        assert len(lost) <= 1


def test_a_base_model_that_was_replaced_meanwhile_is_noticed(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (_scored(registry, text, 0.5) for text in "ab")
    stale = Registry(store, Path(registry.get(first).directory).parent)
    monkeypatch.setattr(stale, "at", lambda alias: None)
    registry.promote(first, actor="me", reason="x")
    with pytest.raises(Conflict, match="does not point at None any more"):
        stale.promote(second, actor="me", reason="x")
    assert registry.get(second).state is AdapterState.EXAMINED


KILLED = Path(__file__).with_name("killed.py")
APART = 19
"""Between the lines at which the fast tests kill; the slow ones take all the others."""


@pytest.fixture(scope="module")
def victims() -> Iterator[subprocess.Popen[str]]:
    """Where the killed come from: one process, because it takes a second to start."""
    process = subprocess.Popen(
        [sys.executable, str(KILLED)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process


@pytest.mark.parametrize(
    "operation", ["add", "promote", "rollback", "canary", "take_back", "confirm", "retain"]
)
@pytest.mark.parametrize("rest", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_kill_leaves_the_old_or_the_new_and_the_rest_can_be_done(
    victims: subprocess.Popen[str], tmp_path: Path, operation: str, rest: bool
) -> None:
    assert victims.stdin is not None
    assert victims.stdout is not None
    victims.stdin.write(json.dumps([str(tmp_path), operation, APART, rest]) + "\n")
    victims.stdin.flush()
    found = json.loads(victims.stdout.readline())
    assert found["violations"] == []
    few = -(-found["lines"] // APART)
    assert found["kills"] == (found["lines"] - few if rest else few)
    assert found["lines"] > 40
