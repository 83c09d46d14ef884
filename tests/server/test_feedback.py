"""Feedback: typed, kept under the right id, overwritten by identifier, taken back."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ops.errors import NotFound
from tests.server.conftest import Running


def _give(server: Running, body: Any) -> httpx.Response:
    return server.http.post("/v1/feedback", json=body)


def test_every_metric_is_kept_with_its_type(server: Running) -> None:
    completion_id = server.chat().json()["id"]
    values: dict[str, Any] = {
        "accepted": True,
        "tests_passed": False,
        "rating": 4.5,
        "edit_distance": 3,
        "comment": "It must also take floats.",
        "demonstration": "def add(a, b):\n    return a + b\n",
        "team.thumbs-up": True,
    }
    for metric, value in values.items():
        given = {"inference_id": completion_id, "metric_name": metric, "value": value}
        response = _give(server, given | {"tags": {"ide": "vscode"}, "source": "MODEL"})
        assert response.status_code == 200, response.text
    rows = server.store.feedback(completion_id.removeprefix("chatcmpl-"))
    assert {row.metric: row.value for row in rows} == values
    assert {(row.source.value, row.tags["ide"]) for row in rows} == {("MODEL", "vscode")}


def test_an_id_is_good_with_and_without_its_prefix(server: Running) -> None:
    completion_id = server.chat().json()["id"]
    for given in (completion_id, completion_id.removeprefix("chatcmpl-")):
        body = {"inference_id": given, "metric_name": "accepted", "value": True}
        assert _give(server, body).status_code == 200
    assert len(server.store.feedback(completion_id.removeprefix("chatcmpl-"))) == 1


def test_the_same_identifier_overwrites_and_keeps_its_id(server: Running) -> None:
    completion_id = server.chat().json()["id"]
    body = {"inference_id": completion_id, "metric_name": "accepted", "identifier": "u:1"}
    first = _give(server, body | {"value": True}).json()["feedback_id"]
    second = _give(server, body | {"value": False}).json()["feedback_id"]
    other = _give(server, body | {"value": True, "identifier": "u:2"}).json()["feedback_id"]
    assert first == second != other
    rows = server.store.feedback(completion_id.removeprefix("chatcmpl-"))
    assert [(row.identifier, row.value) for row in rows] == [("u:1", False), ("u:2", True)]
    assert server.http.delete(f"/v1/feedback/{first}").json()["deleted"] is True
    assert server.http.delete(f"/v1/feedback/{first}").status_code == 404
    assert len(server.store.feedback(completion_id.removeprefix("chatcmpl-"))) == 1


def test_a_batch_is_kept_whole_or_not_at_all(server: Running) -> None:
    answer = server.chat(n=2, episode_id="e1").json()
    good = {"inference_id": answer["id"], "metric_name": "accepted", "value": True}
    on_episode = {"episode_id": "e1", "metric_name": "comment", "value": "too slow"}
    second = good | {"choice_index": 1, "value": False}
    response = _give(server, {"data": [good, second, on_episode]})
    assert len({entry["feedback_id"] for entry in response.json()["data"]}) == 3
    bad = good | {"identifier": "new", "inference_id": "chatcmpl-nowhere"}
    response = _give(server, {"data": [good | {"identifier": "new"}, bad]})
    assert response.status_code == 404
    assert "nowhere" in response.json()["error"]["message"]
    rows = server.store.feedback(answer["id"].removeprefix("chatcmpl-"))
    assert "new" not in {row.identifier for row in rows}


def test_wrong_feedback_is_a_400_that_names_the_field(server: Running) -> None:
    completion_id = server.chat().json()["id"]
    good = {"inference_id": completion_id, "metric_name": "accepted", "value": True}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"value": 1}, "value"),
        ({"value": "yes"}, "value"),
        ({"value": None}, "value"),
        ({"metric_name": "rating"}, "value"),
        ({"metric_name": "rating", "value": "5"}, "value"),
        ({"metric_name": "comment"}, "value"),
        ({"metric_name": "comment", "value": "  "}, "value"),
        ({"metric_name": "demonstration", "value": 3.0}, "value"),
        ({"metric_name": "my_metric", "value": "text"}, "value"),
        ({"metric_name": ""}, "metric_name"),
        ({"metric_name": "bad name"}, "metric_name"),
        ({"episode_id": "e"}, "inference_id"),
        ({"inference_id": None}, "inference_id"),
        ({"inference_id": 3}, "inference_id"),
        ({"choice_index": -1}, "choice_index"),
        ({"choice_index": 1}, "choice_index"),
        ({"source": "robot"}, "source"),
        ({"tags": {"k": 1}}, "tags.k"),
        ({"tags": []}, "tags"),
        ({"dryrun": "yes"}, "dryrun"),
        ({"surprise": 1}, "surprise"),
    ]
    for change, param in wrong:
        response = _give(server, good | change)
        assert response.status_code == 400, (change, response.text)
        assert response.json()["error"]["param"].split("[")[0] == param, change
        response = _give(server, {"data": [good, good | change]})
        assert response.json()["error"]["param"].startswith(f"data[1].{param}"), change
    demonstration = {"episode_id": "e", "metric_name": "demonstration", "value": "x = 1"}
    assert _give(server, demonstration).json()["error"]["param"] == "inference_id"
    for body in ({"data": []}, {"data": "x"}, {"data": [good], "more": 1}, {"data": [good] * 1001}):
        assert _give(server, body).status_code == 400
    assert server.store.feedback(completion_id.removeprefix("chatcmpl-")) == []


def test_feedback_on_what_was_not_recorded_is_a_404(server: Running) -> None:
    unrecorded = server.chat(store=False).json()["id"]
    targets = (
        {"inference_id": unrecorded},
        {"inference_id": "x"},
        {"episode_id": "e"},
    )
    for target in targets:
        response = _give(server, {**target, "metric_name": "accepted", "value": True})
        assert response.status_code == 404
        assert response.json()["error"]["param"] == next(iter(target))


def test_a_dry_run_is_checked_but_not_kept(server: Running) -> None:
    completion_id = server.chat().json()["id"]
    body = {"inference_id": completion_id, "metric_name": "accepted", "value": True}
    assert _give(server, body | {"dryrun": True}).status_code == 200
    missing = _give(server, body | {"dryrun": True, "inference_id": "x"})
    assert missing.status_code == 404
    assert server.store.feedback(completion_id.removeprefix("chatcmpl-")) == []


def _stream(server: Running, **more: Any) -> Any:
    server.engine.token_delay_s = 0.1
    return server.openai.chat.completions.create(
        model="code", messages=[{"role": "user", "content": "x"}], stream=True, **more
    )


def test_feedback_for_an_answer_that_still_streams_is_taken_at_once(server: Running) -> None:
    stream = _stream(server, n=2)
    completion_id = next(stream).id
    interaction_id = completion_id.removeprefix("chatcmpl-")
    body = {"inference_id": completion_id, "metric_name": "accepted", "value": True}
    comment = {"inference_id": completion_id, "metric_name": "comment", "value": "too long"}
    first = _give(server, body | {"choice_index": 1})
    assert first.status_code == 200
    assert _give(server, body | {"choice_index": 2}).status_code == 400
    assert _give(server, comment | {"dryrun": True}).status_code == 200
    # It came before the answer was there, and is durable all the same.
    with pytest.raises(NotFound):
        server.store.interaction(interaction_id)
    early = server.store.one_feedback(first.json()["feedback_id"])
    assert (early.interaction_id, early.value) == (None, True)
    assert [chunk.id for chunk in stream][-1] == completion_id
    (row,) = server.store.feedback(interaction_id)
    assert (row.id, row.choice_index) == (first.json()["feedback_id"], 1)
    again = _give(server, body | {"choice_index": 1, "value": False}).json()["feedback_id"]
    assert again == row.id
    assert [row.value for row in server.store.feedback(interaction_id)] == [False]


def test_early_feedback_on_an_answer_that_never_ends_stays_alone(server: Running) -> None:
    stream = _stream(server)
    completion_id = next(stream).id
    body = {"inference_id": completion_id, "metric_name": "accepted", "value": False}
    feedback_id = _give(server, body).json()["feedback_id"]
    stream.close()
    server.until(lambda: server.engine.running == 0)
    server.until(lambda: _give(server, body).status_code == 404)
    assert server.store.one_feedback(feedback_id).interaction_id is None
    assert server.http.delete(f"/v1/feedback/{feedback_id}").status_code == 200


def test_feedback_is_read_and_changed_by_its_id(server: Running) -> None:
    completion_id = server.chat(episode_id="e").json()["id"]
    body = {"inference_id": completion_id, "metric_name": "accepted", "value": True}
    feedback_id = _give(server, body | {"tags": {"a": "1"}}).json()["feedback_id"]
    on_episode = {"episode_id": "e", "metric_name": "rating", "value": 3}
    rated = _give(server, on_episode).json()["feedback_id"]
    path = f"/v1/feedback/{feedback_id}"
    changed = server.http.patch(path, json={"value": False}).json()
    assert (changed["value"], changed["tags"]) == (False, {"a": "1"})
    secret = "ghp_" + "a" * 36
    changed = server.http.patch(path, json={"tags": {"why": secret}}).json()
    assert changed["value"] is False
    assert secret not in changed["tags"]["why"]
    assert server.http.get(path).json() == changed
    listed = server.http.get(f"/v1/feedback?inference_id={completion_id}").json()["data"]
    assert listed == [changed]
    listed = server.http.get("/v1/feedback?episode_id=e").json()["data"]
    assert [(one["id"], one["value"]) for one in listed] == [(rated, 3.0)]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"value": "yes"}, "value"),
        ({}, "value"),
        ({"tags": {"k": 1}}, "tags.k"),
        ({"metric_name": "rating"}, "metric_name"),
    ]
    for change, param in wrong:
        response = server.http.patch(path, json=change)
        assert response.status_code == 400, change
        assert response.json()["error"]["param"] == param
    assert server.http.patch("/v1/feedback/none", json={"value": True}).status_code == 404
    assert server.http.get("/v1/feedback").status_code == 400
    for query in ("inference_id=none", "episode_id=none"):
        assert server.http.get(f"/v1/feedback?{query}").status_code == 404


def test_a_verified_answer_can_be_judged_while_it_is_being_made(server: Running) -> None:
    server.engine.token_delay_s = 0.3  # longer than the server stays quiet
    example = {"input": [1, 2], "output": 3}
    body = {
        "model": "code",
        "messages": [{"role": "user", "content": "add"}],
        "stream": True,
        "io_spec": {"entry_point": "add", "examples": [example]},
    }
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        interaction_id = response.headers["x-journeyman-interaction-id"]
        given = {"inference_id": interaction_id, "metric_name": "rating", "value": 2}
        assert _give(server, given).status_code == 200
        with pytest.raises(NotFound):
            server.store.interaction(interaction_id)
        response.read()
    assert [row.value for row in server.store.feedback(interaction_id)] == [2.0]
