"""Put a benchmark to one model and say how well it did: `journeyman eval`.

Answers are asked for through an OpenAI-compatible API (a running Journeyman, or any other), judged
by execution with all checks of a task, and counted: pass@k by the unbiased estimator of Codex
(arXiv 2107.03374), with an interval by bootstrap over tasks. What nobody could judge counts
nowhere. Every task that is done is in a journal beside the result, so that a killed run goes on.

With `candidates` the examples that a task shows choose among so many attempts before the answer is
judged: by the server's verified generation where one answers, else here. Hidden checks take no
part in it. Comparing two models is `evaluate`'s and `decide`'s business, not this module's.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path

import numpy as np

from improver.attempts import Attempted, Judge, attempt, judge, together
from improver.benchmarks.base import Task
from improver.errors import BenchmarkError, PolicyError, PolicyUnavailable
from improver.policy import ALIAS, Policy
from improver.workspace import Journal
from ops.records import Json
from sandbox.errors import SandboxError
from sandbox.extract import program_for
from sandbox.spec import KINDS, Kind

RAN = frozenset(("OK", "WRONG"))
"""Verdicts of programs that ran to their end."""
LEVELS = (1, 5, 10, 20, 50, 100)
RESAMPLES = 10_000
TOGETHER = 64
"""Tasks in work at once; the policy bounds the requests."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a benchmark is put to a model.

    `kinds` are the kinds of specification that are shown; `samples` answers are judged for each
    task, each of them the best of `candidates` by what is shown.
    """

    benchmark: str
    model: str = ALIAS
    kinds: tuple[Kind, ...] = KINDS
    samples: int = 1
    candidates: int = 1
    limit: int | None = None
    temperature: float = 0.0
    max_answer_tokens: int = 512
    seed: int = 7

    def as_json(self) -> Json:
        """As plain data."""
        return {**vars(self), "kinds": list(self.kinds)}

    def file_name(self, url: str) -> str:
        """A file name for its result; another plan or server has another one."""
        names = re.sub(r"[^\w.+@-]+", "_", f"{self.benchmark}-{self.model}")
        digest = hashlib.sha256(json.dumps([url, self.as_json()]).encode()).hexdigest()
        return f"{names}-{digest[:8]}.json"


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """How the samples of one task did. `judged` leaves out what infrastructure broke.

    `answers` are the texts with their verdicts and what may be said of them: nothing hidden.
    """

    id: str
    judged: int
    passed: int
    ran: int
    verdicts: dict[str, int]
    tokens: int
    answer_tokens: list[int]
    versions: list[int] = field(default_factory=list)
    answers: list[Json] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over tasks with its interval."""

    k: int
    mean: float
    low: float
    high: float
    tasks: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k answers is right, out of n of which c are: unbiased.

    Raises:
        ValueError: fewer than k answers were judged.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs {k} answers, there are {n}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def estimate(scores: Sequence[TaskScore], k: int, *, seed: int = 0) -> Estimate | None:
    """pass@k over tasks with at least k judged answers; 95 % by bootstrap over tasks.

    Returns:
        None where no task has so many.
    """
    values = np.array([pass_at_k(s.judged, s.passed, k) for s in scores if s.judged >= k])
    if not len(values):
        return None
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (1000, len(values)))].mean(axis=1)
            for _ in range(RESAMPLES // 1000)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(
        k=k, mean=float(values.mean()), low=float(low), high=float(high), tasks=len(values)
    )


def choose(tasks: Sequence[Task], plan: Plan) -> list[Task]:
    """The tasks that are asked: all, or a random part that depends on the seed alone.

    Raises:
        BenchmarkError: none of them shows what was asked for.
    """
    if plan.kinds and plan.kinds != KINDS:
        asked = ", ".join(plan.kinds)
        if all(task.shown(plan.kinds) == task.shown(()) for task in tasks):
            raise BenchmarkError(f"no task of {plan.benchmark} shows any {asked}")
    if plan.candidates > 1 and not any(task.shown(plan.kinds).has_checks for task in tasks):
        raise BenchmarkError(
            f"{plan.benchmark} shows no examples with this specification: nothing could choose "
            "among candidates"
        )
    if plan.limit is None or plan.limit >= len(tasks):
        return list(tasks)
    kept = set(random.Random(plan.seed).sample(range(len(tasks)), plan.limit))
    return [task for place, task in enumerate(tasks) if place in kept]


