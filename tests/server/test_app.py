"""What is reachable, how errors look, and where the server refuses to listen."""

from __future__ import annotations

import pytest

from ops.errors import SettingsError
from server.app import is_local, require_safe
from tests.fake_engine import DENIED
from tests.server.conftest import Running

ROUTES = {
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/chat/completions"),
    ("GET", "/v1/chat/completions/{completion_id}"),
    ("POST", "/v1/chat/completions/{completion_id}"),
    ("DELETE", "/v1/chat/completions/{completion_id}"),
    ("GET", "/v1/chat/completions/{completion_id}/messages"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/executions"),
    ("GET", "/v1/executions/{execution_id}"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/feedback"),
    ("GET", "/v1/feedback"),
    ("GET", "/v1/feedback/{feedback_id}"),
    ("PATCH", "/v1/feedback/{feedback_id}"),
    ("DELETE", "/v1/feedback/{feedback_id}"),
    ("POST", "/v1/events"),
    ("POST", "/v1/ingest/continue"),
    ("GET", "/v1/responses/{response_id}"),
    ("DELETE", "/v1/responses/{response_id}"),
    ("GET", "/v1/responses/{response_id}/input_items"),
    ("GET", "/v1/interactions"),
    ("GET", "/v1/interactions/{interaction_id}"),
    ("GET", "/v1/adapters"),
    ("GET", "/v1/adapters/{version}"),
    ("GET", "/v1/adapters/{version}/diff"),
    ("POST", "/v1/adapters/rollback"),
    ("POST", "/v1/adapters/{version}/promote"),
    ("POST", "/v1/adapters/{version}/canary"),
    ("POST", "/v1/adapters/{version}/reject"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/pause"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/resume"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("GET", "/v1/evals"),
    ("GET", "/v1/evals/{eval_id}"),
    ("GET", "/v1/evals/{eval_id}/runs"),
    ("GET", "/v1/evals/{eval_id}/runs/{run_id}"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"),
    ("DELETE", "/v1/users/{user_id}/data"),
    ("GET", "/v1/users/erasures"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
}


METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
OTHER_SPELLINGS = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/invocations",
    "//invocations",
    "/v1/../invocations",
    "/%69nvocations",
    "/adapters/x",
    "/v1/systemone",
    "/generative_scoring",
    "/scale_elastic_ep",
    "/ping",
    "/kv_event_sources",
    "/v1/responses/resp_x",
    "/v1/responses/resp_x/cancel",
    "/v1/messages/render",
    "/v1/responses/render",
    "/v1/chat/completions/render/x",
)


def test_the_engines_own_routes_cannot_be_reached(server: Running) -> None:
    for path in (*DENIED, *OTHER_SPELLINGS):
        for method in METHODS:
            body = {"lora_name": "x", "lora_path": "/tmp", "model": "x"}
            response = server.http.request(method, server.url + path, json=body)
            assert response.status_code in (404, 405), (method, path)
    assert server.engine.hits.total() == 0
    assert server.engine.loads == []


def test_the_allow_list_is_the_document(server: Running) -> None:
    document = server.http.get("/openapi.json").json()
    routes = {(method.upper(), path) for path, ms in document["paths"].items() for method in ms}
    assert routes == ROUTES


def test_the_docs_page_needs_nothing_from_elsewhere(server: Running) -> None:
    response = server.http.get("/docs")
    assert response.status_code == 200
    assert "://" not in response.text
    assert server.http.get("/redoc").status_code == 404


CASES = [
    ("GET", "/nowhere", 404, "route_not_found"),
    ("GET", "/v1/completions", 405, "method_not_allowed"),
    ("GET", "/v1/interactions?limit=0", 400, "invalid_value"),
    ("GET", "/v1/interactions?limit=x", 400, "invalid_value"),
    ("GET", "/v1/interactions?verified=perhaps", 400, "invalid_value"),
    ("GET", "/v1/interactions/none", 404, "not_found"),
    ("GET", "/v1/adapters/9", 404, "not_found"),
    ("GET", "/v1/adapters/x", 404, "not_found"),
    ("GET", "/v1/models/x", 404, "model_not_found"),
    ("DELETE", "/v1/feedback/x", 404, "not_found"),
]


def test_every_error_has_openais_shape(server: Running) -> None:
    for method, path, status, code in CASES:
        response = server.http.request(method, path)
        assert response.status_code == status, path
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["code"] == code


def test_a_wrong_query_is_named(server: Running) -> None:
    assert server.http.get("/v1/interactions?limit=0").json()["error"]["param"] == "limit"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_local(host)
    require_safe(host, [])  # raises nothing


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_the_server_refuses_to_be_open_to_strangers(host: str) -> None:
    assert not is_local(host)
    with pytest.raises(SettingsError, match="loopback"):
        require_safe(host, [])


def test_a_method_that_is_not_allowed_is_told_all_that_are(server: Running) -> None:
    for path, methods in (
        ("/v1/feedback", "GET, POST"),
        ("/v1/feedback/x", "DELETE, GET, PATCH"),
        ("/v1/chat/completions/x", "DELETE, GET, POST"),
        ("/v1/responses", "POST"),
        ("/v1/responses/x", "DELETE, GET"),
    ):
        response = server.http.put(path)
        assert (response.status_code, response.headers["allow"]) == (405, methods)


def test_what_cannot_be_made_through_the_api_is_said_where_it_is_made(server: Running) -> None:
    response = server.http.post("/v1/evals", json={})
    assert response.status_code == 405
    assert "journeyman eval" in response.json()["error"]["message"]
