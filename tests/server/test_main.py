"""`python -m server`: starts, refuses to start, and stops without losing what is in flight."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from ops import keys
from ops.store import Store
from tests.fake_engine import PROGRAM, FakeEngine
from tests.server.conftest import environment

ROOT = Path(__file__).parents[2]


def _start(tmp_path: Path, **settings: str) -> subprocess.Popen[str]:
    given = {f"JOURNEYMAN_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "server", "--data-dir", str(tmp_path)],
        cwd=ROOT,
        env=environment() | given,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_finishes_what_is_in_flight_and_ends_cleanly(engine: FakeEngine, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = _start(tmp_path, server__port=str(port), engine__url=engine.url)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url)
        engine.token_delay_s = 0.2
        answers: list[httpx.Response] = []

        def ask(stream: bool) -> None:
            body = {"model": "code", "stream": stream}
            body["messages"] = [{"role": "user", "content": "x"}]  # type: ignore[assignment]
            answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30))

        asking = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in asking:
            thread.start()
        while engine.running < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join()
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert [answer.status_code for answer in answers] == [200, 200]
    assert sum(answer.text.endswith("data: [DONE]\n\n") for answer in answers) == 1
    store = Store.open(f"sqlite:///{tmp_path / 'journeyman.db'}")
    rows = store.interactions()
    store.close()
    assert [row.choices[0]["message"]["content"] for row in rows] == [PROGRAM, PROGRAM]
    assert "Traceback" not in said


def test_on_sighup_it_takes_over_what_it_can(engine: FakeEngine, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = _start(tmp_path, server__port=str(port), engine__url=engine.url)
    url, file = f"http://127.0.0.1:{port}", tmp_path / "journeyman.toml"
    try:
        _wait_until_ready(process, url)
        assert httpx.get(f"{url}/v1/models").status_code == 200
        key = keys.make("ide", created_by="test")
        file.write_text(f"[server]\nmax_candidates = 3\n{keys.as_settings(key.key)}\n")
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while httpx.get(f"{url}/v1/models").status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        headers = {"Authorization": f"Bearer {key.secret}"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        file.write_text("[server]\nprt = 1\n")  # refused as a whole
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "wait for the server's next start: server.max_candidates" in said
    assert "the settings stay as they are" in said
    assert "did you mean server.port?" in said
    assert "Traceback" not in said


def _wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server was not ready in time")


def test_it_refuses_settings_that_are_unsafe_or_unknown(tmp_path: Path) -> None:
    for name, value, word in (
        ("server__host", "0.0.0.0", "loopback"),
        ("server__port", "0", "server.port"),
    ):
        process = _start(tmp_path, **{name: value})
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2
        assert word in said
        assert "Traceback" not in said
