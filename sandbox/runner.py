"""One zygote as the parent sees it, and one run in it.

The parent decides every verdict: it measures time, counts bytes, reads the kernel's word on how
the process ended, and decodes frames strictly. Order of decision: its own kills, the loss of the
zygote, the kernel's signals, malformed frames, the program's word, a missing `done`.

Not here: which zygote takes which request and what happens after its loss (`pool`), comparing
values (`check`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sandbox import values
from sandbox.errors import SandboxError, SandboxReset
from sandbox.types import Limits, Run, Tier, Verdict

START_S = 30.0
ARM_S = 10.0
SILENCE_S = 3.0
"""A zygote that says nothing this long after its child was killed is itself killed."""
DRAIN_BYTES = 8 << 20
MAX_FRAME = 1 << 20
MAX_FRAMES = 10_000
MAX_SOURCE = 32 << 20
_CHUNK = 1 << 16

_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from sandbox.zygote import main; main(int(sys.argv[1]))"
)
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    # pyarrow, which pandas takes along where it is installed: its allocator keeps a thread, and a
    # zygote with threads cannot be forked safely. The system's allocator keeps none.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


class BadFrame(Exception):
    """The result channel carried something that is not a frame of the protocol."""


class FrameDecoder:
    """Cut a byte stream from an untrusted process into JSON objects.

    Memory is bounded by one frame, time by the bytes received. Whatever is wrong raises `BadFrame`
    and nothing else.
    """

    def __init__(self, max_bytes: int = 4 << 20, max_frames: int = MAX_FRAMES) -> None:
        self._buffer = bytearray()
        self._left = max_bytes
        self._frames_left = max_frames

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Add bytes; return the frames that are complete now.

        Raises:
            BadFrame: at the first malformed, oversized or superfluous frame.
        """
        self._left -= len(data)
        if self._left < 0:
            raise BadFrame("too many bytes of results")
        self._buffer += data
        frames = []
        while len(self._buffer) >= 4:
            size = struct.unpack_from(">I", self._buffer)[0]
            if size > MAX_FRAME:
                raise BadFrame("a frame is too long")
            if len(self._buffer) < 4 + size:
                break
            body = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            self._frames_left -= 1
            if self._frames_left < 0:
                raise BadFrame("too many frames")
            frames.append(_parse(body))
        return frames


def _parse(body: bytes) -> dict[str, Any]:
    try:
        frame = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"a frame is not JSON ({type(error).__name__})") from error
    if not isinstance(frame, dict):
        raise BadFrame("a frame is not an object")
    return frame


def _no_constant(name: str) -> None:
    raise ValueError(name)


def pack(frame: dict[str, Any]) -> bytes:
    """One frame for the child."""
    data = json.dumps(frame).encode("ascii")
    return struct.pack(">I", len(data)) + data


@dataclass(frozen=True, slots=True)
class Config:
    """How a zygote is started.

    Attributes:
        tier: Which walls it builds.
        uid: The uid of its programs, where root can give them one.
        scratch: An empty directory of its own, for tier 1.
        imports: Modules that are loaded before the first fork.
        python: The interpreter; the service's own by default.
        command: The operator's runtime and its arguments, put before the interpreter (tier 4).
    """

    tier: Tier
    uid: int = 60000
    scratch: str = ""
    imports: tuple[str, ...] = ("numpy", "pandas")
    python: str = sys.executable
    command: tuple[str, ...] = ()


class _Sink:
    """Collects a stream up to a cap, then only counts."""

    __slots__ = ("cap", "data", "total")

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.data = bytearray()
        self.total = 0

    def add(self, chunk: bytes) -> None:
        self.total += len(chunk)
        if len(self.data) < self.cap:
            self.data += chunk[: self.cap - len(self.data)]

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


@dataclass
class _Child:
    """The parent's ends of one armed child's pipes, and what came through them."""

    limits: Limits
    stdin: int
    stdout: int
    stderr: int
    code: int
    result: int
    out: _Sink
    err: _Sink
    decoder: FrameDecoder
    frames: deque[dict[str, Any]] = field(default_factory=deque)
    to_code: bytearray = field(default_factory=bytearray)
    to_stdin: bytearray = field(default_factory=bytearray)
    close_code: bool = False
    open: set[int] = field(default_factory=set)
    armed: bool = False
    failed: str | None = None
    bad: str | None = None
    overflow: str | None = None
    exit: dict[str, Any] | None = None
    ended_at: float = 0.0


