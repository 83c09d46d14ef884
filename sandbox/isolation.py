"""The walls: namespaces, a private root, dropped privileges, Landlock, resource limits.

Pure Python over ctypes: no compiled code, no set-uid program. `enter` and `build_root` run in the
zygote, `lock_down` in each child before it reads a single byte of a program. Which tier is used is
never decided here (`selfcheck` tries them); a step that the machine refuses raises `OSError`.

What is covered: files outside the libraries and the scratch directory, other processes, the
network, kernel keyrings and IPC, privileges, memory, files, threads and CPU time.
What is not: stat() of paths in tier 1 (Landlock does not cover it), CPU side channels, and bugs
of the host kernel, which tiers 1 to 3 share.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sandbox import seccomp
from sandbox.types import Tier

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_NAMESPACES = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_REC, _PRIVATE = 16384, 1 << 18
_DETACH = 2
_AT_RECURSIVE = 0x8000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAP_V3 = 0x20080522
_LAST_CAP = 63

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64")
SYSTEM_DATA = ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime")
_MOUNT_POINTS = ("/mnt", "/media", "/srv", "/run", "/tmp")

_INSIDE_UID = 65534
"""The uid that a tier 2 program sees; outside it is the service's own."""

# Landlock rights, by bit.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _READ_FILE | _READ_DIR | _EXECUTE
_MAKE_CHAR, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15


@dataclass(frozen=True, slots=True)
class Place:
    """Where programs live inside one zygote.

    Attributes:
        tier: Which walls stand.
        parent: Directory under which programs may write; the grant is on it, because Landlock
            rules follow inodes and the scratch directory below is new for every run.
        uid: The uid that programs get, or None to keep the zygote's.
        readable: Paths that programs may read.
    """

    tier: Tier
    parent: str
    uid: int | None
    readable: tuple[str, ...]

    @property
    def scratch(self) -> str:
        """The directory of one run."""
        return f"{self.parent}/tmp"

    @property
    def counts_threads(self) -> bool:
        """Whether the kernel can cap a program's threads: it counts them by uid."""
        return self.uid is not None or self.tier is Tier.USER_NAMESPACE

    @property
    def caps_itself(self) -> bool:
        """Whether the scratch mount and the uid cap everything, so that nobody has to watch."""
        return self.tier.has_namespaces


def enter(tier: Tier) -> None:
    """Leave the host's namespaces; the next fork is pid 1 of the new ones (tiers 2 and 3).

    Raises:
        OSError: when the machine does not allow it.
    """
    if tier is Tier.USER_NAMESPACE:
        uid, gid = os.getuid(), os.getgid()
        _unshare(_NEWUSER | _NAMESPACES)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{_INSIDE_UID} {uid} 1")
        _write("/proc/self/gid_map", f"{_INSIDE_UID} {gid} 1")
    elif tier is Tier.NAMESPACES:
        _unshare(_NAMESPACES)
    if tier.has_namespaces:
        # Only hides names; kernels without cgroup namespaces lose nothing else.
        with contextlib.suppress(OSError):
            _unshare(_NEWCGROUP)


