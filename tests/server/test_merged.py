"""The second engine: asked first once proved, left for whatever is on trial, missed by nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops import artifacts, merges
from ops.records import Adapter
from ops.settings import ReleaseSettings
from tests.fake_engine import FakeEngine, _card, add_adapter
from tests.server.conftest import POLL_S, Running, SharedPool, serving


class SecondEngine(FakeEngine):
    """An engine whose base model is an adapter, merged."""

    root = ""
    merged = b""

    def become(self, adapter: Adapter, folder: Path, *, of: Adapter | None = None) -> None:
        """Serve the merged weights of an adapter; `of`: which in truth are another's."""
        what = merges.Merge(
            adapter_sha256=adapter.sha256, base_sha256=adapter.base_sha256, dtype="float32"
        )
        sealed = artifacts.seal(folder / adapter.sha256, lambda draft: merges.write(draft, what))
        self.base, self.root = adapter.name, str(sealed[1])
        directory = Path((of or adapter).directory)
        self.merged = (directory / "adapter_model.safetensors").read_bytes()

    def start(self) -> None:
        self._weights[self.base] = self.merged
        super().start()

    async def _models(self, request: Request) -> Response:
        cards = [_card(self.base, self.root, None, 2048)]
        return JSONResponse({"object": "list", "data": cards})


@pytest.fixture
def second() -> Iterator[SecondEngine]:
    fake = SecondEngine()
    fake.start()  # takes a port
    fake.stop()
    yield fake
    fake.stop()


@pytest.fixture
def server(
    engine: FakeEngine, second: SecondEngine, pool: SharedPool, tmp_path: Path
) -> Iterator[Running]:
    engines = {"url": engine.url, "merged": True, "merged_port": second.port}
    release = ReleaseSettings(watch_hours=0)
    with serving(
        engine, tmp_path / "data", checker=pool, engines=engines, release=release
    ) as running:
        yield running


def champion(server: Running, fill: bytes) -> Adapter:
    adapter = add_adapter(server.registry, fill=fill)
    server.registry.promote(adapter.version, actor="test", reason="test", force=True)
    server.until(lambda: said(server)["adapter"]["version"] == adapter.version)
    return adapter


def said(server: Running) -> dict[str, object]:
    body: dict[str, object] = server.http.get("/ready").json()
    return body


def merged(server: Running, second: SecondEngine, fill: bytes = b"\1") -> Adapter:
    """Make a champion, and have it answered by the second engine."""
    adapter = champion(server, fill)
    second.become(adapter, server.settings.merged_dir)
    second.start()
    server.until(lambda: said(server)["merged"] is not None)
    return adapter


