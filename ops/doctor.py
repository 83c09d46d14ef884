"""`journeyman doctor`: what an installation needs, looked at one by one.

Each check says what was found and, where that is not good enough, what to do. Nothing is changed
but the database, which is created when it is missing.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops import models, processes, services
from ops.errors import OpsError, ProcessError
from ops.settings import Settings
from ops.store import Store

MIN_FREE_BYTES = 5 << 30
MIN_MEMORY_BYTES = 6 << 30


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    good: bool
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Check]:
    """Look at everything, in the order in which `up` would stumble over it."""
    running = processes.read_state(settings.data_dir)
    return [
        _python(),
        _device(),
        _engine(settings),
        _speed_ups(),
        _sandbox(settings.sandbox.runtime),
        _memory(),
        _disk("data", settings.data_dir),
        _disk("models", models.cache_dir()),
        _database(settings),
        _keys(settings),
        *([] if running else _ports(settings)),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} in {sys.prefix}"
    good = sys.version_info[:2] == (3, 11)
    return Check(name="python", good=good, found=found, remedy="" if good else "use ops/run")


def _device() -> Check:
    gpus = services.gpus()
    if gpus:
        return Check(name="device", good=True, found="; ".join(gpus))
    cores = len(os.sched_getaffinity(0))
    fast = sorted(services.cpu_flags() & {"avx512_bf16", "amx_bf16", "avx512f", "avx2"})
    return Check(name="device", good=True, found=f"CPU, {cores} cores, {' '.join(fast)}")


def _engine(settings: Settings) -> Check:
    if not settings.engine_is_ours:
        return Check(name="engine", good=True, found=f"runs at {', '.join(settings.engine_urls)}")
    try:
        build = services.engine_build()
    except ProcessError as error:
        return Check(name="engine", good=False, found="none", remedy=str(error))
    dtype = services.engine_dtype(settings.engine.dtype, build)
    found = f"vLLM {build.version} for {build.device}, dtype {dtype}"
    if build.device == "cpu" and services.gpus():
        remedy = "there is a GPU: JOURNEYMAN_DEVICE=cuda ops/run setup"
        return Check(name="engine", good=True, found=found, remedy=remedy)
    if build.device == "cuda" and not services.gpus():
        remedy = "nvidia-smi lists no GPU: mend the driver, or JOURNEYMAN_DEVICE=cpu ops/run setup"
        return Check(name="engine", good=False, found=found, remedy=remedy)
    return Check(name="engine", good=True, found=found)


def _speed_ups() -> Check:
    names = [Path(library).name for library in services.preloads()]
    missing = [] if any("tcmalloc" in name for name in names) else ["libtcmalloc-minimal4"]
    missing += [] if services.can_compile() else ["g++", "python3-dev"]
    remedy = f"the engine is slower without; Debian: apt-get install {' '.join(missing)}"
    return Check(
        name="speed-ups",
        good=True,
        found=", ".join([*names, *(["a C++ compiler"] if services.can_compile() else [])]),
        remedy=remedy if missing and not services.gpus() else "",
    )


def _sandbox(runtime: Sequence[str]) -> Check:
    command = [*services.SANDBOX, "check", "--json"]
    if runtime:
        command += ["--runtime", shlex.join(runtime)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    remedy = "`journeyman sandbox check` shows what is missing"
    try:
        report = json.loads(done.stdout)
        wrong = [f"{row['name']} {row['title']}" for row in report["rows"] if not row["right"]]
        found = f"tier {report['tier']}, {len(report['rows'])} attacks and uses tried"
    except (ValueError, KeyError, TypeError):
        words = done.stderr.strip().splitlines()
        found = words[-1] if words else "no isolation"
        return Check(name="sandbox", good=False, found=found, remedy=remedy)
    if wrong:
        found = f"tier {report['tier']}, wrong: {', '.join(wrong)}"
    return Check(name="sandbox", good=not wrong, found=found, remedy=remedy if wrong else "")


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    good = total >= MIN_MEMORY_BYTES
    remedy = "" if good else f"the starter model needs about {MIN_MEMORY_BYTES >> 30} GiB"
    return Check(name="memory", good=good, found=f"{total / 2**30:.1f} GiB", remedy=remedy)


def _disk(what: str, place: Path) -> Check:
    existing = next(path for path in [place, *place.parents] if path.exists())
    free = shutil.disk_usage(existing).free
    good = free >= MIN_FREE_BYTES and os.access(existing, os.W_OK)
    return Check(
        name=f"{what} disk",
        good=good,
        found=f"{free / 2**30:.0f} GiB free for {place}",
        remedy="" if good else f"at least {MIN_FREE_BYTES >> 30} GiB, writable, are needed",
    )


def _database(settings: Settings) -> Check:
    try:
        store = Store.open(settings.store_url)
        try:
            store.ping()
            counts = store.count()
        finally:
            store.close()
    except OpsError as error:
        return Check(name="database", good=False, found="does not work", remedy=str(error))
    kind = settings.store_url.partition(":")[0]
    return Check(name="database", good=True, found=f"{kind}, {counts['interactions']} interactions")


def _keys(settings: Settings) -> Check:
    try:
        store = Store.open(settings.store_url)
        try:
            good = sum(key.revoked_at is None for key in store.api_keys())
        finally:
            store.close()
    except OpsError as error:
        return Check(name="keys", good=False, found="cannot be read", remedy=str(error))
    good += len(settings.server.keys)
    host = settings.server.host
    if good or host in ("127.0.0.1", "::1", "localhost"):
        found = f"{good} are good" if good else "none; only this machine is answered"
        return Check(name="keys", good=True, found=found)
    remedy = "the server would not start: `journeyman keys create NAME` makes one"
    return Check(name="keys", good=False, found=f"none, and server.host is {host}", remedy=remedy)


def _ports(settings: Settings) -> list[Check]:
    wanted = [(settings.server.host, settings.server.port, "server", "--port")]
    if settings.engine_is_ours:
        wanted.append(("127.0.0.1", settings.engine.port, "engine", "--engine-port"))
    checks = []
    for host, port, what, flag in wanted:
        try:
            processes.require_port(host, port, what, flag)
        except ProcessError as error:
            found = f"{port} is taken"
            checks.append(Check(name=f"{what} port", good=False, found=found, remedy=str(error)))
        else:
            checks.append(Check(name=f"{what} port", good=True, found=f"{port} is free"))
    return checks
