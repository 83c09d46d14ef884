"""Dialects: how each endpoint of the engine writes its answers, whole and as a stream.

A relay decides for each event of a stream whether it is passed on now, changed or held back, and
adds the stream up for the record. What is passed on is the engine's bytes, except for the event
that carries our stamp. The last event is held back, so that the recording can come before it.
"""

from __future__ import annotations

from typing import Any, Protocol

from server.calls import CHAT, MESSAGES, RESPONSES, TEXT, Call
from server.sse import DONE, Tally, encode, payload

Json = dict[str, Any]


class Relay(Protocol):
    """One stream on its way to the client."""

    done: bool
    """The engine's last event has come."""
    failed: bool
    """The engine reported an error within the stream: the answer is not one."""

    def take(self, event: bytes) -> bytes:
        """Take an event of the engine and return the bytes to pass on now."""

    def rest(self) -> bytes:
        """The bytes that were held back, to be sent once the answer is recorded."""

    @property
    def choices(self) -> list[Json]:
        """The answer so far, as OpenAI's choices."""

    @property
    def usage(self) -> Json:
        """The tokens, in the endpoint's own words."""


def relay_for(call: Call) -> Relay:
    """Return the relay for the endpoint of a call."""
    if call.endpoint == RESPONSES:
        return ResponsesRelay(call)
    if call.endpoint == MESSAGES:
        return MessagesRelay(call)
    return ChatRelay(call)


def is_typed(endpoint: str) -> bool:
    """Whether the events of its streams have names (`event: …`)."""
    return endpoint not in (CHAT, TEXT)


def choices_of(endpoint: str, answer: Json) -> list[Json]:
    """Read a whole answer as OpenAI's choices."""
    if endpoint == RESPONSES:
        return [_of_output(answer)]
    if endpoint == MESSAGES:
        return [_of_blocks(answer.get("content") or [], answer.get("stop_reason"))]
    return list(answer.get("choices") or [])


class ChatRelay:
    """Chat and text completions.

    A chunk that finishes a choice may be the last one, which carries our stamp, so it waits for
    the next event. Everything else goes at once, byte for byte.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._held: Json | None = None
        self._held_raw = b""
        self._tally = Tally()
        self.done = False
        self.failed = False

    def take(self, event: bytes) -> bytes:
        """Return the bytes to pass on now."""
        if event == DONE:
            self.done = True
            return b""
        chunk = payload(event)
        if chunk is None:
            return event
        if "error" in chunk:
            self.failed = True
            return self._release() + event
        finished = self._tally.add(chunk)
        if chunk.get("choices"):
            if not finished:
                return self._release() + event if self._held_raw else event
        elif "usage" in chunk and not self._call.envelope.include_usage:
            return b""
        released = self._release()
        self._held, self._held_raw = chunk, event
        return released

    def _release(self) -> bytes:
        held, self._held, self._held_raw = self._held_raw, None, b""
        return held

    def rest(self) -> bytes:
        """The last chunk, stamped, and the end."""
        if self._held is None or self.failed:
            return self._release() + DONE
        return encode(self._call.stamp(self._held)) + DONE

    @property
    def choices(self) -> list[Json]:
        """The choices so far."""
        return self._tally.choices

    @property
    def usage(self) -> Json:
        """OpenAI's usage."""
        return self._tally.usage


