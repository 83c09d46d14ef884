"""`kill -9` of improver, server, engine and database at random points, again and again.

Nothing that was acknowledged is lost, every cycle ends as if nothing had happened or as failed with
a reason, and nothing is trained twice. The parts are real processes (`survivors`).
"""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from improver.cycle import Plan, start
from ops.errors import OpsError
from ops.records import AdapterState, Alias, Cycle, CycleState
from ops.registry import Registry
from ops.store import Store
from tests.conftest import _postgres_bin
from tests.journeys.survivors import STEPS, entries, settings_of
from tests.server.conftest import NO_TLS, environment

pytestmark = pytest.mark.slow

ENDED = {CycleState.SUCCEEDED, CycleState.SKIPPED, CycleState.FAILED}
STAGES = ("build", "train", "evaluate", "decide", "release")
SEED = int(os.environ.get("JOURNEYMAN_TEST_SEED", "20"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A PostgreSQL server of its own, to be killed."""

    def __init__(self) -> None:
        programs = _postgres_bin()
        if programs is None:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
        self._programs = programs
        # initdb refuses to run as root.
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self.home = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._account is not None:
            os.chown(self.home, self._account.pw_uid, self._account.pw_gid)
        self._data = self.home / "data"
        self._run("initdb", "-D", str(self._data), "-U", "journeyman", "-A", "trust", "-N")
        self.url = f"postgresql+psycopg://journeyman@/postgres?host={self.home}"

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        account = self._account
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            check=check,
            cwd=self.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
        return done.returncode

    def start(self) -> None:
        options = f"-k {self.home} -c listen_addresses='' -c fsync=off"
        command = ("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self.home / "log"))
        for _ in range(50):  # the dead one's backends hold its shared memory for a moment
            if self._run(*command, "-w", "start", check=False) == 0:
                return
            time.sleep(0.1)
        pytest.fail((self.home / "log").read_text()[-2000:])

    def kill(self) -> None:
        pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        stop = ("pg_ctl", "-D", str(self._data), "-m", "immediate", "stop")
        self._run(*stop, check=False)
        shutil.rmtree(self.home, ignore_errors=True)


class House:
    """The parts of one installation, kept running as a supervisor does."""

    PARTS = ("engine", "server", "improver")

    def __init__(self, directory: Path, store_url: str, **order: Any) -> None:
        self.order: dict[str, Any] = order | {
            "data_dir": str(directory),
            "store_url": store_url,
            "engine_port": _free_port(),
            "server_port": _free_port(),
        }
        self.url = f"http://127.0.0.1:{self.order['server_port']}"
        self.settings = settings_of(self.order)
        self._logs = directory / "logs"
        self._logs.mkdir()
        self._nursery = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("survivors.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._pids: dict[str, int] = {}

    def keep(self) -> None:
        """Start what does not run."""
        for part in self.PARTS:
            if not self._runs(part):
                assert self._nursery.stdin is not None
                assert self._nursery.stdout is not None
                log = str(self._logs / f"{part}.log")
                self._nursery.stdin.write(json.dumps(self.order | {"part": part, "log": log}))
                self._nursery.stdin.write("\n")
                self._nursery.stdin.flush()
                self._pids[part] = int(self._nursery.stdout.readline())

    def _runs(self, part: str) -> bool:
        with suppress(KeyError, ProcessLookupError):
            os.kill(self._pids[part], 0)
            return True
        return False

    def kill(self, part: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pids[part], signal.SIGKILL)
        while self._runs(part):
            time.sleep(0.001)

    def ready(self) -> bool:
        with suppress(httpx.TransportError):
            answer = httpx.get(f"{self.url}/ready", timeout=5, verify=NO_TLS)
            return answer.status_code == 200
        return False

    def words(self, part: str) -> str:
        return (self._logs / f"{part}.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        assert self._nursery.stdin is not None
        for part in self._pids:
            self.kill(part)
        self._nursery.stdin.close()
        self._nursery.wait(10)
        assert self._nursery.stdout is not None
        self._nursery.stdout.close()


class User(threading.Thread):
    """Asks with a specification and says what is wrong with the answer, until told to stop."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self._url, self._number = url, number
        self.stop = threading.Event()
        self.answered: dict[str, bool] = {}
        """What was acknowledged, and whether it was asked for with a specification."""
        self.given: dict[str, str] = {}
        self.refused: Counter[int] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        chance, known = random.Random(self._number), entries()
        while not self.stop.wait(0.05):
            entry = chance.choice(known)
            body: dict[str, Any] = {"model": "code", "messages": entry.messages}
            kind = chance.choice(("spec", "spec", "stream"))
            assert entry.spec is not None
            body |= {"stream": True} if kind == "stream" else {"io_spec": entry.spec.to_json()}
            client = httpx.Client(base_url=self._url, timeout=10, verify=NO_TLS)
            with suppress(httpx.TransportError), client as h:
                answer = h.post("/v1/chat/completions", json=body | {"user": f"u{self._number}"})
                if self._failed(answer):
                    continue
                if kind == "stream" and not answer.text.endswith("data: [DONE]\n\n"):
                    continue
                interaction_id = answer.headers["x-journeyman-interaction-id"]
                self.answered[interaction_id] = kind == "spec"
                said = {"metric_name": "comment", "value": dict(entry.feedback)["comment"]}
                told = h.post("/v1/feedback", json={"inference_id": interaction_id} | said)
                if not self._failed(told):
                    self.given[told.json()["feedback_id"]] = interaction_id

    def _failed(self, answer: httpx.Response) -> bool:
        if answer.status_code == 200:
            return False
        self.refused[answer.status_code] += 1
        if answer.status_code != 503:
            self.wrong.append(answer.text[:500])
        return True


@contextmanager
def _users(url: str, count: int) -> Iterator[list[User]]:
    users = [User(url, number) for number in range(count)]
    for user in users:
        user.start()
    try:
        yield users
    finally:
        for user in users:
            user.stop.set()
        for user in users:
            user.join()


def _until(condition: Callable[[], bool], house: House, what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("\n".join([f"not {what}", *(house.words(part) for part in house.PARTS)]))
        house.keep()
        time.sleep(0.05)


def _queue_one(store: Store, house: House) -> None:
    """See that there is always a cycle at work or waiting."""
    with suppress(OpsError):  # the database may be down
        if not any(store.cycles(state=s) for s in (CycleState.QUEUED, CycleState.RUNNING)):
            plan = Plan.of(house.settings)
            where = house.settings.cycles_dir
            start(store, plan, where, trigger="test", state=CycleState.QUEUED)


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 12), ("postgresql", 30)])
def test_whatever_is_killed_nothing_is_lost_and_nothing_done_twice(
    tmp_path: Path, database: str, kills: int
) -> None:
    postgres = Postgres() if database == "postgresql" else None
    url = postgres.url if postgres else f"sqlite:///{tmp_path / 'journeyman.db'}"
    if postgres is not None:
        postgres.start()
    store, house = Store.open(url), House(tmp_path, url)
    try:
        _until(house.ready, house, "ready")
        with _users(house.url, 2) as users:
            _until(lambda: sum(len(u.given) for u in users) > 20, house, "used")
            victims = _kill_at_random(house, store, postgres, kills)
            _until(lambda: _all_ended(store), house, "at rest")
            # Whole and at work again: one more cycle, undisturbed.
            _queue_one(store, house)
            _until(lambda: _all_ended(store), house, "at rest after one more")
            _until(house.ready, house, "ready again")
        assert victims.total() == kills
        assert len(victims) == len(House.PARTS) + (postgres is not None)
        _check_record(store, users)
        _check_cycles(store, Registry(store, house.settings.adapters_dir))
        assert store.cycles()[0].state is CycleState.SUCCEEDED, store.cycles()[0].error
    finally:
        house.close()
        store.close()
        if postgres is not None:
            postgres.close()


