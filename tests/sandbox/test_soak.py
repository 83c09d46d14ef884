"""Two thousand runs in a row: memory, descriptors and processes stay flat.

`python ops/bench/sandbox.py --soak 10000` does ten thousand.
"""

import asyncio
import gc
import os
import random

import pytest

from sandbox.attacks import ATTACKS
from sandbox.pool import Pool
from sandbox.selfcheck import descendants
from sandbox.types import Limits, Verdict
from tests.sandbox.conftest import Lab

RUNS = 2_000
PART = 400
MIX = ("F02", "F06", "F07", "F10", "K11", "R01", "P03", "S06", "F15", "R23")


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.isolation
def test_thousands_of_runs_leave_nothing_behind(lab: Lab) -> None:
    hostile = [attack.code for attack in ATTACKS if attack.name in MIX]
    source = random.Random(1)
    good = "def f(x):\n    return x * x\n"

    async def work() -> tuple[list[int], list[int], int]:
        async with Pool(workers=2, recheck_s=0, imports=()) as pool:
            gate = asyncio.Semaphore(4)

            async def one(number: int) -> None:
                async with gate:
                    if number % 20 == 7:
                        facts = {"pid": 1, "secret": "s", "round": 0, "canary": "/x"}
                        await pool.run(
                            source.choice(hostile),
                            entry="f",
                            calls=[[facts]],
                            limits=Limits(wall_s=2),
                        )
                        return
                    run = await pool.run(good, entry="f", calls=[[number]])
                    assert run.verdict is Verdict.OK, run
                    assert run.values == (number * number,)

            memory, files = [], []
            for start in range(0, RUNS, PART):
                await asyncio.gather(*(one(n) for n in range(start, start + PART)))
                gc.collect()
                memory.append(resident_bytes())
                files.append(len(os.listdir("/proc/self/fd")))
            return memory, files, len(descendants(*pool.process_ids()))

    memory, files, processes = lab.do(work(), timeout_s=550)
    # The first two parts warm caches up; nothing may grow after that.
    assert memory[-1] - memory[1] < 8 << 20, memory
    assert max(files[1:]) - files[1] <= 24, files
    assert files[-1] - files[1] <= 12, files
    assert processes <= 6
