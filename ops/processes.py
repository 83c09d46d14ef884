"""The supervisor behind `journeyman up`: engine, server and improver, started, watched, stopped.

Every child runs behind a guard (`ops/guard.py`) in a session of its own, so that a Ctrl-C reaches
only the supervisor, which stops the children in the opposite order of their start, and so that
nothing survives the supervisor, `kill -9` included. A child that ends, or does not answer for
minutes, is started again after a growing pause. What the children are is `ops.services`' matter.

    <data_dir>/run/up.lock    held by the one supervisor of a data directory
    <data_dir>/run/up.json    what runs; `journeyman status` reads it
    <data_dir>/logs/NAME.log  what a child says
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import httpx

from ops.errors import ProcessError
from ops.records import now
from ops.services import Service

_GUARD = Path(__file__).with_name("guard.py")
_MAX_LOG_BYTES = 64 << 20
_TAIL_LINES = 15

Say = Callable[[str], None]


class State(StrEnum):
    """Where a child stands."""

    STARTING = "starting"
    """Its process runs; it is not ready yet."""
    READY = "ready"
    """It answers, or needs no answering."""
    WAITING = "waiting"
    """It ended by itself and will be started again."""
    STOPPED = "stopped"
    """It was never started, or was told to stop."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the supervisor waits for what. Seconds."""

    tick_s: float = 0.2
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    forgive_s: float = 300.0
    """A child that was ready for so long starts over with the first pause."""
    probe_every_s: float = 5.0
    probe_timeout_s: float = 3.0
    silence_s: float = 120.0
    """A child that does not answer for so long is killed and started again. Generous: on few
    cores an engine under full load answers late."""
    hint_s: float = 3.0
    """Into the wait for a child's end, a person is told how to cut it short."""
    orphan_s: float = 10.0
    """What children get to end when the supervisor has died."""


