"""The whole story on fakes: every stage, killed after every stage, skipped, refused, rejected."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from improver import cookbook, importer, orders, report
from improver.benchmarks.builtin import Builtin
from improver.cycle import CycleRun, Means, Plan, start
from improver.errors import CycleError, TrainingError
from improver.policy import Policy
from improver.types import Origin, Phase, Row, TrainJob, read_lines, to_json
from ops.errors import Conflict
from ops.models import Model
from ops.records import AdapterState, Alias, Cycle, CycleState, Feedback, Json, Metric, Source
from ops.registry import Registry
from ops.settings import (
    GateSettings,
    IlfSettings,
    ImproverSettings,
    ReleaseSettings,
    TrainSettings,
)
from ops.store import Recording, Store
from sandbox.pool import Pool
from sandbox.spec import extend_prompt, parse_spec
from tests.improver.conftest import BASE, ExecJudge, StubServer
from tests.ops import records

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples" / "feedback.jsonl"
STAGES = ("collect", "build", "screen", "dataset", "train", "evaluate", "decide", "release")
TASKS = {task.spec.entry_point: task for task in Builtin().tasks()}
NAME = re.compile(r"Signature: (\w+)\(|Call it `(\w+)`")


class Killed(BaseException):
    """As by `kill -9`: nothing catches it."""


class QuietShow:
    """Keeps the names of the stages, and can end the cycle where it stands."""

    def __init__(self, kill_at: str = "") -> None:
        self.stages: list[str] = []
        self.stop: Callable[[], object] = lambda: None
        self._kill_at = kill_at

    def stage(self, name: str, words: str) -> None:
        self.stages.append(name)
        if name == self._kill_at:
            raise Killed

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.stop()

    def end(self, words: str) -> None:
        pass

    def close(self) -> None:
        pass


async def fake_train(
    directory: Path,
    job: TrainJob,
    *,
    nice: int,
    environment: Mapping[str, str],
    on_progress: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Leaves what the training process leaves."""
    adapter = directory / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text(json.dumps(to_json(job)))
    (adapter / "adapter_model.safetensors").write_bytes((directory / "train.jsonl").read_bytes())
    on_progress({"step": 1, "steps": 1, "tokens_per_s": 1.0, "held_out_loss": 1.0})
    return {
        "steps": 3,
        "stopped_early": False,
        "loss_first": 2.0,
        "loss_last": 1.0,
        "tokens_per_s": 100.0,
        "dtype": "float32",
        "device": "cpu",
        "peak_memory_bytes": 1 << 30,
        "held_out_loss": 1.1,
        "held_out_loss_base": 1.9,
        "best_step": 3,
    }


@dataclass
class World:
    """An installation with 20 imported failures, and a server that can refine them."""

    store: Store
    registry: Registry
    server: StubServer
    judge: Any
    directory: Path
    right: dict[str, str]
    champion_knows: Callable[[str], bool] = lambda name: False
    candidate_knows: Callable[[str], bool] = lambda name: True

    def plan(self, **changes: Any) -> Plan:
        settings = ImproverSettings(
            **changes.pop("improver", {}),
            train=TrainSettings(held_out_share=0.2),
            ilf=IlfSettings(samples=2, **changes.pop("ilf", {})),
            gate=GateSettings(**changes.pop("gate", {})),
        )
        return Plan(
            improver=settings,
            engine_model="tiny",
            max_lora_rank=16,
            swap_timeout_s=5.0,
            **changes,
        )

    def start(self, **changes: Any) -> Cycle:
        plan = self.plan(**changes)
        where = self.directory / "cycles"
        return start(self.store, plan, where, trigger="test", state=CycleState.RUNNING)

    @asynccontextmanager
    async def means(self, show: QuietShow, train: Any = fake_train) -> AsyncIterator[Means]:
        async with Policy(self.server.url, patience_s=5.0) as policy:
            yield Means(
                store=self.store,
                registry=self.registry,
                policy=policy,
                pool=self.judge,
                resolve=lambda name: Model(
                    name=BASE, directory=self.directory, sha256="5a" * 32, origin="test"
                ),
                environment={},
                show=show,
                train=train,
            )

    async def run(
        self, cycle: Cycle, show: QuietShow | None = None, train: Any = fake_train
    ) -> Cycle:
        async with self.means(show or QuietShow(), train) as means:
            return await CycleRun(self.store.cycle(cycle.id), means).run()

    def answer(self, body: dict[str, Any], index: int) -> str:
        text = body["messages"][0]["content"]
        found = NAME.search(text)
        assert found is not None, text
        name = found[1] or found[2]
        if "### Program" in text:
            return f"```python\n{self.right[name]}```" if index == 0 else "I do not know."
        knows = self.candidate_knows if "@" in body["model"] else self.champion_knows
        return f"```python\n{TASKS[name].reference}```" if knows(name) else "```python\nx = 1\n```"


