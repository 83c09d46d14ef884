"""What the server costs: direct to an instant engine, through Journeyman, through LiteLLM's proxy.

    python ops/bench/gateway.py [--rate 100] [--seconds 10] [--streams 1000] [--rows 0]
                                [--litellm DIR] [--before DIR] [--data DIR]
    python ops/bench/gateway.py --engine URL [--rounds 12] [--at-once 4] [--tokens 64]

The engine is a mock that answers at once, so what is measured is all ours; recording is on. The
ways are measured in turns within one run, so that ratios hold where absolute numbers do not. CPU
time per request is read from the kernel and hardly feels other load. `--litellm` names an
environment with `litellm[proxy]`; one that is not there is made, which needs a package index.
With `--rows` a second server takes part, whose record holds so many interactions; the first one's
holds 10. With `--before` another checkout of this repository takes part, such as one of an earlier
commit. What a chunk of a stream costs is the difference between long streams and short ones. An
answer is durable before its last byte leaves, so no request can be faster than the disk's flush,
which is measured beside it; `--data /dev/shm` shows what is left without a disk.

With `--engine` a running vLLM is asked instead, directly and through a server of ours, in turns:
streams of the same length, so many at once. Each round gives a ratio of tokens per second and one
of the time to the first token; what is told is their median, with an interval by bootstrap over
rounds. Directly it is asked twice a round: the ratio of the two is what the machine's own unrest
amounts to, and a difference within it is none. Not measured here: several replicas.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import aiohttp
import uvloop

from ops.bench.footprint import cpu_s, rss_mib
from ops.records import Interaction, Source, new_id, now
from ops.store import Recording, Store

ROOT = Path(__file__).resolve().parents[2]
MODEL = "mock"
TEXT = "```python\ndef add(a, b):\n    return a + b\n```"
ASKED = "Write a function that adds two numbers. " * 10
BODY = {"model": MODEL, "messages": [{"role": "user", "content": ASKED}], "max_tokens": 64}
CHUNKS, LONG, STREAM_S = 20, 200, 5.0
"""Chunks of a stream and of a long one; either takes the engine the same time."""
AT_ONCE = 20
"""Streams at once where the cost of a chunk is measured."""
TICK = os.sysconf("SC_CLK_TCK")
ROUNDS = 5
FEW = 10
"""Interactions in a record that counts as empty."""
RIVAL = "through LiteLLM"


# --- the instant engine -----------------------------------------------------------------------


def _whole() -> bytes:
    message = {"role": "assistant", "content": TEXT}
    body = {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 80, "completion_tokens": 20, "total_tokens": 100},
    }
    return json.dumps(body).encode()


def _chunk(**delta: Any) -> bytes:
    reason = None if delta else "stop"
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    body = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
    return b"data: " + json.dumps({**body, "choices": [choice]}).encode() + b"\n\n"


def _reply(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


MODELS = {"id": MODEL, "object": "model", "root": "/mock", "parent": None, "max_model_len": 4096}
WHOLE = _reply(_whole())
LISTED = _reply(json.dumps({"object": "list", "data": [MODELS]}).encode())
HEALTHY = _reply(b"{}")
LONG_ASKED = b'"stop":["long"]'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


async def _serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = (await reader.readexactly(length) if length else b"").replace(b" ", b"")
            if b"/v1/models" in head[:40]:
                writer.write(LISTED)
            elif b"/chat/completions" not in head[:60]:
                writer.write(HEALTHY)
            elif b'"stream":true' in body:
                await _stream_one(writer, LONG if LONG_ASKED in body else CHUNKS)
                return
            else:
                writer.write(WHOLE)
            await writer.drain()
    writer.close()


async def _stream_one(writer: asyncio.StreamWriter, chunks: int) -> None:
    writer.write(STREAM)
    for number in range(chunks):
        writer.write(_chunk(content=f"word{number} "))
        await writer.drain()
        await asyncio.sleep(STREAM_S / chunks)
    writer.write(_chunk() + b"data: [DONE]\n\n")
    await writer.drain()
    writer.close()


async def mock(port: int) -> None:
    """Serve the instant engine until killed."""
    server = await asyncio.start_server(_serve_one, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


# --- processes --------------------------------------------------------------------------------


@dataclass
class Way:
    """One way to the engine: where to ask, and which processes it costs."""

    name: str
    url: str
    model: str = MODEL
    pid: int = 0
    latencies_s: list[float] = field(default_factory=list)
    failures: int = 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(
    command: list[str], log: Path, more: dict[str, str] | None = None, root: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(more or {})},
            cwd=root,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"it did not start: {log.read_text()[-2000:]}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise SystemExit(f"{url} did not answer in time")


# --- load -------------------------------------------------------------------------------------


async def _ask(session: aiohttp.ClientSession, way: Way, due: float) -> None:
    body = BODY | {"model": way.model}
    try:
        async with session.post(f"{way.url}/v1/chat/completions", json=body) as response:
            await response.read()
            good = response.status == 200
    except aiohttp.ClientError:
        good = False
    if good:
        # From when it was due, not from when it was sent: waiting in line is part of it.
        way.latencies_s.append(time.perf_counter() - due)
    else:
        way.failures += 1


async def steady(session: aiohttp.ClientSession, way: Way, rate: float, seconds: float) -> None:
    """Ask at a fixed rate, whether or not the answers keep up."""
    began = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(_ask(session, way, due)))
    await asyncio.gather(*tasks)


async def flat_out(session: aiohttp.ClientSession, way: Way, seconds: float) -> tuple[float, float]:
    """Ask as fast as answers come, 32 at a time; return requests/s and requests per CPU second."""
    copy = replace(way, latencies_s=[], failures=0)
    began, used = time.perf_counter(), cpu_s(way.pid)

    async def one() -> None:
        while time.perf_counter() - began < seconds:
            await _ask(session, copy, time.perf_counter())

    await asyncio.gather(*(one() for _ in range(32)))
    count, took = len(copy.latencies_s), time.perf_counter() - began
    spent = cpu_s(way.pid) - used
    return count / took, count / spent if spent else float("inf")


async def many_streams(
    way: Way, number: int, *, long: bool = False
) -> tuple[int, float, float, float]:
    """Hold streams open at once; return how many were whole, MiB before and at most, seconds."""
    before = most = rss_mib(way.pid)
    began = time.perf_counter()

    async def one(session: aiohttp.ClientSession) -> bool:
        body = BODY | {"model": way.model, "stream": True} | ({"stop": ["long"]} if long else {})
        with contextlib.suppress(aiohttp.ClientError):
            async with session.post(f"{way.url}/v1/chat/completions", json=body) as response:
                data = await response.read()
                return response.status == 200 and data.endswith(b"[DONE]\n\n")
        return False

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        tasks = [asyncio.create_task(one(session)) for _ in range(number)]
        while not all(task.done() for task in tasks):
            most = max(most, rss_mib(way.pid))
            await asyncio.sleep(0.2)
    return sum(t.result() for t in tasks), before, most, time.perf_counter() - began


# --- the run ----------------------------------------------------------------------------------


def flushes_s(folder: Path, number: int) -> list[float]:
    """Seconds that the disk takes to make a page durable: the floor of every recorded answer."""
    found = []
    descriptor = os.open(folder / "flush", os.O_CREAT | os.O_WRONLY)
    for _ in range(number):
        os.write(descriptor, b"\0" * 4096)
        began = time.perf_counter()
        os.fdatasync(descriptor)
        found.append(time.perf_counter() - began)
        time.sleep(0.002)
    os.close(descriptor)
    return found


def fill(url: str, rows: int) -> None:
    """Put interactions into the record, as many as wanted."""
    store = Store.open(url)
    message = {"role": "assistant", "content": TEXT}
    one = Interaction(
        id="",
        created_at=now(),
        source=Source.SERVED,
        endpoint="/v1/chat/completions",
        model="code",
        base_model=MODEL,
        adapter_name="base",
        adapter_version=0,
        adapter_sha256="",
        messages=BODY["messages"],  # type: ignore[arg-type]
        params={},
        choices=[{"index": 0, "message": message}],
        usage={},
    )
    for start in range(0, rows, 5000):
        batch = min(5000, rows - start)
        store.add([Recording(interaction=replace(one, id=new_id())) for _ in range(batch)])
    store.close()
    os.sync()  # or the disk would still be busy with it when the measurement begins


@contextlib.asynccontextmanager
async def journeyman(
    folder: Path, engine: str, streams: int, rows: int, root: Path = ROOT
) -> AsyncIterator[Way]:
    """A server of its own, of the checkout at `root`, recording into `folder`."""
    folder.mkdir()
    if rows > FEW:
        began = time.perf_counter()
        fill(f"sqlite:///{folder / 'journeyman.db'}", rows)
        took, size = time.perf_counter() - began, (folder / "journeyman.db").stat().st_size
        print(f"{rows} interactions after {took:.0f} s, {size / 2**20:.0f} MiB")
    elif rows:
        fill(f"sqlite:///{folder / 'journeyman.db'}", rows)
    port, log = _free_port(), folder / "server.log"
    settings = {
        "JOURNEYMAN_SERVER__PORT": str(port),
        "JOURNEYMAN_SERVER__MAX_CONCURRENCY": str(max(256, streams + 64)),
        "JOURNEYMAN_ENGINE__URL": engine,
        "JOURNEYMAN_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "server", "--data-dir", str(folder)]
    with _process(command, log, settings, root) as process:
        url = f"http://127.0.0.1:{port}"
        await _until_up(process, f"{url}/ready", log)
        name = f"through Journeyman, {rows} rows" if rows > FEW else "through Journeyman"
        name += " before" * (root != ROOT)
        yield Way(name, url, model="code", pid=process.pid)


def _litellm(directory: Path) -> Path:
    """LiteLLM's command in an environment, which is made where it is not there."""
    command = directory / "bin" / "litellm"
    if not command.exists():
        print(f"installing litellm[proxy] into {directory}")
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        pip = [str(directory / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"]
        subprocess.run(pip, check=True)
    return command


@contextlib.asynccontextmanager
async def rival(folder: Path, engine: str, directory: Path) -> AsyncIterator[Way]:
    """LiteLLM's proxy, one worker, as its manual starts it."""
    command = _litellm(directory)
    port, log = _free_port(), folder / "litellm.log"
    entry = {"model": f"openai/{MODEL}", "api_base": f"{engine}/v1", "api_key": "none"}
    config = {"model_list": [{"model_name": MODEL, "litellm_params": entry}]}
    (folder / "litellm.yaml").write_text(json.dumps(config))
    arguments = ["--config", str(folder / "litellm.yaml"), "--port", str(port)]
    arguments += ["--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"]
    # Neither way asks for a key: this one wants to be told that it is only a measurement.
    more = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOG": "ERROR"}
    with _process([str(command), *arguments], log, more) as process:
        url = f"http://127.0.0.1:{port}"
        await _until_up(process, f"{url}/health/liveliness", log)
        yield Way(RIVAL, url, pid=process.pid)


def _ms(samples: list[float], quantile: float) -> float:
    if len(samples) < 2:
        return float("nan")
    return statistics.quantiles(samples, n=1000)[int(quantile * 1000) - 1] * 1000


def note(what: str, value: str, promise: str = "", kept: bool | None = None) -> None:
    """Print a line of the table."""
    mark = "" if kept is None else ("kept" if kept else "MISSED")
    print(f"{what:52} {value:>26}  {promise:18} {mark}", flush=True)


async def measure(ways: list[Way], options: argparse.Namespace) -> None:
    """Measure all ways, in turns, and print the table."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector) as session:
        for way in ways:  # warm
            await steady(session, replace(way, latencies_s=[]), options.rate, 1.0)
        cpu = {way.name: 0.0 for way in ways}
        flushes: list[float] = []
        for _ in range(ROUNDS):
            flushes += await asyncio.to_thread(flushes_s, options.folder, 60)
            for way in ways:
                used = cpu_s(way.pid) if way.pid else 0.0
                await steady(session, way, options.rate, options.seconds / ROUNDS)
                cpu[way.name] += (cpu_s(way.pid) if way.pid else 0.0) - used
        direct = ways[0]
        flush50, flush99 = _ms(flushes, 0.5), _ms(flushes, 0.99)
        note("a flush of the disk: p50 / p99", f"{flush50:7.2f} / {flush99:7.2f} ms")
        for way in ways:
            p50, p99 = _ms(way.latencies_s, 0.5), _ms(way.latencies_s, 0.99)
            note(f"{way.name}, {options.rate:.0f}/s: p50 / p99", f"{p50:7.2f} / {p99:7.2f} ms")
            if way.failures:
                note("  failed", str(way.failures), "0", False)
            if way is direct:
                continue
            more50, more99 = p50 - _ms(direct.latencies_s, 0.5), p99 - _ms(direct.latencies_s, 0.99)
            ours = way.name.startswith("through Journeyman")
            note(
                "  added p50",
                f"{more50:7.2f} ms",
                "under 4 ms" * ours,
                more50 < 4 if ours else None,
            )
            note(
                "  added p99",
                f"{more99:7.2f} ms",
                "under 15 ms" * ours,
                more99 < 15 if ours else None,
            )
            if ours:
                note("  added p50 beyond one flush", f"{more50 - flush50:7.2f} ms")
            note("  CPU per request", f"{cpu[way.name] / len(way.latencies_s) * 1e3:7.2f} ms")
        many = next((w for w in ways if " rows" in w.name), None)
        if many is not None:
            for quantile in (0.5, 0.99):
                few_ms, many_ms = (_ms(w.latencies_s, quantile) for w in (ways[1], many))
                name = f"p{quantile * 100:.0f} with {options.rows} rows to that with {FEW}"
                note(name, f"{many_ms / few_ms:7.2f}", "the same")
        per_core = {}
        for way in [w for w in ways[1:] if " rows" not in w.name]:
            rate, per_core[way.name] = await flat_out(session, way, options.seconds / 2)
            note(f"{way.name}, flat out: requests/s", f"{rate:7.0f}")
            note("  requests per CPU second", f"{per_core[way.name]:7.0f}")
        if RIVAL in per_core:
            ratio = per_core[ways[1].name] / per_core[RIVAL]
            note("rate per core, ours to LiteLLM's", f"{ratio:7.1f}", "at least 3", ratio >= 3)
    if options.streams:
        await measure_streams(ways[1], options.streams)
        await measure_chunks([w for w in ways[1:] if w.name.startswith("through Journeyman")])


async def measure_streams(way: Way, number: int) -> None:
    """Hold very many streams open."""
    whole, before, most, took = await many_streams(way, number)
    note(f"{number} streams at once, whole", str(whole), str(number), whole == number)
    memory = f"{before:6.0f} / {most:6.0f} MiB"
    note("  memory before / at most", memory, "under +200", most - before < 200)
    note("  seconds (the engine's own)", f"{took:.1f} ({STREAM_S:.1f})")


async def measure_chunks(ways: list[Way]) -> None:
    """Tell what a stream costs, and each chunk of it: short streams and long ones, in turns."""
    used = {(way.name, long): 0.0 for way in ways for long in (False, True)}
    rounds = 3
    for _ in range(rounds):
        for way in ways:
            for long in (False, True):
                began = cpu_s(way.pid)
                whole, *_ = await many_streams(way, AT_ONCE, long=long)
                if whole < AT_ONCE:
                    note(f"{way.name}: streams that broke off", str(AT_ONCE - whole), "0", False)
                used[way.name, long] += (cpu_s(way.pid) - began) / (AT_ONCE * rounds)
    for way in ways:
        short, long_s = used[way.name, False], used[way.name, True]
        each_s = (long_s - short) / (LONG - CHUNKS)
        note(f"{way.name}: CPU per chunk", f"{each_s * 1e3:7.3f} ms")
        note("  CPU per stream beside its chunks", f"{(short - CHUNKS * each_s) * 1e3:7.2f} ms")


# --- against a real engine ---------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """What one way did in one round."""

    tokens_per_s: float
    first_token_s: float


class Broken(Exception):
    """A stream was not what was asked for: the round says nothing."""


async def _streamed(session: aiohttp.ClientSession, way: Way, tokens: int) -> float:
    """Ask for one stream; return the seconds to its first token.

    Raises:
        Broken: it is no stream of so many tokens.
    """
    # No two prompts begin alike: what the engine remembers of one way must not help the other.
    asked = f"{random.getrandbits(64):x} {ASKED}"
    body = {"model": way.model, "messages": [{"role": "user", "content": asked}], "stream": True}
    body |= {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    body |= {"stream_options": {"include_usage": True}}
    began, first, made = time.perf_counter(), 0.0, 0
    try:
        async with session.post(f"{way.url}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                raise Broken(f"{way.name}: {response.status} {(await response.text())[:300]}")
            async for line in response.content:
                if not first and line.startswith(b"data: {") and _says(line):
                    first = time.perf_counter() - began
                if b'"usage":{' in line:
                    made = json.loads(line[6:])["usage"]["completion_tokens"]
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Broken(f"{way.name}: {error!r}") from error
    if made != tokens or not first:
        raise Broken(f"{way.name}: {made} tokens instead of {tokens}")
    return first


def _says(line: bytes) -> bool:
    choices = json.loads(line[6:])["choices"]
    return any(choice["delta"].get("content") for choice in choices)


async def _round(session: aiohttp.ClientSession, way: Way, options: argparse.Namespace) -> Round:
    began = time.perf_counter()
    firsts = await asyncio.gather(
        *(_streamed(session, way, options.tokens) for _ in range(options.at_once))
    )
    took = time.perf_counter() - began
    return Round(options.tokens * options.at_once / took, statistics.median(firsts))


def spread(ratios: list[float]) -> tuple[float, float, float]:
    """The median of paired ratios, and its 95 % interval by bootstrap over rounds."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(4000))
    return statistics.median(ratios), medians[100], medians[3899]


async def in_turns(
    session: aiohttp.ClientSession, ways: list[Way], options: argparse.Namespace
) -> tuple[list[list[Round]], float]:
    """Ask all ways in turns, each round in another order; return the rounds, and our CPU seconds.

    A round in which a stream broke is left out of all ways.
    """
    rounds: list[list[Round]] = []
    spent_s, orders = 0.0, [tuple(p) for p in itertools.permutations(range(len(ways)))]
    random.Random(0).shuffle(orders)
    for number in range(options.rounds):
        found: dict[int, Round] = {}
        used_s = 0.0
        try:
            for place in orders[number % len(orders)]:
                before = cpu_s(ways[place].pid) if ways[place].pid else 0.0
                found[place] = await _round(session, ways[place], options)
                used_s += cpu_s(ways[place].pid) - before if ways[place].pid else 0.0
        except Broken as error:
            note(f"a round was left out: {error}", "", "none", False)
            continue
        spent_s += used_s
        rounds.append([found[place] for place in range(len(ways))])
    return rounds, spent_s


async def against(options: argparse.Namespace) -> None:
    """Measure a real engine, directly and through a server of ours."""
    engine = options.engine.rstrip("/").removesuffix("/v1")
    timeout = aiohttp.ClientTimeout(600)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)  # vLLM's closes after 5
    with tempfile.TemporaryDirectory(prefix="gateway-", dir=options.data) as name:
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
            journeyman(Path(name) / "record", engine, 0, 0) as ours,
        ):
            async with session.get(f"{engine}/v1/models") as response:
                base = (await response.json())["data"][0]["id"]
            # One way is asked under the name that the other translates to: one model, one work.
            direct = Way("direct", engine, model=base)
            ways = [direct, replace(ours, model=base), replace(direct, name="direct again")]
            try:
                for way in ways * 2:
                    await _round(session, way, options)  # warm
            except Broken as error:
                raise SystemExit(str(error)) from error
            rounds, spent_s = await in_turns(session, ways, options)
    if len(rounds) < 2:
        raise SystemExit("too few rounds were whole")
    for way, found in zip(ways, zip(*rounds, strict=True), strict=True):
        rate = statistics.median(r.tokens_per_s for r in found)
        first = statistics.median(r.first_token_s for r in found) * 1000
        note(f"{way.name}: tokens/s, first token", f"{rate:7.1f} / {first:7.1f} ms")
    streams = len(rounds) * options.at_once
    note("  our CPU per stream", f"{spent_s / streams * 1e3:7.2f} ms")
    note("  our CPU per token", f"{spent_s / (streams * options.tokens) * 1e3:7.3f} ms")
    for place, whose in ((1, "ours"), (2, "the same again")):
        faster = [row[place].tokens_per_s / row[0].tokens_per_s for row in rounds]
        sooner = [row[0].first_token_s / row[place].first_token_s for row in rounds]
        for what, ratios in (
            (f"tokens/s, {whose} to direct", faster),
            (f"first token, direct to {whose}", sooner),
        ):
            middle, low, high = spread(ratios)
            value = f"{middle:.3f} ({low:.3f} to {high:.3f})"
            promise = "at least 0.97" * (place == 1)
            note(what, value, promise, middle >= 0.97 if promise else None)
    note("  rounds; load of the machine now", f"{len(rounds)}; {os.getloadavg()[0]:.1f}")