async def score(
    tasks: Sequence[Task],
    plan: Plan,
    policy: Policy,
    pool: Judge,
    journal: Journal,
    *,
    on_task: Callable[[], None] = lambda: None,
) -> list[TaskScore]:
    """Ask for the answers to all tasks and judge them.

    Raises:
        PolicyUnavailable: the server did not answer for long; run it again to go on.
    """
    verified = plan.candidates > 1 and await _is_journeyman(policy)
    found: list[TaskScore] = []
    for start in range(0, len(tasks), TOGETHER):
        found += await together(
            _score(task, plan, policy, pool, journal, verified, on_task)
            for task in tasks[start : start + TOGETHER]
        )
    return found


async def _is_journeyman(policy: Policy) -> bool:
    """Whether the server verifies by itself: only a Journeyman says what its alias stands for."""
    return "adapter" in (await policy.models()).get(ALIAS, {})


async def _score(
    task: Task,
    plan: Plan,
    policy: Policy,
    pool: Judge,
    journal: Journal,
    verified: bool,
    on_task: Callable[[], None],
) -> TaskScore:
    key = hashlib.sha256(
        json.dumps(
            [plan.as_json() | {"limit": None}, task.id, prompt_sha256([task], plan)]
        ).encode()
    ).hexdigest()
    if key in journal.done:
        on_task()
        return TaskScore(**journal.done[key])
    try:
        answers = await _answers(task, plan, policy, pool, verified)
    except PolicyUnavailable:
        raise
    except (PolicyError, SandboxError) as error:
        on_task()
        return TaskScore(
            id=task.id,
            judged=0,
            passed=0,
            ran=0,
            verdicts={"REFUSED" if isinstance(error, PolicyError) else "SANDBOX_ERROR": 1},
            tokens=0,
            answer_tokens=[],
            error=str(error),
        )
    judged = [answer for answer in answers if answer.passed is not None]
    result = TaskScore(
        id=task.id,
        judged=len(judged),
        passed=sum(answer.passed is True for answer in judged),
        ran=sum(answer.verdict in RAN for answer in judged),
        verdicts=dict(Counter(answer.verdict for answer in answers)),
        tokens=sum(answer.sample.tokens for answer in answers),
        answer_tokens=[answer.sample.tokens for answer in answers],
        versions=sorted({answer.sample.adapter_version for answer in answers}),
        answers=[_shown(answer) for answer in answers],
    )
    # What failed for want of infrastructure is tried again by the next run.
    if len(judged) == len(answers):
        journal.add(key, vars(result))
    on_task()
    return result


def _shown(answer: Attempted) -> Json:
    """An answer for somebody who wants to see why it failed."""
    said = answer.error or (answer.verification.feedback() if answer.verification else "")
    return {"verdict": answer.verdict, "text": answer.sample.text, "said": said}


async def _answers(
    task: Task, plan: Plan, policy: Policy, pool: Judge, verified: bool
) -> list[Attempted]:
    """The answers that are judged, each the best of its candidates."""
    shown = task.shown(plan.kinds)
    alone = plan.candidates == 1 or not task.form.is_function or not shown.has_checks
    seed = plan.seed if plan.temperature > 0 else None
    if alone:
        return await attempt(
            policy,
            pool,
            task.messages(kinds=plan.kinds),
            task.spec,
            n=plan.samples,
            temperature=plan.temperature,
            max_tokens=plan.max_answer_tokens,
            seed=seed,
            model=plan.model,
            read=task.program,
        )
    if verified:
        io_spec = {**shown.to_json(), "candidates": plan.candidates}
        rounds = [
            await attempt(
                policy,
                pool,
                [{"role": "user", "content": task.text}],
                task.spec,
                temperature=plan.temperature,
                max_tokens=plan.max_answer_tokens,
                seed=None if seed is None else seed + 104_729 * number,
                model=plan.model,
                extra={"io_spec": io_spec},
                read=task.program,
            )
            for number in range(plan.samples)
        ]
        return [answer for answers in rounds for answer in answers]
    return [await _best(task, plan, policy, pool, number) for number in range(plan.samples)]


