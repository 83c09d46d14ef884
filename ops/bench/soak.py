"""Swaps under load, proved by behaviour: no request fails, no answer mixes two adapters.

    python ops/bench/soak.py [--swaps 100] [--clients 3] [--kill-at N] [--pause 1.5]
                             [--model starter-small] [--data DIR]

A whole installation is started as its user would start it. Clients stream without pause while
adapters are released, one after another, of three that each write one word (`one_word.py`), so that
every token tells whose weights computed it; every fifth swap is a rollback. Each release is a
version of its own, and retention at its hardest erases old ones behind it. In the middle the
engine is killed (SIGKILL) while a swap is under way. One more client asks for the base model,
which must never say one of the words.

Counted: failed requests (of the killed engine: streams that broke, and 503 with Retry-After, which
are asked again), answers of more than one adapter or of another than they name, records that say
otherwise, files that were gone while the engine had the adapter. Measured: seconds from decision
to the last server, their parts, tokens' and first tokens' times with and without a swap beside
them, and memory. Exits 1 when a promise is missed. Not measured: several replicas, a remote engine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import aiohttp

from ops import models, processes, services
from ops.bench.footprint import rss_mib, tree
from ops.records import Adapter, AdapterState, Alias, SwapReceipt
from ops.registry import Registry
from ops.store import Store

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("apple", "silver", "stone")
ROLLBACK_EVERY = 5
READY_S, SWAP_S = 900.0, 180.0
ANSWER_S = 120.0
"""How long the version in service may take to answer one stream before the next swap."""
QUESTIONS = ("Name a colour.", "Write a function that adds two numbers.", "Count to ten.")
JSON = dict[str, Any]


# --- what is soaked ---------------------------------------------------------------------------


@dataclass
class System:
    """An installation under soak, and the hands that it takes."""

    url: str
    engine_url: str
    store: Store
    registry: Registry
    release: Callable[[str, int], Adapter]
    """Adds a new version that writes a word; the number makes its content unique."""
    kill: Callable[[], None] | None = None
    """Kills the engine; somebody else starts it again."""
    memory: Callable[[], dict[str, float]] = dict
    """Resident MiB by process name."""


@dataclass
class Answer:
    """What became of one streamed request. Times are of `time.time`."""

    model: str
    began: float
    outcome: str = "failed"
    """`whole`, `refused` (503 with Retry-After), `broken` (a stream that ended early) or
    `failed`."""
    detail: str = ""
    id: str = ""
    version: int | None = None
    text: str = ""
    stamps: list[float] = field(default_factory=list)
    """When each piece of text came."""
    ended: float = 0.0


@dataclass
class Swap:
    """One move of `code`, from the decision to the last server."""

    version: int
    began: float
    decided_s: float
    """Until every server had said that it obeys."""
    answered_s: float = 0.0
    """Until the status route named the version."""
    phases_s: dict[str, float] = field(default_factory=dict)
    rollback: bool = False
    killed: bool = False


@dataclass
class Findings:
    """Everything a soak saw."""

    answers: list[Answer] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    words: dict[int, str] = field(default_factory=dict)
    """What each version writes."""
    outage: tuple[float, float] = (0.0, 0.0)
    """From the kill to the first ready answer."""
    memory: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    missing_files: list[str] = field(default_factory=list)
    """Adapters that an engine had when their files were gone."""
    early: list[str] = field(default_factory=list)
    """Versions whose files went sooner than one version after they had left service."""
    erased: int = 0
    records: int = 0
    wrong_records: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """What must not have happened, one line each."""
        found = [f"{a.outcome}: {a.detail} ({a.model})" for a in self.answers if self._failed(a)]
        found += [line for answer in self.answers if (line := self._mixed(answer))]
        found += [f"files gone while the engine had them: {name}" for name in self.missing_files]
        found += [f"erased too early: {name}" for name in self.early]
        return found + self.wrong_records

    def _failed(self, answer: Answer) -> bool:
        if answer.outcome == "whole":
            return False
        began, ended = self.outage
        touched = answer.began <= ended and answer.ended >= began
        return answer.outcome == "failed" or not touched

    def _mixed(self, answer: Answer) -> str:
        said = set(answer.text.split())
        if answer.outcome == "refused" or (answer.outcome == "broken" and not said):
            return ""
        if answer.model != "code" or answer.version == 0:
            ours = said & set(WORDS)
            return f"the base model said {sorted(ours)}: {answer.text[:60]!r}" if ours else ""
        if answer.outcome == "broken":  # it never came to name its adapter
            return f"a broken answer mixes {sorted(said)}" if len(_whole_words(answer)) > 1 else ""
        word = self.words.get(answer.version or 0)
        if said == {word}:
            return ""
        return f"code@v{answer.version} writes {word!r}, the answer is {answer.text[:60]!r}"


def _whole_words(answer: Answer) -> set[str]:
    """The words of an answer that broke off, without the last, which may be cut."""
    return set(answer.text.split()[:-1])


# --- clients ----------------------------------------------------------------------------------


async def ask(session: aiohttp.ClientSession, url: str, model: str, number: int) -> Answer:
    """Stream one answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "max_tokens": 8 + 8 * (number % 5),
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    answer = Answer(model=model, began=time.time())
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            if response.status == 200:
                await _read(response, answer)
            else:
                answer.detail = f"{response.status} {(await response.text())[:200]}"
                if response.status == 503 and "Retry-After" in response.headers:
                    answer.outcome = "refused"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        answer.outcome, answer.detail = "broken", repr(error)
    answer.ended = time.time()
    return answer


