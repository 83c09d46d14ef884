"""Streams of each dialect are added up to what a whole answer would have said."""

from __future__ import annotations

from typing import Any

from server.adapters import Served
from server.auth import LOCAL
from server.calls import MESSAGES, RESPONSES, Call
from server.dialects import MessagesRelay, ResponsesRelay, choices_of
from server.protocol import read_envelope
from server.sse import encode


def _call(endpoint: str) -> Call:
    return Call(
        endpoint=endpoint,
        envelope=read_envelope({"model": "code"}),
        served=Served(model="base", version=0, sha256="", base="base", base_root="base"),
        identity=LOCAL,
    )


TOOL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}


def test_the_tools_of_a_message_are_put_together() -> None:
    relay = MessagesRelay(_call(MESSAGES))
    deltas = [{"type": "input_json_delta", "partial_json": part} for part in ('{"a"', ": 1}")]
    events: list[dict[str, Any]] = [
        {"type": "content_block_start", "index": 0, "content_block": TOOL},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {}},
    ]
    for event in events:
        written = encode(event, name=event["type"])
        assert relay.take(written) == written
    assert not relay.done
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    assert relay.take(stop) == b""
    assert (relay.done, relay.rest()) == (True, stop)
    (choice,) = relay.choices
    assert choice["finish_reason"] == "tool_use"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}
    (whole,) = choices_of(MESSAGES, {"content": [TOOL | {"input": {"a": 1}}]})
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_the_last_event_of_a_response_is_held_and_stamped() -> None:
    call = _call(RESPONSES)
    relay = ResponsesRelay(call)
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    last = {"type": "response.completed", "response": {"output": [item], "status": "completed"}}
    assert relay.take(encode(last, name="response.completed")) == b""
    assert relay.done
    written = relay.rest()
    assert written.startswith(b"event: response.completed\ndata: {")
    assert call.completion_id.encode() in written
    assert relay.choices[0]["message"]["tool_calls"][0]["id"] == "c"


def test_an_error_in_a_stream_is_passed_on_and_no_answer() -> None:
    for relay in (MessagesRelay(_call(MESSAGES)), ResponsesRelay(_call(RESPONSES))):
        error = encode({"type": "error", "error": {"message": "x"}}, name="error")
        assert relay.take(error) == b""
        assert (relay.done, relay.failed, relay.rest()) == (True, True, error)
        comment = b": ping\n\n"
        assert relay.take(comment) == comment
