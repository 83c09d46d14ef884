"""What a run and a check are made of: verdicts, limits, results.

Plain frozen records without behaviour beyond reading themselves; nothing here runs a program.
The vocabulary of verdicts is listed in the order in which it is decided (`runner`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Literal


class Verdict(StrEnum):
    """How one program ended; the last two speak about the specification instead."""

    TIMEOUT = "TIMEOUT"
    """The wall time ran out; the parent killed it."""
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    """stdout, stderr or the scratch directory grew far past its cap; it was killed."""
    SANDBOX_ERROR = "SANDBOX_ERROR"
    """Infrastructure: no child was ready to take the program. Retried, then an exception."""
    SANDBOX_RESET = "SANDBOX_RESET"
    """Infrastructure: the zygote was lost under the program. Retried, then an exception."""
    CPU_LIMIT = "CPU_LIMIT"
    """The kernel stopped it for its CPU time."""
    SIGNAL = "SIGNAL"
    """Any other signal ended it; the number is in `signal`."""
    BAD_RESULT = "BAD_RESULT"
    """Its result channel carried malformed, oversized or too many frames."""
    ERROR = "ERROR"
    """An exception; its class name is in `error_type` (the program's own word)."""
    MEMORY = "MEMORY"
    """A MemoryError (the program's own word)."""
    EARLY_EXIT = "EARLY_EXIT"
    """The process ended without having said that it was done."""
    OK = "OK"
    """It ran to its end. Says nothing about the values."""
    WRONG = "WRONG"
    """It ran to its end and the values differ from the expected ones."""
    UNSUPPORTED = "UNSUPPORTED"
    """The test needs values that cannot cross between processes (callables, instances)."""
    BAD_TEST = "BAD_TEST"
    """The test itself cannot run; says nothing about the program."""


INFRASTRUCTURE = frozenset({Verdict.SANDBOX_ERROR, Verdict.SANDBOX_RESET})
"""Verdicts that never count against a program and never become a label."""


class Tier(IntEnum):
    """How strong the isolation is; a larger number is stronger."""

    NONE = 0
    """No isolation at all: only by explicit double opt-in, stamped on every result."""
    PROCESS = 1
    """seccomp, Landlock and limits on one process; no namespaces."""
    USER_NAMESPACE = 2
    """Everything of tier 3 inside an unprivileged user namespace."""
    NAMESPACES = 3
    """Namespaces made by root, an own uid per slot, seccomp, Landlock, limits."""
    RUNTIME = 4
    """A stronger runtime with its own kernel, configured by the operator (gVisor's runsc)."""

    @property
    def has_namespaces(self) -> bool:
        """Whether the sandbox makes namespaces of its own in this tier."""
        return self in (Tier.USER_NAMESPACE, Tier.NAMESPACES)

    @property
    def label(self) -> str:
        """The word for people and for the API: `namespaces`, `process`, `none`."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. Every limit is hard: the program cannot raise it.

    Attributes:
        wall_s: Wall time in seconds, counted by the parent from the moment the code is sent.
        cpu_s: CPU time in whole seconds, counted by the kernel over all threads.
        memory_bytes: Address space of the process, the interpreter and its libraries included.
        scratch_bytes: Size of the private temporary directory, and of any one file.
        scratch_files: Files and directories in it.
        stdout_bytes: How much of stdout is kept; 8 MiB more are drained, then it is killed.
        stderr_bytes: The same for stderr.
        result_bytes: All result frames together; one frame is at most 1 MiB.
        open_files: Descriptors.
        threads: Threads of the process.
    """

    wall_s: float = 5.0
    cpu_s: int = 5
    memory_bytes: int = 1 << 30
    scratch_bytes: int = 16 << 20
    scratch_files: int = 4096
    stdout_bytes: int = 64 << 10
    stderr_bytes: int = 64 << 10
    result_bytes: int = 4 << 20
    open_files: int = 64
    threads: int = 64

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"Limits.{name} must be positive, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Run:
    """How one program ended in the sandbox and what came out of it.

    Attributes:
        verdict: How it ended. `OK` says that it ran to its end, never that it is right.
        error_type: Class name of the exception, for `ERROR` (untrusted text, 100 characters).
        error_message: Text of the exception or of the limit (untrusted, 2,000 characters).
        signal: Signal number, for `SIGNAL`.
        values: One entry per call, in order (`sandbox.values`); a call that raised has a
            `CallError`. Shorter than the calls when the run ended before all were answered.
        durations_s: Seconds until each entry of `values` arrived since the one before, as
            measured by the parent.
        outputs: Named variables read after the program (cells), by name.
        stdout: Captured text, invalid UTF-8 replaced, cut at the cap.
        stderr: The same for stderr.
        stdout_truncated: Whether stdout was cut.
        duration_s: Wall time in seconds from sending the code to the end of the process.
        result_s: Wall time in seconds to the frame that said "done", if it came.
        cpu_s: CPU seconds of the process, as the kernel counted them.
        max_rss_bytes: Peak resident memory, shared pages of the zygote included.
        tier: The isolation that held it.
        description: What went in and came out (`sandbox.describe`), when asked for.
    """

    verdict: Verdict
    tier: Tier
    error_type: str | None = None
    error_message: str | None = None
    signal: int | None = None
    values: tuple[object, ...] = ()
    durations_s: tuple[float, ...] = ()
    outputs: dict[str, object] | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    duration_s: float = 0.0
    result_s: float | None = None
    cpu_s: float = 0.0
    max_rss_bytes: int = 0
    description: dict[str, Any] | None = None

    @property
    def word(self) -> str:
        """The verdict with its detail, as in the notes: `ERROR:ValueError`, `SIGNAL_11`."""
        if self.verdict is Verdict.ERROR:
            return f"ERROR:{self.error_type}"
        if self.verdict is Verdict.SIGNAL:
            return f"SIGNAL_{self.signal}"
        return self.verdict.value


ExampleKind = Literal["example", "test", "stdio", "cell"]


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """How one example, test, stdio pair or cell of a specification went.

    Attributes:
        index: Its place in its own list of the specification.
        kind: Which list that is.
        hidden: Whether it is held back. The message of a hidden one must not be shown: use
            `shown`, which knows.
        verdict: `OK` when it passed.
        duration_ms: Milliseconds, as measured by the parent.
        message: What differed or what was raised; None when it passed.
        checked: Whether there was an expected value; an example with an input alone is not
            checked and does not count in the totals.
    """

    index: int
    kind: ExampleKind
    hidden: bool
    verdict: Verdict
    duration_ms: float
    message: str | None = None
    checked: bool = True

    @property
    def passed(self) -> bool:
        """Whether it was checked and held."""
        return self.checked and self.verdict is Verdict.OK

    @property
    def shown(self) -> str | None:
        """The message, or None where it is hidden: safe for prompts and for clients."""
        return None if self.hidden else self.message


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of checking one program against one specification.

    Attributes:
        verified: True only when something was checked and all of it passed.
        verdict: `OK`, or the first failing example's verdict (the run's own, when it failed
            before any example).
        passed: Checked examples that passed, hidden ones included.
        total: Checked examples. 0 means that the program merely ran (or did not).
        examples: One entry per example, test, stdio pair and cell, in the order of the spec.
        duration_s: Wall seconds of the whole check.
        tier: The isolation that held it.
        outputs_digest: Hash of all decoded outputs, for agreement among candidates where
            inputs come without outputs; None when there were none or a value was opaque.
        error_type: Class name of the program's own failure before any example (import, syntax).
        error_message: Its text; hidden inputs had not been sent by then.
    """

    verified: bool
    verdict: Verdict
    passed: int
    total: int
    passed_visible: int
    total_visible: int
    passed_hidden: int
    total_hidden: int
    examples: tuple[ExampleResult, ...]
    duration_s: float
    tier: Tier
    outputs_digest: str | None = None
    error_type: str | None = None
    error_message: str | None = None

    def feedback(self, limit_chars: int = 2000) -> str:
        """Say what went wrong, for a model or a client, out of visible examples only.

        A failure that only hidden examples show is reported without any of their content.

        Args:
            limit_chars: Longest text returned.

        Returns:
            Lines of text; empty when everything passed.
        """
        lines = []
        if self.error_message:
            lines.append(self.error_message)
        for example in self.examples:
            if not example.hidden and example.verdict is not Verdict.OK:
                message = example.message or example.verdict.value
                if message not in lines and message != "not reached":
                    lines.append(message)
        hidden = sum(e.hidden and e.checked and not e.passed for e in self.examples)
        if hidden:
            lines.append(f"{hidden} further check{'s' if hidden > 1 else ''} failed.")
        text = "\n".join(lines)
        return text if len(text) <= limit_chars else text[: limit_chars - 1] + "…"
