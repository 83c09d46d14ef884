"""Server-sent events as the engine writes them: cutting bytes into events, adding up a stream.

Events are kept as the bytes that came, so that what is passed on is what the engine wrote.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from server.errors import EngineUnavailable

Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 8 << 20


async def batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Cut a byte stream into whole events, as many at a time as arrived together.

    Raises:
        EngineUnavailable: the stream ended within an event, or one never ends.
    """
    rest = b""
    async for chunk in chunks:
        rest += chunk
        *events, rest = rest.split(b"\n\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise EngineUnavailable("the engine sends an event without end")
        if events:
            yield [event + b"\n\n" for event in events]
    if rest.strip():
        raise EngineUnavailable("the engine's stream broke off")


def payload(event: bytes) -> Json | None:
    """The JSON object of an event; None for comments and for `[DONE]`."""
    if event.startswith(b"event: "):
        event = event.partition(b"\n")[2]
    if not event.startswith(b"data: {"):
        return None
    try:
        value = json.loads(event[6:].decode())  # of bytes, it would first find out which encoding
    except ValueError as error:
        raise EngineUnavailable("the engine's stream holds an event that is not JSON") from error
    return value if isinstance(value, dict) else None


def encode(value: Json, *, name: str | None = None) -> bytes:
    """An event that carries a JSON object, spaced as the engine does it."""
    head = f"event: {name}\n".encode() if name is not None else b""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return head + b"data: " + text.encode("utf-8", "replace") + b"\n\n"


class Tally:
    """Adds the chunks of a stream up to the choices of a whole answer."""

    def __init__(self) -> None:
        self.usage: Json = {}
        self._choices: dict[int, Json] = {}

    def add(self, chunk: Json) -> list[Json]:
        """Take a chunk in and return the choices that it finished."""
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = usage
        finished = []
        for part in chunk.get("choices") or ():
            choice = self._choices.get(part["index"])
            if choice is None:
                choice = self._choices[part["index"]] = {"index": part["index"]}
            if "delta" in part:
                self._delta(choice, part["delta"])
            else:
                choice["text"] = choice.get("text", "") + (part.get("text") or "")
            logprobs = part.get("logprobs")
            if logprobs and logprobs.get("content"):
                known = choice.setdefault("logprobs", {"content": []})
                known["content"].extend(logprobs["content"])
            if part.get("finish_reason") is not None:
                choice["finish_reason"] = part["finish_reason"]
                choice["stop_reason"] = part.get("stop_reason")
                finished.append(choice)
        return finished

    def _delta(self, choice: Json, delta: Json) -> None:
        message = choice.get("message")
        if message is None:
            message = choice["message"] = {"role": "assistant", "content": ""}
        for key, value in delta.items():
            if value is None:
                continue
            if key == "tool_calls":
                _merge_tool_calls(message.setdefault("tool_calls", []), value)
            elif key == "role":
                message["role"] = value
            elif isinstance(value, str):
                message[key] = (message.get(key) or "") + value

    @property
    def choices(self) -> list[Json]:
        """The choices so far, by index."""
        return [self._choices[index] for index in sorted(self._choices)]


def _merge_tool_calls(calls: list[Json], parts: list[Json]) -> None:
    for part in parts:
        index = part.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[index]
        for key in ("id", "type"):
            if part.get(key):
                call[key] = part[key]
        for key in ("name", "arguments"):
            call["function"][key] += (part.get("function") or {}).get(key) or ""