@dataclass
class Outcome:
    """What one run left, before it becomes a `Run`."""

    timed_out: bool = False
    broken: str | None = None
    done: bool = False
    loaded: bool = False
    raised: tuple[str, str] | None = None
    values: list[object] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    outputs: dict[str, object] = field(default_factory=dict)
    description: dict[str, Any] | None = None
    bad_test: tuple[str, str] | None = None
    unsupported: str | None = None
    result_s: float | None = None


class Zygote:
    """A zygote process and its current child. Not for two tasks at once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.runs = 0
        self._loop = asyncio.get_running_loop()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._child: _Child | None = None
        self._changed = asyncio.Event()
        self._ready = False
        self._failed: str | None = None
        self._lost = False

    @property
    def pid(self) -> int:
        """Process id of the command that was started (in tiers 2 and 3 the zygote's parent)."""
        return self._process.pid if self._process else 0

    @property
    def lost(self) -> bool:
        """Whether it died or was given up."""
        dead = self._process is not None and self._process.poll() is not None
        return self._lost or dead

    @property
    def idle(self) -> bool:
        """Whether it has no child, armed or running."""
        return self._child is None and not self._lost

    async def start(self) -> None:
        """Start the process and wait until it is warm.

        Raises:
            SandboxError: when it cannot build its walls; the text says which step was refused.
        """
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.setblocking(False)
        self._control = here
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        search = [path for path in sys.path if path and os.path.isdir(path)]
        command = [*self.config.command, self.config.python, "-I", "-S", "-B", "-X", "utf8"]
        command += ["-c", _BOOT, str(there.fileno()), package, *search]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(there.fileno(),),
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            here.close()
            raise SandboxError(f"cannot start the zygote: {error}") from error
        finally:
            there.close()
        try:
            await self._warm_up(here)
        except BaseException:
            # Also when whoever waits for it is cancelled: nobody else knows the process.
            self._give_up()
            self._process.wait(SILENCE_S)
            raise

    async def _warm_up(self, here: socket.socket) -> None:
        self._loop.add_reader(here, self._on_control)
        config = {
            "tier": int(self.config.tier),
            "uid": self.config.uid,
            "scratch": self.config.scratch,
            "imports": self.config.imports,
        }
        here.send(json.dumps(config).encode())
        if not await self._wait(lambda: self._ready, self._loop.time() + START_S):
            reason = self._failed or ("it died" if self._lost else "it did not get ready")
            raise SandboxError(f"the zygote did not start: {reason}")

    async def close(self) -> None:
        """Kill it and everything in it, and reap it."""
        self._give_up()
        process = self._process
        if process is None:
            return
        deadline = self._loop.time() + SILENCE_S
        try:
            while process.poll() is None and self._loop.time() < deadline:
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            # It was killed, and a dead process is reaped by nobody else.
            process.wait(SILENCE_S)
            raise
        if process.poll() is None:
            raise SandboxError(f"zygote {process.pid} does not die")

    def _give_up(self) -> None:
        self._lost = True
        if self._child is not None:
            self._close_pipes(self._child)
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._changed.set()

    # --- arming ---

    def arm(self, limits: Limits) -> None:
        """Have the next child forked and locked down, ready to take a program."""
        if self._lost or self._control is None:
            return
        pipes = [os.pipe() for _ in range(5)]
        (in_r, in_w), (out_r, out_w), (err_r, err_w), (code_r, code_w), (res_r, res_w) = pipes
        theirs = [in_r, out_w, err_w, code_r, res_w]
        for descriptor in (in_w, out_r, err_r, code_w, res_r):
            os.set_blocking(descriptor, False)
        child = _Child(
            limits,
            in_w,
            out_r,
            err_r,
            code_w,
            res_r,
            _Sink(limits.stdout_bytes),
            _Sink(limits.stderr_bytes),
            FrameDecoder(limits.result_bytes + 4096),
        )
        child.open = {in_w, out_r, err_r, code_w, res_r}
        message = {"op": "arm", "limits": {k: int(v) for k, v in asdict(limits).items()}}
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], theirs)
        except OSError:
            self._child = child
            self._give_up()
            return
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._child = child
        self._loop.add_reader(res_r, self._on_result, child)
        self._loop.add_reader(out_r, self._on_output, child, out_r, child.out)
        self._loop.add_reader(err_r, self._on_output, child, err_r, child.err)

    async def _armed(self, limits: Limits) -> _Child:
        """The armed child with these limits; one with other limits is replaced.

        Raises:
            SandboxError: when no child gets ready; no program has been sent.
        """
        if self._child is not None and self._child.limits != limits:
            await self.abort()
        if self._child is None:
            self.arm(limits)
        child = self._child
        ok = child is not None and await self._wait(
            lambda: child.armed or child.failed is not None, self._loop.time() + ARM_S
        )
        if child is None or not ok or child.failed is not None:
            said = child.failed if child is not None else None
            reason = (
                said or self._failed or ("the zygote is gone" if self._lost else "it is silent")
            )
            raise SandboxError(f"no child was ready: {reason}")
        return child

    async def abort(self) -> None:
        """Kill the current child, whatever it does, and wait until it is gone."""
        child = self._child
        if child is None:
            return
        if child.exit is None:
            self._kill()
            if not await self._wait(lambda: child.exit is not None, self._loop.time() + SILENCE_S):
                self._give_up()
        self._close_pipes(child)
        self._child = None

    # --- running ---

    async def begin(self, job: dict[str, Any], limits: Limits, stdin: str | None) -> Execution:
        """Send a program to an armed child.

        Raises:
            SandboxError: when there was no child to take it; nothing was run.
        """
        child = await self._armed(limits)
        self.runs += 1
        execution = Execution(self, child, limits)
        self._feed(child, pack(job))
        child.to_stdin += (stdin or "").encode("utf-8", "replace")
        self._pump_stdin(child)
        return execution

    def _feed(self, child: _Child, data: bytes) -> None:
        child.to_code += data
        self._pump_code(child)

    def _pump_code(self, child: _Child) -> None:
        self._pump(child, child.code, child.to_code, self._pump_code)
        if not child.to_code and child.close_code:
            self._close(child, child.code)

    def _pump_stdin(self, child: _Child) -> None:
        self._pump(child, child.stdin, child.to_stdin, self._pump_stdin)
        if not child.to_stdin:
            self._close(child, child.stdin)

    def _pump(
        self, child: _Child, descriptor: int, data: bytearray, again: Callable[[_Child], None]
    ) -> None:
        if descriptor not in child.open:
            data.clear()
            return
        try:
            while data:
                del data[: os.write(descriptor, memoryview(data)[: 1 << 20])]
        except BlockingIOError:
            self._loop.add_writer(descriptor, again, child)
            return
        except OSError:
            # The program closed it or is gone; how it ended is told elsewhere.
            data.clear()
            self._close(child, descriptor)
            return
        self._loop.remove_writer(descriptor)

    def _close(self, child: _Child, descriptor: int) -> None:
        if descriptor in child.open:
            child.open.discard(descriptor)
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
            os.close(descriptor)

    def _close_pipes(self, child: _Child) -> None:
        for descriptor in tuple(child.open):
            self._close(child, descriptor)

    def _kill(self) -> None:
        if self._control is not None:
            try:
                self._control.send(b'{"op": "kill"}')
            except OSError:
                self._give_up()

    # --- callbacks ---

    def _on_control(self) -> None:
        if self._control is None:
            return
        try:
            data = self._control.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._give_up()
            return
        message = json.loads(data)
        if "ready" in message:
            self._ready = True
        elif "failed" in message:
            self._failed = message["failed"]
        elif message["op"] == "exit" and self._child is not None:
            child = self._child
            self._drain(child)
            child.exit = message
            child.ended_at = time.monotonic()
        self._changed.set()

    def _drain(self, child: _Child) -> None:
        """Everything the dead process had written is in the pipes now: read it to the end."""
        if child.result in child.open:
            self._on_result(child)
        for descriptor, sink in ((child.stdout, child.out), (child.stderr, child.err)):
            while descriptor in child.open and self._read(child, descriptor, sink):
                pass

    def _on_result(self, child: _Child) -> None:
        while child.result in child.open:
            try:
                data = os.read(child.result, _CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(child, child.result)
                break
            try:
                frames = child.decoder.feed(data) if child.bad is None else []
            except BadFrame as error:
                child.bad = str(error)
                self._close(child, child.result)
                self._changed.set()
                break
            for frame in frames:
                if child.armed or child.failed is not None:
                    child.frames.append(frame)
                elif "armed" in frame:
                    child.armed = True
                else:
                    child.failed = str(frame.get("failed"))[:2000]
            if frames:
                self._changed.set()

    def _on_output(self, child: _Child, descriptor: int, sink: _Sink) -> None:
        self._read(child, descriptor, sink)
        if sink.total > sink.cap + DRAIN_BYTES and child.overflow is None:
            child.overflow = "stdout" if sink is child.out else "stderr"
            self._changed.set()

    def _read(self, child: _Child, descriptor: int, sink: _Sink) -> bool:
        try:
            data = os.read(descriptor, 1 << 18)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close(child, descriptor)
            return False
        sink.add(data)
        return True

    async def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait for a condition; False at the deadline or when the zygote is lost."""
        while not condition():
            if self._lost:
                return False
            self._changed.clear()
            left = deadline - self._loop.time()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
        return True


class Execution:
    """One program on its way through a child: feed it, read its frames, end it."""

    def __init__(self, zygote: Zygote, child: _Child, limits: Limits) -> None:
        self._zygote = zygote
        self._child = child
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._last = self._began
        self.deadline = self._loop.time() + limits.wall_s
        self.outcome = Outcome()

    def feed(self, frame: dict[str, Any]) -> None:
        """Send another frame to the child."""
        self._zygote._feed(self._child, pack(frame))

    def finish(self) -> None:
        """Tell the child that nothing more is wanted."""
        self._child.close_code = True
        self._zygote._pump_code(self._child)

    async def frame(self) -> dict[str, Any] | None:
        """The next frame, or None when there will be none (ended, timed out, broken)."""
        child, outcome = self._child, self.outcome
        if outcome.broken is not None or outcome.timed_out:
            return None

        def ready() -> bool:
            ended = child.exit is not None or child.bad is not None or child.overflow is not None
            return bool(child.frames) or ended

        if not await self._zygote._wait(ready, self.deadline):
            outcome.timed_out = not self._zygote.lost
            return None
        if child.overflow is not None or not child.frames:
            return None
        return child.frames.popleft()

    async def collect(self, expected: int, *, upto: str = "done") -> bool:
        """Read frames until `expected` values have come (`upto="values"`) or all is said.

        Returns:
            Whether the program is still going on (False: ended, failed, timed out).
        """
        outcome = self.outcome
        while True:
            if upto == "values" and outcome.loaded and len(outcome.values) >= expected:
                return True
            if outcome.done:
                return False
            frame = await self.frame()
            if frame is None:
                return False
            try:
                self._take(frame, expected)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                outcome.broken = f"malformed result: {error}"[:500]
                return False

    def _take(self, frame: dict[str, Any], expected: int) -> None:
        """Note one frame; anything that does not belong here raises."""
        outcome = self.outcome
        now = time.monotonic()
        if "i" in frame:
            if type(frame["i"]) is not int or frame["i"] != len(outcome.values):
                raise ValueError("a value out of order")
            if not outcome.loaded or len(outcome.values) >= expected:
                raise ValueError("more values than calls")
            if "raised" in frame:
                outcome.values.append(values.CallError(*_pair_of_text(frame["raised"])))
            else:
                outcome.values.append(values.decode(frame["value"]))
            outcome.durations.append(now - self._last)
        elif "loaded" in frame and not outcome.loaded:
            outcome.loaded = True
        elif "raised" in frame and outcome.raised is None:
            outcome.raised = _pair_of_text(frame["raised"])
        elif "output" in frame and len(outcome.outputs) < 1000:
            outcome.outputs[str(frame["output"])] = values.decode(frame["value"])
        elif "description" in frame and isinstance(frame["description"], dict):
            outcome.description = frame["description"]
        elif "bad_test" in frame:
            outcome.bad_test = _pair_of_text(frame["bad_test"])
            outcome.done = True
        elif "unsupported" in frame:
            outcome.unsupported = str(frame["unsupported"])[:500]
            outcome.done = True
        elif "done" in frame:
            outcome.done = True
            outcome.result_s = now - self._began
        else:
            raise ValueError("an unknown frame")
        self._last = now

    async def end(self, *, kill: bool = False) -> Run:
        """Wait until the process is dead (killing it where it must be) and give the verdict.

        Raises:
            SandboxReset: when the zygote was lost meanwhile.
        """
        zygote, child, outcome = self._zygote, self._child, self.outcome
        self.finish()
        broken = outcome.broken or child.bad or child.overflow
        if not (kill or broken or outcome.timed_out):

            def settled() -> bool:
                return child.exit is not None or child.overflow is not None

            if not await zygote._wait(settled, self.deadline):
                outcome.timed_out = not zygote.lost
        if child.exit is None and not zygote.lost:
            zygote._kill()
            if not await zygote._wait(
                lambda: child.exit is not None, self._loop.time() + SILENCE_S
            ):
                zygote._give_up()
        if child.exit is None:
            raise SandboxReset("the zygote was lost while a program ran")
        zygote._close_pipes(child)
        zygote._child = None
        return self._run(child.exit)

    def _run(self, ended: dict[str, Any]) -> Run:
        child, outcome = self._child, self.outcome
        verdict, error_type, message, number = self._verdict(ended)
        return Run(
            verdict=verdict,
            tier=self._zygote.config.tier,
            error_type=error_type,
            error_message=message,
            signal=number,
            values=tuple(outcome.values),
            durations_s=tuple(outcome.durations),
            outputs=outcome.outputs or None,
            stdout=child.out.text,
            stderr=child.err.text,
            stdout_truncated=child.out.total > child.out.cap,
            duration_s=child.ended_at - self._began,
            result_s=outcome.result_s,
            cpu_s=ended["cpu_s"],
            max_rss_bytes=ended["rss"],
            description=outcome.description,
        )

    def _verdict(self, ended: dict[str, Any]) -> tuple[Verdict, str | None, str | None, int | None]:
        child, outcome, limits = self._child, self.outcome, self._limits
        if outcome.timed_out:
            return Verdict.TIMEOUT, None, f"no end after {limits.wall_s:g} s", None
        if child.overflow is not None:
            return Verdict.OUTPUT_LIMIT, None, f"too much {child.overflow}", None
        if ended["why"] == "scratch":
            return Verdict.OUTPUT_LIMIT, None, "too much in the scratch directory", None
        if ended["why"] == "threads":
            return Verdict.MEMORY, None, "too many threads", None
        broken = child.bad or outcome.broken
        if broken is None and os.WIFSIGNALED(ended["status"]):
            number = os.WTERMSIG(ended["status"])
            spent = ended["cpu_s"] >= limits.cpu_s
            if number == signal.SIGXCPU or (number == signal.SIGKILL and spent):
                return Verdict.CPU_LIMIT, None, f"more than {limits.cpu_s} s of CPU time", None
            if not (outcome.done and number == signal.SIGKILL):
                return Verdict.SIGNAL, None, signal.strsignal(number), number
        if broken is not None:
            return Verdict.BAD_RESULT, None, broken, None
        if outcome.raised is not None:
            kind, text = outcome.raised
            verdict = Verdict.MEMORY if kind == "MemoryError" else Verdict.ERROR
            return verdict, kind, text, None
        if not outcome.done:
            return Verdict.EARLY_EXIT, None, "the program ended the process", None
        for value in outcome.values:
            if isinstance(value, values.CallError):
                verdict = Verdict.MEMORY if value.error_type == "MemoryError" else Verdict.ERROR
                return verdict, value.error_type, value.message, None
        return Verdict.OK, None, None, None


def _pair_of_text(body: Any) -> tuple[str, str]:
    kind, text = body
    if not isinstance(kind, str) or not isinstance(text, str):
        raise TypeError("text was expected")
    return kind[:100], text[:2000]
