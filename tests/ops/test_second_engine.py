"""The second engine: merged and started while nothing is on trial, left before it is stopped."""

from __future__ import annotations

import http.server
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops import artifacts, memory, merges, processes, second_engine, services
from ops.errors import ProcessError
from ops.models import Model
from ops.processes import Patience, State, Supervisor
from ops.records import Adapter
from ops.registry import Registry
from ops.second_engine import SecondEngine
from ops.services import EngineBuild, Service
from ops.settings import EngineSettings, ReleaseSettings, ServerSettings, Settings, StoreSettings
from ops.store import Store
from tests.fake_engine import add_adapter

CPU = EngineBuild(device="cpu", version="0.32.0")
CUDA = EngineBuild(device="cuda", version="0.32.0")
WAIT = "import time; time.sleep(600)"
QUICK = Patience(tick_s=0.01, first_pause_s=0.01, longest_pause_s=0.02)


class Ready(http.server.BaseHTTPRequestHandler):
    """The server's `/ready`, as far as the supervisor reads it."""

    merged: Any = None

    def do_GET(self) -> None:
        body = json.dumps({"merged": type(self).merged}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server_port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Ready.merged = None
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


class House:
    """A supervisor with a second engine whose processes are a few lines of Python."""

    def __init__(self, folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.engine_code, self.merge_status = WAIT, 0
        url = f"sqlite:///{folder / 'journeyman.db'}"
        self.settings = Settings.model_construct(
            **{
                **dict(Settings()),
                "data_dir": folder,
                "engine": EngineSettings(merged=True),
                "server": ServerSettings(port=port),
                "release": ReleaseSettings(watch_hours=0),
                "store": StoreSettings(url=url),
            }
        )
        self.store = Store.open(url)
        self.registry = Registry(self.store, self.settings.adapters_dir)
        base = folder / "base"
        base.mkdir()
        (base / "config.json").write_text('{"torch_dtype": "bfloat16"}')
        (base / "model.safetensors").write_bytes(bytes(2000))
        self.model = Model(name="base", directory=base, sha256="0" * 64, origin="a test")
        monkeypatch.setattr(services, "merge", self._merge)
        monkeypatch.setattr(services, "second_engine", self._engine)
        monkeypatch.setattr(second_engine, "LOOK_S", 0.0)
        self.supervisor = Supervisor([], logs=folder / "logs", say=self.said.append, patience=QUICK)
        self.second = SecondEngine(
            self.settings, self.model, CPU, self.supervisor, self.said.append
        )

    def _merge(self, settings: object, model: Model, adapter: Adapter, build: object) -> Service:
        what = merges.Merge(
            adapter_sha256=adapter.sha256,
            base_sha256=model.sha256,
            dtype=services.merged_dtype(self.settings, CPU),
        )
        if self.merge_status == 0:
            parent = self.settings.merged_dir / adapter.sha256
            artifacts.seal(parent, lambda draft: merges.write(draft, what))
        code = f"import sys; sys.exit({self.merge_status} and 'no such layer')"
        return Service(name="merge", command=(sys.executable, "-c", code))

    def _engine(self, settings: object, merged: Path, name: str, build: object) -> Service:
        self.merged = merged
        command = (sys.executable, "-c", self.engine_code, str(merged), name)
        return Service(name="second engine", command=command, stop_timeout_s=5.0)

    def promote(self, fill: bytes) -> Adapter:
        adapter = add_adapter(self.registry, fill=fill)
        self.registry.promote(adapter.version, actor="test", reason="test", force=True)
        return adapter

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.said
            self.supervisor._tick()
            self.second.look()
            time.sleep(0.005)

    def looks(self, times: int = 20) -> None:
        for _ in range(times):
            self.supervisor._tick()
            self.second.look()

    def running(self, adapter: Adapter) -> bool:
        return any(
            adapter.name in child.service.command and child.state is State.READY
            for child in self.supervisor.children
        )


@pytest.fixture
def house(tmp_path: Path, server_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(memory, "free_bytes", lambda: 64 << 30)
    found = House(tmp_path, server_port, monkeypatch)
    yield found
    found.second.close()
    found.supervisor.request_stop()
    found.supervisor.request_stop()
    found.supervisor.stop()
    found.store.close()


def test_a_champion_that_nothing_is_beside_gets_an_engine(house: House) -> None:
    house.looks()
    assert house.supervisor.children == []
    adapter = house.promote(b"\1")
    house.until(lambda: house.running(adapter))
    (child,) = processes.child_states(house.supervisor)
    assert (child["name"], Path(child["log"]).name) == ("second engine", "second-engine.log")
    assert house.merged.parent.name == adapter.sha256


def test_what_was_merged_for_nobody_any_more_goes_at_the_start(house: House) -> None:
    left = house.settings.merged_dir / ("e" * 64)
    left.mkdir(parents=True)
    house.second.look()
    assert not left.exists()


def test_another_champion_waits_until_nobody_asks_the_one_before(house: House) -> None:
    first = house.promote(b"\1")
    house.until(lambda: house.running(first))
    Ready.merged = {"version": 1, "in_flight": 2}
    second = house.promote(b"\2")
    house.looks()
    assert house.running(first)
    Ready.merged = None
    house.until(lambda: house.running(second))
    assert not house.running(first)
    # What was merged before is of no use to anybody.
    assert [path.name for path in house.settings.merged_dir.iterdir()] == [second.sha256]


def test_what_is_on_trial_ends_it_and_its_end_brings_it_back(house: House) -> None:
    champion = house.promote(b"\1")
    house.until(lambda: house.running(champion))
    canary = add_adapter(house.registry, fill=b"\2")
    house.registry.examined(canary.version, actor="gate", reason="better", evidence={})
    house.registry.canary(canary.version, actor="gate", reason="better", evidence={"share": 0.1})
    house.until(lambda: house.supervisor.children == [])
    house.looks()
    assert house.supervisor.children == []
    house.registry.reject(canary.version, actor="test", reason="worse", evidence={})
    house.until(lambda: house.running(champion))
    house.registry.rollback(actor="test", reason="test")  # to the base model
    house.until(lambda: house.supervisor.children == [])
    assert list(house.settings.merged_dir.iterdir()) == []


def test_too_little_memory_is_said_once_and_nothing_starts(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_engine, "AGAIN_S", 0.0)
    monkeypatch.setattr(memory, "free_bytes", lambda: 3 << 30)
    adapter = house.promote(b"\1")
    house.looks()
    assert house.supervisor.children == []
    assert house.said == [
        "code@v1 is not merged: 5.5 GiB of memory are needed, 3.0 are free",
    ]
    monkeypatch.setattr(memory, "free_bytes", lambda: 64 << 30)
    house.until(lambda: house.running(adapter))


@pytest.mark.parametrize("fault", ["merge", "engine", "base"])
def test_what_does_not_work_is_given_up_for_this_version(house: House, fault: str) -> None:
    said = {"merge": "no such layer", "engine": "does not start", "base": "another base model"}
    if fault == "merge":
        house.merge_status = 1
    if fault == "engine":
        house.engine_code = "raise SystemExit(1)"
        house._engine = _never_ready(house._engine)  # type: ignore[method-assign]
        services.second_engine = house._engine  # the fixture's patch is undone at the end
    if fault == "base":
        house.second._model = replace(house.model, sha256="1" * 64)
    house.promote(b"\1")
    house.until(lambda: any(said[fault] in line for line in house.said))
    house.until(lambda: house.supervisor.children == [])
    count = len(house.said)
    house.looks()
    assert len(house.said) == count
    assert any(line.startswith("code@v1 is served without merging: ") for line in house.said)


def _never_ready(make: Callable[..., Service]) -> Callable[..., Service]:
    return lambda *given: replace(make(*given), ready_url="http://127.0.0.1:9/health")


def test_an_engine_of_somebody_else_has_no_second_one(house: House) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mine = house.settings.model_copy(
        update={"engine": EngineSettings(merged=True, merged_port=port)}
    )
    second_engine.require(mine)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ProcessError, match="cannot be used for the second engine"):
            second_engine.require(mine)
    other = EngineSettings(merged=True, url="http://127.0.0.1:9")
    with pytest.raises(ProcessError, match="unset one of them"):
        second_engine.require(house.settings.model_copy(update={"engine": other}))


def test_a_gpu_that_one_engine_fills_has_no_room(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "gpu_bytes", lambda: (8 << 30, 80 << 30))
    lack = second_engine.too_little(house.settings, house.model, CUDA)
    assert "72.0 GiB of the GPU for each engine and 8.0 are free" in lack
    monkeypatch.setattr(memory, "gpu_bytes", lambda: (44 << 30, 80 << 30))
    half = EngineSettings(merged=True, extra_args=("--gpu-memory-utilization", "0.45"))
    roomy = house.settings.model_copy(update={"engine": half})
    assert second_engine.too_little(roomy, house.model, CUDA) == ""