@pytest.fixture
async def world(
    store: Store, registry: Registry, server: StubServer, judge: ExecJudge, tmp_path: Path
) -> World:
    lines = EXAMPLES.read_text(encoding="utf-8").splitlines()
    entries = [importer.read_ilf(json.loads(line)) for line in lines]
    right = {}
    for entry in entries:
        assert entry.spec is not None
        assert entry.spec.entry_point is not None
        right[entry.spec.entry_point] = str(dict(entry.feedback)[Metric.DEMONSTRATION])
    await importer.import_file(EXAMPLES, "ilf", store, judge)
    server.follow(store, registry)
    made = World(store, registry, server, judge, tmp_path, right)
    server.script = made.answer
    return made


async def test_a_better_candidate_is_trained_and_promoted(world: World) -> None:
    cycle = await world.run(world.start())
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert tuple(k for k in cycle.report if k != "dry_run") == STAGES
    adapter = world.registry.at(Alias.CHAMPION)
    assert adapter is not None
    assert adapter.version == cycle.adapter_version == 1
    assert adapter.base_sha256 == "5a" * 32
    assert adapter.cycle_id == cycle.id
    assert adapter.lineage["code"]
    states = [t.to_state for t in world.store.transitions(1)]
    assert states == [AdapterState.BUILT, AdapterState.EXAMINED, AdapterState.CHAMPION]
    built = cycle.report["build"]["by_recipe"]["ilf"]
    assert built["rows"] + sum(
        count for reason, count in built["dropped"].items() if reason.startswith("examination")
    ) == len(world.right)
    assert built["rows_by_origin"] == {"refinement": built["rows"]}
    assert built["dropped"]["refinement fails"] == len(world.right)
    assert cycle.report["decide"]["decision"] == "promote"
    assert cycle.report["release"]["swap"]["accepted"]
    # Stopped early: no more was asked than was needed.
    assert cycle.report["evaluate"]["target_asked"] < len(TASKS)
    text = report.render(cycle)
    assert "PROMOTE" in text
    assert "loss 2.000 → 1.000" in text


async def test_the_lineage_leads_from_rows_to_interactions_and_back(world: World) -> None:
    cycle = await world.run(world.start())
    kept = [row for row in world.store.dataset(cycle.id) if row.kept]
    assert len(kept) == cycle.report["screen"]["rows"]
    row = kept[0]
    interaction = world.store.interaction(row.interaction_ids[0])
    assert interaction.source is Source.IMPORTED
    given = {f.id: f.metric for f in world.store.feedback(interaction.id)}
    assert [given[f] for f in row.feedback_ids] == [Metric.COMMENT]
    assert [a.version for a in world.store.adapters_taught_by(interaction.id)] == [1]


async def test_hidden_checks_never_enter_a_prompt(world: World) -> None:
    await world.run(world.start())
    prompts = [b["messages"][-1]["content"] for b in world.server.bodies]
    for interaction in world.store.interactions():
        assert interaction.spec is not None
        name = interaction.spec["entry_point"]
        shown = [p for p in prompts if "### Feedback" in p and f"{name}(" in p.split("###")[1]]
        assert len(shown) == 1
        task = shown[0].split("### Program")[0]
        assert task.count(" == ") == 1  # the visible example, and no other


async def test_the_cycle_asks_without_being_recorded(world: World) -> None:
    await world.run(world.start())
    assert all(body["store"] is False for body in world.server.bodies)
    models = {b["model"] for b in world.server.bodies}
    assert models == {"code", BASE, "code@v1"}


async def test_a_cycle_killed_before_every_stage_goes_on(world: World) -> None:
    cycle = world.start()
    for place, stage in enumerate(STAGES):
        show = QuietShow(kill_at=stage)
        with pytest.raises(Killed):
            await world.run(cycle, show)
        # Only the stage after the last kill was run again.
        assert show.stages == list(STAGES[max(0, place - 1) : place + 1])
        assert world.store.cycle(cycle.id).state is CycleState.RUNNING
    ended = await world.run(cycle)
    assert ended.state is CycleState.SUCCEEDED, ended.error
    _promoted_once(world)


