"""The OpenAPI document: every route described, every example good, every answer as promised.

The snapshot is what was promised to clients: after a wanted change, write it anew with
`UPDATE_SNAPSHOTS=1 python -m pytest tests/server/test_document.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ops.records import CycleEvent, new_id, now
from ops.settings import Settings
from server.app import create_app
from tests.fake_engine import add_adapter
from tests.ops import records
from tests.server.conftest import Running

FORM = "multipart/form-data"
SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("none"))).openapi()


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(m, p, o) for p, ms in document["paths"].items() for m, o in ms.items()]


def _valid(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    whole = schema | {"components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def _good(document: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    """The schema of a good answer."""
    answer = document["paths"][path][method]["responses"]["200"]
    schema: dict[str, Any] = answer["content"]["application/json"]["schema"]
    return schema


def test_the_document_is_what_was_promised(document: dict[str, Any]) -> None:
    written = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(written, encoding="utf-8")
    assert json.loads(SNAPSHOT.read_text(encoding="utf-8")) == json.loads(written)


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for method, path, operation in _operations(document):
        where = (method, path)
        assert operation["description"], where
        good = operation["responses"]["200"].get("content", {})
        schemas = [part["schema"] for part in good.values()]
        assert path == "/metrics" or (schemas and all(schemas)), where
        assert "422" not in operation["responses"], where
        if path in ("/health", "/ready"):
            continue
        for status in ("400", "401", "403", "500", "503"):
            content = operation["responses"][status]["content"]["application/json"]
            assert content["schema"]["$ref"].endswith("/ErrorBody"), where
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            assert content["schema" if kind == FORM else "examples"], where


def _filled(value: Any, answer_id: str) -> Any:
    return json.loads(json.dumps(value, ensure_ascii=False).replace("chatcmpl-…", answer_id))


def test_every_example_is_valid_and_answered_as_promised(
    document: dict[str, Any], server: Running
) -> None:
    answer_id = server.chat().json()["id"]
    feedback = {"inference_id": answer_id, "metric_name": "accepted", "value": True}
    feedback_id = server.http.post("/v1/feedback", json=feedback).json()["feedback_id"]
    tried = 0
    for method, path, operation in _operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        for example in content["examples"].values():
            body = _filled(example["value"], answer_id)
            _valid(document, content["schema"], body)
            if path == "/v1/events":
                body["completion_id"] = answer_id
            url = path.format(completion_id=answer_id, feedback_id=feedback_id)
            response = server.http.request(method, url, json=body)
            assert response.status_code == 200, (path, response.text)
            good = operation["responses"]["200"]["content"]["application/json"]
            _valid(document, good["schema"], response.json())
            tried += 1
    assert tried >= 15


def test_every_answer_is_as_promised(
    document: dict[str, Any], server: Running, tmp_path: Path
) -> None:
    answer_id = server.chat(episode_id="e").json()["id"]
    feedback = {"inference_id": answer_id, "metric_name": "accepted", "value": True}
    execution_id = server.http.post("/v1/executions", json={"code": "1"}).json()["id"]
    response_id = server.openai.responses.create(model="code", input="x").id
    add_adapter(server.registry)
    rows = tmp_path / "c" / "dataset"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text('{"messages": [], "answer": "x"}\n')
    report = {"evaluate": {"champion": "base", "candidate": "code@v1"}}
    cycle = records.cycle(directory=str(rows.parent), report=report, adapter_version=1)
    server.store.add_cycle(cycle)
    event = CycleEvent(id=new_id(), cycle_id=cycle.id, created_at=now(), level="info", message="m")
    server.store.add_event(event)
    for _ in range(2):  # the second time there is something to erase again
        server.chat(user="ann")
        if not server.http.get("/v1/users/erasures").json()["data"]:
            server.http.delete("/v1/users/ann/data")
    ids = {
        "user_id": "ann",
        "completion_id": answer_id,
        "response_id": response_id,
        "model": "code",
        "execution_id": execution_id,
        "feedback_id": server.http.post("/v1/feedback", json=feedback).json()["feedback_id"],
        "interaction_id": answer_id,
        "version": "1",
        "job_id": f"ftjob-{cycle.id}",
        "file_id": f"file-{cycle.id}-train",
        "eval_id": "eval_gate",
        "run_id": f"evalrun_{cycle.id}",
    }
    shown = {"role": "assistant", "content": "```python\nx = 1\n```"}
    line = json.dumps({"messages": [{"role": "user", "content": "x"}, shown]}).encode()
    uploaded = server.openai.files.create(file=("x.jsonl", line), purpose="fine-tune")
    _valid(document, _good(document, "post", "/v1/files"), uploaded.to_dict())
    tried = [o for o in _operations(document) if o[0] in ("get", "delete")]
    # Deleting comes last, and the answer after what hangs on it.
    for method, path, operation in sorted(tried, key=lambda o: o[:2], reverse=True):
        url = path.format(**ids)
        if (method, path) == ("delete", "/v1/files/{file_id}"):  # those of cycles stay
            url = f"/v1/files/{uploaded.id}"
        if path == "/v1/feedback":
            url += f"?inference_id={answer_id}"
        response = server.http.request(method, url)
        assert response.status_code == 200, (url, response.text)
        content = operation["responses"]["200"].get("content", {})
        if "application/json" in content:
            _valid(document, content["application/json"]["schema"], response.json())
            if response.json().get("object") == "list":
                assert response.json()["data"], url  # an empty list promises nothing


def test_errors_are_as_promised(document: dict[str, Any], server: Running) -> None:
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    for method, path, _ in _operations(document):
        url = path.replace("{", "").replace("}", "")
        response = server.http.request(method, url, content=b"{")
        if response.status_code != 200:
            assert response.status_code in (400, 404, 409), (path, response.text)
            _valid(document, schema, response.json())