def _kill_at_random(
    house: House, store: Store, postgres: Postgres | None, kills: int
) -> Counter[str]:
    chance = random.Random(SEED)
    parts = [*House.PARTS, *(["database"] if postgres else [])]
    order = [parts[i % len(parts)] for i in range(kills)]
    chance.shuffle(order)
    where: list[str] = []
    for number, victim in enumerate(order):
        _queue_one(store, house)
        if number % 2:
            time.sleep(chance.uniform(0.0, 0.8))  # also upon what is still starting
        else:
            _wait_for(chance.choice(_ahead(store)), store)
            time.sleep(chance.uniform(0.0, 0.1))
        where.append(f"{victim} at {_stage(store)}")
        if victim == "database" and postgres is not None:
            postgres.kill()
            time.sleep(chance.uniform(0.0, 0.6))
            postgres.start()
        else:
            house.kill(victim)
            time.sleep(chance.uniform(0.0, 0.2))
        house.keep()
    sys.stdout.write(f"JOURNEYMAN_TEST_SEED={SEED}: {', '.join(where)}\n")
    return Counter(order)


def _ahead(store: Store) -> tuple[str, ...]:
    """The stages that the cycle at work is in or will come to."""
    stage = _stage(store)
    return STAGES[STAGES.index(stage) :] if stage in STAGES else STAGES


