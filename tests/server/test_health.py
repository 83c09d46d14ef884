"""Alive, ready, measured."""

from __future__ import annotations

from tests.server.conftest import Running


def test_health_and_ready(server: Running) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    body = server.http.get("/ready").json()
    assert body["ready"] is True
    assert body["reasons"] == []
    assert body["adapter"] == {"name": "base", "version": 0, "sha256": ""}
    assert body["sandbox"]


def test_not_ready_says_why_and_health_stays_good(server: Running) -> None:
    server.engine.health = False
    server.until(lambda: server.http.get("/ready").status_code == 503)
    response = server.http.get("/ready")
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["reasons"] == ["the engine does not answer its health check"]
    assert server.http.get("/health").status_code == 200
    server.engine.health = True
    server.ready()


def _value(text: str, name: str) -> float:
    lines = [line for line in text.splitlines() if line.startswith(name + " ")]
    assert len(lines) == 1, name
    return float(lines[0].rsplit(" ", 1)[1])


def test_metrics_count_what_happens(server: Running) -> None:
    overhead = "journeyman_request_overhead_seconds_count"

    def counted() -> float:
        return _value(server.http.get("/metrics").text, overhead)

    before = counted()
    spec = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}
    server.chat(io_spec=spec)
    server.http.get("/nowhere/at/all")
    # A request is counted once its answer has left.
    server.until(lambda: counted() > before)
    after = server.http.get("/metrics").text
    labels = 'endpoint="/v1/chat/completions",status="200",verification="Success"'
    assert f"journeyman_requests_total{{{labels}}}" in after
    assert "/nowhere" not in after
    assert 'journeyman_adapter_info{name="base",role="champion",sha256="",version="0"} 1.0' in after
    assert _value(after, "journeyman_engine_up") == 1.0
    assert 'journeyman_log_rows{table="interactions"}' in after
