"""Verification: the program of an answer is taken out, run in the sandbox and judged.

A failing program is a judgement; a failing sandbox is one too (`fault`), so that the answer still
comes, but it is never counted against the program. What may be said of a judgement to a client
is decided here: of hidden examples their place and verdict, never their content.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ops import metrics, tracing
from ops.records import Execution, Json, Source, new_id, now
from sandbox.errors import SandboxError
from sandbox.extract import program_for, program_sha256
from sandbox.spec import Spec
from sandbox.types import ExampleResult, Limits, Run, Tier, Verdict, Verification

log = logging.getLogger(__name__)

SUCCESS, FAILED, TIME_LIMIT = "Success", "Failed", "TimeLimitExceeded"
SANDBOX_FAULT, UNCHECKED = "SandboxError", "Unchecked"
_TIME = frozenset((Verdict.TIMEOUT, Verdict.CPU_LIMIT))
_TEST_AT_FAULT = frozenset((Verdict.BAD_TEST, Verdict.UNSUPPORTED))
"""These speak about the specification, not about the program."""


class Checker(Protocol):
    """What a judge needs of `sandbox.Pool`."""

    @property
    def tier(self) -> Tier:
        """The isolation in use."""

    async def check(self, code: str, spec: Spec, *, limits: Limits | None = None) -> Verification:
        """Check one program; raises `SandboxError` when the sandbox fails."""

    async def run(
        self,
        code: str,
        *,
        entry: str | None = None,
        calls: Sequence[Sequence[Any] | Mapping[str, Any]] = (),
        stdin: str | None = None,
        limits: Limits | None = None,
    ) -> Run:
        """Run one program; raises `SandboxError` when the sandbox fails."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """The program of an answer."""

    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is known of one program under one specification.

    `verification` is None where there was no program to run, or the sandbox failed (`fault`).
    `total` is how many checks the specification has. `unfinished` is what was not even written
    when the request's time was over.
    """

    program: Program | None
    verification: Verification | None
    total: int
    fault: str | None = None
    unfinished: bool = False

    @property
    def verified(self) -> bool:
        """Whether everything that could be checked passed."""
        return self.verification is not None and self.verification.verified

    @property
    def status(self) -> str:
        """One word for clients."""
        if self.fault is not None:
            return SANDBOX_FAULT
        if self.unfinished:
            return TIME_LIMIT
        if self.verification is None:
            return FAILED if self.program is None else UNCHECKED
        if self.verification.verdict in _TEST_AT_FAULT:
            return UNCHECKED
        if self.verification.verified:
            return SUCCESS
        if self.verification.verdict in _TIME:
            return TIME_LIMIT
        if self.verification.total == 0 and self.verification.verdict is Verdict.OK:
            return UNCHECKED
        return FAILED

    @property
    def says_nothing(self) -> bool:
        """Whether it tells neither right from wrong: it must not become a label."""
        return self.fault is not None or self.unfinished or self.status == UNCHECKED

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Larger is better: verified, share of hidden checks passed, share of visible ones."""
        v = self.verification
        if v is None:
            return (False, -1.0, -1.0)
        hidden = v.passed_hidden / v.total_hidden if v.total_hidden else 0.0
        visible = v.passed_visible / v.total_visible if v.total_visible else 0.0
        return (v.verified, hidden, visible)

    def public(self, tier: Tier) -> Json:
        """What a client may know."""
        v = self.verification
        return {
            "verified": self.verified,
            "status": self.status,
            "verdict": v.verdict.value if v is not None else None,
            "passed": v.passed if v is not None else 0,
            "total": self.total,
            "examples": [_public_example(e) for e in v.examples] if v is not None else [],
            "message": _message(self),
            "duration_ms": round(v.duration_s * 1000, 3) if v is not None else 0.0,
            "sandbox": (v.tier if v is not None else tier).label,
        }


def _public_example(example: ExampleResult) -> Json:
    if example.verdict in _TIME:
        status = TIME_LIMIT
    elif example.verdict is not Verdict.OK:
        status = FAILED
    else:
        status = SUCCESS if example.checked else UNCHECKED
    return {
        "index": example.index,
        "kind": example.kind,
        "hidden": example.hidden,
        "status": status,
        "verdict": example.verdict.value,
        "duration_ms": round(example.duration_ms, 3),
        "message": example.shown,
    }


def _message(judgement: Judgement) -> str | None:
    if judgement.fault is not None:
        return "the sandbox failed; this says nothing about the program"
    if judgement.unfinished:
        return "max_seconds were over before an attempt was finished"
    if judgement.verification is None:
        return "the answer holds no program" if judgement.program is None else "it was not run"
    return judgement.verification.feedback() or None


class Judge:
    """Judges answers with the sandbox.

    Args:
        checker: a running `sandbox.Pool`.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    @property
    def tier(self) -> Tier:
        """The isolation in use."""
        return self._checker.tier

    @staticmethod
    def program(text: str, spec: Spec) -> Program | None:
        """Take the program out of an answer; None when it holds none."""
        source = program_for(text, spec)
        if source is None:
            return None
        return Program(source=source, sha256=program_sha256(source))

    async def run(
        self,
        code: str,
        *,
        entry: str | None,
        calls: Sequence[Sequence[Any] | Mapping[str, Any]],
        stdin: str | None,
        limits: Limits,
    ) -> Run:
        """Run a program without judging it. Cancelling it kills the run.

        Raises:
            SandboxError: the sandbox failed.
        """
        return await self._checker.run(code, entry=entry, calls=calls, stdin=stdin, limits=limits)

    async def judge(
        self, program: Program | None, spec: Spec, *, limits: Limits | None = None
    ) -> Judgement:
        """Run a program against a specification. Cancelling it kills the run."""
        if program is None:
            metrics.candidates_verified_total.labels("NO_PROGRAM").inc()
            return Judgement(program=None, verification=None, total=spec.check_count)
        try:
            with tracing.span("sandbox", program=program.sha256) as span:
                if limits is None:
                    verification = await self._checker.check(program.source, spec)
                else:
                    verification = await self._checker.check(program.source, spec, limits=limits)
                span.set(verdict=verification.verdict.value, passed=verification.passed)
        except SandboxError as error:
            metrics.sandbox_errors_total.labels(type(error).__name__).inc()
            log.error("the sandbox failed: %s", error, extra={"action": "sandbox_error"})
            return Judgement(
                program=program, verification=None, total=spec.check_count, fault=str(error)
            )
        metrics.candidates_verified_total.labels(verification.verdict.value).inc()
        return Judgement(program=program, verification=verification, total=spec.check_count)


def execution_row(
    judgement: Judgement, *, interaction_id: str | None, attempt_id: str | None
) -> Execution | None:
    """The row of a judged run, hidden examples included; None where nothing ran."""
    v, program = judgement.verification, judgement.program
    if v is None or program is None:
        return None
    return Execution(
        id=new_id(),
        created_at=now(),
        source=Source.SERVED,
        interaction_id=interaction_id,
        attempt_id=attempt_id,
        program_sha256=program.sha256,
        verdict=v.verdict.value,
        verified=v.verified,
        passed=v.passed,
        total=v.total,
        examples=[example_row(e) for e in v.examples],
        tier=v.tier.label,
        duration_s=v.duration_s,
        error_type=v.error_type,
        error_message=v.error_message,
    )


def example_row(example: ExampleResult) -> Json:
    """How one example went, with everything that is known."""
    row: dict[str, Any] = {
        "index": example.index,
        "kind": example.kind,
        "hidden": example.hidden,
        "verdict": example.verdict.value,
        "checked": example.checked,
        "duration_ms": round(example.duration_ms, 3),
        "message": example.message,
    }
    return row
