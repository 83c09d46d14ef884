"""One open pool for all sandbox tests, on a loop of its own, and other identities to run as."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sandbox.errors import SandboxUnavailable
from sandbox.pool import Pool
from sandbox.spec import parse_spec
from sandbox.types import Run, Verification

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


class Lab:
    """A pool in a thread: tests stay plain functions."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.pool = Pool(workers=2, recheck_s=0)

    def do(self, work: Awaitable[T], timeout_s: float = 120) -> T:
        async def wrapped() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(timeout_s)

    def run(self, code: str, **options: Any) -> Run:
        return self.do(self.pool.run(code, **options))

    def check(self, code: str, spec: dict[str, Any], **options: Any) -> Verification:
        return self.do(self.pool.check(code, parse_spec(spec), **options))

    def close(self) -> None:
        self.do(self.pool.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    opened = Lab()
    try:
        opened.do(opened.pool.__aenter__())
    except SandboxUnavailable as error:
        opened.loop.call_soon_threadsafe(opened.loop.stop)
        pytest.skip(f"no sandbox tier works here: {error}")
    yield opened
    opened.close()


def reachable_python() -> str | None:
    """An interpreter of this version that other users can execute, and our libraries with it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for path in (os.path.realpath(sys.executable), f"/usr/bin/python{version}"):
        probe = [path, "-c", "import numpy, pandas, pydantic, sandbox.pool"]
        if os.path.exists(path) and as_nobody(probe, timeout=60).returncode == 0:
            return path
    return None


def as_nobody(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as uid 65534 with this process's libraries, when root."""
    identity: dict[str, Any] = {}
    if os.getuid() == 0:
        identity = {"user": 65534, "group": 65534, "extra_groups": []}
    try:
        return subprocess.run(
            command,
            env=environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            **identity,
            **options,
        )
    except (PermissionError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


def environment() -> dict[str, str]:
    """Libraries of this interpreter, for another one of the same version."""
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *libraries]),
    }


Worker = Callable[..., Any]
