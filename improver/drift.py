"""How a model's answers have changed, whatever is right or wrong about them.

A model that is trained on its own answers can pass its examination and still be on its way down:
programs grow, shrink or become alike, it declines or asks back instead of answering, its next words
become certain. All of this is read off the answers of the examination: `traits` of one answer,
`Manner` of one arm, `exceeded` for what has moved further than the limits allow. Too few answers
decide nothing. Likeness, entropy and length are those of the program, and lengths are compared
where both arms are right: neither leaving out the prose around a program nor writing whole programs
in place of stubs is drift. Whole answers may shrink, and not grow.

The divergence from the base model on old tasks is measured beside it (`improver.divergence`), and
has its limit here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean

from improver.firewall import CODE_GRAM, code_shingles, code_tokens, text_shingles
from ops.records import Json

SKETCH = 32
"""Hashes that stand for an answer's shingles: likeness is known to about 0.1, means far better."""
LEAST_ANSWERS = 16
"""With fewer answers of an arm nothing is decided by their manner."""
LEAST_REFUSALS = 3
"""Nor by fewer answers more that decline or ask back."""
LEAST_POINTS = 12
"""Nor by a divergence that was measured at fewer points."""
MOST_PAIRS = 4_000

_DECLINES = re.compile(
    r"\b(?:I(?:'m| am) sorry|I can(?:no|')t|I am unable|I'm unable|I won't|as an AI)\b", re.I
)
_ASKS = re.compile(
    r"\b(?:could you|can you|please) (?:please )?(?:clarify|provide|specify|share|tell|explain)\b"
    r"|\bwhat (?:exactly )?do you (?:mean|want)\b|\bmore (?:details|information|context)\b",
    re.I,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a candidate's manner may move from the champion's.

    `length_ratio` bounds the mean length of programs both ways, and of answers from above; the
    rises are of shares between 0 and 1;
    `entropy_ratio` is the least part of the champion's entropy that must be left, `divergence` the
    most nats a token from the base model.
    """

    length_ratio: float = 2.0
    refusal_rise: float = 0.05
    similarity_rise: float = 0.1
    entropy_ratio: float = 0.5
    divergence: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How one arm answers. None where its answers do not tell.

    `solved_tokens` and `program_tokens` are mean lengths, of answers and of the programs in them,
    on tasks that both arms solved.
    """

    answers: int = 0
    mean_tokens: float = 0.0
    solved_tokens: float | None = None
    program_tokens: float | None = None
    refusals: float = 0.0
    asks_back: float = 0.0
    similarity: float | None = None
    entropy: float | None = None

    def as_json(self) -> Json:
        """All numbers."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is kept of an answer: its length, its traits, whether both arms solved the task."""

    tokens: int
    traits: Json = field(default_factory=dict)
    both_solved: bool = True


def traits(text: str, program: str | None, logprobs: Sequence[Json] = ()) -> Json:
    """What is worth keeping of an answer's manner.

    Args:
        text: the whole answer.
        program: what was taken out of it, if anything.
        logprobs: OpenAI's `logprobs.content`, where they were asked for.
    """
    if program is None:
        return {
            "declines": bool(_DECLINES.search(text)),
            "asks": bool(_ASKS.search(text)) or text.rstrip().endswith("?"),
        }
    tokens = code_tokens(program)
    length = len(program.split()) if tokens is None else len(tokens)
    found: Json = {"sketch": _sketch(program, tokens), "length": length}
    entropy = _entropy(_within(text, program, logprobs))
    if entropy is not None:
        found["entropy"] = round(entropy, 5)
    return found


def manner(seen: Sequence[Seen]) -> Manner:
    """Add up the answers of one arm, one for each task."""
    if not seen:
        return Manner()
    entropies = [float(s.traits["entropy"]) for s in seen if "entropy" in s.traits]
    sketches = [s.traits["sketch"] for s in seen if s.traits.get("sketch")]
    solved = [s for s in seen if s.both_solved and "length" in s.traits]
    enough = len(solved) >= LEAST_ANSWERS
    return Manner(
        answers=len(seen),
        mean_tokens=fmean(s.tokens for s in seen),
        solved_tokens=fmean(s.tokens for s in solved) if enough else None,
        program_tokens=fmean(float(s.traits["length"]) for s in solved) if enough else None,
        refusals=fmean(bool(s.traits.get("declines")) for s in seen),
        asks_back=fmean(bool(s.traits.get("asks")) and not s.traits.get("declines") for s in seen),
        similarity=_similarity(sketches),
        entropy=fmean(entropies) if entropies else None,
    )


def exceeded(champion: Manner, candidate: Manner, limits: Limits) -> list[str]:
    """Say what has moved too far, in words with numbers; empty where nothing has."""
    if min(champion.answers, candidate.answers) < LEAST_ANSWERS:
        return []
    found = []
    most = limits.length_ratio
    if champion.solved_tokens is not None and candidate.solved_tokens is not None:
        longest = most * max(champion.solved_tokens, 1.0)
        if candidate.solved_tokens > longest:
            found.append(
                f"answers of {candidate.solved_tokens:.0f} tokens instead of "
                f"{champion.solved_tokens:.0f} (a factor of {most:g} is tolerated)"
            )
    if champion.program_tokens is not None and candidate.program_tokens is not None:
        ratio = max(candidate.program_tokens, 1.0) / max(champion.program_tokens, 1.0)
        if not 1 / most <= ratio <= most:
            found.append(
                f"programs of {candidate.program_tokens:.0f} tokens instead of "
                f"{champion.program_tokens:.0f} (a factor of {most:g} is tolerated)"
            )
    declined = candidate.refusals + candidate.asks_back
    before = champion.refusals + champion.asks_back
    more = declined * candidate.answers - before * champion.answers
    if declined - before > limits.refusal_rise and round(more) >= LEAST_REFUSALS:
        found.append(
            f"declines or asks back {declined:.0%} of the time instead of {before:.0%} "
            f"({limits.refusal_rise:.0%} more is tolerated)"
        )
    if champion.similarity is not None and candidate.similarity is not None:
        rise = candidate.similarity - champion.similarity
        if rise > limits.similarity_rise:
            found.append(
                f"answers to different tasks are alike by {candidate.similarity:.2f} instead of "
                f"{champion.similarity:.2f} ({limits.similarity_rise:g} more is tolerated)"
            )
    if champion.entropy and candidate.entropy is not None:
        left = candidate.entropy / champion.entropy
        if left < limits.entropy_ratio:
            found.append(
                f"{left:.0%} of the champion's entropy is left ({limits.entropy_ratio:.0%} must be)"
            )
    return found


def diverged(points: int, nats: float | None, limits: Limits) -> list[str]:
    """Say whether a candidate is too far from the base model on old tasks, as `exceeded` does."""
    if nats is None or points < LEAST_POINTS or nats <= limits.divergence:
        return []
    return [
        f"{nats:.2f} nats a token away from the base model within programs of old tasks "
        f"({limits.divergence:g} are tolerated)"
    ]


def _sketch(program: str, tokens: list[str] | None) -> list[int]:
    """A MinHash of the program's tokens, or of its words where it is not Python."""
    shingles = text_shingles(program) if tokens is None else code_shingles(tokens)
    if tokens and not shingles:
        shingles = frozenset((" ".join(tokens[:CODE_GRAM]),))
    if not shingles:
        return []
    least = [2**32] * SKETCH
    for shingle in shingles:
        for half in range(2):
            digest = hashlib.blake2b(
                shingle.encode("utf-8", "replace"), person=bytes([half])
            ).digest()
            for place in range(SKETCH // 2):
                value = int.from_bytes(digest[4 * place : 4 * place + 4], "big")
                slot = half * (SKETCH // 2) + place
                least[slot] = min(least[slot], value)
    return least


def _similarity(sketches: Sequence[Sequence[int]]) -> float | None:
    """Mean likeness of two answers to different tasks."""
    if len(sketches) < 2:
        return None
    pairs = list(combinations(range(len(sketches)), 2))
    pairs = pairs[:: max(1, len(pairs) // MOST_PAIRS)]
    return fmean(
        sum(a == b for a, b in zip(sketches[i], sketches[j], strict=True)) / SKETCH
        for i, j in pairs
    )


def _within(text: str, program: str, logprobs: Sequence[Json]) -> list[Json]:
    """The tokens in which the program stands; none where it is not in the text as it is."""
    body = program.strip()
    start = text.find(body)
    if start < 0:
        return []
    found, place = [], 0
    for token in logprobs:
        if start <= place < start + len(body):
            found.append(token)
        place += len(str(token.get("token", "")))
    return found


def _entropy(logprobs: Sequence[Json]) -> float | None:
    """Mean entropy a token in nats, from the likeliest tokens; the rest counts as one more."""
    found = []
    for token in logprobs:
        top = [float(entry["logprob"]) for entry in token.get("top_logprobs") or ()]
        if top:
            chances = [math.exp(value) for value in top]
            rest = max(0.0, 1.0 - sum(chances))
            found.append(-sum(p * math.log(p) for p in (*chances, rest) if p > 1e-12))
    return fmean(found) if found else None
