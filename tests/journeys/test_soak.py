"""Swaps under load, small: the bench's soak (`ops/bench/soak.py`), on the fake engine and vLLM."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ops.records import Adapter
from ops.settings import ReleaseSettings
from tests.fake_engine import BASE, RANK, FakeEngine, write_adapter
from tests.server.conftest import Running, SharedPool, engine, pool, serving

__all__ = ["engine", "pool"]

SCRIPT = Path(__file__).parents[2] / "ops" / "bench" / "soak.py"
QUIET = {"say": lambda line: None}


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("bench_soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def faked(bench: ModuleType, engine: FakeEngine, pool: SharedPool, tmp_path: Path) -> Iterator[Any]:
    """A system on the fake engine, whose adapters each write one word."""

    def script(body: dict[str, Any], index: int) -> str:
        if body["model"] == BASE:
            return "I am the base " * 4
        directory = Path(engine.adapters[body["model"]])
        return " ".join([(directory / "word").read_text()] * 12)

    engine.script = script
    engine.token_delay_s = 0.01
    with serving(engine, tmp_path / "data", checker=pool) as server:
        yield bench.System(
            url=server.url,
            engine_url=engine.url,
            store=server.store,
            registry=server.registry,
            release=_fake_releaser(server),
        )


def _fake_releaser(server: Running) -> Callable[[str, int], Adapter]:
    def release(word: str, number: int) -> Adapter:
        def write(draft: Path) -> None:
            write_adapter(draft, fill=bytes([number + 1]))
            (draft / "word").write_text(word)

        return server.registry.add(
            write,
            base_model=BASE,
            base_sha256="0" * 64,
            rank=RANK,
            recipe="test",
            cycle_id=None,
            lineage={},
            actor="test",
        )

    return release


def _killer(engine: FakeEngine) -> Callable[[], None]:
    def kill() -> None:
        engine.stop()
        threading.Timer(0.7, engine.start).start()

    return kill


def test_swaps_with_a_kill_fail_nothing_and_mix_nothing(
    bench: ModuleType, faked: Any, engine: FakeEngine
) -> None:
    faked.kill = _killer(engine)
    found = asyncio.run(bench.soak(faked, swaps=6, kill_at=3, pause_s=0.2, drained_s=0.5, **QUIET))
    assert found.faults() == []
    assert [swap.rollback for swap in found.swaps] == [False] * 4 + [True, False]
    assert found.records > 20
    assert {a.version for a in found.answers if a.model == "code"} >= {0, 1, 2, 3, 4}
    assert found.outage[1] - found.outage[0] > 0.5
    assert {a.outcome for a in found.answers} >= {"whole", "refused"}
    assert found.erased > 0
    lines, kept = bench.report(found)
    assert kept, lines


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("mixed", "writes 'apple'"),
        ("leaking base", "the base model said"),
        ("broken", "broken: "),
        ("failing", "failed: 500"),
    ],
)
def test_the_soak_sees_what_must_not_happen(
    bench: ModuleType, faked: Any, engine: FakeEngine, fault: str, said: str
) -> None:
    sound = engine.script

    def script(body: dict[str, Any], index: int) -> str:
        ours = body["model"] != BASE
        if fault == "mixed" and ours:
            return sound(body, index) + " silver"
        return "apple " * 3 if fault == "leaking base" and not ours else sound(body, index)

    engine.script = script
    if fault == "broken":
        engine.break_stream_after = 5
    if fault == "failing":
        error = {"message": "x", "type": "BadRequestError", "param": None, "code": 400}
        engine.fail["/v1/chat/completions"] = (400, {"error": error})
        said = "failed: 400"
    found = asyncio.run(bench.soak(faked, swaps=1, pause_s=0.5, **QUIET))
    assert any(said in line for line in found.faults()), found.faults()
    _, kept = bench.report(found)
    assert not kept


def test_memory_that_grows_with_each_swap_is_seen(bench: ModuleType) -> None:
    def findings(each_mib: float) -> Any:
        found = bench.Findings()
        for number in range(40):
            at = 1000.0 + 5 * number
            found.swaps.append(bench.Swap(version=number + 1, began=at, decided_s=1.0))
            size = {"engine": 900.0 + each_mib * number, "server": 100.0}
            found.memory += [(at, size), (at + 2.5, size)]
        found.memory.append((1203.0, {"server": 100.0}))  # the engine had just been killed
        return found

    assert bench.slopes(findings(10.0))["engine"] == [pytest.approx(10.0)]
    assert not bench.report(findings(10.0))[1]
    assert bench.report(findings(0.0))[1]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_engine_swaps_between_adapters_that_each_write_one_word(
    bench: ModuleType, real_engine: Any, pool: SharedPool, tmp_path: Path
) -> None:
    real_engine.unload_adapters()
    bench.make_words(real_engine.model.directory, tmp_path / "words")
    # A champion that goes back by itself would not be the swap that is waited for.
    release = ReleaseSettings(watch_hours=0)
    with serving(
        real_engine, tmp_path / "data", checker=pool, release=release, poll_s=0.5
    ) as server:
        add = bench.releaser(server.registry, tmp_path / "words", real_engine.model)
        system = bench.System(
            url=server.url,
            engine_url=real_engine.url,
            store=server.store,
            registry=server.registry,
            release=add,
        )
        found = asyncio.run(bench.soak(system, swaps=5, clients=2, pause_s=0.5, **QUIET))
    assert found.faults() == []
    answered = {a.version for a in found.answers if a.model == "code"}
    assert answered >= {1, 2, 3, 4}, answered
    assert [swap.rollback for swap in found.swaps] == [False] * 4 + [True]
    assert all(swap.phases_s["probe"] > 0 for swap in found.swaps if not swap.rollback)
