"""A pool of sandboxes for services: `async with Pool(...) as pool`.

(Signatures first; the body is being filled in.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from sandbox.spec import Spec
from sandbox.types import Limits, Run, Tier, Verification


class Pool:
    """Warm sandboxes, one run each at a time. Enter it before use."""

    def __init__(
        self,
        workers: int = 2,
        *,
        limits: Limits | None = None,
        min_tier: Tier = Tier.PROCESS,
        allow_unsafe: bool = False,
    ) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(self, *exc_info: object) -> None:
        raise NotImplementedError

    @property
    def tier(self) -> Tier:
        """The isolation in use."""
        raise NotImplementedError

    def gauges(self) -> dict[str, float]:
        """Numbers for metrics: workers, idle, waiting, runs, retries, restarts."""
        raise NotImplementedError

    async def run(
        self,
        code: str,
        *,
        entry: str | None = None,
        calls: Sequence[Sequence[Any] | Mapping[str, Any]] = (),
        stdin: str | None = None,
        variables: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        limits: Limits | None = None,
        describe: bool = False,
    ) -> Run:
        """Run one program."""
        raise NotImplementedError

    async def check(
        self, code: str, spec: Spec, *, limits: Limits | None = None, stop_early: bool = False
    ) -> Verification:
        """Check one program against a specification."""
        raise NotImplementedError


def run(
    code: str,
    *,
    entry: str | None = None,
    calls: Sequence[Sequence[Any] | Mapping[str, Any]] = (),
    stdin: str | None = None,
    variables: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
    limits: Limits | None = None,
    describe: bool = False,
) -> Run:
    """Run one program, synchronously, in a pool of its own."""
    raise NotImplementedError
