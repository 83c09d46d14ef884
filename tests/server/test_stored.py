"""Stored completions through the OpenAI client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.fake_engine import PROGRAM
from tests.server.conftest import Running

MESSAGES: list[Any] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "add"},
]


def test_completions_are_listed_read_and_marked(server: Running) -> None:
    client = server.openai.chat.completions
    ids = []
    for number in range(4):
        answer = client.create(
            model="code", messages=MESSAGES, store=True, metadata={"run": str(number % 2)}
        )
        ids.append(answer.id)
    server.openai.completions.create(model="code", prompt="x")  # no chat: not among them
    assert [row.id for row in client.list(limit=3)] == ids[::-1]
    assert [row.id for row in client.list(metadata={"run": "1"})] == [ids[3], ids[1]]
    assert list(client.list(model="gpt-4")) == []
    one = client.retrieve(ids[0])
    assert one.choices[0].message.content == PROGRAM
    assert [m.role for m in client.messages.list(ids[0])] == ["system", "user"]
    updated = client.update(ids[0], metadata={"accepted": "yes"})
    assert updated.to_dict()["metadata"] == {"accepted": "yes"}
    row = server.store.interaction(ids[0].removeprefix("chatcmpl-"))
    assert row.metadata == {"accepted": "yes"}


def test_what_is_not_stored_is_a_404_and_wrong_changes_a_400(server: Running) -> None:
    client = server.openai.chat.completions
    hidden = client.create(model="code", messages=MESSAGES, store=False)
    with pytest.raises(openai.NotFoundError):
        client.retrieve(hidden.id)
    with pytest.raises(openai.NotFoundError):
        client.update(hidden.id, metadata={})
    stored = client.create(model="code", messages=MESSAGES)
    path = f"/v1/chat/completions/{stored.id}"
    for body, param in (({"metadata": {"k": 1}}, "metadata.k"), ({"x": 1}, "x")):
        response = server.http.post(path, json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
    response = server.http.get("/v1/chat/completions?order=asc")
    assert response.json()["error"]["param"] == "order"


def test_metrics_among_the_metadata_are_feedback(server: Running) -> None:
    client = server.openai.chat.completions
    answer = client.create(model="code", messages=MESSAGES, metadata={"accepted": "true"})
    interaction_id = answer.id.removeprefix("chatcmpl-")
    assert server.store.feedback(interaction_id) == []  # nobody can judge what is not there yet
    marks = {
        "accepted": "no",
        "rating": "4.5",
        "tests_passed": "perhaps",
        "comment": "slow",
        "x": "y",
    }
    client.update(answer.id, metadata=marks)
    rows = server.store.feedback(interaction_id)
    assert {r.metric: r.value for r in rows} == {
        "accepted": False,
        "rating": 4.5,
        "comment": "slow",
    }
    assert {row.identifier for row in rows} == {"openai:metadata"}
    client.update(answer.id, metadata={"accepted": "yes"})
    rows = server.store.feedback(interaction_id)
    assert {r.metric: r.value for r in rows} == {"accepted": True}
    assert server.store.interaction(interaction_id).metadata == {"accepted": "yes"}


def test_a_completion_is_deleted_with_all_that_hangs_on_it(server: Running) -> None:
    client = server.openai.chat.completions
    kept, gone = (client.create(model="code", messages=MESSAGES).id for _ in range(2))
    body = {"inference_id": gone, "metric_name": "comment", "value": "secret plans"}
    assert server.http.post("/v1/feedback", json=body).status_code == 200
    deleted = client.delete(gone)
    assert (deleted.id, deleted.deleted, deleted.object) == (gone, True, "chat.completion.deleted")
    assert deleted.to_dict()["adapters"] == []
    for call in (client.retrieve, client.delete):
        with pytest.raises(openai.NotFoundError):
            call(gone)
    assert server.store.feedback(gone.removeprefix("chatcmpl-")) == []
    assert [row.id for row in client.list()] == [kept]
    assert server.http.post("/v1/feedback", json=body).status_code == 404


def test_metadata_is_taken_back_with_null_but_not_by_leaving_it_out(server: Running) -> None:
    answer_id = server.chat(metadata={"a": "ann@gmail.com"}).json()["id"]
    url = f"/v1/chat/completions/{answer_id}"
    found = server.http.get("/v1/chat/completions", params={"metadata[a]": "ann@gmail.com"})
    assert [row["id"] for row in found.json()["data"]] == [answer_id]
    assert server.http.post(url, json={}).json()["error"]["param"] == "metadata"
    assert server.http.post(url, json={"metadata": None}).json()["metadata"] == {}
