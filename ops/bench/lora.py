"""What adapters cost the engine: base, adapter and mixed batches, beside an engine without LoRA.

    python ops/bench/lora.py [--rounds 3] [--model starter-small]
    python ops/bench/lora.py --layers

Three engines stand side by side and are asked in turns within one run, so that ratios hold where
absolute numbers do not: one as `journeyman up` starts it; the same without our plugin
(`ops/engine_plugin.py`); and one without LoRA, on one of the adapters merged with its base
(`improver/merge.py`), as `engine.merged` would start it. Eight streams at once write; prompts
are computed one after another, each a new one. CPU time per token is read from the kernel and
hardly feels other load. Adapters are `one_word.py`'s, rank 8 on all layers, in two slots of three.
`--layers` starts no engine: it times the linear layers of both starters and what vLLM's code and
ours add to them, in one thread, by CPU time. Not measured: a GPU's kernels, where LoRA is another
matter, and larger batches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import aiohttp

from ops import merges, models, services
from ops.bench.footprint import cpu_s
from ops.settings import EngineSettings, Settings

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("apple", "silver")
MERGED = "merged"
STREAMS, TOKENS, PROMPTS, PROMPT_WORDS = 8, 48, 3, 400


@dataclass
class Way:
    """An engine and the models that are asked of it in turn."""

    name: str
    url: str
    pid: int
    asked: tuple[str, ...]
    written: list[tuple[float, float]] = field(default_factory=list)
    """Tokens a second and CPU milliseconds a token, of each round."""
    read: list[tuple[float, float]] = field(default_factory=list)
    """The same of prompts."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def merged(folder: Path, model: models.Model) -> Path:
    """Merge the first word's adapter with its base, and return the directory."""
    wanted = Settings(data_dir=folder)
    dtype = services.merged_dtype(wanted, services.engine_build())
    what = merges.Merge(adapter_sha256=WORDS[0], base_sha256=model.sha256, dtype=dtype)
    command = [*services.MERGE, str(folder / "words" / WORDS[0]), str(model.directory)]
    command += [str(folder / "merged"), "--dtype", dtype, "--adapter-sha256", WORDS[0]]
    command += ["--base-sha256", model.sha256]
    environment = {**os.environ, **services.cpu_environment()}
    subprocess.run(command, check=True, env=environment, capture_output=True, cwd=ROOT)
    found = merges.find(folder / "merged", what)
    if found is None:
        raise SystemExit("nothing was merged")
    return found


