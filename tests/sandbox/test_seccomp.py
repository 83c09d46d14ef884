"""The filter, interpreted: what each architecture's program answers, call by call."""

import platform
import struct

import pytest

from sandbox import seccomp
from sandbox.errors import SandboxUnavailable

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def interpret(program: bytes, number: int, args: tuple[int, ...], arch: int) -> int:
    """Run classic BPF over one `seccomp_data`."""
    padded = [*args, *(0,) * (6 - len(args))]
    data = struct.pack("<IIQ6Q", number, arch, 0, *(a & 0xFFFFFFFFFFFFFFFF for a in padded))
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, register = 0, 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x20:
            register = struct.unpack_from("<I", data, value)[0]
        elif code == 0x54:
            register &= value
        elif code == 0x15:
            at += yes if register == value else no
        elif code == 0x35:
            at += yes if register >= value else no
        elif code == 0x45:
            at += yes if register & value else no
        elif code == 0x06:
            return value
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


class Judge:
    def __init__(self, machine: str, abi: int = 7) -> None:
        self.machine = machine
        self.program = seccomp.build(landlock_abi=abi, machine=machine).patched(4242)

    def __call__(self, name: str | int, *args: int) -> int | str:
        column = 0 if self.machine == "x86_64" else 1
        number = seccomp.SYSCALLS[name][column] if isinstance(name, str) else name
        assert number is not None
        answer = interpret(self.program, number, args, ARCH[self.machine])
        if answer == ALLOW:
            return "allow"
        return "kill" if answer == KILL else answer & 0xFFFF


@pytest.fixture(params=["x86_64", "aarch64"])
def judge(request: pytest.FixtureRequest) -> Judge:
    return Judge(request.param)


# Numbers from the kernel's tables, kept apart from the module's own: (x86_64, aarch64).
REFUSED = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "ptrace": (101, 117),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "process_vm_readv": (310, 270),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "seccomp": (317, 277),
    "setuid": (105, 146),
    "capset": (126, 91),
    "linkat": (265, 37),
    "mknodat": (259, 33),
    "personality": (135, 92),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setsockopt": (54, 208),
    "rt_sigqueueinfo": (129, 138),
    "tkill": (200, 130),
    "timer_create": (222, 107),
    "inotify_init1": (294, 26),
    "chroot": (161, 51),
    "landlock_create_ruleset": (444, 444),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_dangerous_calls_are_refused(judge: Judge, name: str) -> None:
    number = REFUSED[name][0 if judge.machine == "x86_64" else 1]
    assert judge(number) == 1


def test_fork_is_refused_on_x86() -> None:
    judge = Judge("x86_64")
    assert judge(57) == 1
    assert judge(58) == 1


def test_threads_are_allowed_and_processes_and_namespaces_are_not(judge: Judge) -> None:
    assert judge("clone", 0x3D0F00) == "allow"
    assert judge("clone", 17) == 1
    assert judge("clone", 0x4111) == 1
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge("clone", 0x10F00 | flag) == 1
    assert judge("clone3") == 38


def test_signals_limits_and_affinity_reach_oneself_only(judge: Judge) -> None:
    for name in ("kill", "tgkill"):
        assert judge(name, 4242, 9) == "allow"
        for pid in (1, 0, -1, 4243, 4242 + (1 << 31)):
            assert judge(name, pid, 9) == 1
    for name in ("prlimit64", "sched_setaffinity"):
        assert judge(name, 0) == "allow"
        assert judge(name, 4242) == 1


def test_only_connected_stream_pairs(judge: Judge) -> None:
    assert judge("socketpair", 1, 1) == "allow"
    assert judge("socketpair", 1, 1 | 0o2000000) == "allow"
    assert judge("socketpair", 1, 2) == 1
    assert judge("socketpair", 2, 1) == 1


def test_fcntl_ioctl_and_prctl_by_list(judge: Judge) -> None:
    for command in (0, 1, 2, 3, 4, 5, 6, 7, 1030):
        assert judge("fcntl", 3, command) == "allow"
    for command in (8, 10, 15, 1024, 1026, 1031, 1033):
        assert judge("fcntl", 3, command) == 1
    assert judge("ioctl", 0, 0x5401) == "allow"
    for request in (0x5412, 0x541C, 0x540E, 0x8901):
        assert judge("ioctl", 0, request) == 25
    assert judge("prctl", 15) == "allow"
    for option in (1, 4, 22, 23, 24, 36, 47):
        assert judge("prctl", option) == 1


def test_before_landlock_3_truncation_is_refused_here() -> None:
    for machine in ARCH:
        old, new = Judge(machine, 2), Judge(machine, 3)
        assert (old("truncate"), new("truncate")) == (1, "allow")
        assert old("openat", 0, 0, 0o1000) == 1
        assert old("openat", 0, 0, 0o1001) == "allow"
        assert old("openat", 0, 0, 0) == "allow"
        assert new("openat", 0, 0, 0o1000) == "allow"


def test_foreign_architectures_are_killed(judge: Judge) -> None:
    for arch in (0x40000003, 0x40000028, 0):
        assert interpret(judge.program, 39, (), arch) == KILL
    if judge.machine == "x86_64":
        assert judge(0x40000000 + 39) == "kill"


def test_the_ordinary_is_allowed(judge: Judge) -> None:
    for name in ("read", "write", "openat", "mmap", "futex", "getrandom", "exit_group", "fstat"):
        assert judge(name) == "allow"


def test_every_branch_ends_and_jumps_stay_inside(judge: Judge) -> None:
    for number in range(500):
        judge(number)
    assert len(judge.program) // 8 < 4096


def test_extended_attributes_are_unsupported_rather_than_forbidden(judge: Judge) -> None:
    assert judge("listxattr") == 95


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="riscv"):
        seccomp.build(landlock_abi=7, machine="riscv64")


def test_the_table_agrees_with_this_kernel() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("numbers are looked up for x86_64")
    assert seccomp.number("pivot_root") == 155
    assert seccomp.number("landlock_create_ruleset") == 444
