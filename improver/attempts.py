"""Ask a model, take the program out of each answer, judge it in the sandbox.

Recipes and the examination use it. A program that fails is a result; a sandbox that fails leaves
`verification` empty: such an attempt is neither a pass nor a failure and never becomes a label.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from improver.policy import Policy, Sample
from ops.records import Json
from sandbox.errors import SandboxError
from sandbox.extract import program_for
from sandbox.spec import Spec
from sandbox.types import INFRASTRUCTURE, Verification

T = TypeVar("T")

NO_PROGRAM = "NO_PROGRAM"
"""Verdict of an answer that holds no program at all."""
SANDBOX_ERROR = "SANDBOX_ERROR"


class Judge(Protocol):
    """What is needed of `sandbox.pool.Pool`."""

    async def check(self, code: str, spec: Spec) -> Verification:
        """Check one program against a specification.

        Raises:
            SandboxError: the sandbox itself failed.
        """


@dataclass(frozen=True, kw_only=True)
class Attempted:
    """An answer, its program, and how it did. `passed` None means that nobody knows."""

    sample: Sample
    program: str | None
    verification: Verification | None
    verdict: str
    error: str | None = None

    @property
    def passed(self) -> bool | None:
        """True, False, or None where the sandbox failed."""
        if self.verdict == SANDBOX_ERROR:
            return None
        return self.verification is not None and self.verification.verified


async def judge(
    pool: Judge, sample: Sample, spec: Spec, read: Callable[[str], str | None] | None = None
) -> Attempted:
    """Judge one answer by all examples of `spec`, hidden ones included.

    `read` makes the program out of the answer; by default it is the program that the answer holds.
    """
    program = program_for(sample.text, spec) if read is None else read(sample.text)
    if program is None:
        return Attempted(sample=sample, program=None, verification=None, verdict=NO_PROGRAM)
    try:
        verification = await pool.check(program, spec)
    except SandboxError as error:
        return Attempted(
            sample=sample,
            program=program,
            verification=None,
            verdict=SANDBOX_ERROR,
            error=str(error),
        )
    infrastructure = verification.verdict in INFRASTRUCTURE
    return Attempted(
        sample=sample,
        program=program,
        verification=verification,
        verdict=SANDBOX_ERROR if infrastructure else str(verification.verdict),
    )


async def attempt(
    policy: Policy,
    pool: Judge,
    messages: Sequence[Json],
    spec: Spec,
    *,
    n: int = 1,
    temperature: float,
    max_tokens: int,
    seed: int | None = None,
    model: str | None = None,
    stop: Sequence[str] = (),
    extra: Json | None = None,
    read: Callable[[str], str | None] | None = None,
) -> list[Attempted]:
    """Ask for `n` answers and judge them all; `extra` and `read` as in `Policy.sample` and `judge`.

    Raises:
        PolicyError: the model could not be asked.
    """
    samples = await policy.sample(
        messages,
        n=n,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        model=model,
        stop=stop,
        extra=extra,
    )
    return await together(judge(pool, sample, spec, read) for sample in samples)


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; when one fails, cancel the others and wait until they have ended.

    Unlike `asyncio.gather` alone, nothing goes on behind the caller's back after a failure.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
