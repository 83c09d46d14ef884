"""The self-test of a tier: small programs that must be stopped, and some that must work.

A tier is believed only after these ran in it, on this machine, now: never for a version number.
Each probe defines `probe(facts)` and returns `"held"`, or says what it could do. `facts` names
things of the host that must be out of reach. Where a probe is not stopped, it still does no harm:
it runs on machines whose walls are only being tried.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt.

    Attributes:
        name: What is tried, in a few words.
        code: Defines `probe(facts)`.
        works: Whether this must work (True) or must be stopped (False).
    """

    name: str
    code: str
    works: bool = False


def _stopped(name: str, body: str) -> Probe:
    lines = "\n".join("        " + line for line in body.strip().split("\n"))
    code = (
        "import os, sys, ctypes, socket, errno\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def probe(facts):\n"
        "    try:\n"
        f"{lines}\n"
        "    except (OSError, MemoryError, ValueError) as error:\n"
        "        return 'held'\n"
        "    return did or 'held'\n"
    )
    return Probe(name, code)


STOPPED = (
    _stopped(
        "read a private file of the service",
        "did = open(facts['canary']).read() and 'read it'",
    ),
    _stopped("read the system's password hashes", "did = open('/etc/shadow').read() and 'read it'"),
    _stopped(
        "read the environment of other processes",
        """
did = None
for pid in ('1', 'self', str(os.getppid()), str(facts['pid'])):
    try:
        if facts['secret'].encode() in open(f'/proc/{pid}/environ', 'rb').read():
            did = 'found the secret of ' + pid
    except OSError:
        pass
""",
    ),
    _stopped(
        "find the service's secret in its own environment",
        "did = 'found it' if any(facts['secret'] in v for v in os.environ.values()) else None",
    ),
    _stopped(
        "write into the libraries",
        """
path = os.path.join(os.path.dirname(os.__file__), 'planted.py')
open(path, 'w').close()
os.unlink(path)
did = 'wrote'
""",
    ),
    _stopped(
        "open sockets",
        """
did = None
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 16, 17, 38, 40):
    try:
        socket.socket(family, socket.SOCK_STREAM if family in (2, 10, 1, 40) else socket.SOCK_RAW)
        did = f'opened family {family}'
    except OSError:
        pass
""",
    ),
    _stopped("fork", "pid = os.fork(); pid or os._exit(0); did = 'forked'"),
    _stopped(
        "execute a program",
        """
did = None
before = os.getpid()
for path in ('/bin/true', '/usr/bin/true', sys.executable):
    if os.path.exists(path):
        import subprocess
        try:
            subprocess.run([path, '-c', ''], timeout=2)
            did = 'ran ' + path
        except (OSError, subprocess.SubprocessError):
            pass
""",
    ),
    _stopped(
        "signal other processes",
        """
did = None
for pid in (1, os.getppid(), facts['pid'], -1):
    if pid == os.getpid():
        continue
    try:
        os.kill(pid, 0)
        did = f'could signal {pid}'
    except OSError:
        pass
""",
    ),
    _stopped(
        "change limits and affinity of other processes",
        """
import resource
did = None
for pid in {1, os.getppid(), facts['pid']} - {0}:
    for attempt in (lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE),
                    lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0))):
        try:
            attempt()
            did = f'changed {pid}'
        except OSError:
            pass
""",
    ),
    _stopped(
        "signal by proxy (F_SETOWN)",
        "import fcntl; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getpid()); did = 'set'",
    ),
    _stopped(
        "make namespaces",
        """
did = None
for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000):
    if libc.unshare(flag) == 0:
        did = f'unshared {flag:#x}'
""",
    ),
    _stopped(
        "use kernel keyrings, ptrace, memfd, io_uring, bpf",
        """
import platform
x86 = platform.machine() == 'x86_64'
did = None
numbers = {'add_key': (248, 217), 'keyctl': (250, 219), 'ptrace': (101, 117),
           'memfd_create': (319, 279), 'io_uring_setup': (425, 425), 'bpf': (321, 280),
           'shmget': (29, 194), 'userfaultfd': (323, 282), 'perf_event_open': (298, 241)}
for name, number in numbers.items():
    ctypes.set_errno(0)
    answer = libc.syscall(number[0 if x86 else 1], 0, 0, 0, 0, 0)
    if answer >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        did = f'{name}: {answer}, errno {ctypes.get_errno()}'
""",
    ),
    _stopped("take 2 GB of memory", "block = bytearray(2 << 30); did = 'took it'"),
    _stopped(
        "write a file of 64 MB",
        """
with open('big', 'wb') as file:
    for _ in range(64):
        file.write(bytes(1 << 20))
        file.flush()
did = 'wrote it'
""",
    ),
    _stopped(
        "hold privileges",
        """
did = None
class Header(ctypes.Structure):
    _fields_ = [('version', ctypes.c_uint32), ('pid', ctypes.c_int)]
if libc.setuid(0) == 0 and os.getuid() == 0:
    did = 'became root'
if libc.prctl(39, 0, 0, 0, 0) == 0:
    did = 'no_new_privs is off'
# A file system of no known type: whoever may mount at all hears ENODEV.
libc.mount(b'none', b'.', b'nosuchfs', 0, None)
if ctypes.get_errno() != errno.EPERM:
    did = f'may mount: errno {ctypes.get_errno()}'
""",
    ),
)

WORKS = (
    Probe(
        "group a data frame",
        "def probe(facts):\n"
        "    import pandas as pd\n"
        "    frame = pd.DataFrame({'k': ['a', 'b', 'a'], 'v': [1, 2, 3]})\n"
        "    sums = frame.groupby('k')['v'].sum().to_dict()\n"
        "    return 'held' if sums == {'a': 4, 'b': 2} else repr(sums)\n",
        works=True,
    ),
    Probe(
        "write and read a temporary file",
        "import tempfile\n"
        "def probe(facts):\n"
        "    with tempfile.TemporaryFile() as file:\n"
        "        file.write(b'x' * 100000)\n"
        "        file.seek(0)\n"
        "        return 'held' if len(file.read()) == 100000 else 'short'\n",
        works=True,
    ),
    Probe(
        "import a library that was not loaded yet",
        "def probe(facts):\n"
        "    import csv, sqlite3, decimal, wave, zoneinfo\n"
        "    found = sqlite3.connect(':memory:').execute('select 6 * 7').fetchone()\n"
        "    return 'held' if found == (42,) else repr(found)\n",
        works=True,
    ),
    Probe(
        "use threads",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def probe(facts):\n"
        "    with ThreadPoolExecutor(4) as pool:\n"
        "        total = sum(pool.map(lambda x: x * x, range(8)))\n"
        "    return 'held' if total == 140 else repr(total)\n",
        works=True,
    ),
)

PROBES = (*WORKS, *STOPPED)
