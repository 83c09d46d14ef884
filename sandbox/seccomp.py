"""The system-call filter: which calls a program may make, as classic BPF.

Built by hand, so that neither a compiler nor libseccomp is needed. The default answer is EPERM;
a call of another architecture (int 0x80, x32) kills the process. Whoever adds a call here must ask
what it does between two processes of one uid, and what memory it takes that RLIMIT_AS does not
count. Not covered: files (Landlock and mounts do that) and arguments behind pointers.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass

from sandbox.errors import SandboxUnavailable

# name: (x86_64, aarch64); None where the architecture does not have the call.
SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    "access": (21, None),
    "alarm": (37, None),
    "arch_prctl": (158, None),
    "brk": (12, 214),
    "capset": (126, 91),
    "chdir": (80, 49),
    "chmod": (90, None),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "copy_file_range": (326, 285),
    "creat": (85, None),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "epoll_wait": (232, None),
    "eventfd": (284, None),
    "eventfd2": (290, 19),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fadvise64": (221, 223),
    "fallocate": (285, 47),
    "fchdir": (81, 50),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fcntl": (72, 25),
    "fdatasync": (75, 83),
    "fgetxattr": (193, 10),
    "flistxattr": (196, 13),
    "flock": (73, 32),
    "fsetxattr": (190, 7),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "futex": (202, 98),
    "futex_waitv": (449, 449),
    "get_robust_list": (274, 100),
    "getcpu": (309, 168),
    "getcwd": (79, 17),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getgroups": (115, 158),
    "getitimer": (36, 102),
    "getpeername": (52, 205),
    "getpgid": (121, 155),
    "getpgrp": (111, None),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getpriority": (140, 141),
    "getrandom": (318, 278),
    "getresgid": (120, 150),
    "getresuid": (118, 148),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "getsid": (124, 156),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "getxattr": (191, 8),
    "ioctl": (16, 29),
    "kill": (62, 129),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "lgetxattr": (192, 9),
    "listxattr": (194, 11),
    "llistxattr": (195, 12),
    "lseek": (8, 62),
    "lsetxattr": (189, 6),
    "lstat": (6, None),
    "madvise": (28, 233),
    "mincore": (27, 232),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "mmap": (9, 222),
    "mount_setattr": (442, 442),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "msync": (26, 227),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "pause": (34, None),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "pivot_root": (155, 41),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "prlimit64": (302, 261),
    "pselect6": (270, 72),
    "pwrite64": (18, 68),
    "pwritev": (296, 70),
    "pwritev2": (328, 287),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "readv": (19, 65),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "removexattr": (197, 14),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "restart_syscall": (219, 128),
    "rmdir": (84, None),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigpending": (127, 136),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_setaffinity": (203, 122),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "select": (23, None),
    "sendfile": (40, 71),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "setitimer": (38, 103),
    "setrlimit": (160, 164),
    "setxattr": (188, 5),
    "shutdown": (48, 210),
    "sigaltstack": (131, 132),
    "socketpair": (53, 199),
    "stat": (4, None),
    "statfs": (137, 43),
    "statx": (332, 291),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "sysinfo": (99, 179),
    "tgkill": (234, 131),
    "time": (201, None),
    "timerfd_create": (283, 85),
    "timerfd_gettime": (287, 87),
    "timerfd_settime": (286, 86),
    "times": (100, 153),
    "truncate": (76, 45),
    "umask": (95, 166),
    "uname": (63, 160),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "write": (1, 64),
    "writev": (20, 66),
}

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}

_NEVER = frozenset(
    (
        "seccomp",
        "pivot_root",
        "mount_setattr",
        "capset",
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
    )
)
"""In the table for the sandbox's own use, before the filter stands."""
_XATTR = frozenset(name for name in SYSCALLS if name.endswith("xattr"))
_MISSING = frozenset(("clone3", "openat2"))
"""Answered with ENOSYS, so that the C library falls back to calls that can be inspected."""

_EPERM, _ENOTTY, _ENOSYS, _EOPNOTSUPP = 1, 25, 38, 95
_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERRNO = 0x00050000

_LOAD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16
_X32_BIT = 0x40000000
_PID_MARK = 0x7FABCDEF
"""Stands for the process's own pid until the child patches it in."""

_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000
_O_TRUNC, _O_ACCMODE = 0o1000, 3
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)
"""Duplicates, descriptor and status flags, locks; no F_SETOWN, F_SETSIG, leases, pipe sizes."""
_PRCTL = (3, 15, 16)
"""PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME."""
_IOCTL = (0x5401, 0x541B, 0x5450, 0x5451, 0x5421, 0x5413)
"""TCGETS, FIONREAD, FIONCLEX, FIOCLEX, FIONBIO, TIOCGWINSZ."""