@contextlib.contextmanager
def engine(folder: Path, name: str, model: models.Model, **more: str) -> Iterator[tuple[str, int]]:
    """Start an engine; yields its address and process id."""
    port = _free_port()
    wanted = EngineSettings(
        model=model.name, port=port, merged_port=port, max_model_len=2048, kv_cache_gib=1
    )
    settings, build = Settings(engine=wanted), services.engine_build()
    if name == MERGED:
        service = services.second_engine(settings, merged(folder, model), model.name, build)
    else:
        service = services.engine(settings, model, build)
    command = list(service.command)
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **service.environment, **more},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
    try:
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until_up(session: aiohttp.ClientSession, url: str, log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{url}/health") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.5)
    raise SystemExit(f"it did not start: {log.read_text()[-3000:]}")


async def _ask(session: aiohttp.ClientSession, url: str, model: str, prompt: str, n: int) -> int:
    body = {"model": model, "prompt": prompt, "max_tokens": n, "ignore_eos": True}
    body["temperature"] = 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        answer = await response.json()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {answer}")
        return int(answer["usage"]["prompt_tokens"])


async def measure(session: aiohttp.ClientSession, way: Way, number: int) -> None:
    """Ask one round of a way."""
    used, began = cpu_s(way.pid), time.perf_counter()
    await asyncio.gather(
        *(
            _ask(session, way.url, way.asked[i % len(way.asked)], f"Stream {i}.{number}", TOKENS)
            for i in range(STREAMS)
        )
    )
    tokens = STREAMS * TOKENS
    took, spent = time.perf_counter() - began, cpu_s(way.pid) - used
    way.written.append((tokens / took, spent / tokens * 1000))
    used, began, tokens = cpu_s(way.pid), time.perf_counter(), 0
    for i in range(PROMPTS):
        prompt = f"{number}.{i}.{way.name} " * 2 + "one two three four " * (PROMPT_WORDS // 4)
        tokens += await _ask(session, way.url, way.asked[i % len(way.asked)], prompt, 1)
    took, spent = time.perf_counter() - began, cpu_s(way.pid) - used
    way.read.append((tokens / took, spent / tokens * 1000))


def table(ways: Sequence[Way]) -> list[str]:
    """Return a line for each way: its best round, and its CPU time beside the first way's."""
    lines = [f"{'':34}{'written':>10}{'CPU':>12}{'':8}{'prompt':>12}{'CPU':>12}"]
    floor = [min(cpu for _, cpu in rounds) for rounds in (ways[0].written, ways[0].read)]
    for way in ways:
        line = f"{way.name:34}"
        for rounds, least in zip((way.written, way.read), floor, strict=True):
            rate = max(rate for rate, _ in rounds)
            cpu = min(cpu for _, cpu in rounds)
            line += f"{rate:8.0f}/s{cpu:9.2f} ms {cpu / least:6.2f}x"
        lines.append(line)
    return lines


async def main(options: argparse.Namespace) -> None:
    """Start the engines, ask them in turns, print the table."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    model = models.resolve(options.model)
    with tempfile.TemporaryDirectory(prefix="lora-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        maker = [sys.executable, str(ROOT / "ops" / "bench" / "one_word.py")]
        environment = {**os.environ, **services.cpu_environment()}
        given = [str(model.directory), str(folder / "words"), *WORDS]
        subprocess.run([*maker, *given], check=True, env=environment, capture_output=True)
        started = {
            kind: stack.enter_context(engine(folder, kind, model, **more))
            for kind, more in (
                (MERGED, {}),
                ("ours", {}),
                ("no plugin", {"VLLM_PLUGINS": "none"}),
            )
        }
        names = [f"code@{word}" for word in WORDS]
        limits = aiohttp.ClientTimeout(total=None, sock_read=600)
        async with aiohttp.ClientSession(timeout=limits) as session:
            for kind, (url, _) in started.items():
                await _until_up(session, url, folder / f"{kind}.log")
                for word, adapter in zip(WORDS, names, strict=True):
                    if kind != MERGED:
                        body = {"lora_name": adapter, "lora_path": str(folder / "words" / word)}
                        async with session.post(f"{url}/v1/load_lora_adapter", json=body) as reply:
                            reply.raise_for_status()
            ways = [Way("one adapter, merged", *started[MERGED], (model.name,))]
            for kind in ("ours", "no plugin"):
                ways += [
                    Way(f"{kind}: base alone", *started[kind], (model.name,)),
                    Way(f"{kind}: one adapter", *started[kind], (names[0],)),
                    Way(f"{kind}: base and two adapters", *started[kind], (model.name, *names)),
                ]
            for way in ways:  # warm
                await measure(session, way, -1)
                way.written.clear()
                way.read.clear()
            for number in range(options.rounds):
                for way in ways:
                    await measure(session, way, number)
    print(*table(ways), sep="\n", flush=True)


# --- the layers alone -------------------------------------------------------------------------

SHAPES = (
    ("SmolLM2-135M", 576, 576, 192, 1536),
    ("Qwen2.5-Coder-0.5B", 896, 896, 128, 4864),
)
"""Name, hidden size, and the widths of queries, keys (as values) and the middle of the MLP."""


def _least_ms(work: Callable[[], object], times: int) -> float:
    work()
    least = float("inf")
    for _ in range(times):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
    return least * 1000


def layers() -> None:
    """Print what adapters add to one transformer layer's products: vLLM's code and ours."""
    import torch
    from vllm.lora.layers.utils import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU as Ours

    from ops import engine_plugin

    methods = ("update_metadata", "add_lora_linear")
    upstream = type("Upstream", (Ours,), {name: getattr(Ours, name) for name in methods})
    engine_plugin.register()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(f"{'':32}{'layers':>10}   {'one adapter: vLLM, ours':26} base and two: vLLM, ours")
    for name, hidden, queries, keys, middle in SHAPES:
        shapes = (
            (hidden, (queries, keys, keys)),
            (queries, (hidden,)),
            (hidden, (middle, middle)),
            (middle, (hidden,)),
        )
        half = torch.bfloat16
        weights = [torch.randn(sum(outs), width, dtype=half) for width, outs in shapes]
        a = [[torch.randn(3, 1, 16, width, dtype=half)] * len(outs) for width, outs in shapes]
        b = [[torch.randn(3, 1, out, 16, dtype=half) for out in outs] for _, outs in shapes]
        for tokens in (1, 8, 32, 256):
            x = [torch.randn(tokens, width, dtype=half) for width, _ in shapes]
            y = [torch.zeros(tokens, sum(outs), dtype=half) for _, outs in shapes]

            def plain(x: Any = x, weights: Any = weights) -> None:
                for given, weight in zip(x, weights, strict=True):
                    torch.nn.functional.linear(given, weight)

            times = 40 if tokens < 64 else 8
            floor = _least_ms(plain, times)
            line = f"{name:20}{tokens:5} tokens{floor:9.2f} ms"
            for ids in ([11] * tokens, [(11, 0, 12)[i % 3] for i in range(tokens)]):
                for kind in (upstream, Ours):
                    wrapper = kind(2048, 2048, "cpu")
                    mapping = LoRAMapping(tuple(ids), tuple(ids), is_prefill=True)
                    wrapper.update_metadata(mapping, [11, 12, 13], 4, 49152)

                    def add(
                        w: Any = wrapper, y: Any = y, x: Any = x, a: Any = a, b: Any = b
                    ) -> None:
                        for out, given, one, two in zip(y, x, a, b, strict=True):
                            sizes = [part.size(2) for part in two]
                            w.add_lora_linear(out, given, one, two, 1.0, sizes)

                    line += f"{_least_ms(add, times) / floor:+12.0%}"
            print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="starter-small", help="starter-small, starter, …")
    parser.add_argument("--layers", action="store_true", help="the layers alone, no engine")
    return parser.parse_args()


if __name__ == "__main__":
    # As Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    given = _options()
    if given.layers:
        layers()
    else:
        asyncio.run(main(given))
