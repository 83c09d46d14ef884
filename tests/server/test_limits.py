"""Bodies: too long, not JSON, not text."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import REGISTRY

from server import limits
from server.errors import UsersFirst
from server.limits import Gate
from tests.server.conftest import Running

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/feedback"]


def test_an_oversize_body_is_refused_before_it_is_read(server: Running) -> None:
    for path in PATHS:
        _ask_too_much(server, path)


def _ask_too_much(server: Running, path: str) -> None:
    limit = server.settings.server.max_body_bytes
    with socket.create_connection(("127.0.0.1", server.settings.server.port)) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {limit + 1}\r\n\r\n"
        client.sendall(head.encode())  # and not one byte of the body
        client.settimeout(30)
        answer = b""
        while b"\r\n\r\n" not in answer or b"request_too_large" not in answer:
            part = client.recv(65536)
            assert part, f"the answer ended: {answer!r}"
            answer += part
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_of_unknown_length_is_read_up_to_the_limit(server: Running) -> None:
    part = b"x" * (1 << 20)

    def endless() -> object:
        for _ in range(6):
            yield part

    response = server.http.post("/v1/chat/completions", content=endless())  # type: ignore[arg-type]
    assert response.status_code == 413


NOT_OBJECTS = [
    b"",
    b"{",
    b"[]",
    b'"x"',
    b"null",
    b'{"model":"code","messages":[{"role":"user","content":"\xff"}]}',
    b'{"model":"code","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"code","temperature":NaN,"messages":[{"role":"user","content":"x"}]}',
    b'{"a":' * 100_000,
    b'{"model":"code","seed":' + b"9" * 5000 + b"}",
    b'{"model":"code","messages":[{"role":"user","content":"a\\u0000b"}]}',
]


def test_what_is_not_a_json_object_is_a_400(server: Running) -> None:
    for path in PATHS:
        for body in NOT_OBJECTS:
            response = server.http.post(path, content=body)
            assert response.status_code == 400, body[:60]
            assert response.json()["error"]["code"] == "invalid_json"


def test_an_escaped_backslash_is_no_nul(server: Running) -> None:
    body = b'{"model":"code","messages":[{"role":"user","content":"a\\\\u0000b"}]}'
    assert server.http.post("/v1/chat/completions", content=body).status_code == 200
    assert server.store.interactions()[0].messages[0]["content"] == "a\\u0000b"


def test_escaped_pairs_of_surrogates_are_text(server: Running) -> None:
    body = b'{"model":"code","messages":[{"role":"user","content":"\\ud83d\\ude00"}]}'
    response = server.http.post("/v1/chat/completions", content=body)
    assert response.status_code == 200
    row = server.store.interactions()[0]
    assert row.messages[0]["content"] == "\N{GRINNING FACE}"


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


async def _behind(gate: Gate, running: list[int], number: int, end: asyncio.Event) -> None:
    gate.enter()
    async with gate.behind():
        running.append(number)
        await end.wait()
        running.remove(number)
    gate.leave(behind=True)


def _counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_what_waits_and_runs_behind_users_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def now() -> tuple[float, ...]:
        behind = (_counted("journeyman_requests_behind", state=s) for s in ("waiting", "running"))
        return (*behind, _counted("journeyman_requests_sent_away_total"))

    before, running, end = now(), list[int](), asyncio.Event()
    gate = Gate(16)
    gate.enter()  # a user's
    tasks = [asyncio.create_task(_behind(gate, running, n, end)) for n in range(3)]
    await asyncio.sleep(0)
    assert [a - b for a, b in zip(now(), before, strict=True)] == [2, 1, 0]
    monkeypatch.setattr(limits, "WAIT_S", 0.0)
    with pytest.raises(UsersFirst):
        await _behind(gate, running, 3, end)
    end.set()
    gate.leave()
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [a - b for a, b in zip(now(), before, strict=True)] == [0, 0, 1]


async def test_while_users_are_about_one_request_at_a_time_goes_behind_them() -> None:
    clock, ends, running = Clock(), [asyncio.Event() for _ in range(3)], list[int]()
    gate = Gate(16, quiet_s=30.0, clock=clock)
    gate.enter()  # a user's
    tasks = [asyncio.create_task(_behind(gate, running, n, ends[n])) for n in range(3)]
    await asyncio.sleep(0)
    assert (running, gate.waiting) == ([0], 2)
    gate.leave()
    clock.at += 29  # somebody may come again
    ends[0].set()
    await asyncio.sleep(0.01)
    assert (running, gate.waiting) == ([1], 1)
    clock.at += 1
    ends[1].set()
    ends[2].set()
    await asyncio.gather(*tasks)
    assert (gate.in_flight, gate.waiting) == (0, 0)


async def test_when_nobody_is_about_all_run_at_once() -> None:
    end, running = asyncio.Event(), list[int]()
    gate = Gate(16)
    tasks = [asyncio.create_task(_behind(gate, running, n, end)) for n in range(5)]
    await asyncio.sleep(0)
    assert len(running) == 5
    end.set()
    await asyncio.gather(*tasks)
    assert gate.in_flight == 0


async def test_when_the_last_user_has_been_gone_for_long_the_waiting_begin() -> None:
    end, running = asyncio.Event(), list[int]()
    gate = Gate(16, quiet_s=0.05)
    gate.enter()
    gate.leave()
    tasks = [asyncio.create_task(_behind(gate, running, n, end)) for n in range(3)]
    await asyncio.sleep(0)
    assert len(running) == 1
    await asyncio.sleep(0.1)
    assert len(running) == 3
    end.set()
    await asyncio.gather(*tasks)


async def test_one_that_is_given_up_while_it_waits_leaves_no_trace() -> None:
    end, running = asyncio.Event(), list[int]()
    gate = Gate(16)
    gate.enter()
    first = asyncio.create_task(_behind(gate, running, 0, end))
    second = asyncio.create_task(_behind(gate, running, 1, end))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    gate.leave(behind=True)  # as the middleware does
    assert gate.waiting == 0
    end.set()
    await first
    third = asyncio.create_task(_behind(gate, running, 2, end))
    await third
    assert gate.in_flight == 1  # the user's


def test_a_request_behind_others_is_answered_and_none_goes_before_others(server: Running) -> None:
    assert server.chat(priority=5).status_code == 200
    assert server.chat(priority=-5).status_code == 200
    assert [body["priority"] for body in server.engine.bodies()] == [5, 0]
    assert server.chat(priority="first").status_code == 400


def test_users_do_not_wait_for_what_goes_behind_them(server: Running) -> None:
    server.engine.token_delay_s = 0.2
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(server.chat, priority=10) for _ in range(3)]
        server.until(lambda: server.engine.running > 0)
        server.engine.token_delay_s = 0.0
        assert server.chat().status_code == 200
        assert len(server.engine.bodies()) <= 4
        assert {one.result().status_code for one in asked} == {200}


async def test_one_that_waited_for_too_long_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "WAIT_S", 0.05)
    end, running = asyncio.Event(), list[int]()
    gate = Gate(16)
    gate.enter()
    first = asyncio.create_task(_behind(gate, running, 0, end))
    second = asyncio.create_task(_behind(gate, running, 1, end))
    with pytest.raises(UsersFirst):
        await second
    gate.leave(behind=True)  # as the middleware does
    end.set()
    await first
    assert (gate.waiting, gate.in_flight) == (0, 1)
