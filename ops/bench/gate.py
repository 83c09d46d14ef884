"""How often the gate is wrong, and how often it finds a better candidate, beside simpler rules.

    python ops/bench/gate.py [--runs 20000] [--seed 7] [--disagree 0.2] [--json]

Champion and candidate answer the same tasks; on a share of them (`--disagree`) only one of the two
is right, and a candidate better by e points wins (disagree + e) / 2 of all tasks and loses
(disagree - e) / 2. Every rule sees the same draws. "Looks" are after each 16 tasks, as the
examination takes them. The rules:

    gate             the e-process of `improver.decide`, looked at after every round, stops early
    gate, all suites the same with 20 guard tasks (margin 10 %, 10 % of them disagree) and a vault
                     (a quarter of the tasks, margin 10 %), both as good as the candidate really is
    sign test        one look at the end, exact, 5 %: valid, and the tasks are all spent
    z test, looking  one-sided 5 %, after every round, stops when it says yes
    higher mean      after all tasks
    ..., looking     promoted at the first look at which the candidate is ahead

Simulated draws only: how much models really disagree, and whether tasks stand for the work at hand,
is not measured here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from improver.decide import Rules
from improver.evaluate import ROUND_TASKS
from ops.evidence import e_value

EFFECTS = (-0.05, -0.02, 0.0, 0.02, 0.05, 0.10)
BUDGETS = (88, 200, 500, 1000)
RULES = Rules()
GUARD_TASKS, GUARD_DISAGREE, VAULT_SHARE = 20, 0.1, 0.25
Numbers = np.ndarray[Any, Any]
Draws = tuple[Numbers, Numbers]


def log_evidence(most: int) -> Numbers:
    """`log(e_value(won, lost))` for all won + lost <= most, by [won, lost]."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 2)))])
    table = np.full((most + 1, most + 1), -np.inf)
    for n in range(most + 1):
        won = np.arange(n + 1)
        # Sum of binomial(n + 1, k) for k = 0..won, in logarithms.
        choose = log_factorial[n + 1] - log_factorial[won] - log_factorial[n + 1 - won]
        tail = np.logaddexp.accumulate(choose)
        table[won, n - won] = (
            log_factorial[won] + log_factorial[n - won] - log_factorial[n + 1] + tail
        )
    for b, c in ((0, 0), (7, 0), (12, 5), (3, 20)):
        known = math.log(e_value(b, c))
        if b + c <= most and not math.isclose(float(table[b, c]), known, abs_tol=1e-9):
            raise RuntimeError("the table disagrees with the gate's own arithmetic")
    return table


def draw(rng: np.random.Generator, runs: int, tasks: int, disagree: float, effect: float) -> Draws:
    """Cumulated wins and losses after each task, (runs, tasks)."""
    disagree = max(disagree, abs(effect))
    chance = rng.random((runs, tasks), dtype=np.float32)
    won = chance < (disagree + effect) / 2
    lost = (chance < disagree) & ~won
    return won.cumsum(axis=1, dtype=np.int16), lost.cumsum(axis=1, dtype=np.int16)


def looks(tasks: int) -> Numbers:
    """After how many tasks somebody looks, the end included; as places."""
    places = np.arange(ROUND_TASKS, tasks, ROUND_TASKS)
    return np.append(places, tasks) - 1


def gate(draws: Draws, table: Numbers) -> tuple[Numbers, float]:
    """Whether each run is promoted, and how many tasks a run takes on average."""
    won, lost = (side[:, looks(side.shape[1])].astype(int) for side in draws)
    threshold = math.log(RULES.threshold)
    better, worse = table[won, lost] >= threshold, table[lost, won] >= threshold
    first_yes = np.where(better.any(axis=1), better.argmax(axis=1), better.shape[1])
    first_no = np.where(worse.any(axis=1), worse.argmax(axis=1), worse.shape[1])
    ended = np.minimum(np.minimum(first_yes, first_no), better.shape[1] - 1)
    return first_yes < first_no, float((looks(draws[0].shape[1])[ended] + 1).mean())