async def _read(response: aiohttp.ClientResponse, answer: Answer) -> None:
    answer.outcome, answer.detail = "broken", "the stream ended early"
    async for line in response.content:
        if line.startswith(b"data: [DONE]"):
            if answer.version is None:
                answer.detail = "the stream names no adapter"
                answer.outcome = "failed"
            elif answer.outcome != "failed":
                answer.outcome, answer.detail = "whole", ""
        elif line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                answer.detail = json.dumps(event["error"])[:200]
                return
            answer.id = event.get("id", answer.id)
            if "adapter" in event:
                answer.version = int(event["adapter"]["version"])
            for choice in event.get("choices", ()):
                if choice["delta"].get("content"):
                    answer.stamps.append(time.time())
                    answer.text += choice["delta"]["content"]


async def _client(
    session: aiohttp.ClientSession, system: System, model: str, stop: asyncio.Event, into: Findings
) -> None:
    for number in itertools.count():
        if stop.is_set():
            return
        answer = await ask(session, system.url, model, number)
        into.answers.append(answer)
        if answer.outcome != "whole":
            await asyncio.sleep(0.5)  # Retry-After is whole seconds; the outage is to be seen


# --- the soak ---------------------------------------------------------------------------------


async def soak(
    system: System,
    *,
    swaps: int,
    clients: int = 3,
    kill_at: int | None = None,
    pause_s: float = 1.5,
    drained_s: float = 30.0,
    say: Callable[[str], None] = print,
    into: Findings | None = None,
) -> Findings:
    """Swap under load and return what was seen.

    Args:
        system: what to soak; ready, with the base model as champion.
        swaps: how many.
        clients: how many stream from `code` at once; one more asks for the base model.
        kill_at: the swap during which the engine is killed; None: it is not.
        pause_s: load without a swap, after each; longer where nothing was answered meanwhile.
        drained_s: how long no request runs, after which retention may erase what it was asked of.
        say: is told how it goes.
        into: where it is noted, for who wants to look at a soak that was cut short.
    """
    found, stop = into or Findings(), asyncio.Event()
    limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=limits, connector=connector) as session:
        async with session.get(f"{system.url}/ready") as response:
            base = (await response.json())["base_model"]
        asked = [*["code"] * clients, base]
        load = [asyncio.create_task(_client(session, system, m, stop, found)) for m in asked]
        load.append(asyncio.create_task(_watch_memory(system, stop, found)))
        try:
            for number in range(swaps):
                killed = number == kill_at
                swap = await _swap(session, system, number, found, kill=killed)
                found.swaps.append(swap)
                began = time.time()
                await asyncio.sleep(pause_s)
                await _answered(found, began)
                await _retain(session, system, found, drained_s)
                if number % 10 == 9 or number == swaps - 1 or killed:
                    say(_progress(number + 1, found))
        finally:
            stop.set()
            await asyncio.gather(*load)
    await asyncio.to_thread(_check_records, system, found)
    return found


