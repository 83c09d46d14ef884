"""Memory that is free now: of this machine, of the group of processes it is in, and of its GPU.

Nothing is reserved: what is free may be taken by the next who asks.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

GIB = 1 << 30
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Return how much a new process could take: the least of the machine's and the group's."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.M)
    machine = int(found[1]) * 1024 if found else 0
    try:
        most = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        # Files that were read stay in memory until somebody needs the room.
        cached = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):
        return machine  # no group, or one without numbers
    if not most.isdecimal():
        return machine
    return min(machine, int(most) - used + (int(cached[1]) if cached else 0))


def gpu_bytes() -> tuple[int, int]:
    """Return free and total memory of the first GPU; zeros where `nvidia-smi` tells of none."""
    query = ["nvidia-smi", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        free, total = done.stdout.splitlines()[0].split(",")
        return int(free) << 20, int(total) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0, 0
