"""The examination: champion and candidate answer the same tasks with the same seeds.

Both are asked through the server by pinned names, so neither the alias nor the record is touched,
and judged by execution with every check of a task. Tasks come in rounds; after each round the
caller may say that enough is known. What was answered is in a journal, so that a killed examination
asks nothing twice. What the numbers mean is `decide`'s business.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from improver.attempts import SANDBOX_ERROR, Judge, attempt, together
from improver.benchmarks.base import Task
from improver.errors import PolicyError, PolicyUnavailable, SwapError
from improver.policy import Policy
from improver.types import Arm, Outcome, Suite, from_json, to_json
from improver.workspace import Journal
from ops.records import AdapterState
from ops.registry import Registry
from ops.store import Store

ROUND_TASKS = 16
"""Tasks between two looks; both arms' answers to them are asked for together."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What is asked and how."""

    target: Sequence[Task]
    guard: Sequence[Task]
    temperature: float
    max_answer_tokens: int
    seed: int


async def wait_for_candidate(
    store: Store,
    registry: Registry,
    policy: Policy,
    version: int,
    *,
    timeout_s: float,
    poll_s: float = 0.5,
) -> str:
    """Wait until a server has loaded a nominated version and proved it.

    Returns:
        Nothing when it answers; else the server's reason for refusing it.

    Raises:
        SwapError: no server said anything within `timeout_s`.
        PolicyError: the server cannot be asked.
    """
    name = registry.get(version).name
    give_up = time.monotonic() + timeout_s
    while True:
        listed = name in await policy.models()
        receipts = store.receipts(version=version, limit=1)
        if registry.get(version).state is AdapterState.REJECTED:
            return receipts[0].reason if receipts else "it was rejected meanwhile"
        # A receipt that refuses without a rejection says "not now": the server tries again.
        if receipts and receipts[0].accepted and listed:
            return ""
        if time.monotonic() > give_up:
            why = f": {receipts[0].reason}" if receipts else "; is one running on this record?"
            raise SwapError(f"no server loaded {name} within {timeout_s:.0f} s{why}")
        await asyncio.sleep(poll_s)


async def judgeable(tasks: Sequence[Task], pool: Judge) -> tuple[list[Task], list[str]]:
    """Split off tasks whose own reference solution does not pass here: they say nothing.

    Returns:
        The tasks that can be judged, and the ids of the others.

    Raises:
        SandboxError: the sandbox failed.
    """

    async def sound(task: Task) -> bool:
        return task.solution is None or (await pool.check(task.solution, task.spec)).verified

    found = await together(sound(task) for task in tasks)
    kept = [task for task, good in zip(tasks, found, strict=True) if good]
    return kept, [task.id for task, good in zip(tasks, found, strict=True) if not good]


async def examine(
    exam: Exam,
    models: dict[Arm, str],
    policy: Policy,
    pool: Judge,
    journal: Journal,
    *,
    enough: Callable[[Sequence[Outcome], int], bool],
    on_task: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Put the tasks to both arms, in rounds, until they are done or enough is known.

    Args:
        exam: the tasks.
        models: under which name each arm answers.
        policy: the server.
        pool: judges programs.
        journal: what was answered already.
        enough: given all outcomes so far and the number of target tasks left, whether to stop.
        on_task: called with (done, total) after each round.

    Raises:
        PolicyUnavailable: the server did not answer for long.
    """
    guard = [(Suite.GUARD, task) for task in exam.guard]
    target = [(Suite.TARGET, task) for task in exam.target]
    # The order must not depend on the file's: a run that stops early saw a random part.
    random.Random(exam.seed).shuffle(target)
    # The guard comes first: it must be complete whenever the examination stops.
    plan = guard + target
    outcomes: list[Outcome] = []
    for start in range(0, len(plan), ROUND_TASKS):
        batch = plan[start : start + ROUND_TASKS]
        found = await together(
            _ask(exam, suite, task, arm, models[arm], policy, pool, journal)
            for suite, task in batch
            for arm in Arm
        )
        outcomes += found
        done = start + len(batch)
        on_task(done, len(plan))
        left = len(plan) - done
        if done >= len(guard) and left and enough(outcomes, left):
            break
    return outcomes


async def _ask(
    exam: Exam,
    suite: Suite,
    task: Task,
    arm: Arm,
    model: str,
    policy: Policy,
    pool: Judge,
    journal: Journal,
) -> Outcome:
    key = f"{suite}|{arm}|{model}|{task.id}|{exam.seed}"
    if key in journal.done:
        return from_json(Outcome, journal.done[key])
    outcome = await _attempt(exam, suite, task, arm, model, policy, pool)
    # What failed for want of infrastructure is tried again when the cycle is resumed.
    if outcome.passed is not None:
        journal.add(key, to_json(outcome))
    return outcome


async def _attempt(
    exam: Exam, suite: Suite, task: Task, arm: Arm, model: str, policy: Policy, pool: Judge
) -> Outcome:
    try:
        found = await attempt(
            policy,
            pool,
            task.messages(with_spec=suite is Suite.TARGET),
            task.spec,
            temperature=exam.temperature,
            max_tokens=exam.max_answer_tokens,
            # Greedy answers need none, and vLLM's CPU build can die of one (see `recipes.ilf`).
            seed=exam.seed if exam.temperature > 0 else None,
            model=model,
            read=task.program,
        )
    except PolicyUnavailable:
        raise
    except PolicyError as error:
        return Outcome(
            suite=suite,
            arm=arm,
            task_id=task.id,
            seed=exam.seed,
            passed=None,
            verdict="REFUSED",
            answer_sha256="",
            error=str(error),
        )
    best = found[0]
    return Outcome(
        suite=suite,
        arm=arm,
        task_id=task.id,
        seed=exam.seed,
        passed=best.passed,
        verdict=best.verdict,
        answer_sha256=hashlib.sha256(best.sample.text.encode("utf-8", "surrogatepass")).hexdigest(),
        tokens=best.sample.tokens,
        error=best.error if best.verdict == SANDBOX_ERROR else None,
    )
