"""Evidence that may be looked at at any time: bets against "it is no better".

Two arms are compared by scores between -1 and 1: 1 where one alone is right, -1 where the other
alone is. With b scores won and c lost, and H0 that a discordant one is won with probability at most
1/2, the wealth of a gambler who bets on every win probability t above 1/2 at once, in equal parts,
is

    E(b, c) = integral over t from 1/2 to 1 of  2 * (2 t)^b * (2 (1 - t))^c  dt
            = b! c! / (b + c + 1)! * sum over k = 0..b of binomial(b + c + 1, k).

Under H0 each factor has mean at most 1, so E is a test supermartingale and the chance that it ever
reaches 1/a is at most a (Ville's inequality), however often one looks and whenever one stops: a
mixture (Robbins 1970) in the sense of Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics
and safe anytime-valid inference", arXiv 2210.01948, section 3. The arithmetic is exact, in
integers.

With a minimum effect d, H0 is that the mean of the scores is at most d. The gambler then bets
shares l of a fixed grid on every score, zeros included: the mean of products of 1 + l (score - d)
is a test supermartingale as well (the betting of Waudby-Smith and Ramdas, arXiv 2010.09686); for d
= 0 it is the integral above. A negative d asks for evidence of "worse by no more than -d".

Here is arithmetic alone: the gate (`improver.decide`) puts it to paired answers, live trials
(`ops.trials`) to requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import comb, factorial

import numpy as np

GRID = 400
"""Bets in the mixture where a minimum effect is asked for, or scores are fractions."""
EXACT = 400
"""Discordant pairs up to which the integral is computed exactly; the grid is as good above."""


def e_value(won: int, lost: int) -> float:
    """Evidence that more than half of the discordant pairs are won.

    Returns:
        1 without evidence; 20 or more refutes "no better" at an error rate of 5 %.
    """
    n = won + lost
    tail = sum(comb(n + 1, k) for k in range(won + 1))
    return float(Fraction(factorial(won) * factorial(lost) * tail, factorial(n + 1)))


def evidence(scores: Sequence[float], minimum_effect: float = 0.0) -> float:
    """Evidence that the mean score is above a minimum effect.

    Args:
        scores: each between -1 and 1, in random order.
        minimum_effect: between -1 and 1, both excluded.
    """
    found = np.asarray(scores, dtype=float)
    if minimum_effect == 0 and np.isin(found, (-1.0, 0.0, 1.0)).all():
        won, lost = int((found == 1).sum()), int((found == -1).sum())
        if won + lost <= EXACT:
            return e_value(won, lost)
    bets = (np.arange(GRID) + 0.5) / GRID / (1 + minimum_effect)
    wealth = np.zeros(GRID)
    for score, count in zip(*np.unique(found, return_counts=True), strict=True):
        wealth += count * np.log1p(bets * (score - minimum_effect))
    return float(np.exp(np.minimum(wealth, 600.0)).mean())


def pairs(arrivals: Iterable[tuple[bool, float]], most: int) -> list[tuple[float, list[float]]]:
    """Pair a thin stream with a thick one, as they arrive mixed, so that nothing is used twice.

    Each value of the thin stream meets what the thick one has waiting then, oldest first. Which
    values meet depends on when they came and never on what they are, so scores made of the pairs
    may be betted on.

    Args:
        arrivals: (whether it is the thin stream's, value), in the order of time.
        most: the most values of the thick stream in one pair.

    Returns:
        The thin stream's value with those of the thick one, for each pair.
    """
    found = []
    thin: deque[float] = deque()
    thick: deque[float] = deque()
    for mine, value in arrivals:
        (thin if mine else thick).append(value)
        while thin and thick:
            met = [thick.popleft() for _ in range(min(most, len(thick)))]
            found.append((thin.popleft(), met))
    return found