@pytest.mark.parametrize("stage", ["build", "evaluate"])
async def test_a_cycle_stopped_within_a_stage_asks_nothing_twice(world: World, stage: str) -> None:
    world.server.delay_s = 0.01
    cycle = world.start()
    show = QuietShow()
    task = asyncio.ensure_future(world.run(cycle, show))
    show.stop = lambda: show.stages[-1] == stage and task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.store.cycle(cycle.id).state is CycleState.RUNNING
    journal = Path(cycle.directory) / f"{stage}.partial" / "journal.jsonl"
    done = {json.loads(line)["key"] for line in journal.read_text(encoding="utf-8").splitlines()}
    assert done
    before = len(world.server.bodies)
    ended = await world.run(cycle)
    assert ended.state is CycleState.SUCCEEDED, ended.error
    asked = [body for body in world.server.bodies[before:] if len(body["messages"]) == 1]
    again = {_key(world, body) for body in asked}
    assert not done & again
    _promoted_once(world)


def _key(world: World, body: dict[str, Any]) -> str:
    """Under which key the journals of `build` and `evaluate` keep the answer to a request."""
    text = body["messages"][-1]["content"]
    found = NAME.search(text)
    assert found is not None
    if "### Feedback" in text:
        specs = {i.id: i.spec or {} for i in world.store.interactions()}
        return next(i for i, spec in specs.items() if spec["entry_point"] == found[1])
    suite = "target" if found[1] else "guard"
    arm = "candidate" if "@" in body["model"] else "champion"
    seed = TrainSettings().seed
    return f"{suite}|{arm}|{body['model']}|builtin/{found[1] or found[2]}|{seed}"


def _promoted_once(world: World) -> None:
    assert len(world.store.adapters()) == 1
    champion = world.registry.at(Alias.CHAMPION)
    assert champion is not None
    assert champion.version == 1
    history = [t.to_state for t in world.store.transitions(1)]
    assert history == [AdapterState.BUILT, AdapterState.EXAMINED, AdapterState.CHAMPION]


async def test_an_equal_candidate_is_not_promoted(world: World) -> None:
    world.champion_knows = lambda name: len(name) % 2 == 0
    world.candidate_knows = lambda name: len(name) % 2 == 0
    cycle = await world.run(world.start())
    assert cycle.state is CycleState.SUCCEEDED
    assert cycle.report["decide"]["decision"] == "continue"
    assert cycle.report["release"]["state"] == "rejected"
    assert world.registry.get(1).state is AdapterState.REJECTED
    assert world.store.aliases() == {}
    assert "undecided" in report.render(cycle)


async def test_a_candidate_that_forgets_is_rejected(world: World) -> None:
    world.champion_knows = lambda name: True
    world.candidate_knows = lambda name: False
    cycle = await world.run(world.start())
    assert cycle.report["decide"]["decision"] == "reject"
    assert world.registry.at(Alias.CHAMPION) is None


async def test_a_candidate_the_server_refuses_is_rejected(world: World) -> None:
    world.server.refuse = "the adapter changes nothing"
    cycle = await world.run(world.start())
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["evaluate"]["refused"] == "the adapter changes nothing"
    assert cycle.report["decide"]["decision"] == "reject"
    assert world.registry.get(1).state is AdapterState.REJECTED
    assert "changes nothing" in report.render(cycle)


async def test_a_second_cycle_is_measured_against_the_champion(world: World) -> None:
    await world.run(world.start())
    world.candidate_knows = lambda name: True
    world.server.bodies.clear()
    cycle = await world.run(world.start(ilf={"demonstrations": "none"}))
    # The same rows make the same adapter: it is known, and nothing is to be decided.
    assert cycle.adapter_version == 1
    assert world.store.aliases()[Alias.CHAMPION] == 1


async def test_too_little_data_ends_as_skipped(world: World) -> None:
    cycle = await world.run(world.start(ilf={"min_rows": 50}))
    assert cycle.state is CycleState.SKIPPED
    assert cycle.error is not None
    assert "20 failed interactions" in cycle.error
    assert "50 are wanted" in cycle.error
    assert world.server.bodies == []


