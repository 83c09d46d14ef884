"""Evidence: a fair game under H0, whatever the scores are; pairs of two streams."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from ops.evidence import EXACT, e_value, evidence, pairs


def test_both_formulas_are_one() -> None:
    scores = [1.0] * 12 + [-1.0] * 4 + [0.0] * 9
    assert evidence(scores) == e_value(12, 4)
    assert evidence(scores, 1e-9) == pytest.approx(e_value(12, 4), rel=1e-3)
    many = [1.0] * (EXACT // 2 + 30) + [-1.0] * (EXACT // 2)
    assert evidence(many) == pytest.approx(e_value(EXACT // 2 + 30, EXACT // 2), rel=1e-3)


def test_the_game_is_fair_where_h0_holds_with_equality() -> None:
    for effect in (-0.3, 0.0, 0.2):
        for known in ([], [1.0, 0.5, -1.0]):
            up, down = evidence([*known, 1.0], effect), evidence([*known, -1.0], effect)
            chance = (1 + effect) / 2  # then the mean score is the effect
            assert chance * up + (1 - chance) * down == pytest.approx(evidence(known, effect))


def test_equal_arms_prove_that_one_loses_little_and_never_that_it_wins() -> None:
    assert evidence([0.0] * 200) == 1.0
    assert evidence([0.0] * 200, -0.1) > 20
    assert evidence([0.0] * 20, -0.1) < 20
    assert evidence([-1.0] * 30, -0.1) < 1


def test_streams_are_paired_as_they_come_and_nothing_is_used_twice() -> None:
    came = [(False, 1.0), (False, 2.0), (True, 3.0), (True, 4.0), (True, 5.0), (False, 6.0)]
    assert pairs(came, 8) == [(3.0, [1.0, 2.0]), (4.0, [6.0])]
    assert pairs(came, 1) == [(3.0, [1.0]), (4.0, [2.0]), (5.0, [6.0])]
    assert pairs([(True, 1.0)] * 5, 8) == []
    assert pairs([], 8) == []


def test_repeated_looks_at_equal_streams_seldom_find_a_difference() -> None:
    chance = random.Random(5)
    crossed = 0
    for _ in range(200):
        came = [(chance.random() < 0.2, float(chance.random() < 0.6)) for _ in range(300)]
        scores = [fmean(theirs) - mine for mine, theirs in pairs(came, 4)]
        crossed += any(evidence(scores[:n]) >= 20 for n in range(5, len(scores), 5))
    assert crossed <= 15  # 10 are expected at most
