"""Many engines: who is asked, what happens when one fails, and that none answers unproved."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ops import swaps
from ops.records import Adapter, AdapterState
from server.errors import EngineRefusal, EngineTimeout, EngineUnavailable
from server.replicas import AHEAD, Replica, Replicas, Role
from tests.fake_engine import BASE, FakeEngine, add_adapter
from tests.server.conftest import POLL_S, Running, serving
from tests.server.victim import Approving

CHAT = "/v1/chat/completions"


def _by_weights(fake: FakeEngine) -> None:
    """Let the answer be what wrote it: the digest of the weights that are loaded there."""
    fake.script = lambda body, index: written_by(fake.weights_of(body["model"]))


def written_by(weights: bytes) -> str:
    return " ".join(hashlib.sha256(weights).hexdigest()[::4])


@pytest.fixture
def fakes() -> Iterator[list[FakeEngine]]:
    three = [FakeEngine() for _ in range(3)]
    for fake in three:
        _by_weights(fake)
        fake.start()
    yield three
    for fake in three:
        fake.stop()


# --- who is asked -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _open(fakes: list[FakeEngine], timeout_s: float = 10.0) -> AsyncIterator[Replicas]:
    """Engines of which each has proved the base model."""
    async with Replicas([fake.url for fake in fakes], timeout_s=timeout_s) as replicas:
        for replica in replicas:
            replica.models.add(BASE)
            replica.down, replica.current = None, True
        yield replicas


def _body(words: str = "x", **more: Any) -> dict[str, Any]:
    return {"model": BASE, "messages": [{"role": "user", "content": words}], **more}


def _asked(fakes: list[FakeEngine]) -> list[int]:
    return [len(fake.bodies()) for fake in fakes]


async def test_a_conversation_stays_with_one_and_conversations_are_shared_out(
    fakes: list[FakeEngine],
) -> None:
    async with _open(fakes) as replicas:
        for turn in range(4):
            body = _body("how it begins")
            body["messages"] += [{"role": "user", "content": str(n)} for n in range(turn)]
            await replicas.post(CHAT, body, request_id="a")
        assert sorted(_asked(fakes)) == [0, 0, 4]
        for number in range(60):
            await replicas.post(CHAT, _body(f"other {number}"), request_id="b")
        assert min(_asked(fakes)) > 5


async def test_who_is_much_busier_than_others_gives_its_conversations_away(
    fakes: list[FakeEngine],
) -> None:
    for fake in fakes:
        fake.token_delay_s = 0.3
    async with _open(fakes) as replicas, asyncio.TaskGroup() as group:
        for _ in range(3 * (AHEAD + 1)):
            group.create_task(replicas.post(CHAT, _body("same"), request_id="a"))
        await asyncio.sleep(0.15)
        busy = sorted(replica.in_flight for replica in replicas)
        assert busy[0] >= AHEAD - 1
        assert busy[2] <= busy[0] + AHEAD + 1


async def test_one_that_cannot_be_reached_costs_no_request(fakes: list[FakeEngine]) -> None:
    async with _open(fakes) as replicas:
        fakes[0].stop()
        fakes[1].stop()
        for number in range(6):
            answer = await replicas.post(CHAT, _body(f"{number}"), request_id="a")
            assert answer["object"] == "chat.completion"
        down = [replica for replica in replicas if replica.down is not None]
        assert {replica.name for replica in down} <= {f"127.0.0.1:{f.port}" for f in fakes[:2]}
        fakes[2].stop()
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await replicas.post(CHAT, _body(), request_id="a")


async def test_what_fails_is_asked_elsewhere_once_and_no_more(fakes: list[FakeEngine]) -> None:
    async with _open(fakes) as replicas:
        for fake in fakes:
            fake.fail[CHAT] = (500, {"error": {"message": "a poisoned request"}})
        with pytest.raises(EngineUnavailable, match="poisoned"):
            await replicas.post(CHAT, _body(), request_id="a")
        assert sum(_asked(fakes)) == 2
        fakes[0].fail.clear()
        fakes[1].fail.clear()
        for number in range(9):
            await replicas.post(CHAT, _body(f"{number}"), request_id="a")


async def test_a_refusal_and_a_timeout_are_final(fakes: list[FakeEngine]) -> None:
    async with _open(fakes, timeout_s=0.2) as replicas:
        with pytest.raises(EngineRefusal, match="temperature"):
            await replicas.post(CHAT, _body(temperature=-1), request_id="a")
        assert sum(_asked(fakes)) == 1
        for fake in fakes:
            fake.token_delay_s = 5
        with pytest.raises(EngineTimeout):
            await replicas.post(CHAT, _body(), request_id="a")
        assert sum(_asked(fakes)) == 2
        for fake in fakes:
            fake.token_delay_s = 0


async def test_one_that_has_forgotten_the_adapter_is_not_asked_for_it_again(
    fakes: list[FakeEngine],
) -> None:
    async with _open(fakes) as replicas:
        for replica in replicas:
            replica.models.add("code@v1")
        fakes[2].adapters["code@v1"] = "/somewhere"
        for number in range(9):
            body = _body(f"{number}", model="code@v1")
            assert (await replicas.post(CHAT, body, request_id="a"))["model"] == "code@v1"
        assert max(_asked(fakes)[:2]) <= 1
        fakes[2].adapters.clear()
        with pytest.raises(EngineRefusal, match="does not exist"):
            await replicas.post(CHAT, _body(model="code@v1"), request_id="a")
        with pytest.raises(EngineUnavailable, match="no engine serves code@v1"):
            await replicas.post(CHAT, _body(model="code@v1"), request_id="a")


async def test_a_stream_begins_elsewhere_until_its_first_byte(fakes: list[FakeEngine]) -> None:
    async def read(words: str) -> bytes:
        async with replicas.stream(CHAT, _body(words, stream=True), request_id="a") as chunks:
            return b"".join([chunk async for chunk in chunks])

    async with _open(fakes) as replicas:
        fakes[0].break_stream_after = -1
        for number in range(24):
            for replica in replicas:
                replica.down = None
            assert (await read(f"{number}")).endswith(b"data: [DONE]\n\n")
        assert fakes[0].bodies() != []
        for fake in fakes:
            fake.script = lambda body, index: "one two three four"
            fake.break_stream_after = 2
        before = sum(_asked(fakes))
        with pytest.raises(EngineUnavailable):
            await read("broken in the middle")
        assert sum(_asked(fakes)) == before + 1
        assert all(replica.in_flight == 0 for replica in replicas)


async def test_one_that_serves_a_merged_version_is_asked_first(fakes: list[FakeEngine]) -> None:
    async with _open(fakes[:2]) as replicas:
        merged = await replicas.join(fakes[2].url, Role.MERGED)
        merged.models.add(BASE)
        merged.down, merged.current = None, True
        for number in range(5):
            await replicas.post(CHAT, _body(f"{number}"), request_id="a")
        assert _asked(fakes) == [0, 0, 5]
        fakes[2].stop()
        await replicas.post(CHAT, _body(), request_id="a")
        assert sum(_asked(fakes)[:2]) == 1


async def test_one_that_leaves_finishes_what_it_does(fakes: list[FakeEngine]) -> None:
    fakes[0].token_delay_s = 0.2
    async with _open(fakes[:1]) as replicas:
        (first,) = replicas
        running = asyncio.create_task(replicas.post(CHAT, _body(), request_id="a"))
        await _until(lambda: first.in_flight == 1)
        following = asyncio.create_task(replicas.run())
        replicas.change([fakes[1].url])
        await _until(lambda: [r.name for r in replicas] == [f"127.0.0.1:{fakes[1].port}"])
        assert first.leaving
        assert (await running)["object"] == "chat.completion"
        replicas.change([fakes[1].url])
        await _until(lambda: first not in replicas._all)
        replicas.stop()
        await following


async def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["10.0.0.2", "10.0.0.1", "fd00::1"]

    async def look_up(self: Any, host: str, port: int, **more: Any) -> list[Any]:
        assert (host, port) == ("engines.internal", 8001)
        if not addresses:
            raise socket.gaierror("no such name")
        return [(0, 0, 0, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    async with Replicas(["dns+http://engines.internal:8001"], timeout_s=1) as replicas:
        assert [r.engine.url for r in replicas] == [
            "http://10.0.0.1:8001",
            "http://10.0.0.2:8001",
            "http://[fd00::1]:8001",
        ]
        addresses.clear()  # a name server that is away takes no engine away
        await replicas._follow()
        assert len(list(replicas)) == 3
        addresses.append("10.0.0.2")
        await replicas._follow()
        assert [r.engine.url for r in replicas] == ["http://10.0.0.2:8001"]


async def _until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


# --- roll-out ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _serving(fakes: list[FakeEngine], data_dir: Path, **engines: Any) -> Iterator[Running]:
    urls = {"urls": tuple(fake.url for fake in fakes)} | engines
    with serving(fakes[0], data_dir, checker=Approving(), engines=urls) as running:
        yield running


def _promote(server: Running, fill: bytes) -> Adapter:
    adapter = add_adapter(server.registry, fill=fill)
    server.registry.promote(adapter.version, actor="test", reason="test", force=True)
    return adapter


def _serves(server: Running, version: int) -> bool:
    response = server.chat(store=False)
    return response.status_code == 200 and response.json()["adapter"]["version"] == version


def _serving_engines(server: Running) -> int:
    serving: int = server.http.get("/ready").json()["engines"]["serving"]
    return serving


class Load:
    """Requests of many, each answer compared with the weights that it says wrote it."""

    def __init__(self, *servers: Running, threads: int = 6) -> None:
        self._servers = servers
        self._stop = threading.Event()
        self.problems: list[str] = []
        self.answered: Counter[int] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            server = self._servers[turn % len(self._servers)]
            messages = [{"role": "user", "content": f"{number} {turn % 5}"}]
            response = server.chat(messages=messages)
            if response.status_code != 200:
                self.problems.append(response.text)
                continue
            answer = response.json()
            version = answer["adapter"]["version"]
            self.answered[version] += 1
            weights = b""
            if version:
                directory = Path(server.registry.get(version).directory)
                weights = (directory / "adapter_model.safetensors").read_bytes()
            if answer["choices"][0]["message"]["content"] != written_by(weights):
                self.problems.append(f"not written by v{version}: {answer}")


def test_a_version_answers_when_every_engine_has_proved_it(
    fakes: list[FakeEngine], tmp_path: Path
) -> None:
    with _serving(fakes, tmp_path) as server:
        before = swaps.mark(server.store)
        _promote(server, b"\1")
        swaps.wait(server.store, before, 1, 60).raise_if_refused()
        assert _serves(server, 1)
        assert [list(fake.adapters) for fake in fakes] == [["code@v1"]] * 3
        receipts = server.store.receipts(version=1)
        names = {f"127.0.0.1:{fake.port}" for fake in fakes}
        assert {r.probe["replica"] for r in receipts if "replica" in r.probe} == names
        (verdict,) = [r for r in receipts if "replica" not in r.probe]
        assert set(verdict.probe["replicas"]) == names
        assert server.http.get("/ready").json()["engines"] == {"serving": 3, "all": 3}
        shown = server.http.get("/v1/adapters").json()["engines"]
        assert [engine["models"] for engine in shown] == [["code@v1", BASE]] * 3
        assert "3 of 3 engines answer" in server.http.get("/console").text
        scraped = server.http.get("/metrics").text
        assert all(f'journeyman_replica_up{{replica="{name}"}} 1.0' in scraped for name in names)


def test_engines_that_die_during_swaps_under_load_fail_no_request(
    fakes: list[FakeEngine], tmp_path: Path
) -> None:
    for fake in fakes:
        fake.token_delay_s = 0.002
    with _serving(fakes, tmp_path) as server:
        with Load(server) as load:
            for number in range(1, 7):
                _promote(server, bytes([number]))
                fakes[number % 3].restart()
                server.until(lambda n=number: _serves(server, n))  # type: ignore[misc]
            server.registry.rollback(actor="test", reason="test")
            server.until(lambda: _serves(server, 5))
        assert load.problems == []
        assert set(load.answered) >= {0, 5, 6}
        server.until(lambda: _serving_engines(server) == 3)
        server.until(lambda: all("code@v6" not in fake.adapters for fake in fakes))


def test_one_that_comes_late_gets_traffic_when_it_has_all_that_is_wanted(
    fakes: list[FakeEngine], tmp_path: Path
) -> None:
    late = fakes[2]
    late.stop()
    with _serving(fakes, tmp_path) as server:
        _promote(server, b"\1")
        _promote(server, b"\2")
        server.until(lambda: _serves(server, 2))
        assert server.http.get("/ready").json()["engines"] == {"serving": 2, "all": 3}
        late.start()
        server.until(lambda: _serving_engines(server) == 3)
        with Load(server, threads=3) as load:
            server.until(lambda: len(late.bodies()) > 0)
        assert load.problems == []
        first = late.requests.index(next(r for r in late.requests if r[0] == CHAT))
        assert {load["lora_name"] for load in late.loads} == {"code@v1", "code@v2"}
        # Both were probed before the first request.
        probed = {body["model"] for path, body, _ in late.requests[:first] if path != CHAT}
        assert probed >= {"code@v1", "code@v2"}


def test_one_that_refuses_a_version_stops_it_where_all_must_prove_it(
    fakes: list[FakeEngine], tmp_path: Path
) -> None:
    with _serving(fakes, tmp_path) as server:
        _promote(server, b"\1")
        server.until(lambda: _serves(server, 1))
        fakes[1].fail["load"] = (500, {"error": {"message": "max_lora_rank is 4"}})
        before = swaps.mark(server.store)
        with Load(server, threads=3) as load:
            _promote(server, b"\2")
            server.until(lambda: server.registry.get(2).state is AdapterState.REJECTED)
        assert load.problems == []
        assert set(load.answered) == {1}  # `code` never meant it
        (verdict,) = swaps.wait(server.store, before, 2, 60).receipts
        assert not verdict.accepted
        assert "max_lora_rank is 4" in verdict.reason
        server.until(lambda: all(set(fake.adapters) == {"code@v1"} for fake in fakes))


def test_one_that_refuses_a_version_is_passed_over_where_fewer_are_enough(
    fakes: list[FakeEngine], tmp_path: Path
) -> None:
    refusing = fakes[1]
    with _serving(fakes, tmp_path, proved_share=0.6) as server:
        refusing.apply_adapters = False
        _promote(server, b"\1")
        server.until(lambda: _serves(server, 1))
        with Load(server, threads=3) as load:
            server.until(lambda: load.answered[1] > 50)
        assert load.problems == []
        assert refusing.bodies() == [] or {b["model"] for b in refusing.bodies()} == {BASE}
        assert server.http.get("/ready").json()["engines"] == {"serving": 2, "all": 3}
        shown = server.http.get("/v1/adapters").json()["engines"][1]
        assert "changes nothing" in shown["failures"]["code@v1"]
        refusing.apply_adapters = True
        server.until(lambda: _serving_engines(server) == 3)
        assert server.registry.get(1).state is AdapterState.CHAMPION


def test_a_champion_is_not_refused_because_of_one_engine_that_was_restarted(
    fakes: list[FakeEngine], tmp_path: Path
) -> None:
    with _serving(fakes, tmp_path) as server:
        _promote(server, b"\1")
        server.until(lambda: _serves(server, 1))
        fakes[0].fail["load"] = (500, {"error": {"message": "no"}})
        fakes[0].restart()
        server.until(lambda: _serving_engines(server) == 2)
        server.until(lambda: len(fakes[0].loads) > 1)
        assert server.registry.get(1).state is AdapterState.CHAMPION
        assert _serves(server, 1)


def test_one_with_another_base_model_is_not_asked(fakes: list[FakeEngine], tmp_path: Path) -> None:
    fakes[2].base = "another-base"
    with _serving(fakes, tmp_path) as server:
        _promote(server, b"\1")
        server.until(lambda: _serves(server, 1))
        with Load(server, threads=3) as load:
            server.until(lambda: load.answered[1] > 30)
        assert load.problems == []
        assert fakes[2].bodies() == []
        assert server.http.get("/ready").json()["engines"] == {"serving": 2, "all": 3}


def test_a_name_from_another_path_is_never_asked_for(
    fakes: list[FakeEngine], tmp_path: Path
) -> None:
    fakes[1].adapters["code@v1"] = "/of/somebody/else"
    with _serving(fakes, tmp_path, proved_share=0.5) as server:
        _promote(server, b"\1")
        server.until(lambda: _serves(server, 1))
        with Load(server, threads=3) as load:
            server.until(lambda: load.answered[1] > 30)
        assert load.problems == []
        assert "code@v1" not in {body["model"] for body in fakes[1].bodies()}
        failures = server.http.get("/v1/adapters").json()["engines"][1]["failures"]
        assert "a name is never used twice" in failures["code@v1"]


def test_fewer_engines_than_are_needed_keep_a_version_waiting(
    fakes: list[FakeEngine], tmp_path: Path
) -> None:
    fakes[2].stop()
    with _serving(fakes, tmp_path, min_proved=3) as server:
        _promote(server, b"\1")
        server.until(lambda: all("code@v1" in fake.adapters for fake in fakes[:2]))
        server.until(lambda: bool(server.http.get("/ready").json()["pending"]))
        threading.Event().wait(4 * POLL_S)
        assert _serves(server, 0)
        fakes[2].start()
        server.until(lambda: _serves(server, 1))


def test_what_replicas_tell_of_themselves(fakes: list[FakeEngine]) -> None:
    async def look() -> Replica:
        async with Replicas([fakes[0].url], timeout_s=1) as replicas:
            (replica,) = replicas
            assert replicas.of(Role.MERGED) == []
            assert not replicas.know(BASE)
            return replica

    replica = asyncio.run(look())
    assert replica.down == "the engine has not answered yet"
