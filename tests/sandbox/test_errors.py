"""The error tree: what inherits what, and what it tells."""

from sandbox.errors import SandboxError, SandboxReset, SandboxUnavailable, SpecError


def test_infrastructure_errors_are_no_value_errors_and_the_callers_are() -> None:
    assert issubclass(SandboxUnavailable, SandboxError)
    assert issubclass(SandboxReset, SandboxError)
    assert issubclass(SpecError, ValueError)
    assert not issubclass(SpecError, SandboxError)


def test_unavailable_lists_every_failed_probe() -> None:
    error = SandboxUnavailable("nothing works", ("namespaces: fork: forked", "process: no seccomp"))
    assert str(error) == "nothing works\n  namespaces: fork: forked\n  process: no seccomp"


def test_a_spec_error_says_where() -> None:
    assert str(SpecError("is missing", "io_spec.cells[0]")) == "io_spec.cells[0]: is missing"
