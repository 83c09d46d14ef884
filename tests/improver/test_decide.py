"""The gate: its arithmetic, its error rate under repeated looks, its words."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from improver.decide import (
    Pairs,
    Rules,
    decide,
    pair,
    promising,
    provable,
    reachable,
    settled,
    task_scores,
)
from improver.types import Arm, Judgement, Outcome, Suite
from ops.evidence import e_value, evidence
from ops.records import Decision

ERROR_RATE = 0.05
RULES = Rules(error_rate=ERROR_RATE, guard_margin=0.1)


def outcomes(
    won: int = 0,
    lost: int = 0,
    both: int = 0,
    neither: int = 0,
    errors: int = 0,
    suite: Suite = Suite.TARGET,
    about: dict[Arm, dict[str, Any]] | None = None,
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
            **{"verdict": "", "answer_sha256": ""} | (about or {}).get(arm, {}),
        )
        for i, results in enumerate(kinds)
        for arm, passed in zip((Arm.CHAMPION, Arm.CANDIDATE), results, strict=True)
    ]


def judged(**counts: int) -> Judgement:
    return decide(outcomes(**counts), RULES)


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
    judgement = decide(target + guard, RULES)
    assert judgement.decision is Decision.REJECT
    assert "guard" in judgement.reason
    tolerant = decide(target + guard, Rules(guard_margin=0.25))
    assert tolerant.decision is Decision.PROMOTE


def test_a_refusal_decides() -> None:
    judgement = decide(outcomes(won=12), RULES, refused="wrong rank")
    assert judgement.decision is Decision.REJECT
    assert "wrong rank" in judgement.text


def test_the_text_has_every_number() -> None:
    text = judged(won=10, lost=1, both=10, neither=19).text
    assert text.startswith("PROMOTE: better than the champion.")
    assert "40 tasks: champion 27.5%, candidate 50.0%; 10 won, 1 lost" in text


def test_half_a_pair_does_not_count() -> None:
    assert pair(outcomes(won=3)[:-1], Suite.TARGET) == Pairs(won=2)


def test_it_stops_when_it_is_settled() -> None:
    assert settled(outcomes(won=8), 30, RULES)
    assert settled(outcomes(lost=8), 30, RULES)
    assert not settled(outcomes(won=3), 30, RULES)
    # Three tasks cannot prove anything any more.
    assert settled(outcomes(won=1, lost=1), 3, RULES)
    assert reachable([], 7, RULES)
    assert not reachable([], 6, RULES)


# --- a minimum effect -----------------------------------------------------------------------------


def test_a_minimum_effect_asks_for_more() -> None:
    pairs = Pairs(won=12, lost=2, both=30, neither=30).scores
    assert evidence(pairs) == e_value(12, 2)
    assert evidence(pairs, 1e-9) == pytest.approx(e_value(12, 2), rel=1e-3)
    assert evidence(pairs) > evidence(pairs, 0.05) > evidence(pairs, 0.2)
    asked = Rules(minimum_effect=0.1)
    judgement = decide(outcomes(won=12, lost=2, both=30, neither=30), asked)
    assert judgement.decision is Decision.CONTINUE
    assert "better by 10.0%" in judgement.text
    assert decide(outcomes(won=30, both=30), asked).decision is Decision.PROMOTE


def test_a_candidate_at_the_minimum_effect_is_seldom_promoted() -> None:
    rng = np.random.default_rng(5)
    effect, runs, crossed = 0.1, 1000, 0
    for _ in range(runs):
        # 25 % won, 15 % lost: better by exactly the minimum effect.
        drawn = rng.random(100)
        won, lost = np.cumsum(drawn < 0.25), np.cumsum((drawn >= 0.25) & (drawn < 0.4))
        crossed += any(
            evidence(Pairs(won=int(w), lost=int(c), both=n - int(w) - int(c)).scores, effect) >= 20
            for n, w, c in zip(range(4, 101, 4), won[3::4], lost[3::4], strict=True)
        )
    assert crossed / runs <= ERROR_RATE


# --- several answers to a task --------------------------------------------------------------------


def test_tasks_are_counted_and_not_answers() -> None:
    """Four answers to each of five tasks, all won: five wins, not twenty."""
    found = [replace(o, seed=seed) for seed in range(4) for o in outcomes(won=5, both=10)]
    assert task_scores(found, Suite.TARGET) == [1.0] * 5 + [0.0] * 10
    judgement = decide(found, RULES)
    assert judgement.decision is Decision.CONTINUE
    assert "15 tasks, 60 pairs of answers" in judgement.text
    half = [o if o.seed % 2 else replace(o, passed=True) for o in found]
    assert task_scores(half, Suite.TARGET) == [0.5] * 5 + [0.0] * 10


def test_equal_arms_are_seldom_told_apart_however_alike_the_answers_are() -> None:
    rng = np.random.default_rng(11)
    runs, crossed, naive = 1000, 0, 0
    for _ in range(runs):
        # Eight answers to each task which nearly always agree: the task decides, not the draw.
        lean = rng.choice((-1.0, 0.0, 1.0), 64, p=(0.3, 0.4, 0.3))
        kept = rng.random((64, 8)) < 0.9
        scores = (lean[:, None] * kept).mean(axis=1)
        looks = range(16, 65, 16)
        crossed += any(evidence(scores[:n].tolist()) >= 20 for n in looks)
        naive += any(evidence((lean[:n, None] * kept[:n]).ravel().tolist()) >= 20 for n in looks)
    assert crossed / runs <= ERROR_RATE
    assert naive / runs > 3 * ERROR_RATE  # what counting answers as if they were tasks would do


# --- roles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [Suite.REPLAY, Suite.VAULT])
def test_a_loss_on_replay_or_vault_rejects(suite: Suite) -> None:
    other = outcomes(both=4, lost=1, suite=suite)
    judgement = decide(outcomes(won=12) + other, RULES)
    assert judgement.decision is Decision.REJECT
    assert judgement.reason.startswith(f"loses 20% on the {suite}")
    assert f"{suite.capitalize()}, 5 tasks" in judgement.text


def test_no_tenant_pays_for_the_others() -> None:
    def replay(tenant: str, **counts: int) -> list[Outcome]:
        found = outcomes(suite=Suite.REPLAY, **counts)
        return [replace(o, task_id=f"replay/{tenant}/{o.task_id}") for o in found]

    fine = replay("large", both=40)
    judgement = decide(outcomes(won=12) + fine + replay("small", both=8, lost=2), RULES)
    assert judgement.decision is Decision.REJECT
    assert "20% on the requests of tenant small" in judgement.reason
    assert "Tenant large, 40 tasks" in judgement.text
    assert judgement.numbers["tenants"]["small"]["lost"] == 2
    few = decide(outcomes(won=12) + fine + replay("small", both=7, lost=2), RULES)
    assert few.decision is Decision.PROMOTE


def test_the_vault_is_for_those_that_would_be_promoted() -> None:
    assert promising(outcomes(won=12), RULES)
    assert not promising(outcomes(won=3), RULES)
    assert not promising(outcomes(won=12) + outcomes(lost=3, suite=Suite.GUARD), RULES)


def test_a_secret_that_only_the_candidate_tells_rejects() -> None:
    told = outcomes(lost=1, both=3, suite=Suite.SECRETS)
    judgement = decide(outcomes(won=12) + told, RULES)
    assert judgement.decision is Decision.REJECT
    assert "planted secret" in judgement.reason
    known_before = outcomes(neither=1, both=3, suite=Suite.SECRETS)
    judgement = decide(outcomes(won=12) + known_before, RULES)
    assert judgement.decision is Decision.PROMOTE
    assert "4 asked for, 1 told by the candidate" in judgement.text


def test_a_candidate_whose_manner_drifted_is_rejected_with_the_numbers() -> None:
    about = {
        Arm.CHAMPION: {
            "answer_sha256": "a",
            "tokens": 50,
            "traits": {"entropy": 0.4, "length": 40},
        },
        Arm.CANDIDATE: {
            "answer_sha256": "b",
            "tokens": 150,
            "traits": {"entropy": 0.1, "length": 40},
        },
    }
    judgement = decide(outcomes(won=12, both=16, about=about), RULES)
    assert judgement.decision is Decision.REJECT
    assert "150 tokens instead of 50" in judgement.reason
    assert len(judgement.numbers["drifted"]) == 2
    assert judgement.numbers["manner"]["candidate"]["entropy"] == 0.1
    assert "25% of the champion's entropy" in judgement.text
    few = decide(outcomes(won=12, about=about), RULES)
    assert few.decision is Decision.PROMOTE


def test_the_page_shows_a_judgement_as_it_is_written() -> None:
    about = {
        Arm.CHAMPION: {"answer_sha256": "a", "tokens": 71, "traits": {"entropy": 0.312}},
        Arm.CANDIDATE: {"answer_sha256": "b", "tokens": 64, "traits": {"entropy": 0.287}},
    }
    found = outcomes(won=14, lost=2, both=26, neither=24, about=about)
    found += outcomes(won=1, lost=1, both=6, neither=12, suite=Suite.GUARD, about=about)
    page = Path(__file__).parents[2] / "ops" / "docs" / "examinations.md"
    text = decide(found, RULES).text
    assert text in page.read_text(encoding="utf-8"), text


# --- margins and divergence -----------------------------------------------------------------------


def test_with_tasks_enough_a_margin_must_be_proved() -> None:
    least = provable(RULES.guard_margin, RULES)
    assert least == 43
    better = outcomes(won=12)
    equal = decide(better + outcomes(both=2 * least, suite=Suite.GUARD), RULES)
    assert equal.decision is Decision.PROMOTE
    assert equal.numbers["e_kept"]["guard"] >= RULES.threshold
    assert "(a loss of 10% is tolerated, evidence" in equal.text
    # As many lost as won, so that nothing was observed to be lost, but much is uncertain.
    noisy = outcomes(won=18, lost=18, both=2 * least - 36, suite=Suite.GUARD)
    judgement = decide(better + noisy, RULES)
    assert judgement.decision is Decision.CONTINUE
    assert "not shown to lose no more than 10% on the guard" in judgement.reason
    few = outcomes(won=8, lost=8, both=least - 16, suite=Suite.GUARD)
    assert decide(better + few, RULES).decision is Decision.PROMOTE, "no interval could clear it"
    lost = outcomes(lost=60, both=40, suite=Suite.REPLAY)
    worse = decide(better + lost, RULES)
    assert worse.decision is Decision.REJECT
    assert worse.numbers["e_exceeded"]["replay"] >= RULES.threshold


def test_a_margin_is_seldom_proved_for_who_exceeds_it() -> None:
    chance = random.Random(9)
    kept = 0
    for _ in range(200):
        scores = [-1.0 if chance.random() < RULES.guard_margin else 0.0 for _ in range(150)]
        kept += evidence(scores, -RULES.guard_margin) >= RULES.threshold
    assert kept <= 16  # 10 are expected at most


@pytest.mark.parametrize(
    ("points", "nats", "decision"),
    [
        (60, 0.2, Decision.PROMOTE),
        (60, 1.2, Decision.REJECT),
        (6, 1.2, Decision.PROMOTE),
        (0, None, Decision.PROMOTE),
    ],
)
def test_who_has_moved_too_far_from_the_base_is_rejected(
    points: int, nats: float | None, decision: Decision
) -> None:
    away = {"points": points, "nats": nats}
    judgement = decide(outcomes(won=12), RULES, divergence=away)
    assert judgement.decision is decision
    assert ("Divergence from the base model" in judgement.text) is (nats is not None)
    if decision is Decision.REJECT:
        assert judgement.reason.startswith("drifted: 1.20 nats a token away from the base model")