def answers(server: Running, version: int, **body: object) -> None:
    response = server.chat(store=False, **body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        assert response.json()["adapter"]["version"] == version
        assert response.json()["model"] == f"code@v{version}"
    else:
        assert f'"version":{version}' in response.text
        assert response.text.endswith("data: [DONE]\n\n")


def asked(engine: FakeEngine) -> int:
    return len(engine.bodies())


def test_the_champion_is_answered_by_the_second_engine_once_both_say_the_same(
    server: Running, second: SecondEngine
) -> None:
    assert said(server)["merged"] is None
    adapter = merged(server, second)
    assert said(server)["merged"] == {"version": 1, "in_flight": 0}
    before = asked(server.engine)
    answers(server, 1)
    answers(server, 1, stream=True)
    answers(server, 1, model="code@v1")
    assert (asked(server.engine), asked(second)) == (before, 3)
    assert second.bodies()[0]["cache_salt"] == adapter.sha256
    server.chat()
    assert server.store.interactions()[0].adapter_sha256 == adapter.sha256
    server.until(lambda: server.store.receipts(version=1)[0].probe["alias"] == "merged")
    receipt = server.store.receipts(version=1)[0]
    assert receipt.accepted
    assert receipt.probe["merged_error"] == pytest.approx(0.0)
    assert receipt.probe["engine_shift"] > 0.1
    assert receipt.phases_s.keys() == {"probe"}
    assert "journeyman_merged_version 1.0" in server.http.get("/metrics").text
    # The base model is the first engine's.
    server.chat(model=server.engine.base)
    assert asked(server.engine) == before + 1


def test_another_champion_and_the_way_back_leave_it_at_once(
    server: Running, second: SecondEngine
) -> None:
    merged(server, second)
    champion(server, b"\2")
    answers(server, 2)
    count = asked(second)
    server.until(lambda: said(server)["merged"] is None)
    server.registry.rollback(actor="test", reason="test")
    server.until(lambda: said(server)["adapter"]["version"] == 1)
    answers(server, 1)
    # It still runs and still has the right weights, so it is proved and asked again.
    server.until(lambda: said(server)["merged"] is not None)
    answers(server, 1)
    assert asked(second) > count


def test_a_canary_is_compared_on_the_first_engine(server: Running, second: SecondEngine) -> None:
    merged(server, second)
    canary = add_adapter(server.registry, fill=b"\2")
    server.registry.examined(canary.version, actor="gate", reason="better", evidence={})
    server.registry.canary(canary.version, actor="gate", reason="", evidence={"share": 0.2})
    server.until(lambda: said(server)["merged"] is None)
    count = asked(second)
    for user in range(10):
        assert server.chat(store=False, user=f"u{user}").status_code == 200
    assert asked(second) == count
    server.registry.reject(canary.version, actor="test", reason="worse", evidence={})
    server.until(lambda: said(server)["merged"] is not None)


def test_nobody_misses_a_second_engine_that_dies(server: Running, second: SecondEngine) -> None:
    merged(server, second)
    failed: list[str] = []
    stop = threading.Event()

    def ask(stream: bool) -> None:
        while not stop.is_set():
            response = server.chat(store=False, stream=stream)
            if response.status_code != 200 or '"error"' in response.text:
                failed.append(response.text)

    second.break_stream_after = -1  # where it dies in a stream, no byte has been sent
    clients = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for client in clients:
        client.start()
    second.stop()
    server.until(lambda: said(server)["merged"] is None)
    stop.set()
    for client in clients:
        client.join()
    assert failed == []
    answers(server, 1)
    second.break_stream_after = None
    second.start()
    server.until(lambda: said(server)["merged"] is not None)
    count = asked(second)
    answers(server, 1, stream=True)
    assert asked(second) == count + 1


def test_the_first_engine_may_be_restarted_meanwhile(server: Running, second: SecondEngine) -> None:
    merged(server, second)
    server.engine.restart()
    for _ in range(20):
        answers(server, 1)
    server.until(lambda: "code@v1" in server.engine.adapters)


def test_weights_that_say_something_else_are_refused_and_never_asked(
    server: Running, second: SecondEngine
) -> None:
    other = add_adapter(server.registry, fill=b"\2")
    adapter = champion(server, b"\1")
    second.become(adapter, server.settings.merged_dir, of=other)
    second.start()
    server.until(lambda: server.store.receipts(version=adapter.version)[0].accepted is False)
    receipt = server.store.receipts(version=adapter.version)[0]
    assert receipt.probe["alias"] == "merged"
    assert "does not follow the trainer's" in receipt.reason or "differ" in receipt.reason
    assert said(server)["merged"] is None
    answers(server, adapter.version)
    assert asked(second) == 0
    # Once is enough: it is looked at again when another engine comes.
    probes = len(second.bodies("/v1/completions"))
    time.sleep(5 * POLL_S)
    assert len(second.bodies("/v1/completions")) == probes


def test_an_engine_of_another_s_weights_is_not_even_probed(
    server: Running, second: SecondEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="server.merged")
    other = add_adapter(server.registry, fill=b"\2")
    champion(server, b"\1")
    second.become(other, server.settings.merged_dir)
    second.base = "code@v2"
    second.start()
    server.until(lambda: "holds other weights" in caplog.text)
    assert second.bodies("/v1/completions") == []
    assert said(server)["merged"] is None
