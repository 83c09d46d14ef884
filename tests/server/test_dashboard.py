"""The dashboard's queries on a real Prometheus that scrapes a running server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.ops.test_dashboards import ask, concrete, panels, queries, running, wait_for
from tests.server.conftest import Running


@pytest.fixture
def live(server: Running, tmp_path: Path) -> Iterator[httpx.Client]:
    """A real Prometheus that scrapes a running server with traffic, and its engine."""
    spec = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}
    stop = threading.Event()

    def use() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while not stop.is_set():
                body = {"model": "code", "messages": [{"role": "user", "content": "add"}]}
                answer = client.post("/v1/chat/completions", json=body | {"io_spec": spec}).json()
                said = {"inference_id": answer["id"], "metric_name": "accepted", "value": True}
                client.post("/v1/feedback", json=said)
                client.post("/v1/chat/completions", json={"model": "none"})
                stop.wait(0.1)

    users = threading.Thread(target=use, name="users")
    users.start()
    try:
        targets = {"journeyman": server.url, "vllm": server.engine.url}
        with running(tmp_path, {j: u.removeprefix("http://") for j, u in targets.items()}) as found:
            wait_for(found, 'count_over_time(up{job="journeyman"}[1m]) > 10')
            yield found
    finally:
        stop.set()
        users.join()


TRAFFIC = {
    *("Completions", "Completions by status", "In flight", "Latency of completions", "Latency p95"),
    *("Overhead per request", "Overhead p99", "Other requests by route", "Durable writes"),
    *("Verified", "Verified share", "Answers with a specification", "Attempts by verdict"),
    *("Attempts judged", "Time spent judging", "Feedback", "Feedback per hour, by metric"),
    *("Running", "The record", "Requests for `code`, by arm", "Engine"),
}
"""Panels on which users' requests are seen, whatever else happens."""


def test_every_query_runs_on_a_live_system_and_its_traffic_is_seen(live: httpx.Client) -> None:
    empty = {
        place.rpartition(" ")[0]
        for place, query in queries().items()
        if not ask(live, concrete(query, "1m"))
    }
    assert {panel["title"] for panel in panels()} >= TRAFFIC
    assert empty & TRAFFIC == set()