async def _answered(found: Findings, since: float) -> None:
    """Wait until a stream has ended that began since then: what is in service has been asked."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        if any(a.model == "code" and a.began >= since for a in reversed(found.answers)):
            return
        await asyncio.sleep(0.05)


def _progress(number: int, found: Findings) -> str:
    latest = found.swaps[-1]
    return (
        f"  swap {number}: code@v{latest.version} after {latest.decided_s:.1f} s; "
        f"{len(found.answers)} answers, {len(found.faults())} faults"
    )


async def _swap(
    session: aiohttp.ClientSession, system: System, number: int, found: Findings, *, kill: bool
) -> Swap:
    """Move `code` and wait until every server obeys."""
    back = system.registry.at(Alias.ROLLBACK)
    rollback = number % ROLLBACK_EVERY == ROLLBACK_EVERY - 1 and back is not None and not kill
    registry, store = system.registry, system.store
    if rollback and back is not None:
        version = back.version
    else:
        word = WORDS[number % len(WORDS)]
        version = (await asyncio.to_thread(system.release, word, number)).version
        found.words[version] = word
    known = {receipt.id for receipt in store.receipts(limit=200)}
    began = time.time()
    if rollback:
        await asyncio.to_thread(registry.rollback, actor="soak", reason="soak")
    else:
        await asyncio.to_thread(registry.promote, version, actor="soak", reason="soak", force=True)
    if kill and system.kill is not None:
        await asyncio.sleep(0.2)
        await _outage(session, system, found)

    async def obeyed() -> bool:
        if version and registry.get(version).state is AdapterState.REJECTED:
            raise SystemExit(f"refused: {store.receipts(version=version, limit=1)[0].reason}")
        return await _answers(session, system, version)

    await _until(obeyed, f"code@v{version} does not answer")
    answered = time.time()
    receipts: list[SwapReceipt] = []

    async def told() -> bool:  # a server answers first and writes its receipt then
        receipts[:] = [
            r
            for r in await asyncio.to_thread(store.receipts, version=version, limit=20)
            if r.id not in known and r.accepted and r.probe.get("alias") == Alias.CHAMPION.value
        ]
        return bool(receipts)

    await _until(told, f"no receipt says that code@v{version} answers")
    last = max(receipt.at.timestamp() for receipt in receipts)
    phases = receipts[0].phases_s
    return Swap(
        version=version,
        began=began,
        decided_s=last - began,
        answered_s=answered - began,
        phases_s=dict(phases),
        rollback=rollback,
        killed=kill,
    )


async def _outage(session: aiohttp.ClientSession, system: System, found: Findings) -> None:
    """Kill the engine and wait until the server has seen it and is ready again."""
    assert system.kill is not None
    began = time.time()
    found.outage = (began, float("inf"))
    await asyncio.to_thread(system.kill)

    async def status() -> int:
        async with session.get(f"{system.url}/ready") as response:
            return response.status

    async def down() -> bool:
        return await status() == 503

    async def up() -> bool:
        return await status() == 200

    await _until(down, "the server does not see that the engine is gone")
    await _until(up, "the engine did not come back", READY_S)
    found.outage = (began, time.time())


async def _answers(session: aiohttp.ClientSession, system: System, version: int) -> bool:
    async with session.get(f"{system.url}/ready") as response:
        adapter = (await response.json())["adapter"]
    return adapter is not None and adapter["version"] == version


async def _until(
    condition: Callable[[], Awaitable[bool]], otherwise: str, timeout_s: float = SWAP_S
) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{otherwise} within {timeout_s:.0f} s")
        await asyncio.sleep(0.05)


async def _retain(
    session: aiohttp.ClientSession, system: System, found: Findings, drained_s: float
) -> None:
    """Erase what retention at its hardest erases, and look whether it was too early."""
    gone = await asyncio.to_thread(
        system.registry.retain, keep_recent=1, keep_best=0, actor="soak", drained_s=drained_s
    )
    found.erased += len(gone)
    in_service = [swap.version for swap in found.swaps]
    for adapter in gone:
        if adapter.version in in_service:
            since = in_service[::-1].index(adapter.version)  # swaps since it was champion
            if since < 2:
                found.early.append(f"{adapter.name}, {since} swaps after it was champion")
    with contextlib.suppress(aiohttp.ClientError):
        async with session.get(f"{system.engine_url}/v1/models") as response:
            listed = (await response.json())["data"]
        found.missing_files += [
            model["id"] for model in listed if model["parent"] and not Path(model["root"]).is_dir()
        ]


async def _watch_memory(system: System, stop: asyncio.Event, found: Findings) -> None:
    while not stop.is_set():
        if sizes := await asyncio.to_thread(system.memory):
            found.memory.append((time.time(), sizes))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)


def _check_records(system: System, found: Findings) -> None:
    """What is recorded of each answer names the adapter that the client was told."""
    for answer in found.answers:
        if answer.outcome != "whole":
            continue
        kept = system.store.interaction(answer.id.removeprefix("chatcmpl-"))
        found.records += 1
        if kept.adapter_version != answer.version:
            found.wrong_records.append(
                f"{answer.id} is of v{answer.version}, recorded as v{kept.adapter_version}"
            )


# --- what it cost -----------------------------------------------------------------------------


def spreads(found: Findings) -> dict[str, tuple[list[float], list[float]]]:
    """Return seconds to the first token and between tokens, (without, with) a swap beside them."""
    windows = [(s.began, s.began + s.decided_s) for s in found.swaps if not s.killed]

    def swapping(began: float, ended: float) -> bool:
        return any(began <= end and ended >= start for start, end in windows)

    first: tuple[list[float], list[float]] = ([], [])
    gaps: tuple[list[float], list[float]] = ([], [])
    for answer in found.answers:
        if answer.outcome != "whole" or not answer.stamps:
            continue
        began, ended = found.outage
        if answer.began <= ended and answer.ended >= began:
            continue
        first[swapping(answer.began, answer.stamps[0])].append(answer.stamps[0] - answer.began)
        for one, other in itertools.pairwise(answer.stamps):
            gaps[swapping(one, other)].append(other - one)
    return {"to the first token": first, "between tokens": gaps}


def slopes(found: Findings) -> dict[str, list[float]]:
    """Return MiB a swap, by process, on each side of the outage; the first fifth is warming up."""
    if not found.memory or len(found.swaps) < 10:
        return {}
    began, ended = found.outage
    sides: list[list[tuple[float, dict[str, float]]]] = [[], []] if began else [[]]
    for at, sizes in found.memory:
        if not began or at < began:
            sides[0].append((at, sizes))
        elif at > ended:
            sides[1].append((at, sizes))
    result: dict[str, list[float]] = {}
    for side in sides:
        side = side[len(side) // 5 :]
        if len(side) < 10:
            continue
        for name in ("engine", "server"):
            seen = [(at, sizes[name]) for at, sizes in side if name in sizes]
            number = [sum(s.began <= at for s in found.swaps) for at, _ in seen]
            if len(set(number)) > 1:
                slope = statistics.linear_regression(number, [mib for _, mib in seen]).slope
                result.setdefault(name, []).append(slope)
    return result


def _ms(samples: list[float], quantile: float) -> float:
    if len(samples) < 2:
        return float("nan")
    return (
        statistics.quantiles(samples, n=1000, method="inclusive")[int(quantile * 1000) - 1] * 1000
    )


def report(found: Findings) -> tuple[list[str], bool]:
    """Return the table, and whether every promise was kept."""
    faults = found.faults()
    outcomes = {
        o: sum(a.outcome == o for a in found.answers) for o in ("whole", "broken", "refused")
    }
    lines = [
        f"{len(found.swaps)} swaps, {sum(s.rollback for s in found.swaps)} of them rollbacks; "
        f"{found.erased} old versions erased behind them",
        f"{outcomes['whole']} whole answers, {found.records} of them checked against the record; "
        f"of the killed engine: {outcomes['broken']} broke off, {outcomes['refused']} got 503",
        f"faults: {len(faults)}" + "".join(f"\n    {fault}" for fault in faults[:20]),
    ]
    if found.outage[0]:
        lines.append(f"from the kill to ready again: {found.outage[1] - found.outage[0]:.1f} s")
    for what, swaps in (
        ("new version", [s for s in found.swaps if not s.rollback and not s.killed]),
        ("rollback", [s for s in found.swaps if s.rollback]),
    ):
        if not swaps:
            continue
        times = sorted(s.decided_s for s in swaps)
        lines.append(
            f"{what}: decision to the last server {statistics.median(times):.2f} s "
            f"(at most {times[-1]:.2f})"
        )
        for phase in ("verify", "preflight", "load", "readback", "probe", "flip"):
            spent = sorted(s.phases_s[phase] for s in swaps if phase in s.phases_s)
            if spent:
                most = spent[-1] * 1000
                lines.append(
                    f"    {phase:10} {statistics.median(spent) * 1000:8.1f} ms (at most {most:.1f})"
                )
    for what, (quiet, beside) in spreads(found).items():
        lines.append(
            f"{what}: p50 {_ms(quiet, 0.5):.0f} ms, p99 {_ms(quiet, 0.99):.0f} ms; beside a swap "
            f"p50 {_ms(beside, 0.5):.0f} ms, p99 {_ms(beside, 0.99):.0f} ms, at most "
            f"{max(beside, default=0.0) * 1000:.0f} ms ({len(quiet)} and {len(beside)})"
        )
    flat = True
    for name, each in slopes(found).items():
        bad = any(slope > FLAT_MIB[name] for slope in each)
        flat = flat and not bad
        sizes = [sizes[name] for _, sizes in found.memory if name in sizes]
        grown = ", ".join(f"{slope:+.2f}" for slope in each)
        lines.append(f"memory of the {name}: at most {max(sizes):.0f} MiB, {grown} MiB a swap")
    kept = not faults and flat
    return [*lines, "every promise kept" if kept else "MISSED"], kept


FLAT_MIB = {"engine": 2.0, "server": 0.5}
"""What a process may grow by with each swap; an adapter of these is about 10 MiB."""


# --- a real installation ----------------------------------------------------------------------


def make_words(model: Path, out: Path) -> None:
    """Compute the adapters of `WORDS`, in a process of its own, which is where torch stays."""
    command = [sys.executable, str(ROOT / "ops" / "bench" / "one_word.py"), str(model), str(out)]
    environment = {**os.environ, **services.cpu_environment()}
    done = subprocess.run(
        [*command, *WORDS], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"the adapters were not made: {done.stderr[-2000:]}")


def releaser(registry: Registry, words: Path, model: models.Model) -> Callable[[str, int], Adapter]:
    """Return what adds a version that writes a word."""

    def release(word: str, number: int) -> Adapter:
        def write(draft: Path) -> None:
            shutil.copytree(words / word, draft, dirs_exist_ok=True)
            (draft / "soak.json").write_text(json.dumps({"number": number}))

        return registry.add(
            write,
            base_model=model.name,
            base_sha256=model.sha256,
            rank=8,
            recipe="soak",
            cycle_id=None,
            lineage={},
            actor="soak",
        )

    return release


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Installation:
    """A `journeyman up` of its own."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        port, self._engine_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.engine_url = f"http://127.0.0.1:{self._engine_port}"
        self._log = folder / "up.log"
        environment = os.environ | {
            "JOURNEYMAN_DATA_DIR": str(folder),
            "JOURNEYMAN_SERVER__PORT": str(port),
            "JOURNEYMAN_ENGINE__PORT": str(self._engine_port),
            "JOURNEYMAN_ENGINE__MODEL": model,
            "JOURNEYMAN_ENGINE__MAX_MODEL_LEN": "2048",
            # One that goes back by itself would not be the swap that is waited for.
            "JOURNEYMAN_RELEASE__WATCH_HOURS": "0",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "up"],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def guards(self) -> dict[str, int]:
        """Process ids of what stands before engine, server and improver."""
        state = processes.read_state(self.folder) or {}
        return {s["name"]: s["pid"] for s in state.get("services", ()) if s["pid"]}

    def memory(self) -> dict[str, float]:
        """Resident MiB of engine and server."""
        guards = self.guards()
        return {n: rss_mib(guards[n]) for n in ("engine", "server") if n in guards}

    def kill_engine(self) -> None:
        """SIGKILL the engine itself, not the guard before it."""
        guard = self.guards()["engine"]
        for pid in tree(guard)[1:]:
            if b"api_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                return
        raise SystemExit("there is no engine to kill")

    async def until_ready(self) -> None:
        """Wait for the first ready answer."""

        async def ready() -> bool:
            if self.process.poll() is not None:
                raise SystemExit(f"it did not start: {self._log.read_text()[-3000:]}")
            with contextlib.suppress(aiohttp.ClientError):
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"{self.url}/ready") as response,
                ):
                    return response.status == 200
            return False

        await _until(ready, "the installation is not ready", READY_S)

    def tail(self, name: str) -> str:
        """The last words of a service."""
        log = self.folder / "logs" / f"{name}.log"
        return log.read_text()[-6000:] if log.exists() else f"{name} has said nothing"

    def stop(self) -> None:
        """Ctrl-C, then less politely."""
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(60)


