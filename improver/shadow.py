"""Shadow: before users meet a candidate, it answers again what they asked lately, seen by nobody.

Taken are the newest requests of the record with hidden examples, which can tell right from wrong;
left out is what the candidate learned from, by its words, and what the examination has asked
already. Champion and candidate answer each, by pinned names, while the candidate's state is
`shadow`; the server lets users go first. A candidate that is shown to be worse here, or loses more
than replay's margin, does not go live.

The examination's replay suite (`benchmarks.replay`) is like it and not the same: its requests are
held back for good and few; these are whatever was asked since, one look for each candidate. What is
answered is in a journal, so that a killed shadow goes on where it was.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from improver import decide, evaluate
from improver.attempts import Judge
from improver.benchmarks.base import Task
from improver.benchmarks.replay import Replay
from improver.firewall import normal_text
from improver.policy import Policy
from improver.types import Arm, Suite
from improver.workspace import Journal
from ops.errors import NotFound
from ops.evidence import evidence
from ops.records import Json
from ops.store import Store


@dataclass(frozen=True, kw_only=True)
class Shadowed:
    """What came of it. `worse` says why the candidate must not go live; empty where it may."""

    worse: str
    numbers: Json

    @property
    def text(self) -> str:
        """One line for people."""
        pairs, against = self.numbers["pairs"], self.numbers["e_worse"]
        if not pairs["tasks"]:
            return "Shadow: no logged request could be asked again."
        return (
            f"Shadow, {pairs['tasks']} logged requests: champion {pairs['champion']:.1%}, "
            f"candidate {pairs['candidate']:.1%}; {pairs['won']} won, {pairs['lost']} lost "
            f"(evidence that it is worse: {against:.3g})."
        )


def recent(
    store: Store, cycle_id: str, *, limit: int, asked: Collection[str], before: str | None = None
) -> list[Task]:
    """Return the newest logged requests that the candidate of a cycle has not seen.

    Args:
        store: the record.
        cycle_id: the cycle that made the candidate.
        limit: the most requests.
        asked: ids of tasks that the examination has asked.
        before: only interactions older than this id.
    """
    learned = _learned(store, cycle_id)
    every = Replay(store=store, share=1.0, limit=limit + len(learned) + len(asked), before=before)
    fresh = [
        task
        for task in every.tasks()
        if task.id not in asked and normal_text(task.text) not in learned
    ]
    return fresh[:limit]


async def run(
    tasks: list[Task],
    models: dict[Arm, str],
    policy: Policy,
    pool: Judge,
    journal: Journal,
    exam: evaluate.Exam,
    rules: decide.Rules,
) -> Shadowed:
    """Put the requests to both arms and say whether the candidate may go live.

    Args:
        tasks: what is asked.
        models: under which name each arm answers.
        policy: the server.
        pool: judges programs.
        journal: what was answered already.
        exam: how the examination asks: temperature, seeds, longest answer.
        rules: the gate's; replay's margin holds here.

    Raises:
        PolicyUnavailable: the server did not answer for long.
        SandboxError: the sandbox failed.
    """
    kept, unsound = await evaluate.judgeable(tasks, pool)
    outcomes = await evaluate.examine(
        evaluate.Exam(
            target=(),
            guard=(),
            replay=kept,
            temperature=exam.temperature,
            max_answer_tokens=exam.max_answer_tokens,
            seed=exam.seed,
            seeds=exam.seeds,
        ),
        models,
        policy,
        pool,
        journal,
        enough=lambda found, left: False,
    )
    scores = decide.task_scores(outcomes, Suite.REPLAY)
    pairs = decide.pair(outcomes, Suite.REPLAY)
    against = evidence([-score for score in scores])
    worse = ""
    if against >= rules.threshold:
        worse = f"worse than the champion on {pairs.judged} logged requests in shadow"
    elif pairs.loss > rules.replay_margin:
        worse = (
            f"loses {pairs.loss:.0%} on {pairs.judged} logged requests in shadow, "
            f"{rules.replay_margin:.0%} are tolerated"
        )
    return Shadowed(
        worse=worse,
        numbers={"pairs": pairs.as_json(), "e_worse": against, "left_out": unsound},
    )


def _learned(store: Store, cycle_id: str) -> set[str]:
    """The words of the requests that rows of a cycle were made from."""
    rows = [row for row in store.dataset(cycle_id) if row.kept]
    found = set()
    for interaction_id in {one for row in rows for one in row.interaction_ids}:
        try:
            messages = store.interaction(interaction_id).messages
        except NotFound:
            continue
        found |= {normal_text(str(m.get("content"))) for m in messages if m.get("role") == "user"}
    return found
