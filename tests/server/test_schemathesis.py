"""schemathesis over the OpenAPI document: no error of ours, and every answer as it is described.

It makes requests out of the document, good ones and bad ones, the same each time. What comes back
is held against the document: status, content type, headers, body.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fake_engine import add_adapter
from tests.ops import records
from tests.server.clients import python_clients
from tests.server.conftest import Running

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}


def _document(server: Running) -> dict[str, Any]:
    """The document, with its streams described as schemathesis reads them: event by event."""
    document: dict[str, Any] = server.http.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation["responses"]["200"].get("content", {})
            if "text/event-stream" in content:
                content["text/event-stream"]["schema"] = EVENT
    return document


def _known(server: Running) -> dict[str, str]:
    """An id for each place in a path, of something that is there."""
    answer_id = server.chat(episode_id="e").json()["id"]
    feedback = {"inference_id": answer_id, "metric_name": "accepted", "value": True}
    cycle = records.cycle(report={"evaluate": {"candidate": "code@v1"}}, adapter_version=1)
    add_adapter(server.registry)
    server.store.add_cycle(cycle)
    return {
        "completion_id": answer_id,
        "interaction_id": answer_id,
        "response_id": server.openai.responses.create(model="code", input="x").id,
        "feedback_id": server.http.post("/v1/feedback", json=feedback).json()["feedback_id"],
        "execution_id": server.http.post("/v1/executions", json={"code": "1"}).json()["id"],
        "model": "code",
        "version": "1",
        "job_id": f"ftjob-{cycle.id}",
        "file_id": f"file-{cycle.id}-train",
        "eval_id": "eval_gate",
        "run_id": f"evalrun_{cycle.id}",
    }


def _configuration(known: dict[str, str]) -> str:
    lines = ["[phases.coverage]", 'unexpected-methods = ["PUT"]']  # one stands for all
    for name, value in known.items():
        lines += [f"[dictionaries.{name}]", f"values = [{json.dumps(value)}]"]
    lines.append("[parameters]")
    lines += [f'{name} = {{ dictionary = "{name}", probability = 0.8 }}' for name in known]
    return "\n".join(lines)


@pytest.mark.slow
def test_no_request_made_from_the_document_is_answered_otherwise(
    server: Running, tmp_path: Path
) -> None:
    program = python_clients() / "schemathesis"
    (tmp_path / "openapi.json").write_text(json.dumps(_document(server)))
    (tmp_path / "schemathesis.toml").write_text(_configuration(_known(server)))
    options = ["--seed", "1", "--max-examples", "2", "--phases", "examples,coverage,fuzzing"]
    options += ["--checks", ",".join(CHECKS), "--request-timeout", "60"]
    options += ["--generation-database", "none", "--no-color"]
    done = subprocess.run(
        [program, "run", "openapi.json", "--url", server.url, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counted = re.search(r"(\d+) generated, (\d+) passed$", done.stdout, re.M)
    assert counted is not None, done.stdout
    assert int(counted[1]) == int(counted[2]) > 1000