async def test_too_few_rows_end_as_skipped_with_what_was_dropped(world: World) -> None:
    world.right = dict.fromkeys(world.right, "x = 1\n")
    cycle = await world.run(world.start(ilf={"demonstrations": "none"}))
    assert cycle.state is CycleState.SKIPPED
    assert cycle.error is not None
    assert "refinement fails" in cycle.error


async def test_a_dry_run_trains_nothing(world: World) -> None:
    cycle = await world.run(world.start(dry_run=True))
    assert cycle.state is CycleState.SUCCEEDED
    assert cycle.report["dry_run"] is True
    assert cycle.report["dataset"]["train"] > 0
    assert world.store.adapters() == []


async def test_a_control_is_for_comparison_only(world: World) -> None:
    with pytest.raises(CycleError, match="for comparison only"):
        world.start(ilf={"control": "shuffled"})
    cycle = await world.run(world.start(dry_run=True, ilf={"control": "none"}))
    assert cycle.report["build"]["by_recipe"]["ilf"]["control"] == "none"
    assert "a control, not the recipe: none" in report.render(cycle)


async def test_a_broken_sandbox_labels_nothing(world: World) -> None:
    cycle = world.start()

    class Breaks(QuietShow):
        def stage(self, name: str, words: str) -> None:
            super().stage(name, words)
            world.judge.broken = name == "build"

    ended = await world.run(cycle, Breaks())
    assert ended.state is CycleState.SKIPPED
    assert "sandbox error" in str(ended.error)
    assert all(row.kept is False for row in world.store.dataset(cycle.id))


class Orders(QuietShow):
    """Gives an order when a stage begins, and leaves the time to heed it."""

    def __init__(self, at: str, order: Callable[[], object]) -> None:
        super().__init__()
        self._at, self._order = at, order

    def stage(self, name: str, words: str) -> None:
        super().stage(name, words)
        if name == self._at:
            self._order()


@pytest.mark.parametrize("stage", ["collect", "build", "train", "evaluate"])
async def test_a_paused_cycle_stops_and_goes_on_where_it_was(world: World, stage: str) -> None:
    cycle = world.start()
    show = Orders(stage, lambda: world.store.pause_cycle(cycle.id))
    paused = await world.run(cycle, show)
    assert paused.state is CycleState.PAUSED
    assert paused.finished_at is None
    assert world.registry.at(Alias.CANDIDATE) is None
    # A short stage is done before its end is looked for: then the next does not begin.
    assert show.stages[-1] == stage
    assert f"stopped at stage {stage}, it is paused now" in world.store.events(cycle.id)[-1].message
    asked = len(world.server.bodies)
    world.store.resume_cycle(cycle.id)
    again = QuietShow()
    ended = await world.run(cycle, again)
    assert ended.state is CycleState.SUCCEEDED, ended.error
    assert not set(again.stages) & set(show.stages[:-1])
    if stage in ("train", "evaluate"):
        assert not any("### Feedback" in str(body) for body in world.server.bodies[asked:])
    assert [adapter.version for adapter in world.store.adapters()] == [1]


async def test_a_pause_stops_the_training_in_the_middle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "LOOK_S", 0.01)
    cycle, stopped = world.start(), 0

    async def endless(*arguments: object, **options: object) -> dict[str, Any]:
        nonlocal stopped
        world.store.pause_cycle(cycle.id)
        try:
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped += 1
            raise
        return {}

    assert (await world.run(cycle, train=endless)).state is CycleState.PAUSED
    assert stopped == 1
    # `--resume` takes up a paused cycle as well.
    assert (await world.run(cycle)).state is CycleState.SUCCEEDED


async def test_a_cancelled_cycle_ends_with_its_reason(world: World) -> None:
    cycle = world.start()
    show = Orders("evaluate", lambda: world.store.cancel_cycle(cycle.id, "wrong tables"))
    ended = await world.run(cycle, show)
    assert (ended.state, ended.error) == (CycleState.CANCELLED, "wrong tables")
    assert ended.finished_at is not None
    assert "train" in ended.report
    assert world.registry.at(Alias.CANDIDATE) is None
    assert "wrong tables" in world.store.events(cycle.id)[-1].message
    with pytest.raises(CycleError, match="is cancelled"):
        await world.run(cycle)
    with pytest.raises(Conflict):
        world.store.resume_cycle(cycle.id)


