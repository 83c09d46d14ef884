"""A day in the life of an installation, compressed: users, cycles, crashes, an erasure.

    python ops/bench/day.py [--minutes 25] [--model starter-small] [--data DIR] [--out FILE]

Starts `journeyman up` on an empty data directory and lets simulated users ask with specifications,
say what they think and send their edits, all the while. Two cycles come by the clock; one more is
asked for with a learning rate that ruins its candidate, which must be rejected. The improver is
killed (`kill -9`) in the first, the engine in the second, and when all three have ended one user's
data is erased. The day goes on until all this has happened, `--after` minutes at most, and its
report says of each whether it was seen, what users saw, what was promoted and why, and whether
everything that the server acknowledged is in the record at the end.

What users ask and say is real: rows in the shape of the ILF paper's annotations (`--data` has
`train/ilf_human_feedback.jsonl`; else the small file that ships with the product). That they are
simulated shows in one thing: a person's words and edit are those given on another wrong program for
the same task. Latencies are compared within one run, on the same machine under the same users.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx

from ops.errors import NotFound
from ops.processes import read_state
from ops.records import AdapterState, Cycle, CycleState, Decision, now
from ops.store import Store

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "ops" / "examples" / "feedback.jsonl"
ERASED = "ann"
USERS = ("ben", "cleo", ERASED)
THINK_S = 4.0
TARGET_RATIO = 1.5
RUINOUS = 200.0
"""Times the learning rate of the settings: what comes of it must be rejected."""
ENGINE_CORES = "VLLM_CPU_OMP_THREADS_BIND"
"""vLLM's own variable: the cores it computes on. Threads of one engine wait for each other in every
layer, so that on two cores one for the engine and one for training serves users better."""
STAGES = ("collect", "build", "screen", "dataset", "train", "evaluate", "decide", "release")
CLOCK, API = "schedule", "api"
"""What asks for cycles."""
WANTED = {CLOCK: 2, API: 1}
"""How many cycles a day needs, by what asks for them."""
ENDED = (CycleState.SUCCEEDED, CycleState.SKIPPED, CycleState.FAILED, CycleState.CANCELLED)
JSON = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a user asks for, and what a person said and wrote where a model got it wrong."""

    text: str
    tests: tuple[str, ...]
    words: str
    edit: str


@dataclass(kw_only=True)
class Asked:
    """A request as its user saw it. Times are UTC; `status` 0 means that no answer came."""

    at: datetime
    user: str
    kind: str
    seconds: float
    status: int
    interaction_id: str | None = None
    verified: bool | None = None
    version: int | None = None
    problem: str = ""
    again_s: float = 0.0
    """How long the server asked to wait before the next try."""


@dataclass(kw_only=True)
class Diary:
    """What happened, as told to clients and done by this script."""

    asked: list[Asked] = field(default_factory=list)
    feedback: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Feedback id -> its user and interaction."""
    feedback_failed: int = 0
    events: list[tuple[datetime, str]] = field(default_factory=list)
    outages: list[tuple[datetime, datetime]] = field(default_factory=list)
    certificate: JSON = field(default_factory=dict)

    def note(self, words: str) -> None:
        """Keep an event, and say it."""
        self.events.append((now(), words))
        print(f"{datetime.now().astimezone():%H:%M:%S}  {words}", flush=True)


# --- what users bring -------------------------------------------------------------------------


def read_tasks(path: Path) -> list[Task]:
    """Read rows of the ILF annotations' shape; those that cannot be asked are left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = re.findall(r"^def (\w+)\(", row["prompt"], re.MULTILINE)
        asserts = re.findall(r"^\s+(assert .*)$", row["test"], re.MULTILINE)
        docstring = row["prompt"].split('"""')
        if not name or len(asserts) < 2 or len(docstring) < 3:
            continue
        text = docstring[1].split(">>>")[0].strip()
        tests = tuple(a.replace("candidate(", f"{name[-1]}(") for a in asserts)
        found.append(Task(text=text, tests=tests, words=row["feedback"], edit=row["refinement"]))
    return found


