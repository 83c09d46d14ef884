"""Find what can be learned from in the record: failed interactions with words about them.

Reads the store in pages, newest first, people's words before a program's, and no more than
so many requests however long the record is. For the server's own
failures that nobody commented on, feedback is made from the first failing visible example and kept
in the store as what it is: `FeedbackSource.MACHINE`. What only hidden examples know never becomes
feedback. Which of the cases teach anything is a recipe's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from improver.types import Case
from ops.records import Execution, Feedback, FeedbackSource, Json, Metric, Source, new_feedback
from ops.store import Recording, Store

MACHINE = "journeyman:first-failing-example"
"""Identifier of machine feedback: making it again overwrites it."""
PAGE = 200
LOOKED_AT_PER_CASE = 10
"""Failures nobody spoke of that are looked at, for each case that is wanted: of most nothing can be
said, and a record may hold a million."""
LEAST_WORDS = 3
MESSAGE_CHARS = 600


@dataclass(kw_only=True)
class Collected:
    """The cases, and what was looked at and left out."""

    cases: list[Case] = field(default_factory=list)
    looked_at: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def report(self) -> Json:
        """The numbers as plain data."""
        return {
            "cases": len(self.cases),
            "looked_at": self.looked_at,
            "by_feedback": dict(Counter(case.feedback_source for case in self.cases)),
            "by_source": dict(Counter(case.source for case in self.cases)),
            "with_demonstration": sum(case.demonstration is not None for case in self.cases),
            "skipped": dict(self.skipped),
        }


def collect_cases(
    store: Store, *, limit: int, machine_feedback: bool = True, keep: bool = True
) -> Collected:
    """Collect at most `limit` failed interactions with feedback.

    Args:
        store: the record.
        limit: the most cases; people's words come first.
        machine_feedback: also make feedback where nobody gave any.
        keep: write machine feedback into the record.
    """
    found = Collected()
    seen: set[str] = set()
    for recording in _failed(store, with_feedback=Metric.COMMENT):
        if len(found.cases) >= limit:
            return found
        if _take(store, recording, found, machine=False, keep=keep):
            seen.add(recording.interaction.id)
    if not machine_feedback:
        return found
    for recording in islice(_failed(store, with_feedback=None), LOOKED_AT_PER_CASE * limit):
        if len(found.cases) >= limit:
            return found
        interaction = recording.interaction
        if interaction.id not in seen and interaction.source is Source.SERVED:
            _take(store, recording, found, machine=True, keep=keep)
    return found


def _failed(store: Store, *, with_feedback: str | None) -> Iterator[Recording]:
    before = None
    while True:
        page = store.interactions(
            limit=PAGE, before=before, verified=False, with_feedback=with_feedback
        )
        yield from store.recordings(page)
        if len(page) < PAGE:
            return
        before = page[-1].id


def _take(
    store: Store, recording: Recording, found: Collected, *, machine: bool, keep: bool
) -> bool:
    """Make a case of an interaction; False when it is left to the round of machine feedback."""
    interaction, given = recording.interaction, recording.feedback
    words = _words(given)
    if not machine and words is not None and words.source is FeedbackSource.MACHINE:
        return False
    found.looked_at += 1
    if interaction.spec is None:
        found.skipped["no specification"] += 1
        return True
    choice = words.choice_index if words is not None else 0
    attempts = recording.attempts
    wrong = next((a for a in attempts if a.choice_index == choice and a.program), None)
    if wrong is None or wrong.program is None:
        found.skipped["no program in the answer"] += 1
        return True
    if words is None:
        if not machine:
            found.skipped["feedback too short"] += 1
            return True
        # Of equal programs one was run, for all of them.
        runs = [
            run
            for run in recording.executions
            if run.attempt_id is not None and run.program_sha256 == wrong.program_sha256
        ]
        text = machine_words(runs[0]) if runs else None
        if text is None:
            found.skipped["fails hidden examples only, and nobody commented"] += 1
            return True
        words = _machine_feedback(interaction.id, text)
        if keep:
            words = _kept(store, words)
    demonstration = next(
        (f for f in reversed(given) if f.metric == Metric.DEMONSTRATION and f.value), None
    )
    found.cases.append(
        Case(
            interaction_id=interaction.id,
            messages=interaction.messages,
            spec=interaction.spec,
            program=wrong.program,
            feedback=str(words.value),
            feedback_ids=[words.id],
            feedback_source=str(words.source),
            source=str(interaction.source),
            user=interaction.user,
            tenant=interaction.tenant,
            demonstration=None if demonstration is None else str(demonstration.value),
            demonstration_ids=[] if demonstration is None else [demonstration.id],
            metadata=interaction.metadata,
        )
    )
    return True


def _words(given: Sequence[Feedback]) -> Feedback | None:
    """The comment to learn from: a person's before a program's, the latest of several."""
    comments = [
        f for f in given if f.metric == Metric.COMMENT and len(str(f.value).split()) >= LEAST_WORDS
    ]
    comments.sort(key=lambda f: (f.source is FeedbackSource.HUMAN, f.updated_at))
    return comments[-1] if comments else None


def machine_words(run: Execution) -> str | None:
    """Put the first failure that the user could see into words; None where there is none.

    An error before any example was run comes from the program alone and holds nothing hidden.
    """
    if run.verified:
        return None
    if run.error_message and not any(e.get("verdict") == "OK" for e in run.examples):
        shown = [e for e in run.examples if not e.get("hidden") and e.get("message")]
        if not shown:
            return _sentence(f"it fails with {run.error_type or run.verdict}: {run.error_message}")
    for example in run.examples:
        if example.get("hidden") or not example.get("checked", True):
            continue
        if example.get("verdict") != "OK":
            return _sentence(str(example.get("message") or example.get("verdict")))
    return None


def _sentence(what: str) -> str:
    return f"When the program is run on the given example, {what[:MESSAGE_CHARS]}"


def _machine_feedback(interaction_id: str, text: str) -> Feedback:
    return new_feedback(
        Metric.COMMENT,
        text,
        FeedbackSource.MACHINE,
        interaction_id=interaction_id,
        identifier=MACHINE,
    )


def _kept(store: Store, words: Feedback) -> Feedback:
    kept = store.put_feedback([words])[0]
    return next(f for f in store.feedback(words.interaction_id or "") if f.id == kept)