async def test_a_cycle_that_was_cancelled_while_it_failed_stays_cancelled(world: World) -> None:
    cycle = world.start()

    async def fails(*arguments: object, **options: object) -> dict[str, Any]:
        world.store.cancel_cycle(cycle.id, "enough")
        raise TrainingError("no memory")

    ended = await world.run(cycle, train=fails)
    assert (ended.state, ended.error) == (CycleState.CANCELLED, "enough")


async def test_a_release_is_not_interrupted(world: World) -> None:
    cycle = world.start()
    refused: list[str] = []

    def order() -> None:
        for give in (world.store.pause_cycle, partial(world.store.cancel_cycle, reason="no")):
            with pytest.raises(Conflict, match="being released") as error:
                give(cycle.id)
            refused.append(str(error.value))

    ended = await world.run(cycle, Orders("release", order))
    assert ended.state is CycleState.SUCCEEDED
    assert len(refused) == 2


async def test_a_cycle_that_is_paused_before_it_begins_does_not(world: World) -> None:
    cycle = world.start()
    show = QuietShow()
    async with world.means(show) as means:
        run = CycleRun(cycle, means)
        world.store.pause_cycle(cycle.id)
        assert (await run.run()).state is CycleState.PAUSED
    assert show.stages == []


async def test_a_failed_cycle_keeps_its_error_and_can_be_resumed(world: World) -> None:
    world.server.status = 401
    cycle = world.start()
    ended = await world.run(cycle)
    # Every request was refused: nothing to learn from.
    assert ended.state is CycleState.SKIPPED
    world.server.status = None
    with pytest.raises(CycleError, match="cannot be resumed"):
        await world.run(cycle)
    second = world.start(gate={"tasks": str(world.directory / "absent.jsonl")})
    ended = await world.run(second)
    assert ended.state is CycleState.FAILED
    assert ended.error is not None
    assert "absent.jsonl" in ended.error
    (world.directory / "absent.jsonl").write_text(
        json.dumps(
            {
                "id": "t1",
                "text": "Return seven.",
                "spec": {
                    "entry_point": "parcel_wait",
                    "types": "(a, b)",
                    "examples": [{"input": [0, 7], "output": 7}],
                },
            }
        )
        + "\n"
    )
    ended = await world.run(second)
    assert ended.state is CycleState.SUCCEEDED, ended.error


async def test_events_tell_the_story(world: World) -> None:
    cycle = await world.run(world.start())
    messages = [event.message for event in world.store.events(cycle.id)]
    for stage in STAGES:
        assert any(message.startswith(f"{stage}: done") for message in messages)
    assert messages[-1] == "ended as succeeded"


async def test_feedback_on_an_erased_choice_is_no_case(world: World) -> None:
    interaction = world.store.interactions()[0]
    given = world.store.feedback(interaction.id)
    moved: list[Feedback] = [f for f in given if f.metric == Metric.COMMENT]
    assert moved
    world.store.delete_feedback(moved[0].id)
    cycle = await world.run(world.start())
    assert cycle.report["collect"]["failures"]["cases"] == len(world.right) - 1


OWN = {"refiner": "own", "corrections": 6}


async def test_a_refiner_of_its_own_refines_what_it_was_not_taught(world: World) -> None:
    cycle = await world.run(world.start(ilf=OWN))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    refining = [b["model"] for b in world.server.bodies if "### Feedback" in str(b["messages"])]
    assert refining == ["code@v1"] * 14
    first, second = sorted(world.store.adapters(), key=lambda adapter: adapter.version)
    assert (first.recipe, first.state) == ("ilf_refiner", AdapterState.BUILT)
    assert (second.recipe, second.state) == ("ilf", AdapterState.CHAMPION)
    assert cycle.adapter_version == 2
    assert world.store.aliases().keys() == {Alias.CHAMPION}
    by_recipe = Counter(row.recipe for row in world.store.dataset(cycle.id) if row.kept)
    assert by_recipe == {"ilf": 14, "ilf_refiner": 6}
    learned = {row.id for row in kept(world, cycle)}
    assert len(learned) == 14
    assert "refined by code@v1, trained on 6 corrections" in report.render(cycle)