class User:
    """Asks, waits, says what there is to say, thinks, and asks again."""

    def __init__(
        self,
        name: str,
        http: httpx.AsyncClient,
        tasks: Sequence[Task],
        diary: Diary,
        tokens: int,
    ) -> None:
        self._tokens = tokens
        self._name = name
        self._http = http
        self._tasks = tasks
        self._diary = diary
        self._chance = random.Random(name)
        self.gone = asyncio.Event()
        self.ended = asyncio.Event()

    async def live(self) -> None:
        """Use the installation until `gone`."""
        while not self.gone.is_set():
            task = self._chance.choice(self._tasks)
            asked = await self._ask(task)
            self._diary.asked.append(asked)
            if asked.status == 200 and asked.kind == "spec":
                await self._speak(asked, task)
            with contextlib.suppress(TimeoutError):
                pause_s = min(self._chance.expovariate(1 / THINK_S), 4 * THINK_S)
                pause_s = max(pause_s, asked.again_s)
                await asyncio.wait_for(self.gone.wait(), pause_s)
        self.ended.set()

    async def _ask(self, task: Task) -> Asked:
        kind = self._chance.choice(("spec", "spec", "spec", "stream"))
        body: JSON = {
            "model": "code",
            "messages": [{"role": "user", "content": task.text}],
            "max_tokens": self._tokens,
            "temperature": 0.8,
            "user": self._name,
        }
        if kind == "spec":
            *shown, held_back = task.tests
            hidden = {"code": held_back, "hidden": True}
            body["io_spec"] = {"tests": [*shown, hidden], "candidates": 2}
        else:
            body["stream"] = True
        at, began = now(), time.monotonic()
        asked = Asked(at=at, user=self._name, kind=kind, seconds=0.0, status=0)
        try:
            answer = await self._http.post("/v1/chat/completions", json=body)
        except httpx.TransportError as error:
            asked.problem = type(error).__name__
        else:
            self._read(asked, answer)
        asked.seconds = time.monotonic() - began
        return asked

    @staticmethod
    def _read(asked: Asked, answer: httpx.Response) -> None:
        asked.status = answer.status_code
        if answer.status_code != 200:
            asked.problem = answer.text[:200]
            asked.again_s = float(answer.headers.get("retry-after", 0))
            return
        asked.interaction_id = answer.headers["x-journeyman-interaction-id"]
        if asked.kind == "spec":
            whole = answer.json()
            asked.verified = whole["choices"][0]["verification"]["verified"]
            asked.version = whole["adapter"]["version"]
        elif not answer.text.endswith("data: [DONE]\n\n"):
            # Not acknowledged: the stream broke off before its end.
            asked.status, asked.interaction_id, asked.problem = 0, None, "the stream broke off"

    async def _speak(self, asked: Asked, task: Task) -> None:
        said: list[tuple[str, Any]] = [("accepted", bool(asked.verified))]
        if not asked.verified:
            said.append(("comment", task.words))
            if self._chance.random() < 0.5:
                said.append(("demonstration", task.edit))
        for metric, value in said:
            body = {
                "inference_id": asked.interaction_id,
                "metric_name": metric,
                "value": value,
                "user": self._name,
            }
            try:
                answer = await self._http.post("/v1/feedback", json=body)
            except httpx.TransportError:
                self._diary.feedback_failed += 1
                continue
            if answer.status_code == 200 and asked.interaction_id:
                given = answer.json()["feedback_id"]
                self._diary.feedback[given] = (self._name, asked.interaction_id)
            else:
                self._diary.feedback_failed += 1


