"""The zygote: a warm, single-threaded interpreter that forks one child per run.

Started by `runner` as a command, never imported by a service. It enters its tier, warms the
libraries, and then does three things for ever: fork a child, kill it, reap it. It never reads a
program (the pipe goes straight to the child), so nothing of one request is left in its memory for
the next. In tiers 2 and 3 it is pid 1 of its own pid namespace: when it dies, all die.

Messages on the control socket, JSON, one per packet:

    in   {config}; {"op": "arm", "limits"} with five descriptors; {"op": "kill"}
    out  {"ready"} | {"failed"}; {"op": "exit", "status", "cpu_s", "rss", "why"}
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
from dataclasses import replace
from typing import Any

from sandbox import child, isolation, seccomp
from sandbox.types import Tier

WATCH_S = 0.05
"""How often the scratch directory and threads are looked at where no mount or uid caps them."""
MAX_PACKET = 1 << 16


def main(control_fd: int) -> None:
    """Serve until the control socket closes."""
    control = socket.socket(fileno=control_fd)
    config = json.loads(control.recv(MAX_PACKET))
    isolation.die_with_parent()
    try:
        tier = Tier(config["tier"])
        isolation.enter(tier)
        if tier.has_namespaces and os.fork():
            # What is left here only holds the door: it dies with the service, and the
            # namespace's pid 1 dies with it.
            control.close()
            os._exit(_wait_for_init())
        zygote = Zygote(control, config)
        control.send(json.dumps({"ready": True}).encode())
        zygote.serve()
    except ConnectionError:
        # The service is gone; so is the reason to live.
        os._exit(0)
    except BaseException as error:
        with contextlib.suppress(OSError):
            control.send(json.dumps({"failed": f"{type(error).__name__}: {error}"[:2000]}).encode())
        os._exit(1)
    os._exit(0)


def _wait_for_init() -> int:
    import gc

    gc.collect()
    _, status = os.wait()
    return os.waitstatus_to_exitcode(status) & 0xFF


class Zygote:
    """One warm interpreter in its place, and at most one child."""

    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        tier = Tier(config["tier"])
        self.control = control
        self.child = 0
        self.child_fd = -1
        self.limits: dict[str, int] = {}
        self.why: str | None = None
        if tier.has_namespaces:
            isolation.die_with_parent()
        os.umask(0o022)
        _warm(config["imports"])
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise RuntimeError(f"{threads} threads after the imports: forking would be unsafe")
        libraries = list(isolation.library_dirs(sys.path))
        sys.path[:] = [path for path in sys.path if path in libraries or path.endswith(".zip")]
        own_uid = tier in (Tier.PROCESS, Tier.NAMESPACES, Tier.RUNTIME) and os.getuid() == 0
        uid = config["uid"] if own_uid else None
        if tier.has_namespaces:
            place = isolation.build_root(libraries)
        else:
            if not os.path.isdir(config["scratch"]):
                # A runtime shows its own files, not the service's.
                config["scratch"] = tempfile.mkdtemp()
                tempfile.tempdir = None
            place = isolation.open_place(libraries, config["scratch"])
        self.place = replace(place, tier=tier, uid=uid)
        self.ruleset, self.filters = _walls(self.place)
        os.environ.update(HOME=self.place.scratch, TMPDIR=self.place.scratch)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Take orders and reap, one thing at a time."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        while True:
            watched = self.child and not self.place.caps_itself
            timeout = WATCH_S * 1000 if watched else None
            ready = {descriptor for descriptor, _ in poll.poll(timeout)}
            if self.child and self.child_fd in ready:
                poll.unregister(self.child_fd)
                self._reap()
            if self.control.fileno() in ready:
                message, descriptors = self._receive()
                if message is None:
                    return
                if message["op"] == "arm" and not self.child:
                    self._arm(message["limits"], descriptors)
                    poll.register(self.child_fd, select.POLLIN)
                elif message["op"] == "kill" and self.child:
                    os.kill(self.child, signal.SIGKILL)
            if watched and self.child:
                self._watch()

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        data, ancillary, _, _ = self.control.recvmsg(MAX_PACKET, socket.CMSG_SPACE(5 * 4))
        descriptors = array.array("i")
        for level, kind, body in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(body[: len(body) - len(body) % descriptors.itemsize])
        return (json.loads(data) if data else None), list(descriptors)

    def _arm(self, limits: dict[str, int], descriptors: list[int]) -> None:
        """Fork the next child; it acknowledges on its own result pipe."""
        isolation.renew_scratch(self.place, limits["scratch_bytes"], limits["scratch_files"])
        self.limits = limits
        self.why = None
        pid = os.fork()
        if pid == 0:
            child.live(descriptors, limits, self.place, self.ruleset, self.filters)
        for descriptor in descriptors:
            os.close(descriptor)
        self.child = pid
        self.child_fd = os.pidfd_open(pid)

    def _reap(self) -> None:
        if self.place.tier is Tier.NONE:
            # Without a filter a program can leave processes; those of its own session go with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child, signal.SIGKILL)
        _, status, used = os.wait4(self.child, 0)
        os.close(self.child_fd)
        self.child, self.child_fd = 0, -1
        if self.place.tier.has_namespaces:
            # Nothing can be left (fork is filtered); this is the second lock on that door.
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        message = {
            "op": "exit",
            "status": status,
            "cpu_s": used.ru_utime + used.ru_stime,
            "rss": used.ru_maxrss * 1024,
            "why": self.why,
        }
        self.control.send(json.dumps(message).encode())

    def _watch(self) -> None:
        """Stop a program that fills the disk or the process table (tier 1 has no other cap)."""
        size, files = isolation.usage(self.place, self.limits["scratch_files"])
        if size > self.limits["scratch_bytes"] or files > self.limits["scratch_files"]:
            self.why = "scratch"
        with contextlib.suppress(OSError):
            if len(os.listdir(f"/proc/{self.child}/task")) > self.limits["threads"]:
                self.why = "threads"
        if self.why:
            os.kill(self.child, signal.SIGKILL)


def _walls(place: isolation.Place) -> tuple[isolation.Ruleset | None, seccomp.Filter | None]:
    """Landlock and seccomp for one place.

    Inside an operator's runtime they are extra and may be missing; in tier 0 there are none.
    """
    if place.tier is Tier.NONE:
        return None, None
    try:
        ruleset = isolation.landlock(place)
    except OSError:
        if place.tier is not Tier.RUNTIME:
            raise
        return None, seccomp.build(landlock_abi=0)
    return ruleset, seccomp.build(landlock_abi=ruleset.abi)


def _warm(imports: list[str]) -> None:
    """Load what programs use most, and run the paths that every child would run first.

    pyarrow, which pandas would take along where it is installed, costs a zygote 45 MB and each fork
    half as much time again: pandas does without. A program that imports it finds it.
    """
    without = None if "pyarrow" in imports else "pyarrow"
    if without is not None:
        sys.modules[without] = None  # type: ignore[assignment]
    for name in imports:
        importlib.import_module(name)
    if without is not None:
        del sys.modules[without]
    for name in ("atexit", "threading", "inspect", "random", "re", "math", "collections", "typing"):
        importlib.import_module(name)
    exec(compile("def f(x):\n    return [x]\n", "<warm>", "exec"), {})
    json.loads(json.dumps({"warm": [1, 2.5, None, "text"]}))
    if "pandas" in sys.modules:
        pandas = sys.modules["pandas"]
        frame = pandas.DataFrame({"k": ["a", "b", "a"], "v": [1, 2, 3], "w": [0.5, 1.5, 2.5]})
        frame.groupby("k")["v"].mean()
        frame.groupby("k").agg({"v": "sum", "w": "mean"}).reset_index().sort_values("v")
        frame[frame["v"] > 1].merge(frame, on="k").head()
