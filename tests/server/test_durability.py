"""kill -9 at any moment loses nothing that was acknowledged and leaves nothing half-written."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ops.store import Store
from tests.fake_engine import PROGRAM, FakeEngine
from tests.server.conftest import NO_TLS, environment

VICTIM = Path(__file__).with_name("victim.py")
SPEC = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}
MESSAGES = [{"role": "user", "content": "add"}]
ID = "x-journeyman-interaction-id"


@dataclass(frozen=True)
class Victims:
    """Servers on one record, each forked off a process that has imported all they need."""

    nursery: subprocess.Popen[str]
    data_dir: Path

    @contextmanager
    def serving(self) -> Iterator[tuple[int, str]]:
        """Start a server; it is killed at the end, if it was not before."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        assert self.nursery.stdin is not None
        assert self.nursery.stdout is not None
        self.nursery.stdin.write(f"{port}\n")
        self.nursery.stdin.flush()
        pid = int(self.nursery.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 200
            while True:
                assert _alive(pid), "the server did not start"
                assert time.monotonic() < deadline, "the server was not ready in time"
                try:
                    if httpx.get(f"{url}/ready", verify=NO_TLS).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.02)
            yield pid, url
        finally:
            kill(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int) -> None:
    """Kill a server at once and wait until nothing is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while _alive(pid):
        time.sleep(0.005)


@contextmanager
def nursery(data_dir: Path, *engines: FakeEngine, **variables: str) -> Iterator[Victims]:
    """Where servers come from; `variables` are added to their environment."""
    process = subprocess.Popen(
        [sys.executable, VICTIM, str(data_dir), ",".join(engine.url for engine in engines)],
        env=environment() | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Victims(process, data_dir)
        finally:
            process.kill()


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_servers_lose_nothing(engine: FakeEngine, tmp_path: Path, kills: int) -> None:
    chance = random.Random(7)
    acknowledged: dict[str, str] = {}
    given: dict[str, str] = {}
    with nursery(tmp_path, engine) as victims:
        for left in reversed(range(kills)):
            with victims.serving() as (pid, url):
                clients = [
                    threading.Thread(target=_use, args=(url, acknowledged, given, n))
                    for n in range(4)
                ]
                for client in clients:
                    client.start()
                time.sleep(chance.uniform(0.02, 0.3))
                while not left and not given and any(client.is_alive() for client in clients):
                    time.sleep(0.02)  # on a slow machine nothing may have been answered yet
                kill(pid)
                for client in clients:
                    client.join()
    assert acknowledged
    assert given
    _check(tmp_path, acknowledged, given)


@contextmanager
def _limited(victims: Victims, pid: int) -> Iterator[None]:
    """No file of the server's may grow any more: what a full disk does, for one process."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    yield
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def _filled(victims: Victims, pid: int) -> Iterator[None]:
    """The file system of the record is full to its last byte."""
    ballast = victims.data_dir / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    yield
    ballast.unlink()


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, of 8 MB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_takes_no_more_is_a_503_and_recovers(
    engine: FakeEngine, tmp_path: Path
) -> None:
    with nursery(tmp_path, engine) as victims:
        _refuses_and_recovers(victims, engine, _limited)


def test_a_full_disk_is_a_503_and_recovers_by_itself(engine: FakeEngine, tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk") as disk, nursery(disk, engine) as victims:
        _refuses_and_recovers(victims, engine, _filled)


def _refuses_and_recovers(
    victims: Victims,
    engine: FakeEngine,
    full: Callable[[Victims, int], AbstractContextManager[None]],
) -> None:
    with victims.serving() as (pid, url), _client(url, 30) as http:
        body = {"model": "code", "messages": MESSAGES}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        with full(victims, pid):
            refused = 0
            while refused < 5:
                response = http.post("/v1/chat/completions", json=body)
                if response.status_code == 200 and not refused:
                    continue  # what the database has allocated already is used up first
                refused += 1
                assert response.status_code == 503
                assert response.headers["retry-after"]
                assert response.json()["error"]["code"] == "record_unavailable"
            # Once it is known, generation is not even begun.
            asked = len(engine.requests)
            ready = http.get("/ready")
            assert ready.status_code == 503
            assert "record" in ready.json()["reasons"][0]
            stream = http.post("/v1/chat/completions", json=body | {"stream": True})
            assert stream.status_code == 503
            assert len(engine.requests) == asked
            unrecorded = http.post("/v1/chat/completions", json=body | {"store": False})
            assert unrecorded.status_code == 200
        answered = len(engine.requests)
        deadline = time.monotonic() + 10
        while http.get("/ready").status_code != 200:
            assert time.monotonic() < deadline, "it did not recover"
            time.sleep(0.1)
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        assert len(engine.requests) == answered + 1
        store = Store.open(f"sqlite:///{victims.data_dir / 'journeyman.db'}")
        assert store.interactions(limit=1)[0].id == response.headers[ID]
        store.close()


def _client(url: str, timeout_s: float) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=timeout_s, verify=NO_TLS)


def _use(url: str, acknowledged: dict[str, str], given: dict[str, str], number: int) -> None:
    """Ask, stream and give feedback until the server is gone; note what was acknowledged."""
    with _client(url, 10) as http:
        try:
            for turn in range(10_000):
                kind = ("plain", "stream", "verified")[(turn + number) % 3]
                body: dict[str, Any] = {"model": "code", "messages": MESSAGES}
                if kind == "stream":
                    body["stream"] = True
                if kind == "verified":
                    body["io_spec"] = SPEC
                response = http.post("/v1/chat/completions", json=body)
                assert response.status_code == 200, response.text
                if kind == "stream" and not response.text.endswith("data: [DONE]\n\n"):
                    continue
                interaction_id = response.headers[ID]
                acknowledged[interaction_id] = kind
                metric = {"metric_name": "comment", "value": f"from {number}"}
                response = http.post("/v1/feedback", json={"inference_id": interaction_id} | metric)
                assert response.status_code == 200, response.text
                given[response.json()["feedback_id"]] = interaction_id
        except httpx.TransportError:
            return


def _check(tmp_path: Path, acknowledged: dict[str, str], given: dict[str, str]) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'journeyman.db'}")
    try:
        for interaction_id, kind in acknowledged.items():
            row = store.interaction(interaction_id)
            assert row.choices[0]["message"]["content"] == PROGRAM
            attempts, executions = store.attempts(row.id), store.executions(row.id)
            assert bool(attempts) == bool(executions) == (kind == "verified")
        for feedback_id, interaction_id in given.items():
            assert feedback_id in {row.id for row in store.feedback(interaction_id)}
        for row in store.iter_interactions():
            # Also what nobody waited for any more is whole.
            assert row.choices[0]["finish_reason"] == "stop"
            verified = row.spec is not None
            assert bool(store.attempts(row.id)) == bool(store.executions(row.id)) == verified
    finally:
        store.close()