class ResponsesRelay:
    """OpenAI's responses: the event that ends the stream carries the whole answer."""

    _LAST = frozenset(("response.completed", "response.incomplete"))
    _FAILED = frozenset(("response.failed", "error"))

    def __init__(self, call: Call) -> None:
        self._call = call
        self._last: Json | None = None
        self._name = ""
        self._raw = b""
        self.done = False
        self.failed = False

    def take(self, event: bytes) -> bytes:
        """Return the bytes to pass on now; the last event is held back."""
        chunk = payload(event)
        if chunk is None:
            return event
        name = str(chunk.get("type"))
        if name in self._FAILED or "error" in chunk:
            self.done = self.failed = True
            self._raw = event
            return b""
        if name in self._LAST:
            self.done = True
            self._last, self._name = chunk, name
            return b""
        return event

    def rest(self) -> bytes:
        """The last event, stamped."""
        if self._last is None or not isinstance(self._last.get("response"), dict):
            return self._raw
        self._call.stamp(self._last["response"])
        return encode(self._last, name=self._name)

    @property
    def choices(self) -> list[Json]:
        """The one answer, once it is complete."""
        return [_of_output(self._response)] if self._last is not None else []

    @property
    def usage(self) -> Json:
        """Tokens in the words of the responses API."""
        return self._response.get("usage") or {}

    @property
    def _response(self) -> Json:
        response = (self._last or {}).get("response")
        return response if isinstance(response, dict) else {}


class MessagesRelay:
    """Anthropic's messages: the first event names the answer and is the one we stamp."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._blocks: dict[int, Json] = {}
        self._usage: Json = {}
        self._stop_reason: str | None = None
        self._raw = b""
        self.done = False
        self.failed = False

    def take(self, event: bytes) -> bytes:
        """Return the bytes to pass on now; `message_stop` is held back."""
        chunk = payload(event)
        if chunk is None:
            return event
        match chunk.get("type"):
            case "message_start" if isinstance(chunk.get("message"), dict):
                self._usage = chunk["message"].get("usage") or {}
                self._call.stamp(chunk["message"])
                return encode(chunk, name="message_start")
            case "message_stop":
                self.done = True
                self._raw = event
                return b""
            case "error":
                self.done = self.failed = True
                self._raw = event
                return b""
            case _:
                self._add(chunk)
                return event

    def _add(self, chunk: Json) -> None:
        if isinstance(chunk.get("content_block"), dict):
            self._blocks[int(chunk.get("index") or 0)] = dict(chunk["content_block"])
        delta = chunk.get("delta")
        if isinstance(chunk.get("usage"), dict):
            self._usage = {**self._usage, **chunk["usage"]}
        if not isinstance(delta, dict):
            return
        if delta.get("stop_reason") is not None:
            self._stop_reason = delta["stop_reason"]
        block = self._blocks.setdefault(int(chunk.get("index") or 0), {"type": "text"})
        for name, value in delta.items():
            if name in ("text", "thinking", "partial_json") and isinstance(value, str):
                block[name] = str(block.get(name) or "") + value

    def rest(self) -> bytes:
        """The last event."""
        return self._raw

    @property
    def choices(self) -> list[Json]:
        """The one answer."""
        blocks = [self._blocks[index] for index in sorted(self._blocks)]
        return [_of_blocks(blocks, self._stop_reason)]

    @property
    def usage(self) -> Json:
        """Tokens in Anthropic's words."""
        return self._usage


def _of_output(response: Json) -> Json:
    """The choice that the output items of a response amount to."""
    texts, calls = [], []
    for item in response.get("output") or ():
        if item.get("type") == "message":
            parts = item.get("content") or ()
            texts += [str(part.get("text")) for part in parts if part.get("text") is not None]
        elif item.get("type") == "function_call":
            calls.append(_call(item.get("call_id"), item.get("name"), item.get("arguments")))
    return _choice("".join(texts), calls, response.get("status"))


def _of_blocks(blocks: list[Json], stop_reason: str | None) -> Json:
    """The choice that the content blocks of a message amount to."""
    texts = [str(b.get("text") or "") for b in blocks if b.get("type") == "text"]
    calls = [
        _call(b.get("id"), b.get("name"), b.get("partial_json") or b.get("input"))
        for b in blocks
        if b.get("type") == "tool_use"
    ]
    return _choice("".join(texts), calls, stop_reason)


def _call(id_: Any, name: Any, arguments: Any) -> Json:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _choice(text: str, calls: list[Json], finish_reason: str | None) -> Json:
    message: Json = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = calls
    return {"index": 0, "message": message, "finish_reason": finish_reason}
