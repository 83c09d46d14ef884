"""Plain chat completions: passed through both ways, stamped, recorded."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ops.records import Source
from tests.fake_engine import BASE, PROGRAM, FakeEngine
from tests.server.conftest import Running, SharedPool, serving

MESSAGES: list[Any] = [{"role": "user", "content": "add two numbers"}]


def test_an_answer_is_the_engines_with_our_fields(server: Running) -> None:
    answer = server.chat(max_tokens=4, foo={"bar": 1}).json()
    sent = server.engine.bodies()[-1]
    assert sent == {"model": BASE, "messages": MESSAGES, "max_tokens": 4, "foo": {"bar": 1}}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["model"] == BASE
    assert answer["adapter"] == {"name": "base", "version": 0, "sha256": ""}
    assert answer["system_fingerprint"].startswith("fp_")
    assert answer["usage"]["completion_tokens"] == 4
    ours = {"adapter", "episode_id", "system_fingerprint", "id"}
    direct = httpx.post(f"{server.engine.url}/v1/chat/completions", json=sent).json()
    same = {key: value for key, value in answer.items() if key not in ours | {"created"}}
    assert same == {k: v for k, v in direct.items() if k not in ours | {"created"}}


def test_the_id_names_the_interaction_in_body_header_and_record(server: Running) -> None:
    response = server.chat(user="u1", metadata={"k": "v"}, episode_id="e1", temperature=0.5)
    interaction_id = response.headers["x-journeyman-interaction-id"]
    answer = response.json()
    assert answer["id"] == f"chatcmpl-{interaction_id}"
    assert answer["episode_id"] == "e1"
    row = server.store.interaction(interaction_id)
    assert row.source is Source.SERVED
    assert (row.model, row.base_model, row.adapter_version) == ("code", BASE, 0)
    assert row.messages == MESSAGES
    assert row.params == {"temperature": 0.5}
    assert row.choices[0]["message"] == {"role": "assistant", "content": PROGRAM}
    assert (row.user, row.metadata, row.episode_id) == ("u1", {"k": "v"}, "e1")
    assert row.usage["completion_tokens"] == 9
    assert row.duration_s >= row.engine_s > 0


def test_our_fields_never_reach_the_engine(server: Running) -> None:
    server.chat(store=True, metadata={"k": "v"}, episode_id="e")
    assert server.engine.bodies()[-1].keys() == {"model", "messages"}


def test_a_stream_is_the_engines_bytes_but_for_the_last_chunk(server: Running) -> None:
    body = {"model": "code", "messages": MESSAGES, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        interaction_id = response.headers["x-journeyman-interaction-id"]
        ours = response.read().split(b"\n\n")
    headers = {"X-Request-Id": interaction_id}
    url = f"{server.engine.url}/v1/chat/completions"
    direct = httpx.post(url, json=body | {"model": BASE}, headers=headers)
    theirs = direct.content.split(b"\n\n")
    assert len(ours) == len(theirs)
    created = b'"created":'
    for our, their in zip(ours[:-3], theirs[:-3], strict=True):
        assert our.split(created)[0] == their.split(created)[0]
        assert our.split(created)[1][10:] == their.split(created)[1][10:]
    assert ours[-2] == b"data: [DONE]"
    last = json.loads(ours[-3][6:])
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["adapter"]["version"] == 0
    assert last["system_fingerprint"].startswith("fp_")
    row = server.store.interaction(interaction_id)
    assert row.choices[0]["message"]["content"] == PROGRAM
    assert row.usage["total_tokens"] == 19


def test_usage_comes_in_a_stream_only_when_asked_for(server: Running) -> None:
    stream = server.openai.chat.completions.create(model="code", messages=MESSAGES, stream=True)
    assert all(chunk.usage is None and chunk.choices for chunk in stream)
    stream = server.openai.chat.completions.create(
        model="code", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["adapter"]["version"] == 0


def test_the_openai_client_reads_answers_and_streams(server: Running) -> None:
    answer = server.openai.chat.completions.create(model="code", messages=MESSAGES, n=2)
    assert [choice.message.content for choice in answer.choices] == [PROGRAM, PROGRAM]
    stream = server.openai.chat.completions.create(
        model="code", messages=MESSAGES, n=2, stream=True, logprobs=True
    )
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [PROGRAM, PROGRAM]


def test_store_false_leaves_no_trace(server: Running) -> None:
    for stream in (False, True):
        response = server.chat(store=False, stream=stream)
        assert response.status_code == 200
    assert server.store.interactions() == []


def test_unknown_models_never_reach_the_engine(server: Running) -> None:
    names = ["gpt-4o", "code@v9", "code@v0", "code@v01", "CODE", "../etc", "code@latest", BASE[:-1]]
    for name in names:
        response = server.chat(model=name)
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"
    assert server.engine.requests == []


def test_the_base_model_may_be_named(server: Running) -> None:
    assert server.chat(model=BASE).json()["adapter"]["name"] == "base"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"model": ""}, "model"),
    ({"messages": "hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"stream_options": []}, "stream_options"),
    ({"store": "no"}, "store"),
    ({"metadata": []}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"episode_id": ""}, "episode_id"),
    ({"episode_id": "e" * 101}, "episode_id"),
    ({"user": 1}, "user"),
]


def test_wrong_types_are_a_400_that_names_the_field(server: Running) -> None:
    for body, param in WRONG:
        response = server.chat(**body)
        assert response.status_code == 400, body
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
    assert server.engine.requests == []


def test_the_engines_own_refusals_pass_in_their_shape(server: Running) -> None:
    response = server.chat(temperature=-1)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "temperature"
    with pytest.raises(openai.BadRequestError):
        server.openai.chat.completions.create(
            model="code", messages=MESSAGES, temperature=-1, stream=True
        )
    assert server.store.interactions() == []


def test_a_failing_engine_is_a_503_with_retry_after(server: Running) -> None:
    server.engine.fail["/v1/chat/completions"] = (500, {"error": {"message": "boom"}})
    for stream in (False, True):
        response = server.chat(stream=stream)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "engine_unavailable"


def test_what_no_database_keeps_is_answered_and_recorded_without_it(server: Running) -> None:
    server.engine.script = lambda body, index: "nul \0 half \ud83d end \N{SNOWMAN}"
    for stream in (False, True):
        response = server.chat(stream=stream)
        assert response.status_code == 200
        row = server.store.interaction(response.headers["x-journeyman-interaction-id"])
        assert row.choices[0]["message"]["content"] == "nul \ufffd half ? end \N{SNOWMAN}"


def test_a_slow_engine_is_a_503(engine: FakeEngine, pool: SharedPool, tmp_path: Path) -> None:
    with serving(engine, tmp_path, checker=pool, request_timeout_s=0.3) as server:
        engine.token_delay_s = 0.5
        response = server.chat()
        assert response.status_code == 503
        assert "in time" in response.json()["error"]["message"]
        assert response.headers["retry-after"]
        server.until(lambda: engine.aborted == 1, timeout_s=3)


def test_a_stream_that_breaks_ends_with_an_error_and_without_done(server: Running) -> None:
    server.engine.break_stream_after = 3
    text = server.chat(stream=True).text
    assert "[DONE]" not in text
    last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_unavailable"
    assert server.store.interactions() == []


def test_the_engines_error_event_is_passed_on_and_not_recorded(server: Running) -> None:
    server.engine.error_event_after = 2
    events = server.chat(stream=True).text.strip().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == "scripted"
    assert events[-1] == "data: [DONE]"
    assert server.store.interactions() == []


def test_a_client_that_goes_away_stops_its_generation(server: Running) -> None:
    server.engine.token_delay_s = 0.3
    body = {"model": "code", "messages": MESSAGES}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.5)
    server.until(lambda: server.engine.aborted == 1, timeout_s=3)
    stream = server.openai.chat.completions.create(model="code", messages=MESSAGES, stream=True)
    next(stream)
    stream.close()
    server.until(lambda: server.engine.aborted == 2, timeout_s=3)
    assert server.store.interactions() == []


def test_more_requests_than_places_are_refused_at_once(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path
) -> None:
    engine.token_delay_s = 0.1
    with serving(engine, tmp_path, checker=pool, max_concurrency=2) as server:
        with ThreadPoolExecutor(8) as threads:
            responses = list(threads.map(lambda _: server.chat(), range(8)))
        refused = [r for r in responses if r.status_code == 503]
        assert len(responses) - len(refused) >= 2
        assert refused
        assert refused[0].json()["error"]["code"] == "overloaded"
        assert refused[0].headers["retry-after"] == "1"
        assert server.chat().status_code == 200


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
]


def test_tools_are_passed_on_and_their_calls_recorded(server: Running) -> None:
    server.engine.tool = ("look", '{"where": "here"}')
    client = server.openai.chat.completions
    asked: dict[str, Any] = {
        "model": "code",
        "messages": [{"role": "user", "content": "look"}],
        "tools": TOOLS,
        "tool_choice": "auto",
    }
    whole = client.create(**asked)
    with client.stream(**asked) as stream:
        streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == server.engine.tool
        row = server.store.interaction(answer.id.removeprefix("chatcmpl-"))
        (kept,) = row.choices[0]["message"]["tool_calls"]
        assert (kept["function"]["name"], kept["function"]["arguments"]) == server.engine.tool
        assert row.params["tools"] == TOOLS
    sent = server.engine.bodies()
    assert all(body["tools"] == TOOLS and body["tool_choice"] == "auto" for body in sent)


def test_a_whole_number_is_one_however_it_is_written(server: Running) -> None:
    answer = server.chat(n=2.0, priority=3.0).json()
    assert len(answer["choices"]) == 2
    sent = server.engine.bodies()[-1]
    assert (sent["n"], sent["priority"]) == (2, 3)
    refused = server.chat(n=2.5)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def test_null_is_the_same_as_left_out(server: Running) -> None:
    nothing = dict.fromkeys(("io_spec", "metadata", "n", "stream", "user", "store", "episode_id"))
    response = server.chat(**nothing)
    assert response.status_code == 200, response.text
    assert "verification" not in response.json()["choices"][0]
