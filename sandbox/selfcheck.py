"""The conformance suite: every probe and every hostile program, on this machine, in one table.

Anybody can run it (`python -m sandbox check`); the tests run it in every tier that a machine
offers. A row is right when the verdict is one of those expected, nothing was reached, no process
was left, the canary is untouched, and (for frauds) the task does not count as solved.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandbox.attacks import ATTACKS, TASK_INPUTS, Attack
from sandbox.errors import SandboxError, SandboxUnavailable
from sandbox.pool import Pool
from sandbox.probes import PROBES
from sandbox.spec import Example, Spec
from sandbox.types import Limits, Run, Tier, Verdict

QUICK = Limits(wall_s=0.8, cpu_s=1)
PATIENT = Limits(wall_s=20.0, cpu_s=20)
_SETTINGS = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/etc/hostname")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: Id of the probe or program.
        title: What it tries.
        expected: Right outcomes.
        seen: The outcome.
        right: Whether it is one of the right ones and nothing leaked.
        detail: What leaked or was reached, when something was.
    """

    name: str
    title: str
    expected: str
    seen: str
    right: bool
    detail: str = ""


async def examine(pool: Pool, attacks: Sequence[Attack] = ATTACKS) -> list[Row]:
    """Run the probes and the hostile programs in an open pool.

    Args:
        pool: The pool; its tier is what is examined.
        attacks: Which programs, all by default.

    Returns:
        One row each, in order.

    Raises:
        SandboxUnavailable: when the pool runs without isolation: these programs do real harm.
        SandboxError: when the sandbox itself failed.
    """
    if pool.tier is Tier.NONE:
        raise SandboxUnavailable("hostile programs are never run without isolation")
    seen = await pool.self_test()
    rows = [
        Row(f"T{place:02}", probe.name, "works" if probe.works else "stopped", text, text == "held")
        for place, (probe, text) in enumerate(zip(PROBES, seen.values(), strict=True), 1)
    ]
    rows = [replace(row, seen=row.expected if row.right else row.seen) for row in rows]
    gate = asyncio.Semaphore(pool.workers)
    async with _host() as facts:

        async def one(attack: Attack) -> Row:
            async with gate:
                return await _examine(pool, attack, facts)

        rows += await asyncio.gather(*(one(attack) for attack in attacks))
    return rows


async def _examine(pool: Pool, attack: Attack, facts: dict[str, Any]) -> Row:
    limits = QUICK if {"TIMEOUT", "CPU_LIMIT"} & set(attack.expected) else PATIENT
    settings = _settings()
    found: list[str] = []
    try:
        if attack.judged == "contained":
            word = await _assault(pool, attack, limits, facts, found)
        else:
            word = await _fraud(pool, attack, limits, found)
    except SandboxError as error:
        word = f"SANDBOX_ERROR: {error}"[:200]
    found += _leaks(pool, settings, facts)
    right = _expected(word, attack.expected) and not found
    return Row(
        attack.name, attack.title, " / ".join(attack.expected), word, right, "; ".join(found)
    )


async def _assault(
    pool: Pool, attack: Attack, limits: Limits, facts: dict[str, Any], found: list[str]
) -> str:
    word = ""
    for number in range(2 if attack.twice else 1):
        call = [{**facts, "round": number}]
        run = await pool.run(attack.code, entry="f", calls=[call], limits=limits)
        word = run.word
        reached = run.values[0] if run.values and run.verdict is Verdict.OK else []
        found += [f"reached {item}" for item in reached] if isinstance(reached, list) else ["?"]
        found += _secrets(run, facts)
    return word


async def _fraud(pool: Pool, attack: Attack, limits: Limits, found: list[str]) -> str:
    examples = tuple(Example(input=[x], output=x * x, hidden=True) for x in TASK_INPUTS)
    spec = Spec(entry_point="f", examples=examples)
    outcome = await pool.check(attack.code, spec, limits=limits)
    if outcome.verified is not (attack.judged == "pass"):
        found.append("counted as solved" if outcome.verified else "not counted as solved")
    if outcome.verdict is Verdict.WRONG:
        return "OK"
    if outcome.verdict in (Verdict.ERROR, Verdict.SIGNAL):
        run = await pool.run(
            attack.code, entry="f", calls=[[x] for x in TASK_INPUTS], limits=limits
        )
        return run.word
    return outcome.verdict.value


