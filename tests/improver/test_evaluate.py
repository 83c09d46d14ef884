"""Examination and release against a server that follows the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from improver.benchmarks.builtin import Builtin
from improver.errors import SwapError
from improver.evaluate import Exam, examine, judgeable, wait_for_candidate
from improver.policy import Policy
from improver.release import record_examination, release
from improver.types import Arm, Judgement, Outcome, Suite
from improver.workspace import Journal, Workspace
from ops.records import AdapterState, Alias, Decision
from ops.registry import Registry
from ops.store import Store
from tests.improver.conftest import BASE, ExecJudge, StubServer

TASKS = Builtin().tasks()
MODELS = {Arm.CHAMPION: BASE, Arm.CANDIDATE: "code@v1"}


def exam(target: int = 20, guard: int = 4) -> Exam:
    return Exam(
        target=TASKS[:target],
        guard=TASKS[20 : 20 + guard],
        temperature=0.0,
        max_answer_tokens=64,
        seed=3,
    )


def add(registry: Registry, content: bytes = b"w") -> int:
    def write(draft: Path) -> None:
        (draft / "adapter_model.safetensors").write_bytes(content)

    return registry.add(
        write,
        base_model=BASE,
        base_sha256="00",
        rank=8,
        recipe="ilf",
        cycle_id=None,
        lineage={},
        actor="test",
    ).version


def judgement(decision: Decision) -> Judgement:
    return Judgement(decision=decision, reason="because", numbers={"e_better": 30.0}, text="")


async def test_both_arms_answer_the_same_prompts(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    with Journal(tmp_path / "j") as journal:
        async with Policy(server.url) as policy:
            found = await examine(
                exam(), MODELS, policy, judge, journal, enough=lambda outcomes, left: False
            )
    assert len(found) == 2 * 24
    asked: dict[str, list[str]] = {}
    for body in server.bodies:
        assert "seed" not in body  # greedy
        asked.setdefault(body["model"], []).append(body["messages"][-1]["content"])
    assert sorted(asked[BASE]) == sorted(asked["code@v1"])
    guard = [t.messages(with_spec=False)[0]["content"] for t in TASKS[20:24]]
    assert set(guard) <= set(asked[BASE])


async def test_it_stops_when_enough_is_known_but_never_within_the_guard(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    lefts: list[int] = []

    def enough(outcomes: object, left: int) -> bool:
        lefts.append(left)
        return True

    with Journal(tmp_path / "j") as journal:
        async with Policy(server.url) as policy:
            found = await examine(exam(), MODELS, policy, judge, journal, enough=enough)
    assert lefts == [8]
    assert len([o for o in found if o.suite is Suite.GUARD]) == 8


async def test_what_infrastructure_broke_is_asked_again_and_nothing_else(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    judge.broken = True

    async def once() -> list[Outcome]:
        with Journal(tmp_path / "j") as journal:
            async with Policy(server.url) as policy:
                return await examine(
                    exam(4, 0), MODELS, policy, judge, journal, enough=lambda outcomes, left: False
                )

    assert {o.passed for o in await once()} == {None}
    judge.broken = False
    assert {o.passed for o in await once()} == {False}
    asked = len(server.bodies)
    await once()
    assert len(server.bodies) == asked


async def test_a_refused_request_counts_for_nobody(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    server.status = 400
    with Journal(tmp_path / "j") as journal:
        async with Policy(server.url) as policy:
            found = await examine(
                exam(2, 0), MODELS, policy, judge, journal, enough=lambda outcomes, left: False
            )
    assert {(o.passed, o.verdict) for o in found} == {(None, "REFUSED")}


async def test_tasks_whose_reference_fails_are_left_out(judge: ExecJudge) -> None:
    from dataclasses import replace

    broken = replace(TASKS[0], id="broken", reference="def parcel_wait(a, b):\n    return None\n")
    kept, unsound = await judgeable([broken, TASKS[1]], judge)
    assert [t.id for t in kept] == [TASKS[1].id]
    assert unsound == ["broken"]


async def test_the_candidate_is_waited_for(
    server: StubServer, store: Store, registry: Registry
) -> None:
    version = add(registry)
    async with Policy(server.url) as policy:
        registry.nominate(version)
        with pytest.raises(SwapError, match="no server loaded code@v1"):
            await wait_for_candidate(store, registry, policy, version, timeout_s=0.1, poll_s=0.02)
        server.follow(store, registry)
        found = await wait_for_candidate(store, registry, policy, version, timeout_s=5, poll_s=0.02)
    assert found == ""


async def test_a_refusal_is_an_answer(server: StubServer, store: Store, registry: Registry) -> None:
    server.follow(store, registry)
    server.refuse = "truncated weights"
    version = add(registry)
    registry.nominate(version)
    async with Policy(server.url) as policy:
        found = await wait_for_candidate(store, registry, policy, version, timeout_s=5, poll_s=0.02)
    assert found == "truncated weights"
    assert registry.get(version).state is AdapterState.REJECTED


async def test_a_promotion_is_done_once_and_its_swap_reported(
    server: StubServer, store: Store, registry: Registry
) -> None:
    server.follow(store, registry)
    version = add(registry)
    word = judgement(Decision.PROMOTE)
    record_examination(registry, version, word)
    record_examination(registry, version, word)
    async with Policy(server.url) as policy:
        for _ in range(2):
            done = await release(store, registry, policy, version, word, timeout_s=5, poll_s=0.02)
            assert done.state is AdapterState.CHAMPION
            assert done.swap is not None
            assert done.swap["accepted"]
    states = [t.to_state for t in store.transitions(version)]
    assert states == [AdapterState.BUILT, AdapterState.EXAMINED, AdapterState.CHAMPION]


async def test_a_promotion_no_server_follows_is_an_error(
    server: StubServer, store: Store, registry: Registry
) -> None:
    version = add(registry)
    record_examination(registry, version, judgement(Decision.PROMOTE))
    async with Policy(server.url) as policy:
        with pytest.raises(SwapError, match="no server answers with it"):
            await release(
                store,
                registry,
                policy,
                version,
                judgement(Decision.PROMOTE),
                timeout_s=0.1,
                poll_s=0.02,
            )
    assert registry.get(version).state is AdapterState.CHAMPION


@pytest.mark.parametrize("decision", [Decision.REJECT, Decision.CONTINUE])
async def test_what_is_not_better_does_not_go_live(
    server: StubServer, store: Store, registry: Registry, decision: Decision
) -> None:
    version = add(registry)
    registry.nominate(version)
    record_examination(registry, version, judgement(decision))
    async with Policy(server.url) as policy:
        for _ in range(2):
            done = await release(store, registry, policy, version, judgement(decision), timeout_s=1)
    assert done.state is AdapterState.REJECTED
    assert store.aliases().get(Alias.CANDIDATE) is None
    last = store.transitions(version)[-1]
    assert last.evidence == {"e_better": 30.0}


def test_a_stage_is_complete_or_not_there(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "cycle")
    partial = workspace.begin("build")
    (partial / "rows.jsonl").write_text("x")
    assert not workspace.done("build")
    assert workspace.report("build") == {}
    workspace.finish("build", {"rows": 1})
    assert workspace.done("build")
    assert workspace.report("build") == {"rows": 1}
    assert (workspace.stage("build") / "rows.jsonl").read_text() == "x"


def test_a_journal_loses_at_most_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.add("a", {"n": 1})
    with path.open("a") as file:
        file.write('{"key": "b", "da')
    with Journal(path) as journal:
        assert journal.done == {"a": {"n": 1}}
        journal.add("b", {"n": 2})
    with Journal(path) as journal:
        assert journal.done == {"a": {"n": 1}, "b": {"n": 2}}
    with pytest.raises(ValueError, match="not open"):
        Journal(path).add("c", {})
