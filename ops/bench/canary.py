"""How often a canary is taken back, and after how many requests, by how it really does.

    python ops/bench/canary.py [--runs 400] [--share 0.1] [--seed 7]

Requests with a specification come one after another; the champion verifies 60 % of them. After
every 10 requests of the canary somebody looks, until the budget of 200 is used up. Prints one row
for each true difference. The arithmetic is `ops.trials`' own.
"""

from __future__ import annotations

import argparse
import random
import sys
from datetime import timedelta
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ops.records import now
from ops.trials import Kind, Mark, Rules, Trial, quality

CHAMPION = 0.6
EFFECTS = (-0.4, -0.2, -0.1, -0.05, 0.0, 0.1, 0.2)
LOOK = 10


def run(chance: random.Random, trial: Trial, rules: Rules, effect: float) -> tuple[str, int]:
    """One canary: how it ends, and after how many requests of its own."""
    marks: list[Mark] = []
    own = 0
    while own < rules.canary_requests:
        mine = chance.random() < trial.share
        good = chance.random() < CHAMPION + (effect if mine else 0.0)
        version = trial.version if mine else trial.against
        marks.append((trial.since + timedelta(seconds=len(marks)), version, good))
        own += mine
        if mine and own % LOOK == 0:
            found = quality(trial, marks, rules, alone=False)
            if found["e_worse"] >= rules.threshold:
                return "taken back", own
            if found["e_better"] >= rules.threshold:
                return "better", own
    return "not worse", own


def main() -> int:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    rules, chance = Rules(), random.Random(given.seed)
    trial = Trial(kind=Kind.CANARY, version=2, against=1, since=now(), share=given.share)
    print(f"{'better by':>9} | taken back | of its requests (median) | better, before the budget")
    for effect in EFFECTS:
        ends = [run(chance, trial, rules, effect) for _ in range(given.runs)]
        back = [count for word, count in ends if word == "taken back"]
        early = sum(word == "better" for word, _ in ends)
        after = f"{median(back):.0f}" if back else "-"
        print(
            f"{effect:+9.0%} | {len(back) / given.runs:10.1%} | {after:>24} | "
            f"{early / given.runs:10.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
