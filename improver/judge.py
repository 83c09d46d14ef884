"""Ask the served model whether a program answers a request, and find out what its word is worth.

`YesNo` scores by the probability of Yes against No as the first token of the answer;
`Likelihood` by the log-probability of the program after the request. `Ranking` says how well
scores tell right programs from mutated ones, with an interval.

Source: steps 4 and 5 of Inverse-Instruct (arXiv 2407.05700): score = e^Yes / (e^Yes + e^No) over
the logits of the first token. Approximation: an OpenAI-compatible server returns the likeliest 20
tokens only. All spellings of a word are added up (Yes, " Yes", yes; "As" is no No). Where one word
is not among the 20, the least probability listed bounds its own from above and stands for it, and
the score is marked `bounded`; where neither is, there is no score, not one half.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from improver.errors import PolicyError, PolicyUnavailable
from improver.policy import Policy, Sample
from ops.records import Json

TOP = 20
"""The most alternatives that OpenAI's API and vLLM's default return."""
RESAMPLES = 1000
LEAST_PAIRS = 8
"""Below this many programs an interval says nothing, and the judge is not believed."""

ASK = "Does the code above solve the problem correctly? Begin your answer with Yes or No."


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a judge says of one pair. `bounded`: a part of it is a bound and not a value."""

    value: float
    bounded: bool = False


class Judge(Protocol):
    """Something that scores a request and a program; higher is better."""

    name: str

    async def score(self, instruction: str, code: str) -> Score | None:
        """Score a pair; None where there is no score.

        Raises:
            PolicyUnavailable: the model does not answer.
        """


class YesNo:
    """The paper's judge."""

    name = "yes_no"

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def score(self, instruction: str, code: str) -> Score | None:
        """P(Yes) against P(No) at the first token, greedy."""
        samples = await _asked(
            self._policy,
            judge_messages(instruction, code),
            {"logprobs": True, "top_logprobs": TOP},
        )
        return None if not samples or not samples[0].logprobs else yes_no(samples[0].logprobs[0])


class Likelihood:
    """How likely the program is after the request, per character of the program, in nats.

    Needs vLLM's `prompt_logprobs`. The same program is compared under several requests, so its
    length is no advantage to any; per character makes programs comparable too.
    """

    name = "likelihood"

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def score(self, instruction: str, code: str) -> Score | None:
        """Mean log-probability of the program's characters, as the assistant's turn."""
        answer = f"```python\n{code.strip()}\n```"
        samples = await _asked(
            self._policy,
            [
                {"role": "user", "content": instruction},
                {"role": "assistant", "content": answer},
            ],
            {
                "prompt_logprobs": 0,
                "add_generation_prompt": False,
                "continue_final_message": True,
            },
        )
        if not samples:
            return None
        total = answer_logprob(samples[0].prompt_logprobs, answer)
        return None if total is None else Score(value=total / max(len(answer), 1))


async def _asked(policy: Policy, messages: Sequence[Json], extra: Json) -> list[Sample]:
    try:
        return await policy.sample(messages, temperature=0.0, max_tokens=1, extra=extra)
    except PolicyUnavailable:
        raise
    except PolicyError:
        # Too long for the model, or a server that knows no log-probabilities.
        return []


def judge_messages(instruction: str, code: str) -> list[Json]:
    """The problem, the answer code, and the question whether it is correct."""
    content = (
        f"A programming problem:\n{instruction.strip()}\n\n"
        f"The answer code:\n```python\n{code.strip()}\n```\n\n{ASK}"
    )
    return [{"role": "user", "content": content}]


def yes_no(first: Json) -> Score | None:
    """Read the score out of the first token of an answer.

    Args:
        first: OpenAI's `logprobs.content[0]`, with its `top_logprobs`.
    """
    words = {"yes": 0.0, "no": 0.0}
    seen: set[str] = set()
    least = math.inf
    for token in (first, *(first.get("top_logprobs") or ())):
        probability = math.exp(float(token["logprob"]))
        least = min(least, probability)
        # The sampled token is listed twice.
        key = str(token.get("bytes") or token.get("token"))
        word = word_of(str(token.get("token", "")))
        if key not in seen and word in words:
            words[word] += probability
        seen.add(key)
    if not any(words.values()):
        return None
    bounded = not all(words.values())
    yes, no = (words[word] or least for word in ("yes", "no"))
    return Score(value=yes / (yes + no), bounded=bounded)


