"""Several servers on one PostgreSQL, over several engines: one dies, others come and go."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ops.records import Adapter
from ops.registry import Registry
from ops.settings import KeySettings
from tests.fake_engine import FakeEngine, add_adapter
from tests.server.conftest import NO_TLS, Running, serving
from tests.server.test_durability import ID, kill, nursery
from tests.server.test_replicas import fakes, written_by
from tests.server.victim import Approving

__all__ = ["fakes"]

REFUSED = (httpx.ConnectError, httpx.ReadError)
"""How a server that is no more there shows; whoever shares requests out asks the next one."""
GONE = (*REFUSED, httpx.RemoteProtocolError)


class RoundRobin:
    """Clients behind the most trivial of balancers: one server after the other.

    What was answered is compared with the weights that it says wrote it.
    """

    def __init__(self, urls: list[str], registry: Registry, *, lost: tuple[type[Exception], ...]):
        self.urls = urls
        self._registry = registry
        self._lost = lost
        self._turn = itertools.count()
        self._stop = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.by: Counter[str] = Counter()
        self.problems: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(4)]

    def __enter__(self) -> RoundRobin:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            body = {
                "model": "code",
                "messages": [{"role": "user", "content": f"{number} {time.monotonic()}"}],
            }
            turn = next(self._turn)
            for further in range(len(self.urls)):
                url = self.urls[(turn + further) % len(self.urls)]
                with contextlib.suppress(*self._lost):
                    path = f"{url}/v1/chat/completions"
                    response = httpx.post(path, json=body, timeout=30, verify=NO_TLS)
                    self._check(url, response)
                    break
            else:
                self.problems.append("no server could be reached")
                return

    def _check(self, url: str, response: httpx.Response) -> None:
        if response.status_code != 200:
            self.problems.append(response.text)
            return
        answer = response.json()
        version, weights = answer["adapter"]["version"], b""
        if version:
            directory = Path(self._registry.get(version).directory)
            weights = (directory / "adapter_model.safetensors").read_bytes()
        if answer["choices"][0]["message"]["content"] != written_by(weights):
            self.problems.append(f"not written by v{version}: {answer}")
        self.acknowledged[response.headers[ID]] = version
        self.by[url] += 1


@pytest.fixture
def servers(fakes: list[FakeEngine], tmp_path: Path, postgres_database: str) -> Servers:
    return Servers(fakes, tmp_path, postgres_database)


class Servers:
    """Servers over the same engines, record and data directory."""

    def __init__(self, fakes: list[FakeEngine], data_dir: Path, store_url: str) -> None:
        self.fakes = fakes
        self.data_dir = data_dir
        self.store_url = store_url

    @contextlib.contextmanager
    def one(self, **server: object) -> Iterator[Running]:
        with serving(
            self.fakes[0],
            self.data_dir,
            checker=Approving(),
            store_url=self.store_url,
            engines={"urls": tuple(fake.url for fake in self.fakes)},
            **server,
        ) as running:
            yield running


def _promote(server: Running, fill: bytes) -> Adapter:
    adapter = add_adapter(server.registry, fill=fill)
    server.registry.promote(adapter.version, actor="test", reason="test", force=True)
    return adapter


def _answers(server: Running, version: int) -> bool:
    response = server.http.get("/ready")
    adapter = response.json()["adapter"]
    return response.status_code == 200 and adapter["version"] == version


def test_one_of_two_servers_is_killed_under_load_and_nothing_acknowledged_is_lost(
    servers: Servers,
) -> None:
    with (
        servers.one() as survivor,
        nursery(
            servers.data_dir, *servers.fakes, JOURNEYMAN_STORE__URL=servers.store_url
        ) as victims,
        victims.serving() as (pid, url),
    ):
        with RoundRobin([survivor.url, url], survivor.registry, lost=GONE) as clients:
            _promote(survivor, b"\1")
            survivor.until(lambda: _answers(survivor, 1))
            survivor.until(lambda: clients.by[url] > 20)
            _promote(survivor, b"\2")
            kill(pid)
            survivor.until(lambda: _answers(survivor, 2))
            alone = clients.by[survivor.url]
            survivor.until(lambda: clients.by[survivor.url] > alone + 20)
        assert clients.problems == []
        assert set(clients.acknowledged.values()) >= {1, 2}
        for interaction, version in clients.acknowledged.items():
            assert survivor.store.interaction(interaction).adapter_version == version


def test_servers_are_replaced_one_by_one_and_no_request_fails(servers: Servers) -> None:
    with contextlib.ExitStack() as all_there:
        first = contextlib.ExitStack()
        old = first.enter_context(servers.one())
        staying = all_there.enter_context(servers.one())
        _promote(staying, b"\1")
        for server in (old, staying):
            server.until(lambda s=server: _answers(s, 1))  # type: ignore[misc]
        with RoundRobin([old.url, staying.url], staying.registry, lost=REFUSED) as clients:
            staying.until(lambda: clients.by[old.url] > 10)
            first.close()  # gracefully
            new = all_there.enter_context(servers.one())
            assert _answers(new, 1)  # before it gets traffic
            clients.urls[0] = new.url
            staying.until(lambda: clients.by[new.url] > 10)
            _promote(new, b"\2")
            for server in (new, staying):
                server.until(lambda s=server: _answers(s, 2))  # type: ignore[misc]
            since = sum(clients.by.values())
            staying.until(lambda: sum(clients.by.values()) > since + 20)
        assert clients.problems == []
        assert set(clients.acknowledged.values()) == {1, 2}
        # Each names what it proved; neither took away what the other may still ask for.
        receipts = [r for r in staying.store.receipts(version=2) if "replica" not in r.probe]
        assert len({receipt.server for receipt in receipts}) == 2
        assert all(receipt.accepted for receipt in receipts)


def test_what_one_server_was_told_the_other_knows(servers: Servers) -> None:
    secret = "s" * 40
    keys = (
        KeySettings(
            name="ide",
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            scopes=("inference", "feedback", "admin"),
            requests_per_minute=6,
        ),
    )
    with servers.one(keys=keys) as one, servers.one(keys=keys) as other:
        for server in (one, other):
            server.http.headers["Authorization"] = f"Bearer {secret}"
        answer = one.chat(user="ann").json()
        said = {"inference_id": answer["id"], "metric_name": "comment", "value": "too long"}
        assert other.http.post("/v1/feedback", json=said).status_code == 200
        erased = other.http.delete("/v1/users/ann/data").json()
        assert erased["counts"]["interactions"] == 1
        assert one.http.get("/v1/interactions").json()["data"] == []
        while one.chat().status_code == 200:
            pass
        other.until(lambda: other.chat().status_code == 429, timeout_s=5)


def test_a_version_that_is_left_stays_loaded_while_another_server_may_ask_for_it(
    servers: Servers,
) -> None:
    with servers.one() as one, servers.one() as other:
        candidate = add_adapter(one.registry, fill=b"\3")
        one.registry.nominate(candidate.version)
        for server in (one, other):
            server.until(lambda s=server: s.chat(model="code@v1").status_code == 200)  # type: ignore[misc]
        one.until(lambda: len(one.store.heartbeats()) == 2)
        one.registry.nominate(None)
        for server in (one, other):
            server.until(lambda s=server: s.chat(model="code@v1").status_code == 404)  # type: ignore[misc]
        assert all("code@v1" in fake.adapters for fake in servers.fakes)
