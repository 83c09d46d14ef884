"""`journeyman up` as a process, with engine, server and improver played by small scripts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]

# Plays a part: answers 200 on its port, writes down what it was given.
PART = """
import http.server, json, os, sys
name, folder, port = sys.argv[1:4]
note = {"argv": sys.argv[4:], "env": dict(os.environ)}
open(f"{folder}/{name}.json", "w").write(json.dumps(note))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"sandbox": "namespaces"}).encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""

RUN = """
import sys
from ops import services
folder, part, server_port, engine_port, improver_port, sandbox = sys.argv[1:7]
def play(name, port):
    return (sys.executable, part, name, folder, port)
services.ENGINE = play("engine", engine_port)
services.SERVER = play("server", server_port)
services.IMPROVER = play("improver", improver_port)
services.SANDBOX = (sys.executable, "-c", sandbox)
sys.argv = ["journeyman", "up", *sys.argv[7:]]
from ops.cli import main
sys.exit(main())
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Up:
    """A `journeyman up` that can be started more than once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.server_port, self.engine_port, self.improver_port = free_ports(3)
        self.started: list[subprocess.Popen[str]] = []
        (folder / "part.py").write_text(PART)
        model = folder / "Tiny-Model"
        model.mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (model / name).write_text("{}")

    def start(self, *extra: str, sandbox: str = "pass") -> subprocess.Popen[str]:
        ports = [str(self.server_port), str(self.engine_port), str(self.improver_port)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("JOURNEYMAN_")}
        command = [sys.executable, "-c", RUN, str(self.folder), str(self.folder / "part.py")]
        command += [*ports, sandbox, "--model", str(self.folder / "Tiny-Model")]
        command += ["--port", ports[0], "--engine-port", ports[1]]
        process = subprocess.Popen(
            [*command, "--data-dir", str(self.data), *extra],
            cwd=ROOT,
            env={**clean, "XDG_CACHE_HOME": str(self.folder / "cache")},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def note(self, name: str) -> dict[str, object]:
        note: dict[str, object] = json.loads((self.folder / f"{name}.json").read_text())
        return note

    def state(self) -> dict[str, object]:
        try:
            state: dict[str, object] = json.loads((self.data / "run" / "up.json").read_text())
        except FileNotFoundError:
            return {}
        return state

    def answers(self, port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    yield up
    for process in up.started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


@pytest.mark.slow
def test_up_from_start_to_end(up: Up) -> None:
    process = up.start()
    until(lambda: up.state().get("ready_at"))
    state = up.state()
    assert state["pid"] == process.pid
    assert state["sandbox"] == "namespaces"
    assert up.answers(up.engine_port)
    assert up.answers(up.server_port)
    until(lambda: up.answers(up.improver_port))

    engine = up.note("engine")["argv"]
    assert isinstance(engine, list)
    assert engine[engine.index("--served-model-name") + 1] == "Tiny-Model"
    server = up.note("server")["env"]
    assert isinstance(server, dict)
    assert server["JOURNEYMAN_SERVER__PORT"] == str(up.server_port)
    assert server["JOURNEYMAN_ENGINE__MODEL"] == str(up.folder / "Tiny-Model")

    # A second one on the same data is refused, whatever its ports.
    other = up.start()
    assert other.communicate(timeout=60)[1].startswith("journeyman: Journeyman already runs")
    assert other.returncode == 1

    # The engine dies; it comes back.
    for pid in _with_parent(_pid(up, "engine")):
        os.kill(pid, signal.SIGKILL)
    until(lambda: any(c["restarts"] for c in up.state()["services"]))
    until(lambda: up.answers(up.engine_port))

    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert f"Journeyman is ready: http://127.0.0.1:{up.server_port}" in said
    assert f"console  http://127.0.0.1:{up.server_port}/console" in said
    assert '"io_spec": {"examples": [{"input": [[3, 1, 2]], "output": 2},' in said
    assert "model    Tiny-Model as `code`" in said
    stops = [line for line in said.splitlines() if line.startswith("• stopping")]
    assert stops == ["• stopping improver", "• stopping server", "• stopping engine"]
    assert not any(up.answers(port) for port in (up.server_port, up.engine_port, up.improver_port))
    assert up.state() == {}


def _pid(up: Up, name: str) -> int:
    services = up.state()["services"]
    assert isinstance(services, list)
    return next(int(child["pid"]) for child in services if child["name"] == name)


def _with_parent(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_what_is_in_the_way_is_said_before_anything_starts(up: Up) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", up.engine_port))
        taken.listen()
        said = up.start().communicate(timeout=60)[1]
        assert f"port {up.engine_port} on 127.0.0.1 cannot be used for the engine" in said
        assert "--engine-port" in said
    refuse = "import sys; sys.exit('no namespaces here')"
    process = up.start(sandbox=refuse)
    assert "cannot isolate the programs a model writes" in process.communicate(timeout=60)[1]
    assert process.returncode == 1
    said = up.start("--engine-url", "http://127.0.0.1:9").communicate(timeout=60)[1]
    assert "engine at http://127.0.0.1:9 (engine.url) does not answer" in said
    said = up.start("--model", "nonsense").communicate(timeout=60)[1]
    assert "there is no model 'nonsense'" in said
    assert not (up.folder / "engine.json").exists()


@pytest.mark.slow
def test_an_engine_of_one_s_own_is_used(up: Up) -> None:
    part = [sys.executable, str(up.folder / "part.py"), "mine", str(up.folder)]
    with subprocess.Popen([*part, str(up.engine_port)]) as engine:
        until(lambda: up.answers(up.engine_port))
        process = up.start("--engine-url", f"http://127.0.0.1:{up.engine_port}")
        until(lambda: up.state().get("ready_at"))
        names = [child["name"] for child in up.state()["services"]]
        assert names == ["server", "improver"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert up.answers(up.engine_port)
        engine.kill()