# --- the installation -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done in a day. `tasks`: what a cycle learns from, and is examined with."""

    minutes: float
    after: float
    """Minutes that are granted to cycles that still run when the day is over."""
    tokens: int
    tasks: int

    def schedule(self, at: datetime) -> str:
        """When the clock asks for cycles, for a day that begins now: soon, then now and again.

        Args:
            at: the time on the clock of this machine.
        """
        every = max(2, round(self.minutes * 0.4))
        first = at + timedelta(minutes=2 + self.minutes * 0.08)
        minutes = {(first.minute + every * n) % 60 for n in range(60 // every)}
        return f"{','.join(str(minute) for minute in sorted(minutes))} * * * *"


class Installation:
    """A running `journeyman up` on a data directory of its own."""

    def __init__(self, data_dir: Path, model: str, plan: Plan) -> None:
        self.data_dir = data_dir
        self.port, engine_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = os.environ | {
            "JOURNEYMAN_DATA_DIR": str(data_dir),
            "JOURNEYMAN_SERVER__PORT": str(self.port),
            "JOURNEYMAN_ENGINE__PORT": str(engine_port),
            "JOURNEYMAN_ENGINE__MODEL": model,
            "JOURNEYMAN_ENGINE__MAX_MODEL_LEN": "2048",
            "JOURNEYMAN_IMPROVER__SCHEDULE": plan.schedule(datetime.now().astimezone()),
            "JOURNEYMAN_IMPROVER__AFTER_FEEDBACK": "100000",
            # So small that a cycle takes minutes; every stage still does its real work.
            "JOURNEYMAN_IMPROVER__ILF__SAMPLES": "2",
            "JOURNEYMAN_IMPROVER__ILF__MAX_INTERACTIONS": str(plan.tasks),
            "JOURNEYMAN_IMPROVER__ILF__MAX_ANSWER_TOKENS": str(plan.tokens),
            "JOURNEYMAN_IMPROVER__ILF__MIN_ROWS": "2",
            "JOURNEYMAN_IMPROVER__ILF__DEMONSTRATIONS": "all",
            "JOURNEYMAN_IMPROVER__TRAIN__LEARNING_RATE": "0.0005",
            "JOURNEYMAN_IMPROVER__TRAIN__MAX_TOKENS": "512",
            "JOURNEYMAN_IMPROVER__GATE__MAX_TASKS": str(plan.tasks),
            # Fewer would not show how far a candidate has gone from the base model.
            "JOURNEYMAN_IMPROVER__GATE__GUARD_TASKS": str(max(6, plan.tasks // 4)),
            "JOURNEYMAN_IMPROVER__GATE__REPLAY_TASKS": str(plan.tasks // 4),
            "JOURNEYMAN_IMPROVER__GATE__MAX_ANSWER_TOKENS": str(plan.tokens),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        with (self.data_dir / "up.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "up"],
                env=self.env,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not self.ready():
            if self._process.poll() is not None:
                words = (self.data_dir / "up.log").read_text()[-2000:]
                raise SystemExit(f"journeyman up ended:\n{words}")
            time.sleep(0.5)

    def ready(self) -> bool:
        """Whether requests would be answered."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready", timeout=10).status_code == 200
        return False

    def command(self, *arguments: str) -> None:
        """Run a command as its user would."""
        subprocess.run(
            [sys.executable, "-m", "ops.cli", *arguments],
            env=self.env,
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def kill(self, name: str) -> None:
        """`kill -9` a service; its supervisor is left to notice."""
        state = read_state(self.data_dir) or {}
        guard = next(s["pid"] for s in state["services"] if s["name"] == name)
        for pid in _children(guard):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(180)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (entry / "stat").read_text(errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the day ----------------------------------------------------------------------------------


class Day:
    """What is done to the installation, and when. Shares are of the day's length."""

    def __init__(self, system: Installation, store: Store, diary: Diary, plan: Plan) -> None:
        self._plan = plan
        self._system = system
        self._store = store
        self._diary = diary
        self._length_s = plan.minutes * 60
        self._began = time.monotonic()

    async def run(self, http: httpx.AsyncClient) -> None:
        """Live through it; ends when the day is over and every cycle has ended."""
        chaos = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("improver", self._kill_improver()),
                ("engine", self._crash_engine()),
                ("bad", self._ask_for_a_bad_candidate(http)),
                ("erasure", self._erase(http)),
                ("cycles", self._tell_cycles()),
            )
        ]
        await asyncio.sleep(self._left(1.0))
        while self._left(1.0, self._plan.after) and not await asyncio.to_thread(self._at_rest):
            await asyncio.sleep(2)
        for task in chaos:
            task.cancel()
        for outcome in await asyncio.gather(*chaos, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def _left(self, share: float, more_minutes: float = 0.0) -> float:
        ends_at = self._began + share * self._length_s + more_minutes * 60
        return max(0.0, ends_at - time.monotonic())

    def _cycles_ended(self) -> bool:
        """Whether the day's cycles have, and none is at work."""
        cycles = self._store.cycles()
        made = Counter(cycle.trigger for cycle in cycles)
        return made >= Counter(WANTED) and all(cycle.state in ENDED for cycle in cycles)

    def _at_rest(self) -> bool:
        erasures = self._store.erasures()
        erased = bool(erasures) and all(e.finished_at is not None for e in erasures)
        return erased and self._cycles_ended()

    async def _scheduled(self, count: int, *, until_s: Callable[[], float]) -> None:
        """Wait until the clock has asked for so many cycles, but not for ever."""
        while until_s():
            cycles = await asyncio.to_thread(self._store.cycles)
            if sum(cycle.trigger == CLOCK for cycle in cycles) >= count:
                return
            await asyncio.sleep(0.5)

    async def _stage(self, *stages: str) -> Cycle:
        """Wait until a cycle is in one of the stages."""
        while True:
            for cycle in await asyncio.to_thread(self._store.cycles, state=CycleState.RUNNING):
                if cycle.stage in stages:
                    return cycle
            await asyncio.sleep(0.5)

    async def _kill_improver(self) -> None:
        await self._stage("build")
        await self._stage("train", "evaluate")
        await asyncio.sleep(2)
        cycle = await self._stage("train", "evaluate", "decide", "release")
        self._system.kill("improver")
        self._diary.note(f"the improver is killed (-9) in stage {cycle.stage}")

    async def _crash_engine(self) -> None:
        await self._scheduled(2, until_s=lambda: self._left(0.7))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stage("train"), max(1.0, self._left(0.7)))
        began = now()
        self._system.kill("engine")
        self._diary.note("the engine is killed (-9)")
        await asyncio.sleep(2)
        while not await asyncio.to_thread(self._system.ready):
            await asyncio.sleep(0.5)
        self._diary.outages.append((began, now()))
        seconds = (now() - began).total_seconds()
        self._diary.note(f"the server is ready again after {seconds:.0f} s")

    async def _ask_for_a_bad_candidate(self, http: httpx.AsyncClient) -> None:
        # Not before the clock has asked twice: it asks for nothing while a cycle waits.
        await self._scheduled(2, until_s=lambda: self._left(0.6))
        body = {
            "model": "code",
            "training_file": "record",
            "hyperparameters": {"learning_rate_multiplier": RUINOUS / 2, "n_epochs": 4},
        }
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await http.post("/v1/fine_tuning/jobs", json=body)
                if answer.status_code == 200:
                    break
                self._diary.note(f"the job was refused: {answer.text[:200]}")
            await asyncio.sleep(2)
        self._diary.note(f"a cycle is asked for that ruins its candidate ({answer.json()['id']})")

    async def _erase(self, http: httpx.AsyncClient) -> None:
        # A cycle that learns from what is erased meanwhile fails, as it should: not here.
        while self._left(1.0, 0.6 * self._plan.after):
            if await asyncio.to_thread(self._cycles_ended):
                break
            await asyncio.sleep(1)
        self.ann.gone.set()
        await self.ann.ended.wait()
        answer = await http.delete(f"/v1/users/{ERASED}/data")
        self._diary.certificate = answer.json()
        state = "finished" if self._diary.certificate.get("finished_at") else "open"
        self._diary.note(f"{ERASED}'s data is erased; the erasure is {state}")

    async def _tell_cycles(self) -> None:
        seen: dict[str, str] = {}
        while True:
            for cycle in reversed(await asyncio.to_thread(self._store.cycles)):
                where = f"{cycle.state} {cycle.stage}".strip()
                if seen.get(cycle.id) != where:
                    seen[cycle.id] = where
                    words = f"cycle …{cycle.id[-4:]} ({cycle.trigger}): {where}"
                    self._diary.note(words + (f" ({cycle.error})" if cycle.error else ""))
            await asyncio.sleep(1)

    ann: User


async def live(system: Installation, store: Store, tasks: Sequence[Task], plan: Plan) -> Diary:
    """Let users and accidents happen."""
    diary = Diary()
    timeout = httpx.Timeout(300, connect=10)
    async with httpx.AsyncClient(base_url=system.url, timeout=timeout) as http:
        users = [User(name, http, tasks, diary, plan.tokens) for name in USERS]
        day = Day(system, store, diary, plan)
        day.ann = users[-1]
        lives = [asyncio.create_task(user.live()) for user in users]
        try:
            await day.run(http)
        finally:
            for user in users:
                user.gone.set()
            await asyncio.gather(*lives)
    return diary


# --- the report -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stage of a cycle, when it ran."""

    stage: str
    begin: datetime
    end: datetime


def spans(store: Store, cycles: Sequence[Cycle]) -> Iterator[Span]:
    """The stages as the cycles' logs tell them, from one line to the next."""
    for cycle in cycles:
        events = store.events(cycle.id)
        for event, following in itertools.pairwise(events):
            stage, _, words = event.message.partition(":")
            if stage in STAGES and not words.startswith((" done", " users", " the engine")):
                yield Span(stage=stage, begin=event.created_at, end=following.created_at)


def lost(store: Store, diary: Diary) -> list[str]:
    """What was acknowledged and is not in the record; of the erased user, what still is."""
    found = []
    known = {f.id for i in store.iter_interactions() for f in store.feedback(i.id)}
    for asked in diary.asked:
        if asked.interaction_id is None:
            continue
        try:
            store.interaction(asked.interaction_id)
            there = True
        except NotFound:
            there = False
        if there is (asked.user == ERASED and bool(diary.certificate)):
            found.append(f"interaction {asked.interaction_id} of {asked.user}")
    for feedback_id, (user, _) in diary.feedback.items():
        if (feedback_id in known) is (user == ERASED and bool(diary.certificate)):
            found.append(f"feedback {feedback_id} of {user}")
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile by rank; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def _latency(name: str, asked: Sequence[Asked]) -> str:
    seconds = [a.seconds for a in asked]
    p50, p95 = quantile(seconds, 0.5), quantile(seconds, 0.95)
    return f"| {name} | {len(seconds)} | {p50:.2f} | {p95:.2f} |"


def report(store: Store, diary: Diary, *, command: str, model: str, minutes: float) -> str:
    """Write what happened, in Markdown."""
    cycles = list(reversed(store.cycles()))
    served = [a for a in diary.asked if a.status == 200]
    failed = [a for a in diary.asked if a.status != 200]
    in_outage = [a for a in failed if _within(a, diary.outages)]
    # An answer that had to wait for the engine's restart says nothing of cycles.
    calm = [a for a in served if a.kind == "spec" and not _within(a, diary.outages)]
    stages = list(spans(store, cycles))
    during = [a for a in calm if any(_overlaps(a, s.begin, s.end) for s in stages)]
    outside = [a for a in calm if not any(_overlaps(a, s.begin, s.end) for s in stages)]
    ratio = quantile([a.seconds for a in during], 0.95) / quantile(
        [a.seconds for a in outside], 0.95
    )
    missing = lost(store, diary)
    statuses = Counter(str(a.status or a.problem) for a in failed)
    words = [
        f"# A day in the life, compressed to {minutes:g} minutes",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, model {model}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[2]:.1f} over the last 15 minutes (other work on the "
        "machine included).",
        "",
        "| what | how many |",
        "|---|---|",
        f"| requests answered | {len(served)} |",
        f"| requests failed | {len(failed)} ({dict(statuses) or 'none'}) |",
        f"| of those while the engine was down | {len(in_outage)} |",
        f"| feedback acknowledged | {len(diary.feedback)} (failed: {diary.feedback_failed}) |",
        f"| acknowledged and not in the record, or erased and still there | {len(missing)} |",
        "",
        "## What a day must hold",
        "",
        "| what | seen |",
        "|---|---|",
        *(f"| {what} | {found or '**not seen**'} |" for what, found in seen(store, diary).items()),
        "",
        "## Latency of requests with a specification, seconds",
        "",
        "| when | requests | p50 | p95 |",
        "|---|---|---|---|",
        _latency("no cycle runs", outside),
        _latency("a cycle runs", during),
        *(
            _latency(
                f"… its stage is {stage}",
                [a for a in calm if any(_overlaps(a, s.begin, s.end) for s in of)],
            )
            for stage in ("build", "train", "evaluate")
            if (of := [s for s in stages if s.stage == stage])
        ),
        "",
        f"p95 during cycles against without: **{ratio:.2f}** (target: at most {TARGET_RATIO}).",
        "",
        *_cycle_lines(store, cycles),
        "",
        "## Verified answers, by what answered",
        "",
        "| adapter | requests | verified |",
        "|---|---|---|",
        *_verified_lines(served),
        "",
        *_before_and_after(store, served),
        "",
        "## What happened",
        "",
        *(f"- {at:%H:%M:%S} {what}" for at, what in diary.events),
        f"- erasure: {_erasure(store)}",
        *(f"- LOST: {line}" for line in missing),
    ]
    return "\n".join(words) + "\n"


def seen(store: Store, diary: Diary) -> dict[str, str]:
    """What a day must hold, and what was seen of it; empty words: nothing."""
    told = [words for _, words in diary.events]
    decided = [c for c in store.cycles() if c.trigger == CLOCK and _decision(c)]
    bad = [c for c in store.cycles() if c.trigger == API and _decision(c) == Decision.REJECT]
    killed = next((words for words in told if words.startswith("the improver is killed")), "")
    again = next((words for words in told if words.startswith("the server is ready again")), "")
    erased = any(erasure.finished_at for erasure in store.erasures())
    promoted = [a.name for a in store.adapters() if _was_promoted(store, a.version)]
    enough = len(decided) >= WANTED[CLOCK]
    return {
        "two scheduled cycles, each to its decision": f"{len(decided)}" if enough else "",
        "a bad candidate, rejected by the gate": _why(bad[0]) if bad else "",
        "a crash of the engine": again,
        "a kill of the improver": killed,
        "an erasure, finished": _erasure(store) if erased else "",
        PROMOTION: ", ".join(promoted),
    }


PROMOTION = "a promotion (the gate's to say, not the day's)"


def _decision(cycle: Cycle) -> str:
    return str(cycle.report.get("decide", {}).get("decision", ""))


def _why(cycle: Cycle) -> str:
    return str(cycle.report.get("decide", {}).get("reason") or cycle.error or "")


def _was_promoted(store: Store, version: int) -> bool:
    return AdapterState.CHAMPION in [t.to_state for t in store.transitions(version)]


def _erasure(store: Store) -> str:
    for erasure in store.erasures():
        ended = f"finished at {erasure.finished_at:%H:%M:%S}" if erasure.finished_at else "OPEN"
        tainted = ", ".join(str(a["name"]) for a in erasure.adapters) or "none"
        return f"{ended}; counts {erasure.counts}; adapters that had learned from it: {tainted}"
    return "none"


def _cycle_lines(store: Store, cycles: Sequence[Cycle]) -> Iterator[str]:
    yield "## Cycles"
    yield ""
    yield "| asked for by | state | adapter | became | why |"
    yield "|---|---|---|---|---|"
    for cycle in cycles:
        became = name = ""
        if cycle.adapter_version is not None:
            adapter = store.adapter(cycle.adapter_version)
            name = adapter.name
            promoted = _was_promoted(store, adapter.version)
            became = "promoted" if promoted else str(adapter.state)
        yield f"| {cycle.trigger} | {cycle.state} | {name} | {became} | {_why(cycle)} |"


def _before_and_after(store: Store, served: Sequence[Asked]) -> Iterator[str]:
    """Verified answers before the first promotion and since the last."""
    at = [
        move.at
        for adapter in store.adapters()
        for move in store.transitions(adapter.version)
        if move.to_state is AdapterState.CHAMPION and move.from_state is not move.to_state
    ]
    if not at:
        yield "Before and after a promotion: **not seen**, since nothing was promoted."
        return
    for words, of in (
        ("before the first promotion", [a for a in served if a.at < min(at)]),
        ("since the last promotion", [a for a in served if a.at > max(at)]),
    ):
        judged = [a for a in of if a.version is not None]
        right = sum(bool(a.verified) for a in judged)
        yield f"- {words}: {right} of {len(judged)}"


def _verified_lines(served: Sequence[Asked]) -> Iterator[str]:
    for version in sorted({a.version for a in served if a.version is not None}):
        of = [a for a in served if a.version == version]
        share = statistics.fmean(bool(a.verified) for a in of)
        name = f"code@v{version}" if version else "the base model"
        yield f"| {name} | {len(of)} | {sum(bool(a.verified) for a in of)} ({share:.0%}) |"


def _overlaps(asked: Asked, begin: datetime, end: datetime) -> bool:
    return asked.at < end and asked.at + timedelta(seconds=asked.seconds) > begin


def _within(asked: Asked, outages: Sequence[tuple[datetime, datetime]]) -> bool:
    return any(_overlaps(asked, begin, end) for begin, end in outages)


# --- the command ------------------------------------------------------------------------------


def main() -> int:
    """Run the day; return 0 when nothing was lost and all was seen, a promotion aside."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument(
        "--after", type=float, default=15.0, help="minutes for cycles that still run at the end"
    )
    parser.add_argument("--model", default="starter-small")
    parser.add_argument("--tokens", type=int, default=80, help="longest answer")
    parser.add_argument(
        "--tasks", type=int, default=10, help="what a cycle learns from, and is examined with"
    )
    parser.add_argument("--data", type=Path, help="has train/ilf_human_feedback.jsonl")
    parser.add_argument("--data-dir", type=Path, help="kept; default: a temporary directory")
    parser.add_argument("--out", type=Path, help="where the report goes, in Markdown")
    given = parser.parse_args()
    source = given.data / "train" / "ilf_human_feedback.jsonl" if given.data else EXAMPLES
    tasks = read_tasks(source)
    # Started in the background, a script ignores SIGINT; nothing of the day may outlive it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        data_dir = given.data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data_dir.mkdir(parents=True, exist_ok=True)
        plan = Plan(
            minutes=given.minutes, after=given.after, tokens=given.tokens, tasks=given.tasks
        )
        system = Installation(data_dir, given.model, plan)
        stack.callback(system.stop)
        system.start()
        print(f"ready at {system.url}; data in {data_dir}; {len(tasks)} tasks", flush=True)
        system.command("import", str(source), "--format", "ilf")
        store = Store.open(f"sqlite:///{data_dir / 'journeyman.db'}")
        stack.callback(store.close)
        diary = asyncio.run(live(system, store, tasks, plan))
        system.stop()
        bound = os.environ.get(ENGINE_CORES)
        command = (
            f"{f'{ENGINE_CORES}={bound} ' if bound else ''}python ops/bench/day.py "
            f"--minutes {given.minutes:g} --after {given.after:g} --model {given.model} "
            f"--tokens {given.tokens} --tasks {given.tasks}"
        )
        text = report(store, diary, command=command, model=given.model, minutes=given.minutes)
        print(text)
        if given.out is not None:
            given.out.write_text(text, encoding="utf-8")
        happened = all(words for what, words in seen(store, diary).items() if what != PROMOTION)
        return 1 if lost(store, diary) or not happened else 0


if __name__ == "__main__":
    sys.exit(main())
