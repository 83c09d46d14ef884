"""The supervisor, with small children that do what they are told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops import processes
from ops.errors import ProcessError
from ops.processes import Patience, State, Supervisor
from ops.services import Service

QUICK = Patience(
    tick_s=0.02,
    first_pause_s=0.05,
    longest_pause_s=0.4,
    probe_every_s=0.05,
    probe_timeout_s=1.0,
    silence_s=0.5,
    orphan_s=0.5,
)

# A child that writes its name down when it starts and when it is told to end. Its arguments:
# the journal, its name, and how it behaves.
CHILD = """
import os, signal, subprocess, sys, time
journal, name, how = sys.argv[1:4]
def note(what):
    with open(journal, "a") as file:
        print(name, what, os.getpid(), file=file, flush=True)
def end(*_):
    note("asked")
    if how != "stubborn":
        note("ended")
        sys.exit(0)
signal.signal(signal.SIGTERM, end)
if how == "family":  # a grandchild in its group, and one in a session of its own
    for new_session in (False, True):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=new_session)
note("started")
if how == "crash":
    print("no model in sight", file=sys.stderr)
    sys.exit(7)
while True:
    time.sleep(0.05)
"""

# A service that answers 200 on loopback until a file says otherwise.
WEB = """
import http.server, pathlib, sys, time
flag = pathlib.Path(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(flag.read_text()) if flag.exists() else 200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Fleet:
    """Services for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.said: list[str] = []
        self.supervisors: list[Supervisor] = []

    def service(self, name: str, how: str = "good", stop_timeout_s: float = 5.0) -> Service:
        command = (sys.executable, "-c", CHILD, str(self.journal), name, how)
        return Service(name=name, command=command, stop_timeout_s=stop_timeout_s)

    def supervisor(self, *services: Service) -> Supervisor:
        supervisor = Supervisor(
            services, logs=self.folder / "logs", say=self.said.append, patience=QUICK
        )
        self.supervisors.append(supervisor)
        return supervisor

    def lines(self) -> list[list[str]]:
        if not self.journal.exists():
            return []
        return [line.split() for line in self.journal.read_text().splitlines()]

    def pids(self, name: str) -> list[int]:
        return [int(pid) for who, what, pid in self.lines() if (who, what) == (name, "started")]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    for supervisor in fleet.supervisors:  # also when the test failed
        supervisor.request_stop()
        supervisor.request_stop()
        supervisor.stop()


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def ticked(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    def tick() -> bool:
        supervisor._tick()
        return condition()

    until(tick)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(name), *descendants(int(name))]
    return found


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_children_start_in_order_and_stop_in_the_opposite_one(fleet: Fleet) -> None:
    supervisor = fleet.supervisor(*(fleet.service(name) for name in ("one", "two", "three")))
    supervisor.start()
    until(lambda: len(fleet.lines()) == 3)
    supervisor.stop()
    ends = [who for who, what, _ in fleet.lines() if what == "ended"]
    assert ends == ["three", "two", "one"]
    assert all(child.state is State.STOPPED for child in supervisor.children)


def test_a_child_that_ends_is_started_again_after_a_growing_pause(fleet: Fleet) -> None:
    supervisor = fleet.supervisor(fleet.service("one"))
    supervisor.start()
    child = supervisor.children[0]
    pauses = []
    for turn in range(1, 4):
        until(lambda turn=turn: len(fleet.pids("one")) == turn)
        os.kill(fleet.pids("one")[-1], signal.SIGKILL)
        ticked(supervisor, lambda: child.state is State.WAITING)
        began = time.monotonic()
        ticked(supervisor, lambda: child.state is State.READY)
        pauses.append(time.monotonic() - began)
    supervisor.stop()
    assert child.restarts == 3
    assert pauses[2] > 2 * QUICK.first_pause_s
    assert any("ended with status 137" in line for line in fleet.said)
    assert any("is ready again" in line for line in fleet.said)


def test_a_child_that_never_starts_is_an_error_with_its_last_words(fleet: Fleet) -> None:
    supervisor = fleet.supervisor(
        fleet.service("good"),
        # Ready when it answers, which it never does.
        Service(
            name="bad",
            command=fleet.service("bad", "crash").command,
            ready_url="http://127.0.0.1:9/",
        ),
    )
    with pytest.raises(ProcessError, match=r"bad did not start.*status 7(?s:.)*no model in sight"):
        supervisor.start()
    supervisor.stop()
    assert not any(alive(pid) for pid in fleet.pids("good"))


def test_a_command_that_does_not_exist_is_an_error(fleet: Fleet) -> None:
    service = Service(name="ghost", command=("/no/such/program",), ready_url="http://127.0.0.1:9/")
    supervisor = fleet.supervisor(service)
    with pytest.raises(ProcessError, match=r"cannot be started"):
        supervisor.start()
    supervisor.stop()


def test_a_child_that_will_not_stop_is_killed(fleet: Fleet) -> None:
    supervisor = fleet.supervisor(fleet.service("mule", "stubborn", stop_timeout_s=0.3))
    supervisor.start()
    until(lambda: len(fleet.pids("mule")) == 1)
    supervisor.stop()
    assert not alive(fleet.pids("mule")[0])
    assert any("killing it" in line for line in fleet.said)


def test_a_second_request_to_stop_does_not_wait(fleet: Fleet) -> None:
    supervisor = fleet.supervisor(fleet.service("mule", "stubborn", stop_timeout_s=600))
    supervisor.start()
    until(lambda: len(fleet.pids("mule")) == 1)
    supervisor.request_stop()
    supervisor.request_stop()
    began = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began < 5
    assert not alive(fleet.pids("mule")[0])


def test_descendants_do_not_outlive_their_child(fleet: Fleet) -> None:
    supervisor = fleet.supervisor(fleet.service("parent", "family"))
    supervisor.start()
    until(lambda: len(fleet.pids("parent")) == 1)
    family = descendants(fleet.pids("parent")[0])
    assert len(family) == 2
    supervisor.stop()
    assert not any(alive(pid) for pid in family)


def test_readiness_is_asked_for_over_http(fleet: Fleet, free_port: int, tmp_path: Path) -> None:
    flag = tmp_path / "status"
    flag.write_text("503")
    url = f"http://127.0.0.1:{free_port}/"
    service = Service(
        name="web",
        command=(sys.executable, "-c", WEB, str(free_port), str(flag)),
        ready_url=url,
        health_url=url,
    )
    supervisor = fleet.supervisor(service)
    child = supervisor.children[0]
    child.start()
    time.sleep(1)
    supervisor._tick()
    assert child.state is State.STARTING
    flag.write_text("200")
    ticked(supervisor, lambda: child.state is State.READY)
    before = child.pid

    # It lives but does not answer any more: killed, and started again.
    flag.write_text("500")
    ticked(supervisor, lambda: child.state is State.WAITING)
    flag.write_text("200")
    ticked(supervisor, lambda: child.state is State.READY)
    assert child.pid != before
    assert child.restarts == 1
    supervisor.stop()


def test_a_child_that_is_not_ready_in_time_is_an_error(fleet: Fleet) -> None:
    slow = Service(
        name="slow",
        command=fleet.service("slow").command,
        ready_url="http://127.0.0.1:9/",
        start_timeout_s=0.3,
    )
    supervisor = fleet.supervisor(slow)
    with pytest.raises(ProcessError, match="slow did not start"):
        supervisor.start()
    supervisor.stop()
    assert not any(alive(pid) for pid in fleet.pids("slow"))


SUPERVISE = """
import sys
from pathlib import Path
from ops.processes import Patience, Supervisor, only_one
from ops.services import Service
journal, folder, child = sys.argv[1:4]
def service(name, how):
    return Service(name=name, command=(sys.executable, "-c", child, journal, name, how))
with only_one(Path(folder)):
    supervisor = Supervisor([service("one", "family"), service("two", "stubborn")],
                            logs=Path(folder), say=print, patience=Patience(orphan_s=0.3))
    supervisor.start()
    print("ready", flush=True)
    supervisor.run()
"""


@pytest.fixture
def other(fleet: Fleet, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A supervisor in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(fleet.journal), str(tmp_path), CHILD],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    until(lambda: len(fleet.lines()) == 2)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_nothing_survives_a_killed_supervisor(other: subprocess.Popen[str], fleet: Fleet) -> None:
    everybody = descendants(other.pid)
    assert len(everybody) == 6  # two guards, two children, two grandchildren
    other.kill()
    until(lambda: not any(alive(pid) for pid in everybody))


def test_a_second_supervisor_on_the_same_data_is_refused(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    processes.write_state(tmp_path, {"pid": other.pid, "url": "http://127.0.0.1:1234"})
    with (
        pytest.raises(ProcessError, match=rf"already runs.*1234 \(process {other.pid}\)"),
        processes.only_one(tmp_path),
    ):
        pass
    state = processes.read_state(tmp_path)
    assert state is not None
    assert state["pid"] == other.pid
    other.kill()
    other.wait()
    # What a killed supervisor wrote is not believed, and its place is free.
    assert processes.read_state(tmp_path) is None
    with processes.only_one(tmp_path):
        pass


def test_the_state_is_gone_after_an_orderly_end(tmp_path: Path) -> None:
    with processes.only_one(tmp_path):
        processes.write_state(tmp_path, {"pid": os.getpid()})
        assert json.loads((tmp_path / "run" / "up.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / "up.json").exists()


def test_an_unusable_data_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ProcessError, match="cannot be used"), processes.only_one(tmp_path):
        pass


def test_a_port_in_use_is_said_with_the_flag_to_change_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ProcessError, match=rf"port {port} .*server.*--port"):
            processes.require_port("127.0.0.1", port, "server", "--port")


def test_a_long_log_is_put_aside(fleet: Fleet, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "one.log"
    log.parent.mkdir()
    with log.open("wb") as file:
        file.truncate((64 << 20) + 1)
    supervisor = fleet.supervisor(fleet.service("one"))
    supervisor.start()
    supervisor.stop()
    assert log.stat().st_size < 10_000
    assert log.with_suffix(".log.1").exists()