def build_root(libraries: Sequence[str]) -> Place:
    """Build a private root with the libraries, five devices and a scratch mount, and move in.

    Args:
        libraries: Directories of the interpreter and its packages, at their own paths.

    Returns:
        The place, without tier and uid (the caller knows them).

    Raises:
        OSError: when the machine does not allow it.
    """
    sources = [path for path in (*SYSTEM_LIBRARIES, *libraries) if os.path.isdir(path)]
    sources = _outermost(sources)
    files = [path for path in (*SYSTEM_DATA, *DEVICES) if os.path.exists(path)]
    root = _mount_point(sources)
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID, "size=1m,nr_inodes=2k,mode=755")
    for path in sources:
        if os.path.islink(path):
            _link(path, root)
            continue
        os.makedirs(root + path, exist_ok=True)
        _bind(path, root + path, _RDONLY | _NOSUID | _NODEV)
    for path in files:
        if os.path.exists(root + path):
            continue
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(root + path)
        else:
            os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY, 0o644))
        device = path in DEVICES
        _bind(path, root + path, _NOSUID | (0 if device else _RDONLY | _NODEV))
    os.makedirs(root + "/scratch/tmp")
    # Where the environment itself lies below /tmp that stays a read-only folder: TMPDIR still names
    # the scratch directory.
    if not os.path.exists(root + "/tmp"):
        os.symlink("/scratch/tmp", root + "/tmp")
    os.chdir(root)
    _syscall("pivot_root", b".", b".")
    _umount(".")
    os.chdir("/")
    _mount(None, "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    return Place(Tier.NONE, "/scratch", None, (*sources, *files))


def open_place(libraries: Sequence[str], parent: str) -> Place:
    """A place without namespaces: the host's own paths, walled off by Landlock (tier 1).

    Args:
        libraries: Directories of the interpreter and its packages.
        parent: An empty directory for this zygote alone.
    """
    if os.getuid() == 0:
        # Programs get another uid and must be able to pass through.
        os.chmod(parent, 0o711)
    paths = (*SYSTEM_LIBRARIES, *SYSTEM_DATA, *DEVICES, *libraries)
    return Place(Tier.NONE, parent, None, tuple(path for path in paths if os.path.exists(path)))


def renew_scratch(place: Place, scratch_bytes: int, scratch_files: int) -> None:
    """Give the next run an empty scratch directory; whatever the last one left is gone."""
    if place.tier.has_namespaces:
        while os.path.ismount(place.scratch):
            _umount(place.scratch)
        uid = _INSIDE_UID if place.uid is None else place.uid
        options = f"size={scratch_bytes},nr_inodes={scratch_files + 1},mode=700,uid={uid},gid={uid}"
        _mount("tmpfs", place.scratch, "tmpfs", _NOSUID | _NODEV, options)
        return
    _empty(place.parent)
    os.mkdir(place.scratch, 0o700)
    if place.uid is not None:
        os.chown(place.scratch, place.uid, place.uid)


def _empty(directory: str) -> None:
    """Remove everything below, whatever its depth and permissions; never follows a link.

    The program owned what is in there and is dead by now. Folders are moved up before they are
    emptied, so that neither path lengths nor recursion grow with the depth.
    """
    moved = 0
    while folders := _unlink_files(directory):
        for folder in folders:
            for inner in _unlink_files(folder):
                moved += 1
                os.rename(inner, f"{directory}/.moved-{moved}")
            os.rmdir(folder)


def _unlink_files(directory: str) -> list[str]:
    """Remove the files of one folder; its folders are made accessible and returned."""
    folders = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                folders.append(entry.path)
            else:
                os.unlink(entry.path)
    return folders


def usage(place: Place, max_files: int) -> tuple[int, int]:
    """Bytes and entries below the scratch directory, counted up to `max_files` entries.

    Only tier 1 needs it: elsewhere the mount itself has a size.
    """
    total = count = 0
    try:
        for _, names, files, descriptor in os.fwalk(place.scratch):
            count += len(names) + len(files)
            if count > max_files:
                break
            for name in files:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    total += status.st_blocks * 512
    except OSError:
        # The program is changing the tree under us; the next look will see it.
        pass
    return total, count


# --- the child ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A Landlock ruleset, prepared once in the zygote and entered by every child."""

    descriptor: int
    abi: int


def landlock_abi() -> int:
    """The kernel's Landlock ABI, 0 when there is none."""
    answer = _libc.syscall(
        ctypes.c_long(seccomp.number("landlock_create_ruleset")),
        ctypes.c_void_p(None),
        ctypes.c_size_t(0),
        ctypes.c_uint(1),
    )
    return max(0, int(answer))


def landlock(place: Place) -> Ruleset:
    """Prepare the rules: read the libraries, write below the scratch parent, nothing else.

    Raises:
        OSError: when the kernel has no Landlock.
    """
    abi = landlock_abi()
    if abi < 1:
        raise OSError(95, "the kernel has no Landlock")
    handled = (1 << 13) - 1
    handled |= _REFER if abi >= 2 else 0
    handled |= _TRUNCATE if abi >= 3 else 0
    handled |= _IOCTL_DEV if abi >= 5 else 0
    attributes = struct.pack("=Q", handled)
    if abi >= 4:
        attributes += struct.pack("=Q", 3)
    if abi >= 6:
        attributes += struct.pack("=Q", 3)
    descriptor = _syscall("landlock_create_ruleset", attributes, len(attributes), 0)
    for path in place.readable:
        rights = _READ_FILE | _WRITE_FILE if path in DEVICES else _READ
        _allow(descriptor, path, rights & handled)
    special = _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _MAKE_FIFO | _EXECUTE | _IOCTL_DEV
    _allow(descriptor, place.parent, handled & ~special)
    return Ruleset(descriptor, abi)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
        _syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def limit(limits: dict[str, int], *, count_threads: bool) -> None:
    """Set the resource limits, hard as soft, so that they cannot be raised again.

    Args:
        limits: The integer fields of `types.Limits`.
        count_threads: Whether RLIMIT_NPROC may be used: it counts the uid on the whole machine,
            so only with a uid of one's own.
    """
    hard = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if count_threads:
        hard[resource.RLIMIT_NPROC] = limits["threads"]
    for name, value in hard.items():
        resource.setrlimit(name, (value, value))
    # The soft limit signals (SIGXCPU) a second before the hard one kills: a program that is
    # stopped for its CPU time can be told from one that was killed for something else.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))


def lock_down(place: Place, ruleset: Ruleset | None, filters: seccomp.Filter | None) -> None:
    """Give up every privilege, for good. Order matters: each step needs what the next drops.

    Raises:
        OSError: when any step is refused; the child must then exit without reading a program.
    """
    if place.tier is Tier.NONE:
        return
    if place.uid is not None:
        os.setgroups(())
        os.setresgid(place.uid, place.uid, place.uid)
        # Becoming another user clears the capabilities; the bounding set went before.
        _drop_bounding()
        os.setresuid(place.uid, place.uid, place.uid)
    elif place.tier is Tier.USER_NAMESPACE or os.getuid() == 0:
        _drop_bounding()
    _capset_nothing()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    if ruleset is not None:
        _syscall("landlock_restrict_self", ruleset.descriptor, 0)
        os.close(ruleset.descriptor)
    if filters is None:
        return
    program = filters.patched(os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    header_buffer = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(header_buffer))


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def _drop_bounding() -> None:
    for capability in range(_LAST_CAP + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            error = ctypes.get_errno()
            if error == 22:
                return
            if error == 1:
                # Without CAP_SETPCAP there is nothing to inherit either: no_new_privs follows.
                return
            raise OSError(error, f"PR_CAPBSET_DROP {capability}: {os.strerror(error)}")


def _capset_nothing() -> None:
    _syscall("capset", struct.pack("=Ii", _CAP_V3, 0), bytes(24))


# --- plumbing over libc ------------------------------------------------------------------------


def _outermost(paths: Iterable[str]) -> list[str]:
    """Drop paths that lie below another one in the list; links stay, they are recreated."""
    kept: list[str] = []
    for path in sorted(dict.fromkeys(os.path.normpath(path) for path in paths)):
        if not any(path.startswith(other + "/") for other in kept if not os.path.islink(other)):
            kept.append(path)
    return kept


def _mount_point(sources: Sequence[str]) -> str:
    """A directory to build the new root on that hides none of the sources."""
    for path in _MOUNT_POINTS:
        if os.path.isdir(path) and not os.path.islink(path):
            real = os.path.realpath(path)
            if not any(os.path.realpath(source).startswith(real) for source in sources):
                return path
    raise OSError(2, "no directory to build the private root on")


def _link(path: str, root: str) -> None:
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    os.symlink(os.readlink(path), root + path)


def _bind(source: str, target: str, flags: int) -> None:
    _mount(source, target, None, _BIND | _REC)
    attributes = flags & (_RDONLY | _NOSUID | _NODEV | _NOEXEC)
    setting = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall("mount_setattr", -100, target.encode(), _AT_RECURSIVE, setting, len(setting))


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    data = options.encode() if options else None
    if _libc.mount(encoded[0], encoded[1], encoded[2], flags, data) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source or ''} on {target}: {os.strerror(error)}")


def _umount(target: str) -> None:
    if _libc.umount2(target.encode(), _DETACH) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"umount {target}: {os.strerror(error)}")


def _unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"unshare({flags:#x}): {os.strerror(error)}")


def _prctl(option: int, value: int, third: int = 0) -> None:
    if _libc.prctl(option, value, third, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def _syscall(name: str, *arguments: int | bytes) -> int:
    converted = [
        ctypes.c_char_p(arg) if isinstance(arg, bytes) else ctypes.c_long(arg) for arg in arguments
    ]
    answer = int(_libc.syscall(ctypes.c_long(seccomp.number(name)), *converted))
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return answer


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def library_dirs(search_path: Sequence[str]) -> Iterator[str]:
    """The directories of a Python search path that hold installed libraries.

    Everything else on it (a checkout, the current directory) stays out of sight of programs.
    """
    standard = os.path.dirname(os.__file__)
    for path in (standard, *search_path):
        inside = os.path.basename(path) in ("site-packages", "dist-packages")
        if os.path.isdir(path) and (inside or path == standard or path.startswith(standard + "/")):
            yield path
