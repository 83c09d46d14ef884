"""How far a candidate has moved from the base model on old tasks, by the engine's own numbers.

Forgetting goes with the divergence from the base model (RL's Razor, arXiv 2509.04259, which
measures it on the new task; here on old ones, where it does harm). Both models are given the same
beginnings of programs that are known to be right, the references of the guard's tasks, and asked
for nothing but the likeliest next tokens: KL(candidate || base) of these, in nats, averaged.

Beginnings are given, and not the models' own, so that leaving out the prose around a program is no
divergence. Of each distribution only the likeliest tokens are known: what is not among the base's
is taken to be as likely as it can be, and the rest counts as one token, so the number is a lower
bound (coarser partitions have less divergence). It needs nothing of the engine but ordinary
log-probabilities of one new token. What was answered is in a journal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from improver.attempts import together
from improver.benchmarks.base import Task
from improver.errors import PolicyError, PolicyUnavailable
from improver.policy import Policy
from improver.workspace import Journal
from ops.records import Json

POINTS = 3
"""Places in each program."""
TOP_LOGPROBS = 5

Top = Mapping[str, float]
"""Likeliest next tokens with their log-probabilities (nats)."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The mean over all points; `nats` is None where the engine gave no numbers."""

    points: int
    nats: float | None

    def as_json(self) -> Json:
        """As plain data."""
        return {"points": self.points, "nats": None if self.nats is None else round(self.nats, 5)}


async def measure(
    tasks: Sequence[Task], policy: Policy, journal: Journal, *, base: str, candidate: str
) -> Divergence:
    """Ask both models for the next token at places within the tasks' references.

    Args:
        tasks: old tasks; those without a reference are left out.
        policy: the server.
        journal: what was answered already.
        base: the name under which the base model answers.
        candidate: the same of the candidate.

    Raises:
        PolicyUnavailable: the server did not answer for long.
    """
    places = [(task, place) for task in tasks for place in beginnings(task.reference or "")]
    found = await together(
        _point(task, place, policy, journal, base, candidate) for task, place in places
    )
    nats = [value for value in found if value is not None]
    return Divergence(points=len(nats), nats=fmean(nats) if nats else None)


def beginnings(program: str) -> list[str]:
    """Return beginnings of a program, cut behind words that are spread over it evenly."""
    ends = [found.end() for found in re.finditer(r"\w+", program)]
    inner = [end for end in ends if 0 < end < len(program.rstrip())]
    if not inner:
        return []
    places = sorted({inner[(n + 1) * len(inner) // (POINTS + 1)] for n in range(POINTS)})
    return [program[:end] for end in places]


def divergence(candidate: Top, base: Top) -> float | None:
    """KL(candidate || base) of next tokens, in nats, from below; None without numbers."""
    if not candidate or not base:
        return None
    p = {token: math.exp(value) for token, value in candidate.items()}
    q = {token: math.exp(value) for token, value in base.items()}
    rest = max(0.0, 1.0 - sum(q.values()))
    # A token that is not among the base's likeliest is no likelier there than the last of them.
    unseen = min([*q.values(), rest])
    total = sum(
        mass * math.log(mass / max(q.get(token, unseen), 1e-9)) for token, mass in p.items() if mass
    )
    left = 1.0 - sum(p.values())
    others = 1.0 - sum(q.get(token, 0.0) for token in p)
    if left > 1e-9:
        total += left * math.log(left / max(others, left * 1e-9))
    return max(0.0, total)


async def _point(
    task: Task, beginning: str, policy: Policy, journal: Journal, base: str, candidate: str
) -> float | None:
    tops = [await _top(task, beginning, policy, journal, model) for model in (candidate, base)]
    return divergence(tops[0], tops[1])


async def _top(
    task: Task, beginning: str, policy: Policy, journal: Journal, model: str
) -> dict[str, float]:
    key = f"divergence|{model}|{task.id}|{len(beginning)}"
    if key not in journal.done:
        messages = [
            *task.messages(with_spec=False),
            {"role": "assistant", "content": f"```python\n{beginning}"},
        ]
        extra = {
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
        try:
            [said] = await policy.sample(
                messages, temperature=0.0, max_tokens=1, model=model, extra=extra
            )
        except PolicyUnavailable:
            raise
        except PolicyError:
            return {}  # too long for the model, or a server that knows no log-probabilities
        top = (said.logprobs[0].get("top_logprobs") or ()) if said.logprobs else ()
        journal.add(key, {str(one["token"]): float(one["logprob"]) for one in top})
    found: dict[str, float] = journal.done[key]
    return found
