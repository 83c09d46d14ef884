"""The gate: is the candidate better, by what two arms did on the same tasks with the same seeds?

Only discordant pairs speak: tasks that one arm solves and the other does not. With b pairs won and
c lost by the candidate, and H0 that it wins a discordant pair with probability at most 1/2, the
wealth of a gambler who bets on every win probability t above 1/2 at once, in equal parts, is

    E(b, c) = integral over t from 1/2 to 1 of  2 * (2 t)^b * (2 (1 - t))^c  dt
            = b! c! / (b + c + 1)! * sum over k = 0..b of binomial(b + c + 1, k).

Under H0 each factor has mean at most 1, so E is a test supermartingale and the chance that it ever
reaches 1/a is at most a (Ville's inequality), however often one looks and whenever one stops: a
mixture (Robbins 1970) in the sense of Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics
and safe anytime-valid inference", arXiv 2210.01948, section 3. The same sum with b and c exchanged
tells that the candidate is worse. The arithmetic is exact, in integers.

Infrastructure errors never count: a task that nobody could judge in either arm is left out. The
guard is simpler: share of guard tasks lost minus share won must not exceed a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, factorial

from improver.types import Arm, Judgement, Outcome, Suite
from ops.records import Decision, Json


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How two arms did on the same tasks. `won`: the candidate alone solved it."""

    both: int = 0
    won: int = 0
    lost: int = 0
    neither: int = 0
    errors: int = 0
    """Pairs in which an arm could not be judged; they count nowhere else."""

    @property
    def judged(self) -> int:
        """Pairs in which both arms were judged."""
        return self.both + self.won + self.lost + self.neither

    @property
    def champion(self) -> float:
        """Share of judged tasks the champion solved."""
        return (self.both + self.lost) / self.judged if self.judged else 0.0

    @property
    def candidate(self) -> float:
        """Share of judged tasks the candidate solved."""
        return (self.both + self.won) / self.judged if self.judged else 0.0

    def as_json(self) -> Json:
        """All numbers."""
        return {
            "tasks": self.judged,
            "champion_solved": self.both + self.lost,
            "candidate_solved": self.both + self.won,
            "won": self.won,
            "lost": self.lost,
            "both": self.both,
            "neither": self.neither,
            "errors": self.errors,
            "champion": round(self.champion, 4),
            "candidate": round(self.candidate, 4),
        }


def e_value(won: int, lost: int) -> float:
    """Evidence that the candidate wins more than half of the discordant pairs.

    Returns:
        1 without evidence; 20 or more refutes "no better" at an error rate of 5 %.
    """
    n = won + lost
    tail = sum(comb(n + 1, k) for k in range(won + 1))
    return float(Fraction(factorial(won) * factorial(lost) * tail, factorial(n + 1)))


def reachable(won: int, lost: int, left: int, error_rate: float) -> bool:
    """Whether promotion is still possible when the candidate wins every task that is left."""
    return e_value(won + left, lost) >= 1 / error_rate


def pair(outcomes: Sequence[Outcome], suite: Suite) -> Pairs:
    """Set the arms' outcomes of a suite side by side, by task and seed."""
    arms: dict[tuple[str, int], dict[Arm, bool | None]] = {}
    for outcome in outcomes:
        if outcome.suite is suite:
            arms.setdefault((outcome.task_id, outcome.seed), {})[outcome.arm] = outcome.passed
    counts = {"both": 0, "won": 0, "lost": 0, "neither": 0, "errors": 0}
    names = {(True, True): "both", (False, True): "won", (True, False): "lost"}
    for found in arms.values():
        if len(found) < 2:
            continue
        champion, candidate = found[Arm.CHAMPION], found[Arm.CANDIDATE]
        if champion is None or candidate is None:
            counts["errors"] += 1
        else:
            counts[names.get((champion, candidate), "neither")] += 1
    return Pairs(**counts)


def settled(target: Pairs, left: int, error_rate: float) -> bool:
    """Whether the examination may stop: proved better, proved worse, or out of reach."""
    return (
        e_value(target.won, target.lost) >= 1 / error_rate
        or e_value(target.lost, target.won) >= 1 / error_rate
        or not reachable(target.won, target.lost, left, error_rate)
    )


def decide(
    outcomes: Sequence[Outcome], *, error_rate: float, guard_margin: float, refused: str = ""
) -> Judgement:
    """Give the gate's word.

    Args:
        outcomes: all outcomes of both arms.
        error_rate: the chance to promote a candidate that is no better.
        guard_margin: tolerated loss on the guard, as a share of its tasks.
        refused: why a server would not load the candidate, where that happened.
    """
    target, guard = pair(outcomes, Suite.TARGET), pair(outcomes, Suite.GUARD)
    better, worse = e_value(target.won, target.lost), e_value(target.lost, target.won)
    loss = guard.champion - guard.candidate
    threshold = 1 / error_rate
    if refused:
        decision, reason = Decision.REJECT, f"the server refused it: {refused}"
    elif target.judged == 0:
        decision, reason = Decision.CONTINUE, "no task could be judged in both arms"
    elif worse >= threshold:
        decision, reason = Decision.REJECT, "worse than the champion"
    elif guard.judged and loss > guard_margin:
        decision = Decision.REJECT
        reason = f"loses {loss:.0%} on the guard, {guard_margin:.0%} are tolerated"
    elif better >= threshold:
        decision, reason = Decision.PROMOTE, "better than the champion"
    elif target.candidate > target.champion:
        decision, reason = Decision.CONTINUE, "ahead, but that may be luck: more tasks are needed"
    else:
        decision, reason = Decision.CONTINUE, "not shown to be better"
    numbers: Json = {
        "target": target.as_json(),
        "guard": guard.as_json(),
        "guard_loss": round(loss, 4),
        "guard_margin": guard_margin,
        "e_better": better,
        "e_worse": worse,
        "threshold": threshold,
        "error_rate": error_rate,
        "refused": refused,
    }
    return Judgement(
        decision=decision,
        reason=reason,
        numbers=numbers,
        text=_text(decision, reason, target, guard, better, worse, threshold),
    )


def _text(
    decision: Decision,
    reason: str,
    target: Pairs,
    guard: Pairs,
    better: float,
    worse: float,
    threshold: float,
) -> str:
    lines = [f"{str(decision).upper()}: {reason}."]
    if target.judged:
        lines.append(
            f"Target, {target.judged} tasks: champion {target.champion:.1%}, candidate "
            f"{target.candidate:.1%}; {target.won} won, {target.lost} lost."
        )
        lines.append(
            f"Evidence: better {better:.3g}, worse {worse:.3g}; {threshold:.3g} would prove it."
        )
    if guard.judged:
        lines.append(
            f"Guard, {guard.judged} tasks: champion {guard.champion:.1%}, candidate "
            f"{guard.candidate:.1%}; {guard.won} won, {guard.lost} lost."
        )
    errors = target.errors + guard.errors
    if errors:
        lines.append(f"{errors} tasks could not be judged (infrastructure) and do not count.")
    return "\n".join(lines)
