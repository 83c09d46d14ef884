"""What a process and its descendants take: CPU time and memory, as the kernel counts them.

For the other benches. Linux only (`/proc`); processes that end meanwhile take what they used along.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return a process and its descendants, the sandbox's processes left out."""
    found, left = [], [pid]
    while left:
        one = left.pop()
        with contextlib.suppress(OSError):
            if b"zygote" in Path(f"/proc/{one}/cmdline").read_bytes():
                continue
            found.append(one)
            for task in Path(f"/proc/{one}/task").iterdir():
                left += map(int, (task / "children").read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its descendants have used."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            after_name = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(after_name[11]) + int(after_name[12])
    return total / TICK


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process and its descendants."""
    pages = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