async def test_a_killed_build_keeps_its_refiner(world: World) -> None:
    world.server.delay_s = 0.01
    cycle = world.start(ilf=OWN)
    show = QuietShow()
    task = asyncio.ensure_future(world.run(cycle, show))
    # The first progress is the training's, the next ones are cases.
    seen: list[int] = []
    show.stop = lambda: seen.append(1) or (len(seen) > 3 and task.cancel())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.store.aliases() == {}
    before = len(world.server.bodies)
    ended = await world.run(cycle)
    assert ended.state is CycleState.SUCCEEDED, ended.error
    assert [a.recipe for a in world.store.adapters()].count("ilf_refiner") == 1
    assert {b["model"] for b in world.server.bodies[before:]} >= {"code@v1", "code@v2"}


async def test_too_few_corrections_leave_the_served_model_at_work(world: World) -> None:
    cycle = await world.run(world.start(ilf={"refiner": "own", "corrections": 44}))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["build"]["by_recipe"]["ilf"]["refiner"] == "the served model"
    assert [a.recipe for a in world.store.adapters()] == ["ilf"]
    assert "20 corrections, 44 are wanted" in report.render(cycle)


async def test_a_refused_refiner_leaves_the_served_model_at_work(world: World) -> None:
    world.server.refuse = "the adapter changes nothing"
    cycle = await world.run(world.start(ilf=OWN))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert {b["model"] for b in world.server.bodies} == {"code"}
    assert "was refused: the adapter changes nothing" in report.render(cycle)


async def test_whatever_may_be_examined_with_is_not_learned(world: World) -> None:
    asked = world.store.interactions()[0]
    assert asked.spec is not None
    task = {"id": "t1", "text": asked.messages[-1]["content"], "spec": asked.spec}
    (world.directory / "mbpp.jsonl").write_text(json.dumps(task) + "\n")
    cycle = world.start(dry_run=True, benchmarks_dir=world.directory)
    cycle = await world.run(cycle)
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert "examination: same text" in cycle.report["build"]["dropped"]
    assert cycle.report["build"]["rows"] == len(world.right) - 1
    (world.directory / "mbpp.jsonl").write_text("{}\n")
    cycle = await world.run(world.start(dry_run=True, benchmarks_dir=world.directory))
    assert cycle.state is CycleState.FAILED, "what cannot be read cannot be kept out"


# --- the other recipes ---------------------------------------------------------------------------

GAMES = "team,points,pace\n" + "".join(
    f"{team},{points},{points / 2 + place}\n"
    for place, (team, points) in enumerate(zip("rbrgbrgb", (3, 1, 4, 1, 5, 9, 2, 6), strict=True))
)
SET = {
    "How many points has every team in all?": (
        'sums = df.groupby("team")["points"].sum().reset_index()'
    ),
    "Give the average pace for every single team.": (
        'averages = df.pivot_table(index="team", values="pace")'
    ),
    "Which rows have a pace above the median one?": "fast = df[df.pace > df.pace.median()]",
    "Sort all the games by points, best one first.": (
        'best = df.sort_values(["points", "pace"], ascending=False).reset_index(drop=True)'
    ),
}