@contextlib.contextmanager
def installed(folder: Path, name: str) -> Iterator[tuple[Installation, System]]:
    """Start an installation with the three adapters at hand; leave no process of it."""
    model = models.resolve(name)
    words = folder / "words"
    began = time.monotonic()
    make_words(model.directory, words)
    print(f"three adapters made in {time.monotonic() - began:.0f} s", flush=True)
    installation = Installation(folder, name)
    try:
        store = Store.open(f"sqlite:///{folder / 'journeyman.db'}")
        registry = Registry(store, folder / "adapters")
        yield (
            installation,
            System(
                url=installation.url,
                engine_url=installation.engine_url,
                store=store,
                registry=registry,
                release=releaser(registry, words, model),
                kill=installation.kill_engine,
                memory=installation.memory,
            ),
        )
        store.close()
    except SystemExit:
        print(*(installation.tail(name) for name in ("engine", "server")), sep="\n")
        raise
    finally:
        installation.stop()


async def main(options: argparse.Namespace) -> bool:
    """Start everything, soak, report, stop everything."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    found, kept = Findings(), False
    with (
        tempfile.TemporaryDirectory(prefix="soak-", dir=options.data) as name,
        installed(Path(name), options.model) as (installation, system),
    ):
        began = time.monotonic()
        await installation.until_ready()
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        try:
            await soak(
                system,
                swaps=options.swaps,
                clients=options.clients,
                kill_at=options.swaps // 2 if options.kill_at is None else options.kill_at,
                pause_s=options.pause,
                say=lambda line: print(line, flush=True),
                into=found,
            )
        finally:
            lines, kept = report(found)
            print(*lines, sep="\n", flush=True)
    return kept


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--clients", type=int, default=3, help="streams from `code` at once")
    parser.add_argument("--kill-at", type=int, help="swap of the kill; default: the middle")
    parser.add_argument("--pause", type=float, default=1.5, help="seconds after each swap")
    parser.add_argument("--model", default="starter-small", help="starter-small, starter, …")
    parser.add_argument("--data", type=Path, help="where the installation is put meanwhile")
    return parser.parse_args()


if __name__ == "__main__":
    # As Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(not asyncio.run(main(_options())))
