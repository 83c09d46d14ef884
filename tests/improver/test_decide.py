"""The gate: its arithmetic, its error rate under repeated looks, its words."""

from __future__ import annotations

import math
import random

import pytest

from improver.decide import Pairs, decide, e_value, pair, reachable, settled
from improver.types import Arm, Judgement, Outcome, Suite
from ops.records import Decision

ERROR_RATE = 0.05


def outcomes(
    won: int = 0,
    lost: int = 0,
    both: int = 0,
    neither: int = 0,
    errors: int = 0,
    suite: Suite = Suite.TARGET,
) -> list[Outcome]:
    kinds = (
        [(False, True)] * won
        + [(True, False)] * lost
        + [(True, True)] * both
        + [(False, False)] * neither
        + [(True, None)] * errors
    )
    return [
        Outcome(
            suite=suite,
            arm=arm,
            task_id=f"t{i}",
            seed=0,
            passed=passed,
            verdict="",
            answer_sha256="",
        )
        for i, results in enumerate(kinds)
        for arm, passed in zip((Arm.CHAMPION, Arm.CANDIDATE), results, strict=True)
    ]


def judged(**counts: int) -> Judgement:
    return decide(outcomes(**counts), error_rate=ERROR_RATE, guard_margin=0.1)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (7, 0), (3, 5), (12, 2), (40, 30)])
def test_the_closed_form_is_the_integral(won: int, lost: int) -> None:
    steps = 20_000
    total = 0.0
    for i in range(steps):
        t = 0.5 + (i + 0.5) / (2 * steps)
        total += 2 * (2 * t) ** won * (2 * (1 - t)) ** lost / (2 * steps)
    assert e_value(won, lost) == pytest.approx(total, rel=1e-3)


def test_the_process_is_fair_under_the_null() -> None:
    # At every state, the mean of the next value at win probability 1/2 is the present one.
    for won in range(12):
        for lost in range(12):
            following = (e_value(won + 1, lost) + e_value(won, lost + 1)) / 2
            assert following == pytest.approx(e_value(won, lost))


@pytest.mark.parametrize("win", [0.5, 0.4])
def test_false_promotions_stay_below_the_rate_under_constant_looking(win: float) -> None:
    rng = random.Random(20261121)
    table = {(b, c): e_value(b, c) for b in range(81) for c in range(81 - b)}
    promoted = naive = 0
    runs = 4000
    for _ in range(runs):
        won = lost = 0
        crossed = ahead = False
        for _ in range(80):
            if rng.random() < win:
                won += 1
            else:
                lost += 1
            crossed = crossed or table[won, lost] >= 1 / ERROR_RATE
            # The naive rule, looked at after every pair: a one-sided z test.
            ahead = ahead or (won - lost) / math.sqrt(won + lost) > 1.645
        promoted += crossed
        naive += ahead
    assert promoted / runs <= ERROR_RATE
    if win == 0.5:
        assert naive / runs > 4 * ERROR_RATE  # what peeking does to a rule that is not made for it


def test_a_clearly_better_candidate_is_found() -> None:
    rng = random.Random(1)
    found = 0
    for _ in range(300):
        won = sum(rng.random() < 0.8 for _ in range(40))
        found += e_value(won, 40 - won) >= 1 / ERROR_RATE
    assert found / 300 > 0.9


def test_promote_reject_continue() -> None:
    assert judged(won=9, both=20).decision is Decision.PROMOTE
    assert judged(lost=9, both=20).decision is Decision.REJECT
    assert judged(won=3, lost=2, both=20).decision is Decision.CONTINUE
    assert judged(both=20).decision is Decision.CONTINUE
    assert judged().decision is Decision.CONTINUE


def test_errors_never_count() -> None:
    judgement = judged(won=9, errors=50)
    assert judgement.decision is Decision.PROMOTE
    assert judgement.numbers["target"]["errors"] == 50
    assert judgement.numbers["target"]["tasks"] == 9
    assert "50 tasks could not be judged" in judgement.text


def test_a_loss_on_the_guard_rejects_what_the_target_would_promote() -> None:
    target = outcomes(won=12)
    guard = outcomes(both=8, lost=2, suite=Suite.GUARD)
    judgement = decide(target + guard, error_rate=ERROR_RATE, guard_margin=0.1)
    assert judgement.decision is Decision.REJECT
    assert "guard" in judgement.reason
    tolerant = decide(target + guard, error_rate=ERROR_RATE, guard_margin=0.25)
    assert tolerant.decision is Decision.PROMOTE


def test_a_refusal_decides() -> None:
    judgement = decide(
        outcomes(won=12), error_rate=ERROR_RATE, guard_margin=0.1, refused="wrong rank"
    )
    assert judgement.decision is Decision.REJECT
    assert "wrong rank" in judgement.text


def test_the_text_has_every_number() -> None:
    text = judged(won=10, lost=1, both=10, neither=19).text
    assert text.startswith("PROMOTE: better than the champion.")
    assert "40 tasks: champion 27.5%, candidate 50.0%; 10 won, 1 lost" in text


def test_half_a_pair_does_not_count() -> None:
    assert pair(outcomes(won=3)[:-1], Suite.TARGET) == Pairs(won=2)


def test_it_stops_when_it_is_settled() -> None:
    assert settled(Pairs(won=8), 30, ERROR_RATE)
    assert settled(Pairs(lost=8), 30, ERROR_RATE)
    assert not settled(Pairs(won=3), 30, ERROR_RATE)
    # Three tasks cannot prove anything any more.
    assert settled(Pairs(won=1, lost=1), 3, ERROR_RATE)
    assert reachable(0, 0, 7, ERROR_RATE)
    assert not reachable(0, 0, 6, ERROR_RATE)
