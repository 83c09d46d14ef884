"""Run `python -m sandbox` as if in Docker's default container: no namespaces to be had.

    python hosts.py [arguments of `python -m sandbox`]

Installs a filter that refuses what Docker's default profile refuses without CAP_SYS_ADMIN
(unshare, clone with namespaces, mount, setns, keyctl, …) and, as root, drops to Docker's default
capabilities. Then everything else runs inside, as it would there.
"""

from __future__ import annotations

import ctypes
import os
import platform
import runpy
import struct
import sys

# (x86_64, aarch64) of unshare, mount, umount2, pivot_root, setns, mount_setattr, fsopen,
# open_tree, move_mount, keyctl, add_key, bpf, perf_event_open.
REFUSED = [
    (272, 97),
    (165, 40),
    (166, 39),
    (155, 41),
    (308, 268),
    (442, 442),
    (430, 430),
    (428, 428),
    (429, 429),
    (250, 219),
    (248, 217),
    (321, 280),
    (298, 241),
]
CLONE = (56, 220)
DOCKER_CAPABILITIES = 0xA80425FB


def forbid_namespaces() -> None:
    """Install the container's filter over this process and all that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() == 0:
        for capability in range(64):
            if not DOCKER_CAPABILITIES >> capability & 1:
                libc.prctl(24, capability, 0, 0, 0)
        low = DOCKER_CAPABILITIES & 0xFFFFFFFF
        version = struct.pack("=Ii", 0x20080522, 0)
        number = 126 if platform.machine() == "x86_64" else 91
        if libc.syscall(number, version, struct.pack("=6I", low, low, 0, 0, 0, 0)) != 0:
            raise OSError(ctypes.get_errno(), "capset")
    column = 0 if platform.machine() == "x86_64" else 1
    code = [(0x20, 0, 0, 0)]
    for numbers in REFUSED:
        code += [(0x15, 0, 1, numbers[column]), (0x06, 0, 0, 0x00050001)]
    code += [(0x15, 0, 1, 435), (0x06, 0, 0, 0x00050026)]
    code += [(0x15, 0, 3, CLONE[column]), (0x20, 0, 0, 16), (0x45, 0, 1, 0x7E020000)]
    code += [(0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    program = b"".join(struct.pack("=HBBI", *step) for step in code)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)), 16
    )
    libc.prctl(38, 1, 0, 0, 0)
    if libc.prctl(22, 2, ctypes.c_ulong(ctypes.addressof(header)), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    forbid_namespaces()
    sys.argv = ["python -m sandbox", *sys.argv[1:]]
    runpy.run_module("sandbox", run_name="__main__")