async def main(options: argparse.Namespace) -> None:
    """Start everything, measure, stop everything."""
    if options.engine:
        await against(options)
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory(prefix="gateway-", dir=options.data) as name:
        folder, port = Path(name), _free_port()
        options.folder = folder
        engine = f"http://127.0.0.1:{port}"
        command = [sys.executable, __file__, "--mock", str(port)]
        async with contextlib.AsyncExitStack() as stack:
            process = stack.enter_context(_process(command, folder / "mock.log"))
            await _until_up(process, f"{engine}/health", folder / "mock.log")
            ways = [Way("direct", engine)]
            for rows in [FEW, options.rows] if options.rows else [FEW]:
                place = folder / f"record-{rows}"
                ours = journeyman(place, engine, options.streams, rows)
                ways.append(await stack.enter_async_context(ours))
            if options.before:
                place, root = folder / "record-before", options.before.resolve()
                before = journeyman(place, engine, options.streams, 0, root)
                ways.append(await stack.enter_async_context(before))
            if options.litellm:
                ways.append(await stack.enter_async_context(rival(folder, engine, options.litellm)))
            await measure(ways, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each way")
    parser.add_argument("--streams", type=int, default=1000, help="streams held open at once")
    parser.add_argument("--rows", type=int, default=0, help="interactions put into the record")
    parser.add_argument("--engine", help="a running vLLM's address: it is asked, not the mock")
    parser.add_argument("--rounds", type=int, default=12, help="of each way, with --engine")
    parser.add_argument("--at-once", type=int, default=4, help="streams of a round, with --engine")
    parser.add_argument("--tokens", type=int, default=64, help="of a stream, with --engine")
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--litellm", type=Path, help="environment of the rival")
    parser.add_argument("--data", type=Path, help="where the record is kept meanwhile")
    parser.add_argument("--mock", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = _options()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(mock(given.mock) if given.mock else main(given))
