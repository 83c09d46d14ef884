"""The server's own journey on PostgreSQL: asked, verified, judged, listed, exported, erased."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ops import export
from ops.records import Metric
from tests.fake_engine import FakeEngine
from tests.server.conftest import Running, SharedPool, serving

SPEC = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}


@pytest.fixture
def server(
    engine: FakeEngine,
    pool: SharedPool,
    tmp_path: Path,
    postgres_database: str,
) -> Iterator[Running]:
    with serving(engine, tmp_path, checker=pool, store_url=postgres_database) as running:
        assert running.store.kind == "postgresql"
        yield running


def test_a_request_from_its_answer_to_its_erasure(server: Running, tmp_path: Path) -> None:
    answer = server.chat(io_spec=SPEC, user="ann").json()
    assert answer["choices"][0]["verification"] is not None
    bare = answer["id"].removeprefix("chatcmpl-")
    body = {"inference_id": answer["id"], "metric_name": "comment", "value": "too long"}
    assert server.http.post("/v1/feedback", json=body).status_code == 200
    assert [row.metric for row in server.store.feedback(bare)] == [Metric.COMMENT]
    listed = server.http.get("/v1/interactions").json()["data"]
    assert listed[0]["id"].endswith(bare)
    manifest = export.write(server.store, tmp_path / "out")
    assert manifest["files"]["feedback.jsonl"]["rows"] == 1

    erased = server.http.delete("/v1/users/ann/data").json()
    assert erased["counts"]["interactions"] == 1
    assert server.store.count_interactions() == 0
    assert export.read(server.store, tmp_path / "out").erased["interactions"] == 1