async def _best(task: Task, plan: Plan, policy: Policy, pool: Judge, number: int) -> Attempted:
    """Of so many samples the first that passes what the task shows; else the first of all."""
    shown = task.shown(plan.kinds)
    samples = await policy.sample(
        task.messages(kinds=plan.kinds),
        n=plan.candidates,
        temperature=plan.temperature,
        max_tokens=plan.max_answer_tokens,
        seed=plan.seed + 104_729 * number if plan.temperature > 0 else None,
        model=plan.model,
    )
    tried = await together(
        judge(pool, sample, shown, lambda text: _completed(task, text)) for sample in samples
    )
    place = next((i for i, answer in enumerate(tried) if answer.passed), 0)
    return await judge(pool, samples[place], task.spec, task.program)


def _completed(task: Task, text: str) -> str | None:
    program = program_for(text, task.spec)
    return None if program is None else task.form.complete(program)


def prompt_sha256(tasks: Sequence[Task], plan: Plan) -> str:
    """The identity of what was asked: all prompts, in order."""
    prompts = [task.messages(kinds=plan.kinds) for task in tasks]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def report(
    plan: Plan,
    scores: Sequence[TaskScore],
    *,
    left_out: Sequence[str],
    prompts: str,
    seconds: float,
    url: str,
) -> Json:
    """All there is to say of a run, as plain data."""
    judged = sum(s.judged for s in scores)
    answers = sum(sum(s.verdicts.values()) for s in scores)
    found = [estimate(scores, k, seed=plan.seed) for k in LEVELS if k <= plan.samples]
    return {
        **plan.as_json(),
        "url": url,
        "prompts_sha256": prompts,
        "adapter_versions": sorted({v for s in scores for v in s.versions}),
        "tasks": len(scores),
        "left_out": list(left_out),
        "answers": answers,
        "judged": judged,
        "not_judged": answers - judged,
        "pass_at": {str(e.k): vars(e) for e in found if e is not None},
        "ran": round(sum(s.ran for s in scores) / judged, 4) if judged else None,
        "verdicts": dict(Counter(_flat(scores)).most_common()),
        "tokens": sum(s.tokens for s in scores),
        "seconds": round(seconds, 1),
        "results": [vars(s) for s in scores],
    }


def _flat(scores: Sequence[TaskScore]) -> list[str]:
    return [verdict for s in scores for verdict, n in s.verdicts.items() for _ in range(n)]


def table(found: Json) -> str:
    """A report as text for people."""
    kinds = found["kinds"]
    shown = "all that is shown" if len(kinds) == len(KINDS) else ", ".join(kinds) or "none"
    lines = [
        f"{found['benchmark']}: {found['model']}, {found['tasks']} tasks, "
        f"{found['samples']} answer(s) each"
        + (f", best of {found['candidates']}" if found["candidates"] > 1 else ""),
        f"  specification   {shown}; temperature {found['temperature']:g}, seed {found['seed']}",
    ]
    for k, e in found["pass_at"].items():
        lines.append(
            f"  pass@{k:<10} {e['mean']:6.1%}   95 % {e['low']:.1%} to {e['high']:.1%}, "
            f"{e['tasks']} tasks"
        )
    if found["ran"] is not None:
        lines.append(f"  ran to the end  {found['ran']:6.1%}   of {found['judged']} answers")
    verdicts = ", ".join(f"{name} {count}" for name, count in found["verdicts"].items())
    lines.append(f"  verdicts        {verdicts or 'none'}")
    if found["not_judged"]:
        lines.append(f"  not judged      {found['not_judged']} (infrastructure; they do not count)")
    if found["left_out"]:
        names = ", ".join(found["left_out"][:8]) + (" …" if len(found["left_out"]) > 8 else "")
        lines.append(f"  left out        {len(found['left_out'])}, no right reference: {names}")
    lines.append(f"  cost            {found['tokens']} tokens, {found['seconds']:.0f} s")
    return "\n".join(lines)


def write(path: Path, found: Json) -> None:
    """Write a report; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)
