"""Shadow: logged requests are answered again, and a worse candidate goes no further."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from improver import shadow
from improver.benchmarks.builtin import Builtin
from improver.decide import Rules
from improver.errors import SwapError
from improver.evaluate import Exam
from improver.policy import Policy
from improver.release import into_shadow, record_examination, release
from improver.types import Arm, Judgement
from improver.workspace import Journal
from ops.records import AdapterState, Alias, DatasetRow, Decision, Source, now
from ops.registry import Registry
from ops.store import Recording, Store
from sandbox.spec import extend_prompt
from tests.improver.conftest import BASE, ExecJudge, StubServer
from tests.improver.test_evaluate import add
from tests.ops.records import cycle, interaction

TASKS = Builtin().tasks()
REFERENCES = {task.spec.entry_point: task.reference for task in TASKS}
MODELS = {Arm.CHAMPION: BASE, Arm.CANDIDATE: "code@v1"}
EXAM = Exam(target=(), guard=(), temperature=0.0, max_answer_tokens=64, seed=3)
NAME = re.compile(r"Signature: (\w+)\(|Call it `(\w+)`")
WORD = Judgement(
    decision=Decision.PROMOTE, reason="better", numbers={"e_better": 30.0}, text="PROMOTE"
)


def _logged(store: Store, count: int, **more: Any) -> list[str]:
    """Requests of users, with hidden examples."""
    rows = [
        interaction(
            messages=[{"role": "user", "content": task.text}],
            spec=task.spec.marked().to_json(),
            verified=None,
            **more,
        )
        for task in TASKS[:count]
    ]
    store.add([Recording(interaction=row, attempts=(), executions=()) for row in rows])
    return [row.id for row in rows]


def _answers(*models: str) -> Any:
    """A script by which only these models know the answers."""

    def script(body: dict[str, Any], index: int) -> str:
        found = NAME.search(body["messages"][-1]["content"])
        assert found is not None
        known = REFERENCES[found[1] or found[2]] if body["model"] in models else "x = 1\n"
        return f"```python\n{known}```"

    return script


def test_what_was_learned_or_asked_already_is_left_out(store: Store) -> None:
    made = cycle()
    store.add_cycle(made)
    ids = _logged(store, 8)
    _logged(store, 8, source=Source.IMPORTED)
    row = DatasetRow(
        cycle_id=made.id,
        row_id="r",
        recipe="ilf",
        kept=True,
        reason=None,
        interaction_ids=[ids[0], "gone"],
        feedback_ids=[],
        prompt_sha256="",
        program_sha256="",
    )
    store.replace_dataset(made.id, [row])
    asked = {f"replay/default/{ids[7]}"}
    found = shadow.recent(store, made.id, limit=5, asked=asked)
    assert [task.id for task in found] == [f"replay/default/{i}" for i in ids[6:1:-1]]
    # The same words once more are the same request.
    again = _logged(store, 1)
    texts = {task.id for task in shadow.recent(store, made.id, limit=50, asked=set())}
    assert not {f"replay/default/{again[0]}", f"replay/default/{ids[0]}"} & texts
    assert shadow.recent(store, made.id, limit=50, asked=set(), before=ids[0]) == []


@pytest.mark.parametrize(
    ("know", "worse"),
    [
        ((BASE, "code@v1"), ""),
        (("code@v1",), ""),
        ((BASE,), "worse than the champion on 12 logged requests in shadow"),
    ],
)
async def test_a_worse_candidate_is_found(
    store: Store, server: StubServer, judge: ExecJudge, tmp_path: Path, know: Any, worse: str
) -> None:
    _logged(store, 12)
    server.script = _answers(*know)
    tasks = shadow.recent(store, "none", limit=12, asked=set())
    assert len(tasks) == 12
    for _ in range(2):  # the second time from the journal
        before = len(server.bodies)
        async with Policy(server.url) as policy:
            with Journal(tmp_path / "journal") as journal:
                found = await shadow.run(tasks, MODELS, policy, judge, journal, EXAM, Rules())
        assert found.worse == worse
        assert found.numbers["pairs"]["tasks"] == 12
        assert "Shadow, 12 logged requests" in found.text
    assert len(server.bodies) == before
    assert all(body["store"] is False for body in server.bodies)
    shown = extend_prompt(tasks[0].text, tasks[0].spec)
    assert any(body["messages"][-1]["content"] == shown for body in server.bodies)


async def test_a_few_losses_beyond_the_margin_are_enough(
    store: Store, server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    _logged(store, 4)
    server.script = _answers(BASE)
    tasks = shadow.recent(store, "none", limit=4, asked=set())
    async with Policy(server.url) as policy:
        with Journal(tmp_path / "journal") as journal:
            found = await shadow.run(tasks, MODELS, policy, judge, journal, EXAM, Rules())
    assert found.worse == "loses 100% on 4 logged requests in shadow, 10% are tolerated"


async def test_nothing_to_ask_says_so(
    store: Store, server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    async with Policy(server.url) as policy:
        with Journal(tmp_path / "journal") as journal:
            found = await shadow.run([], MODELS, policy, judge, journal, EXAM, Rules())
    assert (found.worse, found.text) == ("", "Shadow: no logged request could be asked again.")


async def test_a_candidate_goes_through_shadow_and_canary(
    store: Store, registry: Registry, server: StubServer
) -> None:
    server.follow(store, registry)
    version = add(registry)
    async with Policy(server.url) as policy:
        early = await into_shadow(store, registry, policy, version, reason="r", timeout_s=1)
        assert early == "it is built"
        record_examination(registry, version, WORD)
        for _ in range(2):
            assert not await into_shadow(store, registry, policy, version, reason="r", timeout_s=5)
            registry.nominate(None)  # as a cycle that is paused does
        for _ in range(2):
            done = await release(
                store, registry, policy, version, WORD, timeout_s=5, against=0, canary_share=0.2
            )
            assert (done.state, done.reason) == (AdapterState.CANARY, "better")
    assert store.aliases() == {Alias.CANARY: version}
    states = [t.to_state for t in store.transitions(version)]
    assert states == ["built", "examined", "shadow", "canary"]
    assert store.transitions(version)[-1].evidence["share"] == 0.2
    assert store.transitions(version)[1].evidence["text"] == "PROMOTE"


async def test_a_shadow_that_no_server_loads_is_an_error(
    store: Store, registry: Registry, server: StubServer
) -> None:
    version = add(registry)
    record_examination(registry, version, WORD)
    async with Policy(server.url) as policy:
        with pytest.raises(SwapError, match="no server loaded code@v1"):
            await into_shadow(
                store, registry, policy, version, reason="r", timeout_s=0.1, poll_s=0.02
            )


async def test_what_was_examined_against_another_champion_does_not_go_live(
    store: Store, registry: Registry, server: StubServer
) -> None:
    server.follow(store, registry)
    first, second = add(registry, b"a"), add(registry, b"b")
    for version in (first, second):
        record_examination(registry, version, WORD)
    registry.promote(first, actor="me", reason="r")
    async with Policy(server.url) as policy:
        for _ in range(2):
            done = await release(store, registry, policy, second, WORD, timeout_s=5, against=0)
            assert done.state is AdapterState.REJECTED
            assert done.reason == "another champion (code@v1) came while it was examined"
    assert store.aliases() == {Alias.CHAMPION: first}
    assert now() >= store.transitions(second)[-1].at
