"""The probe: token log-probabilities by which a server proves that an adapter is really applied.

The trainer writes `probe.json` into the adapter's directory: a few token sequences with the
log-probabilities that base and adapter give each token after the first. The server asks its engine
for the same numbers and compares (`compare`). This catches an adapter that was loaded by name but
never applied, or applied to another base, which nothing else would notice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ops.errors import ArtifactError

FILE = "probe.json"

MIN_SHIFT = 1e-3
"""Nats per token: an adapter that moves the engine less than this changes nothing."""
MAX_ERROR_NATS = 0.25
"""Mean absolute difference allowed between engine and trainer, whatever the precision."""
MIN_CORRELATION = 0.8
"""Least correlation of the engine's shift with the trainer's."""
MAX_MERGED_ERROR_NATS = 0.05
"""Mean absolute difference allowed between an adapter beside its base and merged with it."""


@dataclass(frozen=True, kw_only=True)
class ProbeText:
    """One sequence: `token_ids` of length n, and n - 1 log-probabilities (nats) for each model."""

    token_ids: list[int]
    base_logprobs: list[float]
    adapter_logprobs: list[float]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What the comparison found. Means are over all tokens of all texts, in nats."""

    accepted: bool
    reason: str
    tokens: int
    engine_shift: float
    trainer_shift: float
    engine_error: float
    correlation: float


def write(directory: Path, texts: Sequence[ProbeText]) -> None:
    """Write the probe into an adapter's draft directory."""
    (directory / FILE).write_text(json.dumps({"texts": [asdict(text) for text in texts]}))


def read(directory: Path) -> list[ProbeText]:
    """Read the probe of an adapter.

    Raises:
        ArtifactError: there is none, or it is malformed.
    """
    try:
        texts = [ProbeText(**text) for text in json.loads((directory / FILE).read_text())["texts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{directory} has no readable {FILE}: {error}") from error
    for text in texts:
        lengths = {len(text.base_logprobs), len(text.adapter_logprobs), len(text.token_ids) - 1}
        if len(lengths) != 1 or lengths == {0}:
            raise ArtifactError(f"{directory / FILE}: log-probabilities do not match the tokens")
    if not texts:
        raise ArtifactError(f"{directory / FILE} holds no text")
    return texts


def compare(
    texts: Sequence[ProbeText],
    engine_base: Sequence[Sequence[float]],
    engine_adapter: Sequence[Sequence[float]],
) -> ProbeResult:
    """Judge the engine's log-probabilities of the probe's texts against the trainer's.

    Args:
        texts: the probe.
        engine_base: for each text, the engine's log-probabilities under the base model.
        engine_adapter: the same under the adapter.
    """
    base = [x for row in engine_base for x in row]
    adapter = [x for row in engine_adapter for x in row]
    trainer_base = [x for text in texts for x in text.base_logprobs]
    trainer_adapter = [x for text in texts for x in text.adapter_logprobs]
    engine_delta = [a - b for a, b in zip(adapter, base, strict=True)]
    trainer_delta = [a - b for a, b in zip(trainer_adapter, trainer_base, strict=True)]
    shift = _mean_abs(engine_delta)
    error = _mean_abs([a - b for a, b in zip(adapter, trainer_adapter, strict=True)])
    correlation = _correlation(engine_delta, trainer_delta)
    if not all(math.isfinite(x) for x in (*base, *adapter)):
        reason = "the engine returned log-probabilities that are not finite"
    elif shift < MIN_SHIFT:
        reason = f"the adapter changes nothing: mean shift {shift:.2e} nats a token"
    elif error > MAX_ERROR_NATS:
        reason = f"engine and trainer differ by {error:.3f} nats a token"
    elif correlation < MIN_CORRELATION:
        reason = f"the engine's shift does not follow the trainer's: r = {correlation:.2f}"
    else:
        reason = ""
    return ProbeResult(
        accepted=not reason,
        reason=reason or "differs from the base as the trainer said it would",
        tokens=len(base),
        engine_shift=shift,
        trainer_shift=_mean_abs(trainer_delta),
        engine_error=error,
        correlation=correlation,
    )


def apart(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Return the mean absolute difference (nats a token) of two engines' log-probabilities."""
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    return _mean_abs([a - b for a, b in pairs])


def _mean_abs(values: Sequence[float]) -> float:
    return sum(abs(value) for value in values) / max(len(values), 1)


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return covariance / spread if spread > 0 else 0.0