def _wait_for(stage: str, store: Store) -> None:
    """Wait until a cycle is at a stage, but not for long: stages are short."""
    give_up = time.monotonic() + 2.5
    while _stage(store) != stage and time.monotonic() < give_up:
        time.sleep(0.01)


def _stage(store: Store) -> str:
    running = store.cycles(state=CycleState.RUNNING)
    return running[0].stage if running else "rest"


def _all_ended(store: Store) -> bool:
    return all(cycle.state in ENDED for cycle in store.cycles())


def _check_record(store: Store, users: list[User]) -> None:
    """Every acknowledged answer and every acknowledged word is there, and whole."""
    assert [words for user in users for words in user.wrong] == []
    for user in users:
        for interaction_id, with_spec in user.answered.items():
            row = store.interaction(interaction_id)
            assert row.choices[0]["finish_reason"] == "stop"
            runs = store.executions(interaction_id)
            assert bool(store.attempts(interaction_id)) == bool(runs) == with_spec
        for feedback_id, interaction_id in user.given.items():
            assert feedback_id in {row.id for row in store.feedback(interaction_id)}
    assert sum(len(user.given) for user in users) > 50


def _check_cycles(store: Store, registry: Registry) -> None:
    cycles = store.cycles()
    states = Counter(cycle.state for cycle in cycles)
    words = [f"{cycle.state}: {cycle.error or cycle.adapter_version}" for cycle in cycles]
    sys.stdout.write("\n".join([*words, ""]))
    assert states[CycleState.SUCCEEDED] >= 2
    for cycle in cycles:
        assert cycle.state is CycleState.SUCCEEDED or cycle.error
        assert not cycle.report.get("evaluate", {}).get("refused")
        _check_training(cycle, store)
    adapters = store.adapters()
    champions = [a.version for a in adapters if a.state is AdapterState.CHAMPION]
    aliases = store.aliases()
    assert champions == [aliases[Alias.CHAMPION]]
    assert Alias.CANDIDATE not in aliases
    for adapter in adapters:
        made = store.transitions(adapter.version)
        assert made[-1].to_state is adapter.state
        # What stays as it is was confirmed: the end of a champion's watch.
        history = [t.to_state for t in made if t.from_state is not t.to_state]
        assert len(set(history)) == len(history)
        if adapter.state is not AdapterState.ERASED:
            registry.verify(adapter)


def _check_training(cycle: Cycle, store: Store) -> None:
    """Trained once, whatever was killed; the lineage is that of the adapter."""
    made = [adapter for adapter in store.adapters() if adapter.cycle_id == cycle.id]
    assert len(made) <= 1, [adapter.name for adapter in made]
    log = next(Path(cycle.directory).glob("train*/steps.log"), None)
    steps = log.read_text().split() if log else []
    assert steps.count("end") <= 2  # killed between the end and its being known
    for step in range(1, STEPS + 1):
        assert steps.count(str(step)) <= 3, steps  # a step per kill, and never from the start
    if cycle.state is CycleState.SUCCEEDED:
        [adapter] = made
        assert cycle.adapter_version == adapter.version
        kept = {row.row_id for row in store.dataset(cycle.id) if row.kept}
        assert set(adapter.lineage["rows"]) == kept
