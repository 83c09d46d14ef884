"""The bench of the improver: it measures what it says, on something tiny."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ops.store import Store
from tests.improver.conftest import StubServer
from tests.ops import records

SCRIPT = Path(__file__).parents[2] / "ops" / "bench" / "improve.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_improve", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """On SQLite whatever other tests are on: the bench copies rows in its words."""
    opened = Store.open(f"sqlite:///{tmp_path / 'record.db'}")
    yield opened
    opened.close()


def test_a_record_is_made_of_copies_that_differ(
    bench: ModuleType, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "KINDS", 50)
    bench.fill(store, 200)
    every = store.interactions(limit=1000)
    assert len({one.id for one in every}) == len(every) == 200
    assert len({one.messages[0]["content"] for one in every}) == 200
    counted = store.count()
    assert counted["attempts"] == 200
    for one in store.recordings(every):
        assert {a.interaction_id for a in one.attempts} == {one.interaction.id}
        assert {e.attempt_id for e in one.executions} <= {a.id for a in one.attempts}


def test_collecting_is_measured_by_recipe(
    bench: ModuleType, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "KINDS", 100)
    bench.fill(store, 200)
    told = bench.look(store.url)
    assert told["interactions"] == 200
    found = {name: part["found"] for name, part in told["parts"].items()}
    assert found["ilf"] > 0
    assert found["preferences"] > 0
    assert found["all"] == sum(count for name, count in found.items() if name != "all")


def test_training_rows_are_functions_of_the_library(bench: ModuleType) -> None:
    rows = bench.training_rows(50)
    assert len(rows) == 50
    assert all("def " in row["answer"] and row["messages"][0]["content"] for row in rows)


def test_sampling_is_compared_with_a_loop(
    bench: ModuleType, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.delay_s = 0.02
    given = Namespace(url=server.url, served="base", small=True, tasks=2)
    bench.sample(given)
    told = capsys.readouterr().out
    assert "a loop of single requests" in told
    assert [body["n"] for body in server.bodies] == [2, 2, 1, 1, 1, 1]


def test_the_time_outside_the_model_is_read_off_cycles(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/journeyman.db")
    stages = {
        "build": {"seconds": 80.0, "model_s": 76.0},
        "screen": {"seconds": 20.0, "model_s": 0.0},
        "dry_run": False,
    }
    store.add_cycle(records.cycle(report=stages))
    store.add_cycle(records.cycle(report={"build": {"seconds": 5.0}}))
    store.close()
    assert bench.outside(Namespace(data_dir=tmp_path)) is False
    told = capsys.readouterr().out
    assert "24.0%" in told
    assert told.count("(ilf)") == 1


@pytest.mark.slow
def test_training_is_compared_with_trl(
    bench: ModuleType, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.train_(Namespace(model=str(tiny_model), small=True))
    told = capsys.readouterr().out
    assert "TRL SFTTrainer, defaults" in told
    assert "tokens/s" in told


def test_a_missed_target_is_an_exit_status(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.PARTS, "outside", lambda given: False)
    for small, status in ((["--small"], 0), ([], 1)):
        monkeypatch.setattr(sys, "argv", ["improve.py", "outside", *small])
        assert bench.main() == status
