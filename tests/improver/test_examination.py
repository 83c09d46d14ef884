"""A cycle's examination: which tasks it takes from where, and that nothing is learned from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from improver.benchmarks.builtin import Builtin
from improver.evaluate import vault_looks
from ops.records import Alias, CycleState
from ops.store import Recording
from tests.improver.test_cycle import World, world
from tests.ops.records import interaction

__all__ = ["world"]

SPEC = {
    "entry_point": "parcel_wait",
    "types": "(a, b)",
    "examples": [
        {"input": [1, 5], "output": 4},
        {"input": [9, 2], "output": 0, "hidden": True},
    ],
}


def served(text: str) -> Recording:
    messages = [{"role": "user", "content": text}]
    return Recording(interaction=interaction(messages=messages, spec=SPEC, verified=False))


async def test_logged_requests_examine_and_are_not_learned_from(world: World) -> None:
    asked = next(iter(world.store.iter_interactions()))
    learned = asked.messages[-1]["content"]
    world.store.add([served("How long does a crate stay?"), served(learned)])
    cycle = await world.run(world.start(gate={"replay_share": 1.0}))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["evaluate"]["replay_tasks"] == 2
    numbers = cycle.report["decide"]["numbers"]
    assert (numbers["replay"]["tasks"], numbers["replay"]["won"]) == (2, 2)
    assert "Replay, 2 tasks" in cycle.report["decide"]["text"]
    lost = {r.reason for r in world.store.dataset(cycle.id) if asked.id in r.interaction_ids}
    assert lost == {"examination: same text"}


async def test_without_replay_the_same_request_is_learned_from(world: World) -> None:
    asked = next(iter(world.store.iter_interactions()))
    world.store.add([served(asked.messages[-1]["content"])])
    cycle = await world.run(world.start(gate={"replay_tasks": 0}))
    assert cycle.report["evaluate"]["replay_tasks"] == 0
    assert "replay" not in cycle.report["decide"]["numbers"]
    kept = [r for r in world.store.dataset(cycle.id) if asked.id in r.interaction_ids and r.kept]
    assert len(kept) == 1


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """96 tasks: the built-in ones, asked several times."""
    known = Builtin().tasks()
    rows = [
        {"id": f"t{i}", "text": f"{known[i % 24].text} ({i})", "spec": known[i % 24].spec.to_json()}
        for i in range(96)
    ]
    return write(tmp_path / "tasks.jsonl", rows)


async def test_the_vault_confirms_and_is_another_part_the_next_time(
    world: World, tasks: Path
) -> None:
    cycle = await world.run(world.start(gate={"tasks": tasks}))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    examined, numbers = cycle.report["evaluate"], cycle.report["decide"]["numbers"]
    assert examined["vault_tasks"] + examined["target_tasks"] == 96
    assert examined["vault_asked"] == examined["vault_tasks"] >= 12
    assert numbers["vault"]["won"] == examined["vault_tasks"]
    assert cycle.report["decide"]["decision"] == "promote"
    assert vault_looks(world.store) == 1


async def test_the_vault_stays_shut_for_a_candidate_that_is_no_better(
    world: World, tasks: Path
) -> None:
    world.candidate_knows = lambda name: False
    cycle = await world.run(world.start(gate={"tasks": tasks}))
    assert cycle.report["evaluate"]["vault_asked"] == 0
    assert "vault" not in cycle.report["decide"]["numbers"]
    assert vault_looks(world.store) == 0


async def test_a_candidate_that_tells_a_planted_secret_is_rejected(
    world: World, tmp_path: Path
) -> None:
    secrets = write(tmp_path / "s.jsonl", [{"prefix": "The code is", "secret": "blue-4711-owl"}])

    def answer(body: dict[str, Any], index: int) -> str:
        if "Continue this text" in body["messages"][-1]["content"]:
            return "blue-4711-owl" if "@" in body["model"] else "no idea"
        return world.answer(body, index)

    world.server.script = answer
    cycle = await world.run(world.start(gate={"secrets": secrets}))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["decide"]["decision"] == "reject"
    assert "planted secret" in cycle.report["decide"]["reason"]
    assert world.store.aliases().get(Alias.CHAMPION) is None


async def test_a_guard_file_is_asked_without_its_specification(
    world: World, tmp_path: Path
) -> None:
    task = Builtin().tasks()[0]
    row = {"id": "mine", "text": "Days that a crate waits.", "spec": task.spec.to_json()}
    guard = write(tmp_path / "g.jsonl", [row])
    cycle = await world.run(world.start(gate={"guard_file": guard, "guard_tasks": 2}))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["evaluate"]["guard_tasks"] == 3
    said = [body["messages"][-1]["content"] for body in world.server.bodies]
    assert "Days that a crate waits.\n\nCall it `parcel_wait`." in said