class Child:
    """One service and its process, which comes and goes."""

    def __init__(self, service: Service, log: Path, patience: Patience, say: Say) -> None:
        self.service = service
        self.log = log
        self.state = State.STOPPED
        self.restarts = 0
        self.exit_status: int | None = None
        self._patience = patience
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s = patience.first_pause_s
        self._since = self._probe_at = self._answered_at = self._due = 0.0

    @property
    def pid(self) -> int | None:
        """The guard's process id while the child runs."""
        return self._process.pid if self._process else None

    @property
    def seconds(self) -> float:
        """How long it has been in its state."""
        return time.monotonic() - self._since

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        command = [sys.executable, "-I", "-S", str(_GUARD), str(self._patience.orphan_s)]
        with _open_log(self.log) as log:
            log.write(f"--- {now().isoformat()} {' '.join(self.service.command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [*command, *self.service.command],
                stdin=subprocess.PIPE,  # held open as long as we live: see guard.py
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.service.environment},
                start_new_session=True,
            )
        self.exit_status = None
        self._probe_at = 0.0
        self._enter(State.STARTING)

    def tick(self) -> None:
        """Notice what happened, and do what is due. Never blocks for longer than one probe."""
        if self._process is not None and (status := self._process.poll()) is not None:
            if self.state is State.STOPPED:
                self.exit_status = status
                self._forget()
            else:
                self._ended(status)
        at = time.monotonic()
        if self.state is State.WAITING and at >= self._due:
            self.restarts += 1
            self.start()
        elif self.state is State.STARTING:
            if self._answers(self.service.ready_url):
                self._answered_at = at
                self._enter(State.READY)
            elif self.seconds > self.service.start_timeout_s:
                self._give_up(f"not ready after {self.service.start_timeout_s:.0f} s")
        elif self.state is State.READY:
            if self._answers(self.service.health_url):
                self._answered_at = at
            elif at - self._answered_at > self._patience.silence_s:
                self._give_up(f"no answer for {self._patience.silence_s:.0f} s")
            if self.seconds > self._patience.forgive_s:
                self._pause_s = self._patience.first_pause_s

    def ask_to_stop(self) -> None:
        """Send SIGTERM; a child that is waiting to be started again is simply left alone."""
        if self._process is not None:
            self._process.terminate()
        self._enter(State.STOPPED)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the process and of all it started; False when time is up."""
        if self._process is None:
            return True
        try:
            self.exit_status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._forget()
        return True

    def kill(self) -> None:
        """End the process and all it started, at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            if not self.wait(10):  # the guard itself hangs; its child dies with it
                self._process.kill()
                self.wait(10)
        self._enter(State.STOPPED)

    def tail(self) -> str:
        """Return the last lines of its log."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
            return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
        return ""

    def _ended(self, status: int) -> None:
        self.exit_status = status
        self._forget()
        self._due = time.monotonic() + self._pause_s
        self._say(
            f"{self.service.name} ended with status {status}; starting it again in "
            f"{self._pause_s:.0f} s (its log: {self.log})"
        )
        self._pause_s = min(self._pause_s * 2, self._patience.longest_pause_s)
        self._enter(State.WAITING)

    def _give_up(self, why: str) -> None:
        self._say(f"{self.service.name}: {why}; killing it")
        if self._process is not None:
            process = self._process
            self.kill()
            self._ended(process.returncode or -signal.SIGKILL)

    def _answers(self, url: str | None) -> bool:
        """Whether the service answers 200. Between two probes: whether it did not fail the last."""
        if url is None:
            return True
        at = time.monotonic()
        if at < self._probe_at:
            return False
        ready = self.state is State.READY
        try:
            good = httpx.get(url, timeout=self._patience.probe_timeout_s).status_code == 200
        except httpx.HTTPError:
            good = False
        self._probe_at = time.monotonic() + (self._patience.probe_every_s if ready else 0.0)
        return good

    def _forget(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _enter(self, state: State) -> None:
        self.state = state
        self._since = time.monotonic()


class Supervisor:
    """Starts services in order, keeps them running, stops them in the opposite order.

    Args:
        services: in the order of their start; each waits for the one before to be ready.
        logs: directory of their logs.
        say: is told what a person should know, one line at a time.
        changed: is told that some child's state changed.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        logs: Path,
        say: Say,
        changed: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._logs = logs
        self._say = say
        self._changed = changed
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self.children = [self.apart(service) for service in services]

    def request_stop(self) -> None:
        """Ask `start` or `run` to return soon; asked twice, `stop` does not wait for anybody.

        Safe in a signal handler.
        """
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested."""
        return self._stop.is_set()

    def start(self, waiting: Callable[[Child], None] = lambda child: None) -> None:
        """Start every service and wait until all are ready, or a stop is requested.

        Args:
            waiting: is called again and again with the child that is waited for.

        Raises:
            ProcessError: one ended before it was ready; the message ends with its last words.
                The others run on: call `stop`.
        """
        for child in self.children:
            if self.stopping:
                return
            child.start()
            self._changed()
            while child.state is State.STARTING and not self.stopping:
                self._tick()
                waiting(child)
                self._stop.wait(self._patience.tick_s)
            if child.state is State.WAITING:
                raise ProcessError(
                    f"{child.service.name} did not start: it ended with status "
                    f"{child.exit_status}. Its last words ({child.log}):\n{child.tail()}"
                )

    def run(self, beside: Callable[[], None] = lambda: None) -> None:
        """Watch the children until a stop is requested.

        Args:
            beside: is called after each look at them; it may add and remove some.
        """
        while not self.stopping:
            self._tick()
            beside()
            self._stop.wait(self._patience.tick_s)

    def apart(self, service: Service) -> Child:
        """Return a child that nobody watches: whoever asks for it starts it and sees to its end."""
        name = service.name.replace(" ", "-")
        return Child(service, self._logs / f"{name}.log", self._patience, self._say)

    def add(self, service: Service) -> Child:
        """Start one more service, without waiting for it; it is stopped after all others."""
        child = self.apart(service)
        self.children.insert(0, child)
        child.start()
        self._changed()
        return child

    def remove(self, child: Child) -> None:
        """Watch a child no more that was stopped."""
        self.children.remove(child)
        self._changed()

    def stop(self) -> None:
        """Stop every child, the last started first; kill what does not end in its time."""
        self._stop.set()
        for child in reversed(self.children):
            if child.pid is None:
                continue
            self._say(f"stopping {child.service.name}")
            child.ask_to_stop()
            hinted = False
            while not child.wait(0.1):
                if child.seconds > child.service.stop_timeout_s or self._hurry.is_set():
                    self._say(f"{child.service.name} did not end in its time: killing it")
                    child.kill()
                    break
                if child.seconds > self._patience.hint_s and not hinted:
                    self._say(f"{child.service.name} ends what it has begun; Ctrl-C: end it now")
                    hinted = True
            self._changed()

    def _tick(self) -> None:
        for child in self.children:
            before = child.state
            child.tick()
            if child.state is not before:
                if child.restarts and child.state is State.READY:
                    self._say(f"{child.service.name} is ready again")
                self._changed()


# --- one supervisor for each data directory -------------------------------------------------


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process.

    Raises:
        ProcessError: another `journeyman up` holds it.
    """
    run = data_dir / "run"
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / "up.lock").open("a+")
    except OSError as error:
        raise ProcessError(f"the data directory {data_dir} cannot be used: {error}") from error
    with lock:
        for _ in range(10):  # `read_state` holds it for a moment too
            if held := _try_lock(lock, fcntl.LOCK_EX):
                break
            time.sleep(0.05)
        if not held:
            state = read_state(data_dir) or {}
            where = f" at {state['url']}" if "url" in state else ""
            raise ProcessError(
                f"Journeyman already runs on {data_dir}{where} (process {state.get('pid', '?')}): "
                "see `journeyman status`, or give this one another --data-dir and --port"
            )
        try:
            yield
        finally:
            (run / "up.json").unlink(missing_ok=True)