def _expected(word: str, expected: Sequence[str]) -> bool:
    return any(word == item or (item == "ERROR" and word.startswith("ERROR:")) for item in expected)


# --- what must not have happened ---------------------------------------------------------------


@contextlib.asynccontextmanager
async def _host() -> AsyncIterator[dict[str, Any]]:
    """Things of the host that programs must not reach: a port, sockets, a file, a secret."""
    secret = secrets.token_hex(16)
    os.environ["SANDBOX_CANARY"] = secret
    with tempfile.TemporaryDirectory(prefix="journeyman-canary-") as folder:
        canary = os.path.join(folder, "canary")
        descriptor = os.open(canary, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(descriptor, secret.encode())
        os.close(descriptor)
        path = os.path.join(folder, "socket")
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.socket(socket.AF_UNIX) as unix,
            socket.socket(socket.AF_UNIX) as abstract,
        ):
            unix.bind(path)
            os.chmod(path, 0o777)
            unix.listen()
            abstract.bind("\0journeyman-" + secret[:8])
            abstract.listen()
            try:
                yield {
                    "pid": os.getpid(),
                    "secret": secret,
                    "canary": canary,
                    "source": os.path.abspath(__file__),
                    "port": listener.getsockname()[1],
                    "unix": path,
                    "abstract": "journeyman-" + secret[:8],
                    "round": 0,
                }
            finally:
                os.environ.pop("SANDBOX_CANARY", None)


def _settings() -> tuple[object, ...]:
    import resource

    texts = []
    for path in _SETTINGS:
        with contextlib.suppress(OSError), open(path) as file:
            texts.append(file.read())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CPU)
    return (*texts, platform.node(), *limits, os.sched_getaffinity(0), os.getpriority(0, 0))


def _secrets(run: Run, facts: dict[str, Any]) -> list[str]:
    shown = f"{run.stdout}{run.stderr}{run.error_message}"
    return ["the secret came out"] if facts["secret"] in shown else []


def _leaks(pool: Pool, settings: tuple[object, ...], facts: dict[str, Any]) -> list[str]:
    found = []
    if _settings() != settings:
        found.append("a setting of the host changed")
    with open(facts["canary"]) as file:
        if file.read() != facts["secret"]:
            found.append("the canary changed")
    # For each zygote the process that was started, pid 1 of its namespace, and one child; a
    # runtime may have a supervisor and a monitor of its own.
    roots = pool.process_ids()
    allowed = (5 if pool.tier is Tier.RUNTIME else 3) * len(roots)
    count = len(descendants(*roots))
    if count > allowed:
        found.append(f"{count} processes, not at most {allowed}")
    return found


def descendants(*roots: int) -> set[int]:
    """These processes and all below them, as /proc tells."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rsplit(")", 1)[1].split()[1])
    found = set(roots)
    grown = True
    while grown:
        fresh = {child for child, parent in parents.items() if parent in found} - found
        grown = bool(fresh)
        found |= fresh
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as text for a terminal, wrong ones marked and explained."""
    widths = [max(len(getattr(row, key)) for row in rows) for key in ("name", "title")]
    lines = [f"{'':3}{'':{widths[0]}}  {'what is tried':{widths[1]}}  seen   (expected)"]
    for row in rows:
        mark = "ok " if row.right else "BAD"
        line = f"{mark} {row.name:{widths[0]}}  {row.title:{widths[1]}}  {row.seen}"
        line += "" if row.seen == row.expected else f"   ({row.expected})"
        lines.append(line)
        if row.detail:
            lines.append(f"    {row.detail}")
    wrong = sum(not row.right for row in rows)
    lines.append(f"{len(rows)} rows, {wrong} wrong")
    return "\n".join(lines)