def write_corpus(path: Path, count: int) -> Path:
    """Programs with a request and asserts, none like another."""
    rows = [
        {
            "instruction": f"Write scale{n}, which is known from the old library, number {n}.",
            "code": f"def scale{n}(items, other{n}=None):\n    found{n} = {{}}\n"
            + "".join(f"    found{n}[{n * 7 + k}] = items[{k}:] * {k + n}\n" for k in range(n + 1))
            + f"    return found{n}\n",
            "test_list": [f"assert {n * 7} in scale{n}([1, 2])"],
            "licence": "MIT",
        }
        for n in range(2, 2 + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
async def workshop(world: World) -> AsyncIterator[World]:
    """A world with a real sandbox, tables and a corpus, whose server answers all recipes."""

    def answer(body: dict[str, Any], index: int) -> str:
        asked = body["messages"][-1]["content"]
        if "different tasks" in asked:
            return "\n".join(f"Task {n}: {text}" for n, text in enumerate(SET, 1))
        if "A program was written for this task" in asked:
            return "One line for each of the teams, with what belongs to it in the other column."
        if body.get("continue_final_message"):
            return f" function that keeps the pieces of a list, variant {index}{len(asked)}."
        for words, program in SET.items():
            if f"Task: {words}" in asked:
                return f"```python\n{program}\n```"
        return world.answer(body, index) if NAME.search(asked) else "I do not know."

    tables = world.directory / "tables"
    tables.mkdir()
    (tables / "games.csv").write_text(GAMES)
    write_corpus(world.directory / "code.jsonl", 12)
    world.server.script = answer
    async with Pool(workers=2, recheck_s=0) as pool:
        world.judge = pool
        yield world


def sources(world: World) -> dict[str, str]:
    return {
        "tables": str(world.directory / "tables"),
        "corpus": str(world.directory / "code.jsonl"),
        "tables_licence": "CC0",
    }


FEW = {"summaries": 1, "selection": "random", "max_snippets": 8, "top_k": 1}


def kept(world: World, cycle: Cycle) -> list[Row]:
    made = Path(cycle.directory) / "dataset"
    return [r for name in ("train", "held_out") for r in read_lines(made / f"{name}.jsonl", Row)]


async def test_gift4code_learns_from_tables(workshop: World) -> None:
    chosen = {"recipe": "gift4code", "sources": sources(workshop)}
    cycle = await workshop.run(workshop.start(improver=chosen, dry_run=True))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["collect"]["contexts"]["contexts"] == 1
    assert "failures" not in cycle.report["collect"], "it takes no cases"
    rows = kept(workshop, cycle)
    made = [row for row in rows if row.origin is Origin.SYNTHESIS]
    assert {row.provenance["licence"] for row in made} == {"CC0"}
    assert len(made) == 4
    assert len(rows) == 12, "two replayed rows for each"
    for row in made:
        spec = parse_spec(row.provenance["spec"])
        asked = row.messages[-1]["content"].split("\n\nSpecification:\n")[0]
        # What the server would write for a user with this request and this specification.
        assert row.messages[-1]["content"] == extend_prompt(asked, spec)
    text = report.render(cycle)
    assert "gift4code: 12 rows (4 made, 8 of 8 wanted replayed" in text
    assert "1 tables and logged calls" in text


async def test_inverse_instruct_learns_from_a_corpus_and_the_record(workshop: World) -> None:
    chosen = {
        "recipe": "inverse_instruct",
        "sources": sources(workshop),
        "inverse_instruct": {"summaries": 1, "selection": "random"},
    }
    cycle = await workshop.run(workshop.start(improver=chosen, dry_run=True))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["collect"]["snippets"]["by_licence"]["MIT"] == 12
    assert cycle.report["collect"]["snippets"]["by_origin"]["demonstration"] == 20
    rows = kept(workshop, cycle)
    by_snippet = Counter(row.provenance["snippet"] for row in rows)
    assert max(by_snippet.values()) == 2, "both pairs of a program, which are no duplicates"
    phases = Counter(row.provenance["phase"] for row in rows)
    assert phases[Phase.SELF_MADE] > 20
    assert phases[Phase.TRUSTED] > 20
    assert "inverse_instruct: " in report.render(cycle)


async def test_all_recipes_make_one_dataset(workshop: World) -> None:
    chosen = {"recipe": "all", "sources": sources(workshop), "inverse_instruct": FEW}
    cycle = await workshop.run(workshop.start(improver=chosen))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["collect"]["left_out"] == {}
    rows = kept(workshop, cycle)
    counted = Counter(row.recipe for row in rows)
    assert counted == cycle.report["dataset"]["by_recipe"]
    assert counted.keys() == {*cookbook.RECIPES} - {"preferences"}
    assert len({(row.prompt_sha256, row.program_sha256) for row in rows}) == len(rows)
    lineage = {row.row_id: row.recipe for row in workshop.store.dataset(cycle.id) if row.kept}
    assert lineage == {row.id: row.recipe for row in rows}
    assert workshop.registry.get(1).recipe == "all"


async def test_all_leaves_out_what_has_too_little_and_says_so(workshop: World) -> None:
    chosen = {"recipe": "all", "sources": sources(workshop), "inverse_instruct": FEW}
    cycle = workshop.start(improver=chosen, ilf={"min_rows": 50}, dry_run=True)
    cycle = await workshop.run(cycle)
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["collect"]["recipes"] == ["inverse_instruct", "gift4code"]
    assert "20 failed interactions" in cycle.report["collect"]["left_out"]["ilf"]
    assert {row.recipe for row in kept(workshop, cycle)} == {"inverse_instruct", "gift4code"}
    assert "ilf is left out: 20 failed interactions" in report.render(cycle)


async def test_preferences_reach_the_trainer_in_files_of_their_own(world: World) -> None:
    """The imported corrections are edits; what they replaced is never a row to imitate."""
    seen: list[Json] = []

    async def train(directory: Path, job: TrainJob, **more: Any) -> Json:
        told: Json = {"loss": job.preferences, "rate": job.preference_learning_rate}
        for name in ("train", "held_out", "preferences", "preferences_held_out"):
            told[name] = list(read_lines(directory / f"{name}.jsonl", Row))
        seen.append(told)
        return await fake_train(directory, job, **more)

    plan = world.plan(improver={"recipe": "preferences"})
    settings = plan.improver.train.model_copy(update={"preferences": "dpo"})
    plan = plan.model_copy(
        update={"improver": plan.improver.model_copy(update={"train": settings})}
    )
    where = world.directory / "cycles"
    cycle = start(world.store, plan, where, trigger="test", state=CycleState.RUNNING)
    cycle = await world.run(cycle, train=train)
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    [told] = seen
    assert told["loss"] == "dpo"
    assert told["train"] == told["held_out"] == []
    pairs = [*told["preferences"], *told["preferences_held_out"]]
    assert len(pairs) >= 16
    assert all(row.answer and row.rejected and row.answer != row.rejected for row in pairs)
    assert {row.row_id for row in world.store.dataset(cycle.id) if row.kept} == {
        row.id for row in pairs
    }
    assert "preferred pairs" in report.render(cycle)


async def test_without_a_loss_preferences_are_skipped_and_say_why(world: World) -> None:
    cycle = await world.run(world.start(improver={"recipe": "preferences"}))
    assert cycle.state is CycleState.SKIPPED
    assert "improver.train.preferences" in str(cycle.error)


async def test_a_recipe_without_material_ends_as_skipped(world: World) -> None:
    for recipe, words in (("gift4code", "--tables"), ("inverse_instruct", "--corpus")):
        least = {recipe: {"min_rows": 10_000}}
        cycle = await world.run(world.start(improver={"recipe": recipe, **least}))
        assert cycle.state is CycleState.SKIPPED
        assert cycle.error is not None
        assert words in cycle.error
        assert f"improver.{recipe}.min_rows" in cycle.error
    assert world.server.bodies == []


async def test_a_missing_corpus_fails_by_its_name(world: World) -> None:
    absent = {"corpus": str(world.directory / "absent.jsonl")}
    chosen = {"recipe": "inverse_instruct", "sources": absent}
    cycle = await world.run(world.start(improver=chosen))
    assert cycle.state is CycleState.FAILED
    assert "absent.jsonl" in str(cycle.error)


# --- shadow and canary ---------------------------------------------------------------------------


def _ask_again(world: World) -> None:
    """Users ask what the built-in tasks ask, in words of their own."""
    rows = [
        records.interaction(
            messages=[{"role": "user", "content": f"Please. {task.text}"}],
            spec=task.spec.marked().to_json(),
            verified=None,
        )
        for task in list(TASKS.values())[:12]
    ]
    world.store.add([Recording(interaction=row, attempts=(), executions=()) for row in rows])


async def test_a_candidate_passes_shadow_and_becomes_the_canary(world: World) -> None:
    _ask_again(world)
    release = ReleaseSettings(shadow_requests=6, canary_share=0.2)
    cycle = await world.run(world.start(release=release))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["shadow"]["pairs"]["tasks"] == 6
    assert cycle.report["release"]["state"] == "canary"
    assert world.store.aliases() == {Alias.CANARY: 1}
    history = world.store.transitions(1)
    assert [t.to_state for t in history] == ["built", "examined", "shadow", "canary"]
    assert history[-1].evidence["shadow"]["pairs"]["won"] == 6


async def test_a_candidate_that_fails_in_shadow_does_not_go_live(world: World) -> None:
    _ask_again(world)
    answer = world.server.script

    def worse_on_users(body: dict[str, Any], index: int) -> str:
        if "Please." in body["messages"][-1]["content"]:
            body = {**body, "model": "base" if "@" in body["model"] else "code@v9"}
        return answer(body, index)

    world.server.script = worse_on_users
    gate = {"replay_tasks": 0}
    release = ReleaseSettings(shadow_requests=12)
    cycle = await world.run(world.start(release=release, gate=gate))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.report["decide"]["decision"] == "promote"
    assert cycle.report["release"]["state"] == "rejected"
    assert "in shadow" in cycle.report["release"]["reason"]
    assert world.store.aliases() == {}
