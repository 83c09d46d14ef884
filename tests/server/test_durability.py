"""kill -9 at any moment loses nothing that was acknowledged and leaves nothing half-written."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ops.store import Store
from tests.fake_engine import PROGRAM, FakeEngine
from tests.server.conftest import environment

VICTIM = Path(__file__).with_name("victim.py")
SPEC = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}
MESSAGES = [{"role": "user", "content": "add"}]


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_servers_lose_nothing(engine: FakeEngine, tmp_path: Path, kills: int) -> None:
    chance = random.Random(7)
    acknowledged: dict[str, str] = {}
    given: dict[str, str] = {}
    for _ in range(kills):
        with _victim(tmp_path, engine) as (process, url):
            clients = [
                threading.Thread(target=_use, args=(url, acknowledged, given, n)) for n in range(4)
            ]
            for client in clients:
                client.start()
            time.sleep(chance.uniform(0.05, 0.6))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            for client in clients:
                client.join()
    assert acknowledged
    assert given
    _check(tmp_path, acknowledged, given)


def test_a_full_disk_is_a_503_and_recovers_by_itself(engine: FakeEngine, tmp_path: Path) -> None:
    with _victim(tmp_path, engine) as (process, url), httpx.Client(base_url=url) as http:
        body = {"model": "code", "messages": MESSAGES}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        # No file of the server's may grow any more: what a full disk does, for one process.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        for _ in range(5):
            response = http.post("/v1/chat/completions", json=body)
            assert response.status_code == 503
            assert response.headers["retry-after"]
            assert response.json()["error"]["code"] == "record_unavailable"
        asked = len(engine.requests)
        assert asked < 5  # once it is known, generation is not even begun
        ready = http.get("/ready")
        assert ready.status_code == 503
        assert "record" in ready.json()["reasons"][0]
        stream = http.post("/v1/chat/completions", json=body | {"stream": True})
        assert stream.status_code == 503
        unrecorded = http.post("/v1/chat/completions", json=body | {"store": False})
        assert unrecorded.status_code == 200
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        deadline = time.monotonic() + 10
        while http.get("/ready").status_code != 200:
            assert time.monotonic() < deadline, "it did not recover"
            time.sleep(0.1)
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        store = Store.open(f"sqlite:///{tmp_path / 'journeyman.db'}")
        assert len(store.interactions()) == 2
        store.close()


@contextmanager
def _victim(tmp_path: Path, engine: FakeEngine) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, VICTIM, str(tmp_path), engine.url, str(port)], env=environment()
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 200
        while True:
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline, "the server was not ready in time"
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.wait()


def _use(url: str, acknowledged: dict[str, str], given: dict[str, str], number: int) -> None:
    """Ask, stream and give feedback until the server is gone; note what was acknowledged."""
    with httpx.Client(base_url=url, timeout=10) as http:
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
                interaction_id = response.headers["x-journeyman-interaction-id"]
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
