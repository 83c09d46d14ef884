"""Faults of a canary: only what fails under it and is answered under the champion counts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.records import AdapterState
from server.faults import ENOUGH
from tests.fake_engine import FakeEngine, add_adapter
from tests.server.conftest import POLL_S, Running, SharedPool, serving

FAILED = {"error": {"message": "no such kernel", "type": "InternalServerError", "code": 500}}


class Faulty(FakeEngine):
    """An engine that answers some requests with an error, by their bodies."""

    def __init__(self) -> None:
        super().__init__()
        self.status = 500
        self.faulty: Callable[[dict[str, Any]], bool] = lambda body: False

    def _refused(self, request: Request, body: dict[str, Any]) -> Response | None:
        refused = super()._refused(request, body)
        if refused is None and self.faulty(body) and "prompt_logprobs" not in body:
            return JSONResponse(FAILED, self.status)
        return refused

    def asked(self, model: str) -> int:
        return sum(body["model"] == model for body in self.bodies())


@pytest.fixture
def engine() -> Iterator[Faulty]:
    fake = Faulty()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def server(engine: Faulty, pool: SharedPool, tmp_path: Path) -> Iterator[Running]:
    with serving(engine, tmp_path / "data", checker=pool) as running:
        for version, act in ((1, running.registry.promote), (2, running.registry.canary)):
            add_adapter(running.registry, fill=bytes([version]))
            running.registry.examined(version, actor="gate", reason="better", evidence={})
            act(version, actor="gate", reason="better", evidence={"share": 0.5})  # type: ignore[operator]
        running.until(lambda: len({versions(running, f"u{n}") for n in range(40)}) == 2)
        yield running


def versions(server: Running, user: str) -> int:
    response = server.chat(store=False, user=user)
    return int(response.json()["adapter"]["version"]) if response.status_code == 200 else -1


def ask(server: Running, text: str, user: str, **more: Any) -> int:
    messages = [{"role": "user", "content": text}]
    return server.chat(store=False, user=user, messages=messages, **more).status_code


def on_canary(server: Running) -> str:
    """Somebody whom the canary answers."""
    return next(f"u{n}" for n in range(40) if versions(server, f"u{n}") == 2)


def rejected(server: Running) -> bool:
    return server.registry.get(2).state is AdapterState.REJECTED


@pytest.mark.parametrize("status", [400, 500])
def test_a_canary_that_makes_the_engine_fail_is_rejected(
    server: Running, engine: Faulty, status: int
) -> None:
    user = on_canary(server)
    engine.faulty, engine.status = lambda body: body["model"] == "code@v2", status
    before = engine.asked("code@v1")
    for number in range(ENOUGH):
        assert ask(server, f"question {number}", user, stream=bool(number % 2)) != 200
        count = before + number + 1
        server.until(lambda count=count: engine.asked("code@v1") >= count)  # type: ignore[misc]
    server.until(lambda: rejected(server))
    last = server.store.transitions(2)[-1]
    assert f"{ENOUGH} requests failed under code@v2" in last.reason
    assert "no such kernel" in last.reason
    assert last.evidence["faults"] == ENOUGH
    server.until(lambda: versions(server, user) == 1)


@pytest.mark.parametrize("cause", ["the client", "the engine", "overload", "once", "one question"])
def test_what_is_not_the_canary_s_fault_does_not_count(
    server: Running, engine: Faulty, cause: str
) -> None:
    user = on_canary(server)
    seen: set[str] = set()

    def first_time(body: dict[str, Any]) -> bool:
        text = json.dumps(body["messages"])
        fresh = body["model"] == "code@v2" and text not in seen
        seen.add(text)
        return fresh

    engine.faulty = {
        "the client": lambda body: True,
        "the engine": lambda body: True,
        "overload": lambda body: body["model"] == "code@v2",
        "once": first_time,
        "one question": lambda body: body["model"] == "code@v2",
    }[cause]
    engine.status = {"the client": 400, "overload": 503}.get(cause, 500)
    for number in range(2 * ENOUGH):
        text = "the same" if cause == "one question" else f"question {number}"
        assert ask(server, text, user) != 200
        time.sleep(POLL_S)
    engine.faulty = lambda body: False
    time.sleep(5 * POLL_S)
    assert not rejected(server)
    assert versions(server, user) == 2


def test_what_is_asked_again_is_short_and_of_its_own_cache(server: Running, engine: Faulty) -> None:
    user = on_canary(server)
    engine.faulty = lambda body: body["model"] == "code@v2"
    before = len(engine.bodies())
    ask(server, "long", user, stream=True, max_tokens=500, n=2)
    server.until(lambda: len(engine.bodies()) >= before + 3)
    first, *again = engine.bodies()[before : before + 3]
    assert [body["model"] for body in again] == ["code@v2", "code@v1"]
    for body in again:
        assert (body["max_tokens"], body["stream"]) == (1, False)
        assert "n" not in body
        assert body["messages"] == first["messages"]
    assert len({body["cache_salt"] for body in (first, *again)}) == 3