@dataclass(frozen=True, slots=True)
class Filter:
    """An assembled filter; `patched` fills in the pid of the process that installs it."""

    program: bytes

    def patched(self, pid: int) -> bytes:
        """The program for one process."""
        return self.program.replace(struct.pack("=I", _PID_MARK), struct.pack("=I", pid))


def number(name: str) -> int:
    """Number of a system call on this machine.

    Raises:
        SandboxUnavailable: on an architecture without a table.
    """
    column = _COLUMN.get(platform.machine())
    value = SYSCALLS[name][column] if column is not None else None
    if value is None:
        raise SandboxUnavailable(f"no system call table for {platform.machine()}: {name}")
    return value


def build(*, landlock_abi: int, machine: str | None = None) -> Filter:
    """Assemble the filter.

    Args:
        landlock_abi: Before ABI 3 Landlock does not know truncation, so it is refused here.
        machine: `x86_64` or `aarch64`; this machine's by default.

    Returns:
        The filter, still without a pid.

    Raises:
        SandboxUnavailable: on any other architecture.
    """
    machine = machine or platform.machine()
    if machine not in _COLUMN:
        raise SandboxUnavailable(f"no system call table for {machine}")
    code = [(_LOAD, 0, 0, _ARCH), (_JEQ, 1, 0, _AUDIT_ARCH[machine]), (_RET, 0, 0, _KILL)]
    code.append((_LOAD, 0, 0, _NR))
    if machine == "x86_64":
        code += [(_JGE, 0, 1, _X32_BIT), (_RET, 0, 0, _KILL)]
    for name, numbers in SYSCALLS.items():
        value = numbers[_COLUMN[machine]]
        if value is None or name in _NEVER:
            continue
        block = _block(name, landlock_abi)
        code.append((_JEQ, 0, len(block), value))
        code += block
    code.append((_RET, 0, 0, _ERRNO | _EPERM))
    return Filter(b"".join(struct.pack("=HBBI", *step) for step in code))


_Step = tuple[int, int, int, int]


def _block(name: str, landlock_abi: int) -> list[_Step]:
    """What happens once the number matched; ends with a return in every branch."""
    if name in _XATTR:
        return [(_RET, 0, 0, _ERRNO | _EOPNOTSUPP)]
    if name in _MISSING:
        return [(_RET, 0, 0, _ERRNO | _ENOSYS)]
    if name == "clone":
        return [
            _argument(0),
            (_JSET, 0, 2, _CLONE_THREAD),
            (_JSET, 1, 0, _CLONE_NEW),
            (_RET, 0, 0, _ALLOW),
            (_RET, 0, 0, _ERRNO | _EPERM),
        ]
    if name in ("kill", "tgkill"):
        return _one_of(0, (_PID_MARK,))
    if name in ("prlimit64", "sched_setaffinity"):
        return _one_of(0, (0,))
    if name == "socketpair":
        # A datagram pair could send to any path socket; a stream pair is connected for good.
        return [
            _argument(0),
            (_JEQ, 0, 4, 1),
            _argument(1),
            (_AND, 0, 0, 0xF),
            (_JEQ, 0, 1, 1),
            (_RET, 0, 0, _ALLOW),
            (_RET, 0, 0, _ERRNO | _EPERM),
        ]
    if name == "fcntl":
        return _one_of(1, _FCNTL)
    if name == "prctl":
        return _one_of(0, _PRCTL)
    if name == "ioctl":
        return _one_of(1, _IOCTL, otherwise=_ENOTTY)
    if landlock_abi < 3:
        if name == "truncate":
            return [(_RET, 0, 0, _ERRNO | _EPERM)]
        if name in ("open", "openat"):
            return [
                _argument(1 if name == "open" else 2),
                (_JSET, 0, 3, _O_TRUNC),
                (_AND, 0, 0, _O_ACCMODE),
                (_JEQ, 0, 1, 0),
                (_RET, 0, 0, _ERRNO | _EPERM),
                (_RET, 0, 0, _ALLOW),
            ]
    return [(_RET, 0, 0, _ALLOW)]


def _argument(position: int) -> _Step:
    """Load the low half of an argument: all that the kernel looks at in these calls."""
    return (_LOAD, 0, 0, _ARGS + 8 * position)


def _one_of(position: int, accepted: tuple[int, ...], otherwise: int = _EPERM) -> list[_Step]:
    steps = [_argument(position)]
    for rank, value in enumerate(accepted):
        steps.append((_JEQ, len(accepted) - rank, 0, value))
    return [*steps, (_RET, 0, 0, _ERRNO | otherwise), (_RET, 0, 0, _ALLOW)]
