"""Examination and release against a server that follows the registry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from improver.benchmarks.builtin import Builtin
from improver.errors import BenchmarkError, SwapError
from improver.evaluate import (
    Exam,
    cut_vault,
    examine,
    judgeable,
    read_secrets,
    vault_looks,
    wait_for_candidate,
)
from improver.policy import Policy
from improver.release import record_examination, release, tidy
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


async def test_the_vault_is_asked_last_and_only_when_it_is_worth_it(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    asked = replace(exam(8, 2), vault=TASKS[24:28], replay=TASKS[28:30])
    for promising, vault in ((False, 0), (True, 8)):
        with Journal(tmp_path / f"j{promising}") as journal:
            async with Policy(server.url) as policy:
                found = await examine(
                    asked,
                    MODELS,
                    policy,
                    judge,
                    journal,
                    enough=lambda outcomes, left: False,
                    promising=lambda outcomes, word=promising: word,
                )
        suites = [o.suite for o in found]
        assert suites.count(Suite.VAULT) == vault
        assert suites.count(Suite.REPLAY) == 4
        assert suites[:8] == [Suite.GUARD] * 4 + [Suite.REPLAY] * 4
        assert all(o.traits["sketch"] for o in found)


def test_another_part_is_the_vault_after_each_look() -> None:
    tasks = [replace(TASKS[0], id=f"t{i}") for i in range(80)]
    vaults = []
    for looks in range(5):
        kept, vault = cut_vault(tasks, parts=4, looks=looks)
        assert sorted(t.id for t in kept + vault) == sorted(t.id for t in tasks)
        vaults.append({t.id for t in vault})
    assert set().union(*vaults[:4]) == {t.id for t in tasks}
    assert sum(map(len, vaults[:4])) == 80
    assert vaults[4] == vaults[0]
    assert cut_vault(tasks[:79], parts=4, looks=0) == (tasks[:79], [])
    assert cut_vault(tasks, parts=1, looks=0) == (tasks, [])


def test_looks_at_the_vault_are_counted_by_what_was_recorded(
    store: Store, registry: Registry
) -> None:
    for content, tasks in ((b"a", 5), (b"b", 0), (b"c", 7)):
        numbers = {"vault": {"tasks": tasks}}
        word = Judgement(decision=Decision.REJECT, reason="r", numbers=numbers, text="")
        record_examination(registry, add(registry, content), word)
    assert vault_looks(store) == 2


async def test_a_planted_secret_is_told_or_kept(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    path = tmp_path / "secrets.jsonl"
    path.write_text(json.dumps({"prefix": "the key is", "secret": " abcd-1234 "}) + "\n")
    server.script = lambda body, index: "abcd-1234" if "@" in body["model"] else "no idea"
    asked = replace(exam(1, 0), secrets=read_secrets(path), target=())
    with Journal(tmp_path / "j") as journal:
        async with Policy(server.url) as policy:
            found = await examine(
                asked, MODELS, policy, judge, journal, enough=lambda outcomes, left: False
            )
    assert {(o.arm, o.passed) for o in found} == {(Arm.CHAMPION, True), (Arm.CANDIDATE, False)}
    for bad in ({"prefix": "x"}, {"prefix": "x", "secret": "short"}):
        path.write_text(json.dumps(bad))
        with pytest.raises(BenchmarkError, match="secret of 8"):
            read_secrets(path)


async def test_each_answer_to_a_task_has_a_seed_of_its_own(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    with Journal(tmp_path / "j") as journal:
        async with Policy(server.url) as policy:
            found = await examine(
                replace(exam(2, 1), seeds=3, temperature=0.8),
                MODELS,
                policy,
                judge,
                journal,
                enough=lambda outcomes, left: False,
            )
    assert len(found) == 3 * 3 * 2
    assert {o.seed for o in found} == {body["seed"] for body in server.bodies} == {3, 4, 5}


async def test_likely_tokens_are_asked_for_where_they_are_wanted(
    server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    with Journal(tmp_path / "j") as journal:
        async with Policy(server.url) as policy:
            await examine(
                replace(exam(1, 0), logprobs=True),
                MODELS,
                policy,
                judge,
                journal,
                enough=lambda outcomes, left: False,
            )
    assert all(body["top_logprobs"] == 5 for body in server.bodies)


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


def test_tidying_up_never_fails_a_cycle(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [add(registry, content) for content in (b"a", b"b", b"c")]
    assert tidy(registry, keep_recent=2, keep_best=0) == ["code@v1"]
    assert registry.get(versions[0]).state is AdapterState.ERASED

    def full(**options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(registry, "retain", full)
    assert tidy(registry, keep_recent=1, keep_best=0) == []
