"""Find preferences in the record: of one request, a better and a worse answer, or one judged alone.

Four kinds, the surest first, and of one request at most one:

    edit        a person's program beside the answer that it replaces
    verified    an attempt that passed its checks beside one that failed them
    word        answers of one request that people kept and refused, or said pass and fail
    (alone)     one such word, with nothing to hold it against: only KTO can use it

Where a person's word and our own run contradict each other the answer is left out: implicit
feedback is noisy (arXiv 2507.23158), and neither side can be asked again. The record is read in
pages, newest first. Making rows is the recipe's business (`recipes.preferences`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from improver.corpus import clean, is_request, newest
from ops.records import Attempt, Execution, Feedback, Json, Metric
from ops.store import Recording, Store
from sandbox.extract import program_sha256
from sandbox.types import INFRASTRUCTURE

WORDS = (Metric.ACCEPTED, Metric.TESTS_PASSED)
"""Metrics that say yes or no of one answer."""


class Kind(StrEnum):
    """What tells the better answer from the worse."""

    EDIT = "edit"
    """A person wrote the better one in place of the worse."""
    VERIFIED = "verified"
    """Our own runs."""
    WORD = "word"
    """What people said of the answers."""


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A preference. One of `better` and `worse`, which are programs, may be missing."""

    kind: Kind
    messages: list[Json]
    spec: Json
    better: str | None
    worse: str | None
    interaction_ids: list[str]
    feedback_ids: list[str] = field(default_factory=list)
    source: str
    user: str | None = None
    tenant: str | None = None
    model: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def is_pair(self) -> bool:
        """Whether there is a better and a worse answer."""
        return self.better is not None and self.worse is not None


@dataclass(kw_only=True)
class Signals:
    """The preferences, and what was looked at and left out."""

    signals: list[Signal] = field(default_factory=list)
    looked_at: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def report(self) -> Json:
        """The numbers as plain data."""
        return {
            "signals": len(self.signals),
            "pairs": sum(one.is_pair for one in self.signals),
            "looked_at": self.looked_at,
            "by_kind": dict(Counter(str(one.kind) for one in self.signals)),
            "skipped": dict(self.skipped),
        }


def collect_signals(store: Store, *, limit: int, before: datetime | None = None) -> Signals:
    """Look at the latest requests that say something of their answers.

    Args:
        store: the record.
        limit: the most requests looked at; those with people's words come first.
        before: requests made later are left aside, so that a resumed cycle finds what it found.
    """
    found = Signals()
    alone: list[Signal] = []
    seen: set[str] = set()
    groups = (
        *(newest(store, before, with_feedback=one) for one in (Metric.DEMONSTRATION, *WORDS)),
        newest(store, before, verified=True),
    )
    for recording in (one for group in groups for one in group):
        if found.looked_at >= limit:
            break
        interaction = recording.interaction
        if interaction.id in seen:
            continue
        seen.add(interaction.id)
        found.looked_at += 1
        if not is_request(interaction):
            found.skipped["no request"] += 1
            continue
        for signal in _of_recording(recording, found.skipped):
            (found.signals if signal.is_pair else alone).append(signal)
    found.signals += _matched(alone)
    return found


def _of_recording(recording: Recording, skipped: Counter[str]) -> Iterator[Signal]:
    interaction, given = recording.interaction, recording.feedback
    attempts = [one for one in recording.attempts if one.program]
    if not attempts:
        skipped["no program in the answer"] += 1
        return
    passed = _passed(recording.executions)
    base = Signal(
        kind=Kind.EDIT,
        messages=interaction.messages,
        spec=interaction.spec or {},
        better=None,
        worse=None,
        interaction_ids=[interaction.id],
        source=str(interaction.source),
        user=interaction.user,
        tenant=interaction.tenant,
        model=f"{interaction.adapter_name or interaction.model}@{interaction.adapter_version}",
        metadata=interaction.metadata,
    )
    pair = _edit(base, attempts, given, skipped) or _verified(base, attempts, passed)
    if pair is not None:
        yield pair
    else:
        yield from _words(base, attempts, given, passed, skipped)