def word_of(token: str) -> str:
    """The word a token spells: markers of a leading blank, case and punctuation aside."""
    return token.lstrip(" \u0120\u2581\n\t").rstrip(" .,!:;\n").lower()


def answer_logprob(prompt_logprobs: Sequence[Json | None], answer: str) -> float | None:
    """Add up the log-probabilities of the tokens that spell the end of a prompt.

    The tokens are counted off from the end until their text has the answer's length, so no
    tokenizer is needed; what a template writes after the answer is not there, since the final
    message is continued. Beyond ASCII a token may be half a character: such answers get none.
    """
    if not answer.isascii():
        return None
    total, characters = 0.0, 0
    for entry in reversed(prompt_logprobs):
        if characters >= len(answer):
            return total
        if not entry:
            return None
        # The actual token is the first; others are alternatives.
        token = next(iter(entry.values()))
        total += float(token["logprob"])
        characters += len(str(token.get("decoded_token") or ""))
    return None


# --- what a judge is worth ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How well scores tell right from wrong: area under the ROC curve and its 95 % interval."""

    judge: str
    auc: float | None
    low: float | None
    high: float | None
    programs: int
    pairs: int
    mean_right: float | None = None
    bounded_share: float | None = None

    @property
    def better_than_chance(self) -> bool:
        """Whether the whole interval lies above one half."""
        return self.low is not None and self.programs >= LEAST_PAIRS and self.low > 0.5

    def to_json(self) -> Json:
        """The numbers as plain data."""
        return {
            "judge": self.judge,
            "auc": self.auc,
            "interval_95": [self.low, self.high],
            "programs": self.programs,
            "pairs": self.pairs,
            "mean_score_of_right": self.mean_right,
            "bounded_share": self.bounded_share,
            "better_than_chance": self.better_than_chance,
        }


def auc(right: Sequence[float], wrong: Sequence[float]) -> float | None:
    """The chance that a right program scores above a wrong one; ties count half."""
    if not right or not wrong:
        return None
    ranked = sorted([(score, 1) for score in right] + [(score, 0) for score in wrong])
    rank_sum, start = 0.0, 0
    while start < len(ranked):
        end = start
        while end < len(ranked) and ranked[end][0] == ranked[start][0]:
            end += 1
        middle = (start + 1 + end) / 2
        rank_sum += middle * sum(label for _, label in ranked[start:end])
        start = end
    wins = rank_sum - len(right) * (len(right) + 1) / 2
    return wins / (len(right) * len(wrong))


def rank(
    name: str,
    right: Mapping[str, Score],
    wrong: Mapping[str, Sequence[Score]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Ranking:
    """Compare scores of right programs with those of their mutants.

    Args:
        name: Of the judge.
        right: Score of each program by its id.
        wrong: Scores of its mutants.
        seed: Of the bootstrap, which draws programs and not pairs: mutants of one program are
            not independent.
        resamples: Of the bootstrap.
    """
    ids = sorted(key for key in right if wrong.get(key))
    all_right = [right[key].value for key in ids]
    all_wrong = [score.value for key in ids for score in wrong[key]]
    found = auc(all_right, all_wrong)
    low = high = None
    if found is not None:
        rng = random.Random(seed)
        drawn = []
        for _ in range(resamples):
            sample = [rng.choice(ids) for _ in ids]
            value = auc(
                [right[key].value for key in sample],
                [score.value for key in sample for score in wrong[key]],
            )
            drawn.append(value if value is not None else 0.5)
        drawn.sort()
        low = drawn[round(0.025 * (resamples - 1))]
        high = drawn[round(0.975 * (resamples - 1))]
    scores = [right[key] for key in ids] + [score for key in ids for score in wrong[key]]
    return Ranking(
        judge=name,
        auc=None if found is None else round(found, 4),
        low=None if low is None else round(low, 4),
        high=None if high is None else round(high, 4),
        programs=len(ids),
        pairs=len(all_wrong),
        mean_right=round(sum(all_right) / len(all_right), 4) if all_right else None,
        bounded_share=round(sum(s.bounded for s in scores) / len(scores), 4) if scores else None,
    )
