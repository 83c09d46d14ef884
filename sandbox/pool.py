"""A pool of warm sandboxes for services, and one program at a time for scripts.

    async with Pool(workers=2) as pool:
        run = await pool.run(code, entry="f", calls=[[1, 2]])
        verification = await pool.check(code, spec)

The pool picks the strongest tier whose self-test passes, hands each request an idle zygote with a
child already locked down, replaces zygotes on schedule and after any doubt, and retries a request
once when the sandbox itself failed. A program failing is a result; an exception here is never the
program's fault.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from sandbox import describe as descriptions
from sandbox import values
from sandbox.errors import SandboxError, SandboxReset, SandboxUnavailable
from sandbox.examiner import Examiner
from sandbox.probes import PROBES, Probe
from sandbox.runner import MAX_SOURCE, Config, Zygote
from sandbox.spec import Spec
from sandbox.types import Limits, Run, Tier, Verdict, Verification

log = logging.getLogger("journeyman.sandbox")

T = TypeVar("T")
RECYCLE_RUNS = 1000
HOME_PREFIX = "journeyman-sandbox-"
UNSAFE_VARIABLE = "UNSAFE_EXEC"
UNSAFE_WORD = "i-understand"
PROBE_LIMITS = Limits(wall_s=10.0)


@dataclass
class _Slot:
    number: int
    config: Config
    zygote: Zygote | None = None
    successor: asyncio.Task[Zygote | None] | None = None


@dataclass
class _Counters:
    runs: int = 0
    retries: int = 0
    failures: int = 0
    restarts: int = 0
    recycled: int = 0
    waiting: int = 0
    self_tests: int = 0
    extra: dict[str, float] = field(default_factory=dict)


class Pool:
    """Warm sandboxes, one run each at a time. Enter it before use.

    Args:
        workers: How many programs run at once.
        limits: For every run that does not bring its own.
        min_tier: Weakest acceptable isolation.
        allow_unsafe: Permit running without any isolation where no tier passes its self-test.
            Works only together with the environment variable `UNSAFE_EXEC=i-understand`, is
            logged as an error, and every result carries `Tier.NONE`. Not for HTTP parameters.
        imports: Modules that are loaded before programs run.
        runtime: Command of a stronger runtime (`("runsc", …, "do")`), tried first.
        tiers: Which tiers to try, strongest first; for tests and for ruling one out.
        recheck_s: Seconds between repetitions of the self-test; 0 for never.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        limits: Limits | None = None,
        min_tier: Tier = Tier.PROCESS,
        allow_unsafe: bool = False,
        imports: Sequence[str] = ("numpy", "pandas"),
        runtime: Sequence[str] = (),
        tiers: Sequence[Tier] | None = None,
        recheck_s: float = 600.0,
    ) -> None:
        if workers < 1:
            raise ValueError("a pool needs at least one worker")
        self.workers = workers
        self.limits = limits or Limits()
        self.min_tier = min_tier
        self.imports = tuple(imports)
        self.recheck_s = recheck_s
        self._allow_unsafe = allow_unsafe
        self._runtime = tuple(runtime)
        self._tiers = tiers
        self._tier: Tier | None = None
        self._slots: list[_Slot] = []
        self._idle: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()
        self._test_slots: list[_Slot] = []
        self._test_idle: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._home = ""
        self._home_lock = -1
        self._count = _Counters()
        self._unfit: SandboxUnavailable | None = None
        self._watch: asyncio.Task[None] | None = None
        self._retired: list[Zygote] = []
        self._closing = False
        self._canary = ""
        self._secret = ""

    # --- life ---

    async def __aenter__(self) -> Self:
        self._home, self._home_lock = _make_home()
        self._plant_canary()
        try:
            first = await self._choose_tier()
            self._slots = [self._slot(number, first.config.tier) for number in range(self.workers)]
            self._slots[0].zygote = first
            for slot in self._slots:
                self._idle.put_nowait(slot)
            others = [self._restart(slot) for slot in self._slots[1:]]
            for outcome in await asyncio.gather(*others, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        except BaseException:
            await self.__aexit__()
            raise
        if self.recheck_s > 0 and self.tier is not Tier.NONE:
            self._watch = asyncio.create_task(self._recheck(), name="sandbox-self-test")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        while self._tasks:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        slots = [*self._slots, *self._test_slots]
        zygotes = [slot.zygote for slot in slots if slot.zygote is not None] + self._retired
        for slot in slots:
            if slot.successor is not None and slot.successor.done():
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    successor = slot.successor.result()
                    zygotes += [successor] if successor is not None else []
        await asyncio.gather(*(zygote.close() for zygote in zygotes), return_exceptions=True)
        self._slots, self._test_slots = [], []
        if self._home:
            shutil.rmtree(self._home, ignore_errors=True)
            os.close(self._home_lock)
            self._home = ""

    @property
    def tier(self) -> Tier:
        """The isolation in use.

        Raises:
            SandboxUnavailable: before the pool was entered.
        """
        if self._tier is None:
            raise SandboxUnavailable("the pool is not open")
        return self._tier

    def process_ids(self) -> tuple[int, ...]:
        """The processes that were started directly, one for each zygote there is now."""
        slots = (*self._slots, *self._test_slots)
        return tuple(slot.zygote.pid for slot in slots if slot.zygote is not None)

    def gauges(self) -> dict[str, float]:
        """Numbers for metrics, by name; the totals count from the pool's start."""
        count = self._count
        return {
            "workers": self.workers,
            "idle": self._idle.qsize(),
            "waiting": count.waiting,
            "tier": int(self._tier or 0),
            "runs_total": count.runs,
            "retries_total": count.retries,
            "failures_total": count.failures,
            "restarts_total": count.restarts,
            "recycled_total": count.recycled,
            "self_tests_total": count.self_tests,
        }

    # --- what callers do ---

    async def run(
        self,
        code: str,
        *,
        entry: str | None = None,
        calls: Sequence[Sequence[Any] | Mapping[str, Any]] = (),
        stdin: str | None = None,
        variables: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        setup: str | None = None,
        limits: Limits | None = None,
        describe: bool = False,
        seed: int | None = None,
    ) -> Run:
        """Run one program; it failing is a result.

        With `entry` or `calls` the program is loaded as a module and its function is called;
        with `variables`, `outputs` or `describe` it runs as a notebook cell; else as a script.

        Args:
            code: Python source, from anybody.
            entry: The function to call; left out, the one that fits the arguments.
            calls: Positional arguments (a list) or keyword arguments (a mapping) of each call.
            stdin: Text for a script's standard input.
            variables: Plain Python values defined before a cell runs, or records of `values`.
            outputs: Names to read after a cell.
            setup: Code that runs before a cell in the same namespace.
            limits: Instead of the pool's.
            describe: Run twice and describe what went in and came out (`Run.description`).
            seed: Seed of `random` and numpy's global generator; fresh ones without it.

        Returns:
            The run.

        Raises:
            SandboxError: when the sandbox failed twice in a row.
            ValueError: when an argument cannot be written as JSON (the caller's fault).
        """
        limits = limits or self.limits
        if len(code) > MAX_SOURCE:
            text = f"the source is longer than {MAX_SOURCE} characters"
            return Run(Verdict.ERROR, self.tier, "SyntaxError", text)
        cell = bool(variables or outputs or setup or describe)
        job = {
            "mode": "cell" if cell else "calls" if entry or calls else "script",
            "code": code,
            "setup": setup,
            "variables": {k: values.encode(v, strict=True) for k, v in (variables or {}).items()},
            "outputs": list(outputs),
            "describe": describe,
            "seed": seed,
        }
        frames = [_call_frame(entry, call) for call in calls]
        used: list[Zygote] = []

        async def work(zygote: Zygote) -> Run:
            used.append(zygote)
            execution = await zygote.begin(job, limits, stdin)
            if frames:
                execution.feed({"calls": frames, "last": True})
            execution.finish()
            await execution.collect(len(frames))
            return await execution.end()

        run = await self._lend(work)
        if describe and run.verdict is Verdict.OK and run.description is not None:
            second = await self._lend(work, avoid=used[-1])
            merged = descriptions.merge(run.description, second.description)
            merged.update(stdout=run.stdout[:2000], stderr=run.stderr[:2000])
            merged.update(duration_s=run.duration_s, tier=self.tier.label)
            run = _with_description(run, merged)
        return run

    async def check(
        self, code: str, spec: Spec, *, limits: Limits | None = None, stop_early: bool = False
    ) -> Verification:
        """Check one program against a specification, hidden examples included.

        Args:
            code: Python source, from anybody.
            spec: What is asked for.
            limits: For each run of the check, instead of the pool's.
            stop_early: Stop at the first failure; the totals still count everything.

        Raises:
            SandboxError: when the sandbox failed twice in a row.
        """
        if len(code) > MAX_SOURCE:
            # Checked like any program that fails, rather than cut and run.
            code = f"raise SyntaxError('the source is longer than {MAX_SOURCE} characters')"
        examiner = Examiner(
            code,
            spec,
            limits or self.limits,
            tier=self.tier,
            lend=self._lend,
            lend_for_test=self._lend_for_test,
            stop_early=stop_early,
        )
        return await examiner.check()

    async def self_test(self, probes: Sequence[Probe] = PROBES) -> dict[str, str]:
        """Run the probes in an idle sandbox now.

        Returns:
            What was seen, by probe name; `held` is right for every one of them.
        """
        return await self._lend(lambda zygote: self._probe(zygote, probes))

    # --- slots ---

    def _slot(self, number: int, tier: Tier) -> _Slot:
        return _Slot(number, self._config(tier, number))

    def _config(self, tier: Tier, number: int) -> Config:
        scratch = os.path.join(self._home, f"slot-{number}-{secrets.token_hex(4)}")
        return Config(
            tier,
            uid=60_000 + (os.getpid() * 16 + number) % 5_000,
            scratch=scratch,
            imports=self.imports,
            command=self._runtime if tier is Tier.RUNTIME else (),
        )

    async def _start(self, config: Config) -> Zygote:
        if self._closing:
            # Work that was cancelled just before may still want to tidy up its slot.
            raise SandboxError("the pool is closed")
        os.makedirs(config.scratch, mode=0o700, exist_ok=True)
        zygote = Zygote(config)
        await zygote.start()
        zygote.arm(self.limits)
        return zygote

    async def _restart(self, slot: _Slot) -> Zygote:
        """Give a slot a new zygote; the old one is killed first."""
        old, slot.zygote = slot.zygote, None
        if old is not None:
            self._count.restarts += 1
            await old.close()
            shutil.rmtree(slot.config.scratch, ignore_errors=True)
        slot.config = self._config(slot.config.tier, slot.number)
        slot.zygote = await self._start(slot.config)
        return slot.zygote

    async def _take(self, idle: asyncio.LifoQueue[_Slot]) -> _Slot:
        self._count.waiting += 1
        try:
            return await idle.get()
        finally:
            self._count.waiting -= 1

    @contextlib.asynccontextmanager
    async def _leased(
        self,
        idle: asyncio.LifoQueue[_Slot],
        avoid: Zygote | None = None,
        *,
        fresh: bool = False,
    ) -> AsyncIterator[Zygote]:
        """An idle zygote for one piece of work; whatever happens, the slot comes back clean.

        With `fresh` it is started for this work: whatever killed one zygote may have killed the
        others in the same moment, before anybody could notice.
        """
        if self._unfit is not None:
            raise self._unfit
        if not self._slots or self._closing:
            raise SandboxError("the pool is closed")
        slot = await self._take(idle)
        if slot.zygote is avoid and avoid is not None and idle.qsize():
            other = idle.get_nowait()
            idle.put_nowait(slot)
            slot = other
        clean = False
        try:
            zygote = slot.zygote
            if zygote is None or zygote.lost or zygote is avoid or fresh:
                zygote = await self._restart(slot)
            self._count.runs += 1
            yield zygote
            clean = True
        finally:
            if self._closing:
                pass
            elif clean and slot.zygote is not None and not slot.zygote.lost:
                self._give_back(slot, idle)
            else:
                self._spawn(self._recover(slot, idle), f"sandbox-recover-{slot.number}")

    def _give_back(self, slot: _Slot, idle: asyncio.LifoQueue[_Slot]) -> None:
        zygote = slot.zygote
        if zygote is not None and zygote.runs >= RECYCLE_RUNS:
            if slot.successor is None:
                config = self._config(slot.config.tier, slot.number)
                slot.successor = self._spawn(self._succeed(config), f"sandbox-next-{slot.number}")
            elif slot.successor.done():
                fresh, slot.successor = slot.successor.result(), None
                if fresh is not None:
                    self._count.recycled += 1
                    self._retired.append(zygote)
                    self._spawn(self._retire(zygote), f"sandbox-retire-{slot.number}")
                    slot.zygote, slot.config = fresh, fresh.config
                    zygote = fresh
        if zygote is not None and zygote.idle:
            # The next child is locked down while nobody waits for it.
            zygote.arm(self.limits)
        idle.put_nowait(slot)

    async def _retire(self, zygote: Zygote) -> None:
        await zygote.close()
        self._retired.remove(zygote)
        shutil.rmtree(zygote.config.scratch, ignore_errors=True)

    async def _succeed(self, config: Config) -> Zygote | None:
        try:
            return await self._start(config)
        except SandboxError as error:
            log.warning("no successor for a zygote: %s", error, extra={"action": "recycle_failed"})
            return None

    async def _recover(self, slot: _Slot, idle: asyncio.LifoQueue[_Slot]) -> None:
        """After a cancelled or failed piece of work: kill what runs, replace what is in doubt."""
        try:
            zygote = slot.zygote
            if zygote is not None and not zygote.lost:
                await zygote.abort()
            if zygote is None or zygote.lost:
                await self._restart(slot)
            elif zygote.idle:
                zygote.arm(self.limits)
        except SandboxError as error:
            # The slot goes back empty: whoever takes it next tries again and gets the error.
            log.error("a slot stays empty: %s", error, extra={"action": "restart_failed"})
        finally:
            idle.put_nowait(slot)

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _lend(
        self, work: Callable[[Zygote], Awaitable[T]], *, avoid: Zygote | None = None
    ) -> T:
        return await self._with_retry(work, self._idle, avoid)

    async def _lend_for_test(self, work: Callable[[Zygote], Awaitable[T]]) -> T:
        # Tests have zygotes of their own, made on demand. A check holds one of these before it
        # asks for one of the others, never the other way round: so nobody waits in a circle.
        if not self._test_idle.qsize() and len(self._test_slots) < self.workers:
            slot = self._slot(100 + len(self._test_slots), self.tier)
            self._test_slots.append(slot)
            self._test_idle.put_nowait(slot)
        return await self._with_retry(work, self._test_idle, None)

    async def _with_retry(
        self,
        work: Callable[[Zygote], Awaitable[T]],
        idle: asyncio.LifoQueue[_Slot],
        avoid: Zygote | None,
    ) -> T:
        try:
            async with self._leased(idle, avoid) as zygote:
                return await work(zygote)
        except SandboxUnavailable:
            raise
        except SandboxError as error:
            self._count.retries += 1
            log.warning("a run is tried again: %s", error, extra={"action": "sandbox_retry"})
        try:
            async with self._leased(idle, fresh=True) as zygote:
                return await work(zygote)
        except SandboxError:
            self._count.failures += 1
            raise

    # --- choosing and re-checking the tier ---

    async def _choose_tier(self) -> Zygote:
        failures: list[str] = []
        for tier in self._candidates():
            zygote = None
            try:
                zygote = await self._start(self._config(tier, 0))
                seen = await self._probe(zygote, PROBES)
            except SandboxError as error:
                failures.append(f"{tier.label}: {error}")
                if zygote is not None:
                    await zygote.close()
                continue
            failed = [
                f"{tier.label}: {name}: {text}" for name, text in seen.items() if text != "held"
            ]
            if not failed:
                self._tier = tier
                log.info("sandbox tier %s", tier.label, extra={"action": "sandbox_tier"})
                return zygote
            failures += failed
            await zygote.close()
        return await self._unsafe(failures)

    def _candidates(self) -> list[Tier]:
        tiers = [Tier.NAMESPACES] if os.getuid() == 0 else []
        tiers += [Tier.USER_NAMESPACE, Tier.PROCESS]
        tiers = [Tier.RUNTIME, *tiers] if self._runtime else tiers
        if self._tiers is not None:
            tiers = list(self._tiers)
        return [tier for tier in tiers if tier >= self.min_tier and tier is not Tier.NONE]

    async def _unsafe(self, failures: list[str]) -> Zygote:
        asked = self._allow_unsafe and self.min_tier <= Tier.NONE
        if not asked or os.environ.get(UNSAFE_VARIABLE) != UNSAFE_WORD:
            needed = f"at least {self.min_tier.label}" if self.min_tier else "any"
            raise SandboxUnavailable(
                f"no isolation ({needed} is wanted) passed its self-test on this machine",
                tuple(failures),
            )
        log.error(
            "PROGRAMS RUN WITHOUT ISOLATION, with the rights of this service: %s and %s=%s are set",
            "allow_unsafe",
            UNSAFE_VARIABLE,
            UNSAFE_WORD,
            extra={"action": "sandbox_unsafe"},
        )
        zygote = await self._start(self._config(Tier.NONE, 0))
        self._tier = Tier.NONE
        return zygote

    async def _probe(self, zygote: Zygote, probes: Sequence[Probe]) -> dict[str, str]:
        facts = {"canary": self._canary, "secret": self._secret, "pid": os.getpid()}
        seen = {}
        self._count.self_tests += 1
        for probe in probes:
            job = {"mode": "calls", "code": probe.code}
            execution = await zygote.begin(job, PROBE_LIMITS, None)
            execution.feed({"calls": [["probe", [facts], {}]], "last": True})
            execution.finish()
            await execution.collect(1)
            run = await execution.end()
            value = run.values[0] if run.values else None
            seen[probe.name] = value if isinstance(value, str) else f"{run.word}: {value!r}"[:300]
            if not probe.works and run.verdict in (Verdict.MEMORY, Verdict.CPU_LIMIT):
                seen[probe.name] = "held"
        return seen

    async def _recheck(self) -> None:
        while True:
            await asyncio.sleep(self.recheck_s)
            try:
                seen = await self.self_test()
            except SandboxError as error:
                log.error("self-test not run: %s", error, extra={"action": "self_test_failed"})
                continue
            failed = tuple(f"{name}: {text}" for name, text in seen.items() if text != "held")
            self._unfit = None
            if failed:
                self._unfit = SandboxUnavailable("the isolation no longer holds", failed)
                log.error("%s", self._unfit, extra={"action": "self_test_failed"})

    def _plant_canary(self) -> None:
        """A private file that no program may read; the self-test tries."""
        self._secret = secrets.token_hex(16)
        self._canary = os.path.join(self._home, "canary")
        descriptor = os.open(self._canary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._secret)


def _make_home() -> tuple[str, int]:
    """A directory of this pool's own, and the descriptor whose lock says that it is in use.

    What pools that were killed left behind is removed on the way.
    """
    # Memory rather than disk for what programs write, where there is such a place.
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    with contextlib.suppress(OSError):
        _sweep(parent)
    home = tempfile.mkdtemp(prefix=HOME_PREFIX, dir=parent)
    os.chmod(home, 0o711)
    # Locked before it has its name: nobody can find it unlocked.
    lock = os.open(f"{home}/lock.new", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(f"{home}/lock.new", f"{home}/lock")
    return home, lock


def _sweep(parent: str) -> None:
    for name in os.listdir(parent):
        home = os.path.join(parent, name)
        if not name.startswith(HOME_PREFIX) or os.lstat(home).st_uid != os.getuid():
            continue
        with contextlib.suppress(OSError), open(f"{home}/lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)


def _call_frame(entry: str | None, call: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    if isinstance(call, Mapping):
        return [entry, [], {key: values.encode(arg, strict=True) for key, arg in call.items()}]
    return [entry, [values.encode(arg, strict=True) for arg in call], {}]


def _with_description(run: Run, description: dict[str, Any]) -> Run:
    from dataclasses import replace

    return replace(run, description=description)


# --- synchronous use ---------------------------------------------------------------------------


class _Shared:
    """One pool in a thread of its own, for scripts; started at the first run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: Pool | None = None

    def pool(self) -> tuple[asyncio.AbstractEventLoop, Pool]:
        with self._lock:
            if self._loop is None or self._pool is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="sandbox", daemon=True)
                thread.start()
                pool = Pool(workers=1, recheck_s=0)
                try:
                    asyncio.run_coroutine_threadsafe(pool.__aenter__(), loop).result()
                except BaseException:
                    loop.call_soon_threadsafe(loop.stop)
                    raise
                self._loop, self._pool = loop, pool
                atexit.register(self.close)
            return self._loop, self._pool

    def close(self) -> None:
        with self._lock:
            if self._loop is not None and self._pool is not None:
                closing = asyncio.run_coroutine_threadsafe(self._pool.__aexit__(), self._loop)
                closing.result(10)
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = self._pool = None


_shared = _Shared()


def run(
    code: str,
    *,
    entry: str | None = None,
    calls: Sequence[Sequence[Any] | Mapping[str, Any]] = (),
    stdin: str | None = None,
    variables: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
    setup: str | None = None,
    limits: Limits | None = None,
    describe: bool = False,
    seed: int | None = None,
) -> Run:
    """Run one program and wait for it: `Pool.run` for scripts and tests.

    The first call starts a pool with one worker in a background thread (about a second); it
    ends with the process. Services use `Pool`.

    Raises:
        SandboxUnavailable: when no isolation passes its self-test here.
        SandboxError: when the sandbox failed twice in a row.
    """
    loop, pool = _shared.pool()
    work = pool.run(
        code,
        entry=entry,
        calls=calls,
        stdin=stdin,
        variables=variables,
        outputs=outputs,
        setup=setup,
        limits=limits,
        describe=describe,
        seed=seed,
    )
    return asyncio.run_coroutine_threadsafe(work, loop).result()


__all__ = ["Pool", "SandboxReset", "run"]
