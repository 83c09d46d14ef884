from __future__ import annotations

from pathlib import Path

import pytest

from ops.errors import ArtifactError, NotFound, RegistryError
from ops.records import Adapter, AdapterState, Alias
from ops.registry import Registry
from ops.store import Store


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
