"""The bench of what adapters cost: its table."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "ops" / "bench" / "lora.py"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("bench_lora", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_table_takes_the_best_round_and_compares_with_the_first(bench: ModuleType) -> None:
    first = bench.Way("merged", "", 1, ("m",), [(90.0, 10.0), (100.0, 11.0)], [(500.0, 2.0)])
    other = bench.Way("lora", "", 2, ("a",), [(50.0, 25.0), (60.0, 30.0)], [(250.0, 5.0)])
    _, merged, lora = bench.table([first, other])
    assert "100/s" in merged
    assert merged.count("1.00x") == 2
    assert lora.count("2.50x") == 2
    assert "60/s" in lora