def _passed(executions: Sequence[Execution]) -> dict[str, bool]:
    """By digest of the program: whether it passed. What nobody could judge is not in it.

    Of equal programs one was run, for all of them.
    """
    return {
        run.program_sha256: run.verified
        for run in executions
        if run.attempt_id is not None and run.verdict not in INFRASTRUCTURE
    }


def _edit(
    base: Signal, attempts: Sequence[Attempt], given: Sequence[Feedback], skipped: Counter[str]
) -> Signal | None:
    shown = [one for one in given if one.metric == Metric.DEMONSTRATION and one.value]
    if not shown:
        return None
    better = clean(str(shown[-1].value))
    worse = _returned(attempts, shown[-1].choice_index)
    if better is None or worse is None or worse.program is None:
        skipped["demonstration is not Python, or of no program"] += 1
        return None
    if program_sha256(better) == program_sha256(worse.program):
        skipped["demonstration equals the answer"] += 1
        return None
    return replace(base, better=better, worse=worse.program, feedback_ids=[shown[-1].id])


def _verified(base: Signal, attempts: Sequence[Attempt], passed: dict[str, bool]) -> Signal | None:
    """The likeliest attempt that passed and the likeliest that failed: what the model mixes up."""
    likely = sorted(attempts, key=lambda one: -(one.mean_logprob or 0.0))
    better = next((one for one in likely if passed.get(one.program_sha256 or "") is True), None)
    worse = next((one for one in likely if passed.get(one.program_sha256 or "") is False), None)
    if better is None or worse is None:
        return None
    return replace(base, kind=Kind.VERIFIED, better=better.program, worse=worse.program)


def _words(
    base: Signal,
    attempts: Sequence[Attempt],
    given: Sequence[Feedback],
    passed: dict[str, bool],
    skipped: Counter[str],
) -> Iterator[Signal]:
    """What people said of each choice: a pair where they kept one and refused another."""
    kept: list[tuple[Attempt, Feedback]] = []
    refused: list[tuple[Attempt, Feedback]] = []
    for word in given:
        attempt = _returned(attempts, word.choice_index)
        if word.metric not in WORDS or not isinstance(word.value, bool) or attempt is None:
            continue
        if passed.get(attempt.program_sha256 or "", word.value) is not word.value:
            skipped["word and checks contradict each other"] += 1
        else:
            (kept if word.value else refused).append((attempt, word))
    both = {one.id for one, _ in kept} & {one.id for one, _ in refused}
    good = [(one, word) for one, word in kept if one.id not in both]
    bad = [(one, word) for one, word in refused if one.id not in both]
    if both:
        skipped["words contradict each other"] += 1
    word_of = replace(base, kind=Kind.WORD)
    if good and bad:
        ids = [good[0][1].id, bad[0][1].id]
        yield replace(word_of, better=good[0][0].program, worse=bad[0][0].program, feedback_ids=ids)
    elif good:
        yield replace(word_of, better=good[0][0].program, feedback_ids=[good[0][1].id])
    elif bad:
        yield replace(word_of, worse=bad[0][0].program, feedback_ids=[bad[0][1].id])


def _returned(attempts: Sequence[Attempt], choice_index: int) -> Attempt | None:
    return next((one for one in attempts if one.choice_index == choice_index), None)


def _matched(alone: Sequence[Signal]) -> list[Signal]:
    """Pair single words about the same request, asked several times; the others stay alone."""
    waiting: dict[str, list[Signal]] = {}
    done: list[Signal] = []
    for signal in alone:
        request = json.dumps([signal.messages, signal.spec], sort_keys=True)
        others = waiting.setdefault(request, [])
        wanted = signal.better is None
        match = next((one for one in others if (one.better is not None) is wanted), None)
        if match is None:
            others.append(signal)
            continue
        others.remove(match)
        good, bad = (signal, match) if signal.better is not None else (match, signal)
        done.append(
            replace(
                good,
                worse=bad.worse,
                interaction_ids=[*good.interaction_ids, *bad.interaction_ids],
                feedback_ids=[*good.feedback_ids, *bad.feedback_ids],
            )
        )
    return [*done, *(one for others in waiting.values() for one in others)]
