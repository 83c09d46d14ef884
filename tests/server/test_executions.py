"""A client's own programs: run within limits and quota; reports of other runs are kept apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from improver.collect import collect_cases
from ops.records import Source
from sandbox.errors import SandboxError
from tests.fake_engine import FakeEngine
from tests.server.conftest import Running, SharedPool, serving
from tests.server.test_auth import _as, _key

ADD = "def add(a, b):\n    return a + b\n"
SPEC = {
    "examples": [
        {"input": [1, 2], "output": 3},
        {"input": [2, 2], "output": 5, "hidden": True},
    ]
}


def _run(server: Running, **body: Any) -> httpx.Response:
    return server.http.post("/v1/executions", json=body)


def test_a_function_is_called_and_its_values_come_back(server: Running) -> None:
    code = ADD + "import math\nprint('loaded')\n"
    calls: list[Any] = [
        [1, 2],
        {"a": {"$tuple": [1]}, "b": {"$tuple": [2]}},
        [1, "x"],
        [{"$float": "nan"}, 1],
    ]
    body = _run(server, code=code, entry_point="add", calls=calls).json()
    assert body["object"] == "execution"
    assert body["source"] == "served"
    assert (body["verdict"], body["error"]["type"]) == ("ERROR", "TypeError")  # the third call
    assert body["sandbox"] not in ("none", "client")
    assert body["stdout"] == "loaded\n"
    first, second, third, fourth = body["values"]
    assert first == {"value": 3}
    assert second == {"value": {"$tuple": [1, 2]}}
    assert third["error"]["type"] == "TypeError"
    assert fourth == {"value": {"$float": "nan"}}
    kept = server.http.get(f"/v1/executions/{body['id']}").json()
    assert kept == {key: value for key, value in body.items() if key != "values"}


def test_a_script_reads_stdin_and_ends_within_its_limits(server: Running) -> None:
    body = _run(server, code="print(input()[::-1])", stdin="abc\n").json()
    assert (body["verdict"], body["stdout"]) == ("OK", "cba\n")
    started = time.monotonic()
    body = _run(server, code="while True: pass", limits={"wall_s": 0.3}).json()
    assert body["verdict"] == "TIMEOUT"
    assert time.monotonic() - started < 4
    body = _run(server, code="import socket; socket.create_connection(('1.1.1.1', 80), 1)").json()
    assert body["verdict"] == "ERROR"
    assert body["error"]["type"] in ("OSError", "PermissionError")
    opaque = _run(server, code="def f(): return object()", calls=[[]]).json()
    assert opaque["values"] == [{"value": {"$opaque": "object"}}]


def test_with_a_spec_it_is_judged_and_hidden_examples_stay_hidden(server: Running) -> None:
    body = _run(server, code=ADD, io_spec=SPEC).json()
    assert (body["verified"], body["passed"], body["total"]) == (False, 1, 2)
    assert body["verification"]["status"] == "Failed"
    assert [e["message"] for e in body["examples"]] == [None, None]
    assert "5" not in str(body["verification"]["message"])
    good = {"examples": SPEC["examples"][:1]}
    answer = server.chat().json()
    body = _run(server, code=ADD, io_spec=good, inference_id=answer["id"]).json()
    assert body["verified"] is True
    whole = server.http.get(f"/v1/interactions/{answer['id']}").json()
    assert [run["verified"] for run in whole["executions"]] == [True]


def test_a_report_is_kept_apart_and_never_believed(server: Running) -> None:
    server.engine.script = lambda body, index: "```python\ndef add(a, b):\n    return a - b\n```"
    spec = {"entry_point": "add", "examples": SPEC["examples"][:1]}
    answer = server.chat(io_spec=spec).json()
    report = {
        "source": "client",
        "inference_id": answer["id"],
        "verdict": "OK",
        "passed": 1,
        "total": 1,
        "stdout": "token ghp_" + "a" * 36,
    }
    body = _run(server, **report).json()
    assert (body["source"], body["verified"], body["sandbox"]) == ("client", False, "client")
    assert "ghp_" not in server.http.get(f"/v1/executions/{body['id']}").json()["stdout"]
    interaction_id = answer["id"].removeprefix("chatcmpl-")
    assert {run.source for run in server.store.executions(interaction_id)} == {Source.SERVED}
    everything = server.store.executions(interaction_id, reported=True)
    assert {run.source for run in everything} == {Source.SERVED, Source.CLIENT}
    # The improver still sees its own failure, and nothing of what the client claims.
    cases = collect_cases(server.store, limit=10, keep=False).cases
    assert [case.interaction_id for case in cases] == [interaction_id]
    assert "expected" in cases[0].feedback or "3" in cases[0].feedback


def test_what_is_not_to_be_kept_is_not(server: Running) -> None:
    for body in ({"code": "1"}, {"source": "client", "verdict": "OK"}):
        made = _run(server, **body, store=False).json()
        assert server.http.get(f"/v1/executions/{made['id']}").status_code == 404


WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({}, "code"),
    ({"code": ""}, "code"),
    ({"code": 3}, "code"),
    ({"code": "1", "surprise": 1}, "surprise"),
    ({"code": "1", "source": "mine"}, "source"),
    ({"code": "1", "calls": [3]}, "calls"),
    ({"code": "1", "calls": [[{"$nope": 1}]]}, "calls[0]"),
    ({"code": "1", "calls": [[]] * 101}, "calls"),
    ({"code": "1", "entry_point": "f"}, "calls"),
    ({"code": "1", "limits": {"wall_s": 1e6}}, "limits.wall_s"),
    ({"code": "1", "limits": {"wall_s": -1}}, "limits.wall_s"),
    ({"code": "1", "limits": {"memory_bytes": 1 << 60}}, "limits.memory_bytes"),
    ({"code": "1", "io_spec": {"examples": 3}}, "io_spec.examples"),
    ({"code": "1", "io_spec": {}, "stdin": "x"}, "io_spec"),
    ({"source": "client"}, "verdict"),
    ({"source": "client", "verdict": "SANDBOX_ERROR"}, "verdict"),
    ({"source": "client", "verdict": "OK", "passed": 2, "total": 1}, "passed"),
]


def test_wrong_bodies_are_a_400_that_names_the_field(server: Running) -> None:
    for body, param in WRONG:
        response = _run(server, **body)
        assert response.status_code == 400, (body, response.text)
        assert str(response.json()["error"]["param"]).startswith(str(param)), (body, response.text)
    for body in ({"code": "1"}, {"source": "client", "verdict": "OK"}):
        response = _run(server, **body, inference_id="chatcmpl-nowhere")
        assert response.status_code == 404


def test_an_answer_that_is_deleted_meanwhile_is_a_404(server: Running) -> None:
    answer = server.chat().json()["id"]
    body = {"code": "import time; time.sleep(1.5)", "inference_id": answer}
    responses: list[httpx.Response] = []
    slow = threading.Thread(target=lambda: responses.append(_run(server, **body)))
    slow.start()
    time.sleep(0.5)
    assert server.http.delete(f"/v1/chat/completions/{answer}").status_code == 200
    slow.join()
    assert responses[0].status_code == 404
    assert responses[0].json()["error"]["param"] == "inference_id"


@pytest.fixture
def guarded(engine: FakeEngine, pool: SharedPool, tmp_path: Path) -> Iterator[Running]:
    keys = (
        _key("a", tenant="a"),
        _key("b", tenant="b"),
        _key("two", executions_per_minute=2),
        _key("none", executions_per_minute=0),
        _key("asks", scopes=("inference",)),
    )
    with serving(engine, tmp_path, checker=pool, keys=keys) as running:
        yield running


def test_quotas_scopes_and_tenants(guarded: Running) -> None:
    mine = _run(_as(guarded, "a"), code="1").json()["id"]
    answer = guarded.chat().json()["id"]
    assert guarded.http.get(f"/v1/executions/{mine}").status_code == 200
    other = _as(guarded, "b")
    assert other.http.get(f"/v1/executions/{mine}").status_code == 404
    assert _run(other, code="1", inference_id=answer).status_code == 404
    two = _as(guarded, "two")
    responses = [_run(two, code="1") for _ in range(3)]
    assert [r.status_code for r in responses] == [200, 200, 429]
    assert responses[0].headers["x-ratelimit-limit-executions"] == "2"
    assert int(responses[2].headers["retry-after"]) > 0
    assert _run(two, source="client", verdict="OK").status_code == 200
    assert _run(_as(guarded, "none"), code="1").status_code == 403
    assert _run(_as(guarded, "asks"), source="client", verdict="OK").status_code == 403


def test_a_failing_sandbox_is_a_503_and_no_verdict(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object, **more: object) -> None:
        raise SandboxError("no child")

    monkeypatch.setattr(pool, "run", fail)
    monkeypatch.setattr(pool, "check", fail)
    with serving(engine, tmp_path, checker=pool) as server:
        for body in ({"code": "1"}, {"code": ADD, "io_spec": SPEC}):
            response = _run(server, **body)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "sandbox_unavailable"


def test_whole_numbers_of_a_report_may_have_a_point(server: Running) -> None:
    report = {"source": "client", "verdict": "WRONG", "passed": 3.0, "total": 4.0}
    assert server.http.post("/v1/executions", json=report).json()["passed"] == 3
    wrong = server.http.post("/v1/executions", json=report | {"passed": 2.5})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "passed")
