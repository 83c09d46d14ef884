"""OpenAI's responses and Anthropic's messages through their own clients: answered and recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from ops.settings import KeySettings
from tests.fake_engine import BASE, PROGRAM, FakeEngine
from tests.server.conftest import Running, SharedPool, serving

MESSAGES: list[Any] = [{"role": "user", "content": "add"}]


@pytest.fixture
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_response_is_answered_stamped_and_recorded(server: Running) -> None:
    answer = server.openai.responses.create(
        model="code", input="add", instructions="be brief", metadata={"run": "1"}, user="ann"
    )
    assert answer.output_text == PROGRAM
    assert answer.metadata == {"run": "1"}
    assert answer.to_dict()["adapter"] == {"name": "base", "version": 0, "sha256": ""}
    row = server.store.interaction(answer.id.removeprefix("resp_"))
    assert row.endpoint == "/v1/responses"
    assert [m["role"] for m in row.messages] == ["system", "user"]
    assert row.choices[0]["message"]["content"] == PROGRAM
    assert (row.user, row.metadata) == ("ann", {"run": "1"})
    assert row.usage["total_tokens"] == answer.usage.total_tokens  # type: ignore[union-attr]
    (sent,) = server.engine.bodies("/v1/responses")
    assert (sent["model"], sent["store"], sent["request_id"]) == (BASE, False, answer.id)
    assert "metadata" not in sent


def test_a_streamed_response_is_the_engines_and_recorded_before_it_ends(server: Running) -> None:
    with server.openai.responses.stream(model="code", input=MESSAGES) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == PROGRAM == final.output_text
    row = server.store.interaction(final.id.removeprefix("resp_"))
    assert row.choices[0]["message"]["content"] == PROGRAM
    assert final.to_dict()["episode_id"] == row.episode_id


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_from_a_recorded_response(server: Running, stream: bool) -> None:
    client = server.openai
    first = client.responses.create(model="code", input="add", instructions="be brief")
    items: list[Any] = [{"role": "user", "content": "of floats, too"}]
    more: Any = {"model": "code", "input": items, "previous_response_id": first.id}
    if stream:
        with client.responses.stream(**more) as events:
            second = events.get_final_response()
    else:
        second = client.responses.create(**more)
    third = client.responses.create(
        model="code", input="thanks", previous_response_id=second.id, instructions="be polite"
    )
    assert second.previous_response_id == first.id
    sent = server.engine.bodies("/v1/responses")
    assert [m["content"] for m in sent[1]["input"]] == ["add", PROGRAM, "of floats, too"]
    roles = ["user", "assistant", "user", "assistant", "user"]
    assert [m["role"] for m in sent[2]["input"]] == roles
    assert all("previous_response_id" not in body for body in sent)
    rows = [server.store.interaction(r.id.removeprefix("resp_")) for r in (first, second, third)]
    assert len({row.episode_id for row in rows}) == 1
    assert [m["role"] for m in rows[2].messages] == ["system", *roles]


def test_a_response_is_read_again_and_deleted(server: Running) -> None:
    server.engine.tool = ("look", '{"where":"here"}')
    tools: Any = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    client = server.openai
    for more in ({"metadata": {"run": "1"}, "instructions": "be brief"}, {"tools": tools}):
        answer = client.responses.create(model="code", input="add", **more)
        again = client.responses.retrieve(answer.id)
        assert again.output_text == answer.output_text
        assert [item.type for item in again.output] == [item.type for item in answer.output]
        assert again.instructions == more.get("instructions")
        assert again.metadata == more.get("metadata", {})
        assert (again.id, again.status, again.model) == (answer.id, "completed", BASE)
        [item] = client.responses.input_items.list(answer.id)
        assert item.to_dict() == {
            "id": f"msg_{answer.id.removeprefix('resp_')}_0",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_text", "text": "add"}],
        }
        client.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(answer.id)
    assert server.store.count_interactions() == 0
    chat = server.chat().json()["id"]
    for method in ("GET", "DELETE"):
        refused = server.http.request(method, f"/v1/responses/{chat}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "response_id")


def test_the_items_before_a_response_are_listed_either_way(server: Running) -> None:
    client = server.openai.responses
    called = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    told = {"type": "function_call_output", "call_id": "c", "output": "here"}
    first = client.create(model="code", input=[{"role": "user", "content": "a"}, called, told])  # type: ignore[list-item]
    second = client.create(model="code", input="b", previous_response_id=first.id)
    items = list(client.input_items.list(second.id, order="asc", limit=2))  # turns the pages
    kinds = ["message", "function_call", "function_call_output", "message", "message"]
    assert [item.type for item in items] == kinds
    assert list(client.input_items.list(second.id)) == items[::-1]
    answer = items[3].to_dict()
    assert (answer["role"], answer["content"][0]["text"]) == ("assistant", first.output_text)  # type: ignore[index]
    with pytest.raises(openai.NotFoundError):
        client.input_items.list("resp_x")


def test_a_message_is_answered_stamped_and_recorded(
    server: Running, claude: anthropic.Anthropic
) -> None:
    message = claude.messages.create(
        model="code",
        max_tokens=100,
        system="be brief",
        messages=MESSAGES,
        metadata={"user_id": "ann"},
    )
    assert message.content[0].text == PROGRAM  # type: ignore[union-attr]
    assert message.id.startswith("msg_")
    row = server.store.interaction(message.id.removeprefix("msg_"))
    assert row.endpoint == "/v1/messages"
    assert [m["role"] for m in row.messages] == ["system", "user"]
    assert row.choices[0]["message"]["content"] == PROGRAM
    assert row.user == "ann"
    assert claude.messages.count_tokens(model="code", messages=MESSAGES).input_tokens == 10
    body = {"inference_id": message.id, "metric_name": "accepted", "value": True}
    assert server.http.post("/v1/feedback", json=body).status_code == 200
    assert server.store.count_interactions() == 1


def test_a_streamed_message_is_recorded_before_it_ends(
    server: Running, claude: anthropic.Anthropic
) -> None:
    with claude.messages.stream(model="code", max_tokens=100, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == PROGRAM
    assert final.stop_reason == "end_turn"
    row = server.store.interaction(final.id.removeprefix("msg_"))
    assert row.choices[0] == {
        "index": 0,
        "message": {"role": "assistant", "content": PROGRAM},
        "finish_reason": "end_turn",
    }
    assert row.usage["output_tokens"] == final.usage.output_tokens


def test_unknown_models_never_reach_the_engine(
    server: Running, claude: anthropic.Anthropic
) -> None:
    with pytest.raises(openai.NotFoundError):
        server.openai.responses.create(model="gpt-5", input="x")
    with pytest.raises(anthropic.NotFoundError) as refused:
        claude.messages.create(model="claude-x", max_tokens=5, messages=MESSAGES)
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.count_tokens(model="claude-x", messages=MESSAGES)
    assert server.engine.requests == []


def test_what_is_not_to_be_recorded_is_not(server: Running, claude: anthropic.Anthropic) -> None:
    for stream in (False, True):
        answer = server.openai.responses.create(model="code", input="x", store=False, stream=stream)
        if stream:
            list(answer)
    claude.messages.create(
        model="code", max_tokens=5, messages=MESSAGES, extra_body={"store": False}
    )
    assert server.store.count_interactions() == 0


def test_a_broken_stream_is_an_error_and_no_record(
    server: Running, claude: anthropic.Anthropic
) -> None:
    for knob in ("break_stream_after", "error_event_after"):
        server.engine.break_stream_after = server.engine.error_event_after = None
        setattr(server.engine, knob, 5)
        with pytest.raises(openai.APIError):
            list(server.openai.responses.create(model="code", input="x", stream=True))
        with pytest.raises(anthropic.APIError):
            list(
                claude.messages.create(model="code", max_tokens=50, messages=MESSAGES, stream=True)
            )
    assert server.store.count_interactions() == 0


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("responses", {"input": "x"}, "model"),
    ("responses", {"model": "code"}, "input"),
    ("responses", {"model": "code", "input": 3}, "input"),
    ("responses", {"model": "code", "input": "x", "background": True}, "background"),
    ("responses", {"model": "code", "input": "x", "conversation": "conv_1"}, "conversation"),
    ("responses", {"model": "code", "input": "x", "prompt": {"id": "pmpt_1"}}, "prompt"),
    ("responses", {"model": "code", "input": "x", "io_spec": {}}, "io_spec"),
    ("messages", {"model": "code", "max_tokens": 5}, "messages"),
    ("messages", {"model": "code", "max_tokens": 5, "messages": [3]}, "messages[0]"),
    ("messages", {"model": "code", "messages": MESSAGES}, "max_tokens"),
    ("messages", {"model": "code", "messages": MESSAGES, "metadata": 3}, "metadata"),
    ("messages/count_tokens", {"messages": MESSAGES}, "model"),
]


def test_wrong_bodies_are_a_400_in_both_shapes(server: Running) -> None:
    for path, body, param in WRONG:
        response = server.http.post(f"/v1/{path}", json=body)
        assert response.status_code == 400, (path, body)
        assert response.json()["type"] == "error"
        assert response.json()["error"]["param"] == param
    chat = server.chat().json()["id"]
    for named in ("resp_1", chat, 3, "x" * 1000):
        body = {"model": "code", "input": "x", "previous_response_id": named}
        error = server.http.post("/v1/responses", json=body)
        assert error.status_code == 400
        assert error.json()["error"]["param"] == "previous_response_id"
        assert error.json()["error"]["code"] == "previous_response_not_found"


def test_anthropics_header_is_a_key_too(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path
) -> None:
    key = KeySettings(name="a", sha256=hashlib.sha256(b"secret").hexdigest())
    with serving(engine, tmp_path, checker=pool, keys=(key,)) as server:
        for given, right in (("secret", True), ("wrong", False)):
            with anthropic.Anthropic(base_url=server.url, api_key=given, max_retries=0) as client:
                if right:
                    client.messages.create(model="code", max_tokens=5, messages=MESSAGES)
                    continue
                with pytest.raises(anthropic.AuthenticationError):
                    client.messages.create(model="code", max_tokens=5, messages=MESSAGES)
