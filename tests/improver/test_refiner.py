"""ILF's own refiner: what it learns, what is left to it, when it is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from improver import refiner
from improver.errors import SwapError
from improver.policy import Policy
from improver.recipes.base import fenced
from improver.recipes.ilf import REFINER, refinement_prompt
from improver.screen import Caps
from improver.types import Case, Row
from ops.records import Alias
from ops.registry import Registry
from ops.store import Store
from sandbox.errors import SandboxError
from sandbox.spec import parse_spec
from tests.improver.conftest import ExecJudge, StubServer
from tests.improver.scripted import firewall
from tests.improver.test_ilf import RIGHT, WRONG, case


def corrected(number: int, text: str = RIGHT) -> Case:
    return case(
        interaction_id=f"i{number}",
        messages=[{"role": "user", "content": f"Task {number}: add."}],
        demonstration=text + f"# {number}\n",
        demonstration_ids=[f"d{number}"],
    )


async def made(
    judge: ExecJudge, *cases: Case, wanted: int = 3, caps: Caps | None = None
) -> tuple[list[Row], list[Case]]:
    return await refiner.corrections(
        cases, judge, firewall(), caps or Caps(), wanted=wanted, seed=7
    )


async def test_it_learns_from_wrong_program_and_words_to_the_correction(judge: ExecJudge) -> None:
    rows, left = await made(judge, corrected(1), case(interaction_id="i2"))
    [row] = rows
    assert row.messages == refinement_prompt(corrected(1), parse_spec(corrected(1).spec))
    assert "### Feedback" in row.messages[-1]["content"]
    assert row.answer == fenced(RIGHT + "# 1")
    assert row.recipe == REFINER
    assert row.feedback_ids == ["f1", "d1"]
    assert [c.interaction_id for c in left] == ["i2"]


async def test_what_it_learned_from_is_not_refined(judge: ExecJudge) -> None:
    cases = [corrected(n) for n in range(8)]
    rows, left = await made(judge, *cases)
    assert len(rows) == 3
    taught = {row.interaction_ids[0] for row in rows}
    assert taught | {c.interaction_id for c in left} == {c.interaction_id for c in cases}
    assert not taught & {c.interaction_id for c in left}
    assert (await made(judge, *cases)) == (rows, left), "the same ones are drawn"
    twin = replace(cases[0], interaction_id="twin", demonstration=None)
    rows, left = await made(judge, cases[0], twin, wanted=1)
    assert (len(rows), left) == (1, []), "nor is the same task asked again"


async def test_corrections_that_fail_or_touch_the_examination_teach_nothing(
    judge: ExecJudge,
) -> None:
    leak = "Write a function that counts the vowels of a text, case aside."
    leaked = replace(corrected(2), messages=[{"role": "user", "content": leak}])
    rows, left = await made(judge, corrected(1, WRONG), leaked, corrected(3))
    assert [row.interaction_ids for row in rows] == [["i3"]]
    assert [c.interaction_id for c in left] == ["i1", "i2"]
    unchecked = replace(corrected(4), spec={"summary": "x"})
    assert (await made(judge, unchecked))[0] == []
    capped = [replace(corrected(n), user="ada") for n in range(4)]
    assert len((await made(judge, *capped, caps=Caps(per_user=1)))[0]) == 1


async def test_a_broken_sandbox_is_no_verdict(judge: ExecJudge) -> None:
    judge.broken = True
    with pytest.raises(SandboxError):
        await made(judge, corrected(1))


def added(registry: Registry) -> int:
    adapter = registry.add(
        lambda draft: (draft / "adapter_model.safetensors").write_bytes(b"x") and None,
        base_model="tiny",
        base_sha256="00",
        rank=8,
        recipe=REFINER,
        cycle_id=None,
        lineage={},
        actor="test",
    )
    return adapter.version


async def test_it_is_loaded_while_it_is_needed(
    store: Store, registry: Registry, server: StubServer
) -> None:
    server.follow(store, registry)
    version = added(registry)
    async with Policy(server.url, patience_s=1.0) as policy:
        async with refiner.serving(store, registry, policy, version, timeout_s=5.0) as refused:
            assert refused == ""
            assert store.aliases() == {Alias.CANDIDATE: version}
        assert store.aliases() == {}
        with pytest.raises(KeyError):
            async with refiner.serving(store, registry, policy, version, timeout_s=5.0):
                raise KeyError
        assert store.aliases() == {}


async def test_a_refused_refiner_says_why(
    store: Store, registry: Registry, server: StubServer
) -> None:
    server.follow(store, registry)
    server.refuse = "the adapter changes nothing"
    version = added(registry)
    async with Policy(server.url, patience_s=1.0) as policy:
        for why in ("the adapter changes nothing", "it is rejected"):
            async with refiner.serving(store, registry, policy, version, timeout_s=5.0) as refused:
                assert refused == why
            assert store.aliases() == {}


async def test_without_a_server_that_follows_it_does_not_wait_for_ever(
    store: Store, registry: Registry, server: StubServer
) -> None:
    version = added(registry)
    async with Policy(server.url, patience_s=1.0) as policy:
        with pytest.raises(SwapError):
            async with refiner.serving(store, registry, policy, version, timeout_s=0.1):
                pass
    assert store.aliases() == {}