def all_suites(
    rng: np.random.Generator, draws: Draws, table: Numbers, disagree: float, e: float
) -> Numbers:
    """The gate with a guard and a vault: part of the tasks is kept for the vault."""
    tasks = draws[0].shape[1]
    vault = round(tasks * VAULT_SHARE)
    open_part = tuple(side[:, : tasks - vault] for side in draws)
    promoted, _ = gate((open_part[0], open_part[1]), table)
    runs = len(promoted)
    for count, share, margin in (
        (GUARD_TASKS, GUARD_DISAGREE, RULES.guard_margin),
        (vault, disagree, RULES.vault_margin),
    ):
        won, lost = draw(rng, runs, count, share, max(-share, min(share, e)))
        promoted &= (lost[:, -1] - won[:, -1]) / count <= margin
    return promoted


def z_looking(draws: Draws) -> Numbers:
    """A one-sided z test on the discordant pairs at every look."""
    won, lost = (side[:, looks(side.shape[1])].astype(float) for side in draws)
    z: Numbers = (won - lost) / np.sqrt(np.maximum(won + lost, 1))
    promoted: Numbers = np.any(z > 1.645, axis=1)
    return promoted


def sign_test(draws: Draws) -> Numbers:
    """An exact sign test after all tasks."""
    won, lost = (side[:, -1].astype(int) for side in draws)
    most = int((won + lost).max())
    critical = np.zeros(most + 1, dtype=int)
    for n in range(most + 1):
        tail = 0.0
        k = n + 1
        while k > 0 and tail + math.comb(n, k - 1) / 2**n <= RULES.error_rate:
            k -= 1
            tail += math.comb(n, k) / 2**n
        critical[n] = k
    promoted: Numbers = won >= critical[won + lost]
    return promoted


def simulate(runs: int, seed: int, disagree: float) -> list[dict[str, Any]]:
    """One row for each budget and effect."""
    table = log_evidence(max(BUDGETS))
    rows = []
    for tasks in BUDGETS:
        for effect in EFFECTS:
            rng = np.random.default_rng([seed, tasks, round(1000 * (effect + 1))])
            draws = draw(rng, runs, tasks, disagree, effect)
            won, lost = draws
            promoted, asked = gate(draws, table)
            at = looks(tasks)
            rows.append(
                {
                    "tasks": tasks,
                    "effect": effect,
                    "gate": float(promoted.mean()),
                    "asked": asked,
                    "gate, all suites": float(
                        all_suites(rng, draws, table, disagree, effect).mean()
                    ),
                    "sign test": float(sign_test(draws).mean()),
                    "z test, looking": float(z_looking(draws).mean()),
                    "higher mean": float((won[:, -1] > lost[:, -1]).mean()),
                    "higher mean, looking": float((won[:, at] > lost[:, at]).any(axis=1).mean()),
                }
            )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table: chance of being promoted."""
    names = [name for name in rows[0] if name not in ("tasks", "effect", "asked")]
    print("Chance of being promoted, by how much better the candidate really is")
    print(f"{'tasks':>5} {'better by':>9} | " + " | ".join(f"{n:>16}" for n in names) + " | asked")
    for row in rows:
        values = " | ".join(f"{row[name]:16.1%}" for name in names)
        print(f"{row['tasks']:5} {row['effect']:+9.0%} | {values} | {row['asked']:5.0f}")


def main() -> int:
    """Simulate and print; exit status 1 when the gate breaks its promise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--disagree", type=float, default=0.2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    began = time.monotonic()
    rows = simulate(given.runs, given.seed, given.disagree)
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)
    worst = max(row["gate"] for row in rows if row["effect"] <= 0)
    noise = 3 * math.sqrt(RULES.error_rate * (1 - RULES.error_rate) / given.runs)
    kept = worst <= RULES.error_rate + noise
    print(
        f"{given.runs} runs a row, seed {given.seed}, {given.disagree:.0%} of tasks disagree; "
        f"{time.monotonic() - began:.0f} s.\nWorst false-promotion rate of the gate: {worst:.2%}, "
        f"promised {RULES.error_rate:.0%}: {'kept' if kept else 'BROKEN'}",
        file=sys.stderr,
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
