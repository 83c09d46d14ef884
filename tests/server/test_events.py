"""What Tabby's and Continue's plugins send becomes feedback, and never more than they may."""

from __future__ import annotations

from typing import Any

from ops.records import Source
from tests.server.conftest import Running


def _bare(completion_id: str) -> str:
    return completion_id.removeprefix("cmpl-").removeprefix("chatcmpl-")


def test_tabbys_events_are_feedback_on_the_completion(server: Running) -> None:
    completion_id = server.openai.completions.create(model="code", prompt="x", n=2).id
    event = {"type": "view", "completion_id": completion_id, "choice_index": 1, "view_id": "v-1"}
    assert server.http.post("/v1/events", json=event).status_code == 200
    event |= {"type": "select", "elapsed": 812}
    assert server.http.post("/v1/events?select_kind=line", json=event).status_code == 200
    rows = server.store.feedback(_bare(completion_id))
    assert {row.metric: row.value for row in rows} == {"shown": True, "accepted": True}
    assert {row.choice_index for row in rows} == {1}
    assert rows[1].tags == {"select_kind": "line", "elapsed_ms": "812", "client": "tabby"}
    event |= {"type": "dismiss"}  # the same view: the last word counts
    assert server.http.post("/v1/events", json=event).status_code == 200
    rows = server.store.feedback(_bare(completion_id))
    assert {row.metric: row.value for row in rows} == {"shown": True, "accepted": False}
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"type": "click"}, 400),
        ({"completion_id": ""}, 400),
        ({"completion_id": "cmpl-nowhere"}, 404),
        ({"choice_index": 7}, 400),
    ]
    for change, status in wrong:
        assert server.http.post("/v1/events", json=event | change).status_code == status, change


def _autocomplete(**changes: Any) -> dict[str, Any]:
    data = {
        "eventName": "autocomplete",
        "schema": "0.2.0",
        "timestamp": "2026-01-01T00:00:00Z",
        "userAgent": "VS Code/1",
        "accepted": True,
        "completionId": "6f1c",
        "modelName": "code",
        "prefix": "def f",
        "suffix": "",
        "prompt": "def f",
        "completion": "(): pass",
        "filepath": "file:///home/ann/secret_project/a.py",
    }
    return data | changes


def _send(server: Running, name: str, data: dict[str, Any], level: str = "all") -> dict[str, Any]:
    blob = {"name": name, "data": data, "schema": "0.2.0", "level": level, "profileId": "p"}
    response = server.http.post("/v1/ingest/continue", json=blob)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_continues_autocomplete_finds_the_completion_by_its_prompt(server: Running) -> None:
    completion_id = server.openai.completions.create(model="code", prompt="def f").id
    body = _send(server, "autocomplete", _autocomplete())
    assert body["inference_id"] == _bare(completion_id)
    (row,) = server.store.feedback(_bare(completion_id))
    assert (row.metric, row.value) == ("accepted", True)
    assert row.identifier == "continue:autocomplete:6f1c"
    again = _send(server, "autocomplete", _autocomplete(accepted=False))
    assert again["feedback_ids"] == body["feedback_ids"]
    named = _send(server, "autocomplete", _autocomplete(completionId=completion_id, prompt="?"))
    assert named["inference_id"] == _bare(completion_id)


def test_what_is_not_found_is_kept_as_the_clients_word(server: Running) -> None:
    body = _send(server, "editOutcome", _autocomplete(newCode="x = 1", previousCode="x = 0"))
    row = server.store.interaction(body["inference_id"])
    assert row.source is Source.CLIENT
    assert row.verified is None
    assert row.messages == [{"role": "user", "content": "def f"}]
    given = {f.metric: f.value for f in server.store.feedback(row.id)}
    assert given == {"accepted": True, "demonstration": "x = 1"}
    refused = _send(server, "editOutcome", _autocomplete(newCode="x = 1", accepted=False))
    given = {f.metric: f.value for f in server.store.feedback(refused["inference_id"])}
    assert given == {"accepted": False}
    chat = _send(server, "chatFeedback", {"feedback": False, "sessionId": "s", "modelTitle": "J"})
    (row_,) = server.store.feedback(chat["inference_id"])
    assert (row_.value, row_.identifier) == (False, "continue:chatFeedback:s")


def test_without_code_no_code_is_kept(server: Running) -> None:
    data = _autocomplete(newCode="password", previousCode="y")
    body = _send(server, "editOutcome", data, level="noCode")
    row = server.store.interaction(body["inference_id"])
    assert (row.messages, row.choices) == ([], [])
    (only,) = server.store.feedback(row.id)
    assert only.metric == "accepted"
    kept = str([row, only])
    assert not any(word in kept for word in ("def f", "pass", "secret_project"))


def test_other_events_are_taken_and_dropped_and_bare_blobs_read(server: Running) -> None:
    for name in ("tokensGenerated", "toolUsage", "autocomplete"):
        assert _send(server, name, {"n": 1})["feedback_ids"] == []
    response = server.http.post("/v1/ingest/continue", json=_autocomplete())
    assert len(response.json()["feedback_ids"]) == 1
    for body in ({}, {"name": "x"}, {"name": "x", "data": 3}, {"name": 1, "data": {}}):
        assert server.http.post("/v1/ingest/continue", json=body).status_code == 400, body
