"""The record, read back through the API."""

from __future__ import annotations

from ops.store import Recording
from tests.ops import records
from tests.server.conftest import Running


def test_interactions_are_listed_newest_first_in_pages(server: Running) -> None:
    ids = [server.chat(user=str(number)).json()["id"].split("-", 1)[1] for number in range(5)]
    page = server.http.get("/v1/interactions?limit=2").json()
    assert [row["id"] for row in page["data"]] == ids[:2:-1]
    assert page["has_more"] is True
    assert (page["first_id"], page["last_id"]) == (ids[4], ids[3])
    rest = server.http.get(f"/v1/interactions?limit=10&after={page['last_id']}").json()
    assert [row["id"] for row in rest["data"]] == ids[2::-1]
    assert rest["has_more"] is False
    assert server.http.get("/v1/interactions?source=imported").json()["data"] == []


def test_the_list_may_be_narrowed_to_what_was_verified(server: Running) -> None:
    spec = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}
    good = server.chat(io_spec=spec).json()["id"]
    spec["examples"] = [{"input": [1, 2], "output": 4}]
    bad = server.chat(io_spec=spec).json()["id"]
    for verified, wanted in (("true", good), ("false", bad)):
        page = server.http.get(f"/v1/interactions?verified={verified}").json()
        assert [f"chatcmpl-{row['id']}" for row in page["data"]] == [wanted]


def test_an_interaction_comes_with_all_that_belongs_to_it(server: Running) -> None:
    spec = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}
    completion_id = server.chat(io_spec=spec).json()["id"]
    body = {"inference_id": completion_id, "metric_name": "rating", "value": 5}
    server.http.post("/v1/feedback", json=body)
    whole = server.http.get(f"/v1/interactions/{completion_id}").json()
    assert whole["adapter"]["version"] == 0
    assert whole["spec"]["examples"][0]["output"] == 3
    assert whole["attempts"][0]["program"].startswith("def add")
    assert whole["executions"][0]["verdict"] == "OK"
    assert whole["feedback"][0]["value"] == 5


def test_a_spec_that_cannot_be_read_is_not_shown_at_all(server: Running) -> None:
    row = records.interaction(spec={"examples": "from another version", "secret": 1})
    server.store.add([Recording(interaction=row)])
    assert server.http.get(f"/v1/interactions/{row.id}").json()["spec"] is None