def read_state(data_dir: Path) -> dict[str, Any] | None:
    """Return what a running `journeyman up` says of itself; None when none runs."""
    run = data_dir / "run"
    try:
        with (run / "up.lock").open() as lock:
            if _try_lock(lock, fcntl.LOCK_SH):
                return None  # nobody holds it: the file was left by a supervisor that was killed
        state: dict[str, Any] = json.loads((run / "up.json").read_text())
    except (OSError, ValueError):
        return None
    return state


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_state(data_dir: Path, state: dict[str, Any]) -> None:
    """Replace what `journeyman status` sees."""
    path = data_dir / "run" / "up.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(state, indent=1, default=str))
    draft.rename(path)


@dataclass(frozen=True, kw_only=True)
class ChildState:
    """A line of `journeyman status`."""

    name: str
    state: State
    pid: int | None
    restarts: int
    log: str


def child_states(supervisor: Supervisor) -> list[dict[str, Any]]:
    """Return what the children are doing, as plain values."""
    return [
        asdict(
            ChildState(
                name=child.service.name,
                state=child.state,
                pid=child.pid,
                restarts=child.restarts,
                log=str(child.log),
            )
        )
        for child in supervisor.children
    ]


def require_port(host: str, port: int, what: str, flag: str) -> None:
    """Refuse a port that is taken, before anything long is started.

    Raises:
        ProcessError: another process listens on it, or it may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a connection that was just closed does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise ProcessError(
                f"port {port} on {host} cannot be used for the {what} ({error.strerror}): "
                f"end what listens there, or choose another with {flag}"
            ) from error


def _open_log(path: Path) -> IO[bytes]:
    """Open a log for appending; one that grew too long is put aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")
