"""A person is erased from what real cycles left, finished and half way; models are fakes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from improver.cycle import CycleRun
from ops.erasure import Eraser
from ops.records import AdapterState, CycleState, Erasure, Tainted
from ops.tables.schema import interactions
from tests.improver.conftest import judge, server
from tests.improver.test_cycle import FEW, TASKS, Killed, QuietShow, World, sources, workshop, world

__all__ = ["judge", "server", "workshop", "world"]


class Ann:
    """Every fourth request of a world becomes ann's."""

    def __init__(self, world: World) -> None:
        self.world = world
        rows = [row for row in world.store.interactions() if row.spec is not None][::4]
        self.ids = [row.id for row in rows]
        names = [str((row.spec or {})["entry_point"]) for row in rows]
        self.words = [f"{name}(" for name in names if name not in TASKS]
        assert len(self.words) > 1
        engine = sa.create_engine(world.store.url)
        with engine.begin() as connection:
            hers = sa.update(interactions).where(interactions.c.id.in_(self.ids))
            connection.execute(hers.values(user="ann"))
        engine.dispose()

    def erase(self) -> Erasure:
        eraser = Eraser(
            self.world.store,
            self.world.registry,
            cycles_dir=self.world.directory / "cycles",
            evaluations_dir=self.world.directory / "evaluations",
            policy=Tainted.ROLLBACK,
        )
        return eraser.erase("ann", actor="test").erasure

    def left(self) -> set[str]:
        """Which of her words and ids the files of cycles still hold."""
        files = (self.world.directory / "cycles").rglob("*")
        text = "\n".join(path.read_text(errors="replace") for path in files if path.is_file())
        return {word for word in (*self.words, *self.ids) if word in text}


async def test_nothing_of_her_is_left_by_a_finished_cycle(world: World) -> None:
    ann = Ann(world)
    cycle = await world.run(world.start())
    assert ann.left() == {*ann.words, *ann.ids}
    erased = await asyncio.to_thread(ann.erase)
    assert ann.left() == set()
    assert erased.finished_at is not None
    assert [a["name"] for a in erased.adapters] == ["code@v1"]
    assert world.store.aliases() == {}
    rows = world.store.dataset(cycle.id)
    assert rows
    assert not {i for row in rows for i in row.interaction_ids} & set(ann.ids)
    # The next one learns from what is left, and its adapter is clean.
    again = await world.run(world.start())
    assert again.state is CycleState.SUCCEEDED, again.error
    assert world.registry.get(2).tainted_by is None
    assert world.registry.get(2).state is AdapterState.CHAMPION


@pytest.mark.slow
async def test_nothing_of_her_is_left_by_any_recipe(workshop: World) -> None:
    ann = Ann(workshop)
    chosen = {"recipe": "all", "sources": sources(workshop), "inverse_instruct": FEW}
    cycle = await workshop.run(workshop.start(improver=chosen, dry_run=True))
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert ann.left()
    await asyncio.to_thread(ann.erase)
    assert ann.left() == set()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stage", ["screen", *(pytest.param(s, marks=SLOW) for s in ("build", "dataset", "train"))]
)
async def test_a_cycle_that_was_killed_goes_on_without_her(world: World, stage: str) -> None:
    ann = Ann(world)
    cycle = world.start(ilf={"min_rows": 2})
    with pytest.raises(Killed):
        await world.run(cycle, QuietShow(kill_at=stage))
    erased = await asyncio.to_thread(ann.erase)
    assert (ann.left(), erased.adapters) == (set(), [])
    ended = await world.run(cycle)
    assert ended.state is CycleState.SUCCEEDED, ended.error
    assert ann.left() == set()
    assert world.registry.get(1).tainted_by is None
    assert not {i for r in world.store.dataset(cycle.id) for i in r.interaction_ids} & set(ann.ids)


@pytest.mark.parametrize(
    "stage", ["evaluate", *(pytest.param(s, marks=SLOW) for s in ("decide", "release"))]
)
async def test_a_cycle_that_had_trained_on_her_releases_nothing(world: World, stage: str) -> None:
    ann = Ann(world)
    cycle = world.start()
    with pytest.raises(Killed):
        await world.run(cycle, QuietShow(kill_at=stage))
    erased = await asyncio.to_thread(ann.erase)
    assert [a["state"] for a in erased.adapters] == ["rejected"]
    ended = await world.run(cycle)
    assert world.store.aliases() == {}
    assert world.registry.get(1).tainted_by == erased.id
    assert world.registry.get(1).state is AdapterState.REJECTED
    if stage == "evaluate":  # it is not even looked at
        assert ended.report["decide"]["decision"] != "promote"
    else:
        assert ended.report["release"]["state"] == "rejected"
        assert "learned from data that were erased" in ended.report["release"]["reason"]
    assert ann.left() == set()


async def test_a_cycle_that_runs_on_meanwhile_is_caught_up_with(world: World) -> None:
    ann = Ann(world)
    cycle = world.start()
    world.store.take_lease("improver", "the improver", 600)
    show = QuietShow()
    erased: list[Erasure] = []

    def once() -> None:
        if show.stages[-1] == "build" and not erased:
            erased.append(ann.erase())

    show.stop = once
    async with world.means(show) as means:
        ended = await CycleRun(world.store.cycle(cycle.id), means).run()
    assert erased[0].finished_at is None
    assert ended.state is CycleState.FAILED
    assert ended.error is not None
    assert "learned from data that were erased" in ended.error
    assert world.store.aliases() == {}
    world.store.drop_lease("improver", "the improver")
    done = await asyncio.to_thread(ann.erase)
    assert (done.id, done.finished_at is None) == (erased[0].id, False)
    assert [(a["name"], a["state"]) for a in done.adapters] == [("code@v1", "rejected")]
    assert ann.left() == set()
    assert not any(Path(cycle.directory).rglob("*.safetensors"))
