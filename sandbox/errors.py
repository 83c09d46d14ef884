"""Errors of the sandbox: what is raised, when, and whose fault it is.

A program that fails is a *result* (`types.Verdict`) and never raises. What is raised here is the
caller's mistake or the sandbox's own failure, and neither may count against a model.

    SandboxError                 the sandbox failed (retried once before it is raised)
    ├── SandboxUnavailable       no isolation tier passed its self-test, or less than asked for
    └── SandboxReset             the zygote was lost while a program ran in it
    SpecError(ValueError)        the caller's I/O specification is malformed
"""

from __future__ import annotations


class SandboxError(RuntimeError):
    """The sandbox itself failed: an infrastructure error, never a verdict on a program."""


class SandboxUnavailable(SandboxError):
    """No isolation tier that is strong enough passed its self-test on this machine.

    Attributes:
        failures: One line per failed probe, `tier: probe: what was seen`.
    """

    def __init__(self, message: str, failures: tuple[str, ...] = ()) -> None:
        super().__init__(message, failures)
        self.message = message
        self.failures = failures

    def __str__(self) -> str:
        return "\n  ".join((self.message, *self.failures))


class SandboxReset(SandboxError):
    """The zygote that ran the program died or fell silent, twice in a row."""


class SpecError(ValueError):
    """The caller's I/O specification is malformed.

    Attributes:
        message: What is wrong, in one sentence, safe to return to the caller.
        param: Where, as a path into the request: `io_spec.examples[1].input`.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return f"{self.param}: {self.message}"
