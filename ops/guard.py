"""Run one command so that nothing of it outlives its supervisor.

    python -I -S ops/guard.py GRACE_S COMMAND…

`ops.processes` puts one guard before every child. The guard's standard input is a pipe whose other
end only the supervisor holds: when the supervisor ends, however it ends (`kill -9` too), the guard
sees the end of the pipe and stops the command. As a subreaper it inherits every descendant that
loses its parent, so that it finds them all when the command has ended: also those that made
sessions of their own.

SIGTERM and SIGINT are passed on to the command. SIGQUIT kills everything at once. Exits with the
command's status, or 128 + the number of the signal that ended it.

Nothing of ours is imported: it starts in milliseconds and costs a few megabytes.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LEFTOVER_GRACE_S = 3.0
"""What descendants get to end by themselves once the command has ended."""


def main(arguments: list[str]) -> int:
    """Run the command and return its status."""
    grace_s, command = float(arguments[0]), arguments[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Signals that arrive before there is somebody to pass them on to wait for the handlers.
    early = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
    signal.pthread_sigmask(signal.SIG_BLOCK, early)
    child = os.fork()
    if child == 0:
        _become(command, libc)

    def pass_on(number: int, frame: FrameType | None) -> None:
        _signal(child, number)

    def kill(number: int, frame: FrameType | None) -> None:
        _kill_all(child)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGQUIT, kill)
    threading.Thread(target=_watch, args=(child, grace_s), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, early)

    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            break
    _sweep(child)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _become(command: list[str], libc: ctypes.CDLL) -> None:
    """Turn the forked child into the command; never returns."""
    try:
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error}\n".encode())
    finally:
        os._exit(127)


def _watch(child: int, grace_s: float) -> None:
    """Wait for the supervisor's end, then stop the command."""
    while True:
        try:
            if not os.read(0, 1):
                break
        except OSError:
            break
    _signal(child, signal.SIGTERM)
    time.sleep(grace_s)
    _kill_all(child)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_all(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    for pid in _children():
        _signal(pid, signal.SIGKILL)


def _children() -> list[int]:
    """Return the processes whose parent is this one, zombies included."""
    mine = str(os.getpid())
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    # pid (name, which may hold spaces and brackets) state ppid …
                    parent = file.read().rpartition(")")[2].split()[1]
            except (OSError, IndexError):
                continue
            if parent == mine:
                found.append(int(name))
    return found


def _sweep(child: int) -> None:
    """End and collect whatever the command left behind."""
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() > deadline:
                _kill_all(child)  # again and again: orphans come to us one generation at a time
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
