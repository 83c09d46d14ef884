"""The simulation of the gate: its arithmetic is the gate's, its draws are what they say."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ops.evidence import e_value

SCRIPT = Path(__file__).parents[2] / "ops" / "bench" / "gate.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_gate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_the_gates_own_evidence(bench: ModuleType) -> None:
    table = bench.log_evidence(60)
    for won, lost in ((0, 0), (1, 0), (0, 9), (30, 30), (45, 2)):
        assert table[won, lost] == pytest.approx(math.log(e_value(won, lost)), abs=1e-9)


def test_draws_have_the_effect_they_are_asked_for(bench: ModuleType) -> None:
    won, lost = bench.draw(np.random.default_rng(1), 2000, 100, 0.2, 0.05)
    assert won[:, -1].mean() / 100 == pytest.approx(0.125, abs=0.004)
    assert lost[:, -1].mean() / 100 == pytest.approx(0.075, abs=0.004)
    assert bench.looks(40).tolist() == [15, 31, 39]


def test_equal_candidates_are_seldom_promoted_and_better_ones_more_often(
    bench: ModuleType,
) -> None:
    table = bench.log_evidence(200)
    rates = {}
    for effect in (0.0, 0.1):
        draws = bench.draw(np.random.default_rng(3), 3000, 200, 0.2, effect)
        rates[effect] = bench.gate(draws, table)[0].mean()
        assert bench.sign_test(draws).mean() >= rates[effect]
        assert bench.z_looking(draws).mean() >= rates[effect]
    assert rates[0.0] <= 0.05
    assert rates[0.1] > 0.6
