"""A small engine that speaks vLLM's protocol truly, for tests: real HTTP, no model.

What it answers is scripted; how it answers (fields, errors, streams, adapters) follows vLLM 0.32,
and `tests/contracts/test_engine_contract.py` holds both to the same suite. An adapter's effect is
a pure function of its weights' bytes (`logprob`), so probes can be made for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ops import probe
from ops.records import Adapter
from ops.registry import Registry
from server.engine import WARMING

Json = dict[str, Any]

BASE = "fake-base"
MAX_MODEL_LEN = 2048
FINGERPRINT = "vllm-0.32.0-fake"
PROGRAM = "```python\ndef add(a, b):\n    return a + b\n```"
DENIED = (
    "/invocations",
    "/adapters",
    "/pause",
    "/resume",
    "/sleep",
    "/wake_up",
    "/collective_rpc",
    "/update_weights",
    "/reset_prefix_cache",
    "/server_info",
    "/tokenize",
    "/detokenize",
    "/load",
    "/version",
    "/inference/v1/generate",
)

Script = Callable[[Json, int], str]
"""(request body, choice index) -> text of that choice."""


def logprob(weights: bytes, prefix: list[int], token: int) -> float:
    """The log-probability of a token after a prefix, under an adapter (b"" is the base)."""

    def draw(salt: bytes) -> float:
        digest = hashlib.sha256(salt + json.dumps([prefix, token]).encode()).digest()
        return float(int.from_bytes(digest[:4], "big")) / 2**32

    value = -1.0 - 4.0 * draw(b"")
    return value if not weights else value - 0.5 * draw(hashlib.sha256(weights).digest())


class FakeEngine:
    """The engine and the knobs that tests turn. `start` before use; `stop` may be undone."""

    def __init__(self) -> None:
        self.script: Script = lambda body, index: PROGRAM
        self.base = BASE
        self.token_delay_s = 0.0
        self.health = True
        self.apply_adapters = True
        self.tool: tuple[str, str] | None = None
        """Name and arguments of the call with which chats that offer tools are answered, until the
        last message is a tool's result."""
        self.fail: dict[str, tuple[int, Json]] = {}
        """Path -> status and body to answer with instead."""
        self.break_stream_after: int | None = None
        """Chunks after which a stream's connection is dropped; -1: before anything is sent."""
        self.error_event_after: int | None = None
        """Chunks after which a stream carries vLLM's error event."""
        self.adapters: dict[str, str] = {}
        self.requests: list[tuple[str, Json, dict[str, str]]] = []
        self.warmed = 0
        """Requests that only warm the engine up; they are not among the others."""
        self.hits: Counter[str] = Counter()
        self.running = 0
        self.aborted = 0
        self.max_loras = 4
        self.loads: list[Json] = []
        self._weights: dict[str, bytes] = {}
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    # --- life -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(self._app(), log_level="error", lifespan="off", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        """Drop everything, as a killed engine does; its adapters are gone too."""
        if self._server is not None and self._thread is not None and self._socket is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(10)
            self._socket.close()
        self._server = None
        self.adapters.clear()
        self._weights.clear()

    def restart(self) -> None:
        self.stop()
        self.start()

    def weights_of(self, model: str) -> bytes:
        """The bytes of the adapter that is loaded under a name; of the base none."""
        return self._weights.get(model, b"")

    def bodies(self, path: str = "/v1/chat/completions") -> list[Json]:
        """The bodies that came to a path, oldest first."""
        return [body for where, body, _ in self.requests if where == path]

    # --- routes ---------------------------------------------------------------------------------

    def _app(self) -> Starlette:
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/responses", self._responses, methods=["POST"]),
            Route("/v1/messages", self._messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self._count_tokens, methods=["POST"]),
            Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
        ]
        routes += [Route(path, self._denied, methods=["GET", "POST"]) for path in DENIED]
        return Starlette(routes=routes)

    async def _denied(self, request: Request) -> Response:
        self.hits[request.url.path] += 1
        return JSONResponse({"reached": True})

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.health else 503)

    async def _metrics(self, request: Request) -> Response:
        labels = f'max_lora="{self.max_loras}",running_lora_adapters="",waiting_lora_adapters=""'
        return PlainTextResponse(f"vllm:lora_requests_info{{{labels}}} 1.7e+09\n")

    async def _models(self, request: Request) -> Response:
        entries = [_card(self.base, f"/models/{self.base}", None, MAX_MODEL_LEN)]
        entries += [_card(name, path, self.base, None) for name, path in self.adapters.items()]
        return JSONResponse({"object": "list", "data": entries})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        self.loads.append(body)
        if "load" in self.fail:
            return _failed(self.fail["load"])
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            message = "Both 'lora_name' and 'lora_path' must be provided."
            return _error(400, message, "InvalidUserInput")
        if name in self.adapters and not body.get("load_inplace"):
            return _error(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True.",
                "InvalidUserInput",
            )
        try:
            json.loads((Path(path) / "adapter_config.json").read_text())
            weights = (Path(path) / "adapter_model.safetensors").read_bytes()
        except (OSError, ValueError):
            message = f"Loading lora {name} failed: No adapter found for {path}"
            return _error(404, message, "NotFoundError")
        self.adapters[name] = path
        self._weights[name] = weights
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json()).get("lora_name")
        if name not in self.adapters:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name], self._weights[name]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        refused = self._refused(request, body)
        if refused is not None:
            return refused
        if not isinstance(body.get("messages"), list):
            return _invalid("body.messages", "list_type", "Input should be a valid list")
        return await self._answer(request, body, chat=True)

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        refused = self._refused(request, body)
        if refused is not None:
            return refused
        if body.get("suffix"):
            message = "suffix is only supported for models with FIM completion rendering"
            return _error(400, message, "BadRequestError", "suffix")
        return await self._answer(request, body, chat=False)

    async def _responses(self, request: Request) -> Response:
        body = await request.json()
        refused = self._refused(request, body)
        if refused is not None:
            return refused
        (text, tokens), *_ = self._texts(body, True)
        whole = _response(body, text, len(tokens))
        if not body.get("stream"):
            return JSONResponse(whole)
        return StreamingResponse(
            self._typed(_response_events(body, whole, tokens)), media_type="text/event-stream"
        )

    async def _messages(self, request: Request) -> Response:
        body = await request.json()
        refused = self._refused(request, body)
        if refused is not None:
            error = json.loads(refused.body)["error"]
            error = {"type": error["type"], "message": error["message"]}
            return JSONResponse({"type": "error", "error": error}, refused.status_code)
        (text, tokens), *_ = self._texts(body, True)
        whole = {
            "id": "chatcmpl-" + (request.headers.get("x-request-id") or "fake"),
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": text}],
            "model": body["model"],
            "stop_reason": "max_tokens" if len(tokens) >= body["max_tokens"] else "end_turn",
            "usage": {"input_tokens": 10, "output_tokens": len(tokens)},
        }
        if not body.get("stream"):
            return JSONResponse(whole)
        return StreamingResponse(
            self._typed(_message_events(whole, tokens)), media_type="text/event-stream"
        )

    async def _count_tokens(self, request: Request) -> Response:
        body = await request.json()
        refused = self._refused(request, body)
        if refused is not None:
            return refused
        return JSONResponse({"input_tokens": 10, "context_management": None})

    async def _typed(self, events: list[Json]) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            for sent, event in enumerate(events):
                if self.token_delay_s:
                    await asyncio.sleep(self.token_delay_s)
                if self.break_stream_after is not None and sent >= self.break_stream_after:
                    raise ConnectionResetError("scripted")
                if self.error_event_after is not None and sent >= self.error_event_after:
                    error = {"type": "internal_error", "message": "scripted"}
                    yield b"event: error\n" + _event({"type": "error", "error": error})
                    return
                yield f"event: {event['type']}\n".encode() + _event(event)
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    def _refused(self, request: Request, body: Json) -> Response | None:
        path = request.url.path
        if request.headers.get("x-request-id", "").startswith(WARMING):
            self.warmed += 1
        else:
            self.requests.append((path, body, dict(request.headers)))
        if path in self.fail:
            return _failed(self.fail[path])
        model = body.get("model")
        if model != self.base and model not in self.adapters:
            message = f"The model `{model}` does not exist."
            return _error(404, message, "NotFoundError", "model")
        temperature = body.get("temperature")
        if isinstance(temperature, (int, float)) and temperature < 0:
            return _error(
                400,
                f"temperature must be non-negative, got {float(temperature)}. "
                f"(parameter=temperature, value={float(temperature)})",
                "BadRequestError",
                "temperature",
            )
        if temperature == 0 and (body.get("n") or 1) > 1:
            message = f"n must be 1 when using greedy sampling, got {body['n']}."
            return _error(400, message, "BadRequestError")
        if body.get("max_tokens") is not None and not isinstance(body["max_tokens"], int):
            return _invalid("body.max_tokens", "int_type", "Input should be a valid integer")
        return None

    # --- answers --------------------------------------------------------------------------------

    async def _answer(self, request: Request, body: Json, *, chat: bool) -> Response:
        given = request.headers.get("x-request-id") or body.get("request_id") or "fake"
        head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + given,
            "created": int(time.time()),
            "model": body["model"],
        }
        texts = self._texts(body, chat)
        offered = chat and self.tool is not None and body.get("tools")
        if offered and body["messages"][-1].get("role") != "tool":
            return _tool_answer(body, head, *self.tool)
        if body.get("stream"):
            return StreamingResponse(
                self._stream(body, texts, head, chat), media_type="text/event-stream"
            )
        watch = asyncio.create_task(_gone(request))
        delay_s = self.token_delay_s
        self.running += 1
        try:
            longest = max(len(tokens) for _, tokens in texts)
            for _ in range(longest):
                if delay_s:
                    await asyncio.sleep(delay_s)
                if watch.done():
                    self.aborted += 1
                    return Response(status_code=499)
        finally:
            self.running -= 1
            watch.cancel()
        choices = [self._choice(body, i, *text, chat=chat) for i, text in enumerate(texts)]
        made = sum(len(tokens) for _, tokens in texts)
        whole = {
            "id": head["id"],
            "object": "chat.completion" if chat else "text_completion",
            "created": head["created"],
            "model": head["model"],
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {
                **_usage(made),
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
        if chat:
            whole |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        # ASCII, so that a script may also answer with half a surrogate pair.
        return Response(json.dumps(whole), media_type="application/json")

    def _texts(self, body: Json, chat: bool) -> list[tuple[str, list[str]]]:
        prompts = 1
        if not chat and isinstance(body.get("prompt"), list) and body["prompt"]:
            prompts = len(body["prompt"]) if isinstance(body["prompt"][0], (list, str)) else 1
        texts = []
        for index in range(prompts * (body.get("n") or 1)):
            tokens = re.findall(r"\s*\S+|\s+$", self.script(body, index))
            limit = body.get("max_completion_tokens") or body.get("max_tokens")
            if not chat and limit is None:
                limit = 16
            tokens = tokens[:limit] if limit else tokens
            texts.append(("".join(tokens), tokens))
        return texts

    def _choice(self, body: Json, index: int, text: str, tokens: list[str], *, chat: bool) -> Json:
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        reason = "length" if limit and len(tokens) >= limit else "stop"
        tail = {
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }
        if chat:
            message = {
                "role": "assistant",
                "content": text,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            }
            logprobs = (
                {"content": [_token(index, t) for t in tokens]} if body.get("logprobs") else None
            )
            return {"index": index, "message": message, "logprobs": logprobs, **tail}
        return {
            "index": index,
            "text": text,
            "logprobs": self._text_logprobs(body, index),
            **tail,
            "prompt_logprobs": self._prompt_logprobs(body, index),
            "prompt_token_ids": None,
        }

    def _prompt_ids(self, body: Json, index: int) -> list[int]:
        prompt = body["prompt"]
        ids = prompt[index // (body.get("n") or 1)] if isinstance(prompt[0], list) else prompt
        return list(ids.encode()) if isinstance(ids, str) else list(ids)

    def _logprob(self, body: Json, prefix: list[int], token: int) -> float:
        weights = self._weights.get(body["model"], b"") if self.apply_adapters else b""
        return logprob(weights, prefix, token)

    def _prompt_logprobs(self, body: Json, index: int) -> list[Json | None] | None:
        if body.get("prompt_logprobs") is None:
            return None
        ids = self._prompt_ids(body, index)
        return [None] + [
            {
                str(token): {
                    "logprob": self._logprob(body, ids[:at], token),
                    "rank": 1,
                    "decoded_token": f"<{token}>",
                }
            }
            for at, token in enumerate(ids[1:], start=1)
        ]

    def _text_logprobs(self, body: Json, index: int) -> Json | None:
        if body.get("logprobs") is None:
            return None
        value = self._logprob(body, self._prompt_ids(body, index), 0)
        return {
            "text_offset": [0],
            "token_logprobs": [value],
            "tokens": ["token_id:0"],
            "top_logprobs": [{"token_id:0": value}],
        }

    async def _stream(
        self, body: Json, texts: list[tuple[str, list[str]]], head: Json, chat: bool
    ) -> AsyncIterator[bytes]:
        options = body.get("stream_options") or {}
        continuous = options.get("continuous_usage_stats")
        kind = "chat.completion.chunk" if chat else "text_completion"
        start = {"id": head["id"], "object": kind, "created": head["created"]}
        start["model"] = head["model"]
        sent, delay_s = 0, self.token_delay_s

        def chunk(part: Json, made: int, **more: Any) -> bytes:
            whole = {**start, "choices": [part], **more}
            if continuous:
                whole["usage"] = {**_usage(made), "completion_tokens_details": None}
            return _event(whole)

        self.running += 1
        try:
            if self.break_stream_after == -1:
                raise ConnectionResetError("scripted")
            if chat:
                for index in range(len(texts)):
                    delta = {"role": "assistant", "content": ""}
                    part = {
                        "index": index,
                        "delta": delta,
                        "logprobs": None,
                        "finish_reason": None,
                    }
                    yield chunk(part, 0, prompt_token_ids=None, prompt_text=None)
            for step in range(max(len(tokens) for _, tokens in texts)):
                if delay_s:
                    await asyncio.sleep(delay_s)
                for index, (_, tokens) in enumerate(texts):
                    if step >= len(tokens):
                        continue
                    if self.break_stream_after is not None and sent >= self.break_stream_after:
                        raise ConnectionResetError("scripted")
                    if self.error_event_after is not None and sent >= self.error_event_after:
                        error = {"message": "scripted", "type": "InternalServerError"}
                        yield _event({"error": {**error, "param": None, "code": 500}})
                        yield b"data: [DONE]\n\n"
                        return
                    last = step == len(tokens) - 1
                    part = self._part(body, index, tokens[step], last=last, chat=chat)
                    stamp = last and not options.get("include_usage")
                    more = {"system_fingerprint": FINGERPRINT} if stamp else {}
                    yield chunk(part, step + 1, **more)
                    sent += 1
            if options.get("include_usage"):
                made = sum(len(tokens) for _, tokens in texts)
                usage = {"usage": _usage(made), "system_fingerprint": FINGERPRINT}
                yield _event({**start, "choices": [], **usage})
            yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    def _part(self, body: Json, index: int, token: str, *, last: bool, chat: bool) -> Json:
        reason = None
        if last:
            limit = body.get("max_completion_tokens") or body.get("max_tokens")
            _, tokens = self._texts(body, chat)[index]
            reason = "length" if limit and len(tokens) >= limit else "stop"
        if not chat:
            return {
                "index": index,
                "text": token,
                "logprobs": None,
                "finish_reason": reason,
                "stop_reason": None,
                "prompt_token_ids": None,
                "token_ids": None,
            }
        logprobs = {"content": [_token(index, token)]} if body.get("logprobs") else None
        part = {
            "index": index,
            "delta": {"content": token},
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        if last:
            part["stop_reason"] = None
        return {**part, "token_ids": None}


def _tool_answer(body: Json, head: Json, name: str, arguments: str) -> Response:
    call = {"id": "chatcmpl-tool-1", "type": "function"}
    tail = {"logprobs": None, "finish_reason": "tool_calls", "stop_reason": None}
    if not body.get("stream"):
        whole = {**call, "function": {"name": name, "arguments": arguments}}
        message = {"role": "assistant", "content": None, "tool_calls": [whole]}
        choice = {"index": 0, "message": message, **tail}
        object_ = "chat.completion"
        return JSONResponse({**head, "object": object_, "choices": [choice], "usage": _usage(5)})
    middle = len(arguments) // 2
    deltas: list[Json] = [
        {"role": "assistant", "content": ""},
        {"tool_calls": [{**call, "index": 0, "function": {"name": name, "arguments": ""}}]},
        *(
            {"tool_calls": [{"index": 0, "function": {"arguments": part}}]}
            for part in (arguments[:middle], arguments[middle:])
        ),
        {"content": ""},
    ]
    start = {**head, "object": "chat.completion.chunk"}
    events = []
    for number, delta in enumerate(deltas):
        last = number == len(deltas) - 1
        choice = {"index": 0, "delta": delta, **(tail if last else {"finish_reason": None})}
        events.append(_event({**start, "choices": [choice]}))
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append(_event({**start, "choices": [], "usage": _usage(5)}))
    return Response(b"".join([*events, b"data: [DONE]\n\n"]), media_type="text/event-stream")


def _response(body: Json, text: str, made: int) -> Json:
    part = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
    item = {"id": "msg_1", "content": [part], "role": "assistant", "status": "completed"}
    return {
        "id": body.get("request_id") or "resp_fake",
        "created_at": int(time.time()),
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata"),
        "model": body["model"],
        "object": "response",
        "output": [{**item, "type": "message"}],
        "parallel_tool_calls": True,
        "status": "completed",
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 10 + made,
        },
    }


def _response_events(body: Json, whole: Json, tokens: list[str]) -> list[Json]:
    begun = {**whole, "output": [], "status": "in_progress", "usage": None}
    item = whole["output"][0]
    events: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            "item": {**item, "content": [], "status": "in_progress"},
            "output_index": 0,
        },
    ]
    place = {"item_id": item["id"], "content_index": 0, "output_index": 0}
    empty = {**item["content"][0], "text": ""}
    events.append({"type": "response.content_part.added", "part": empty, **place})
    for token in tokens:
        events.append(
            {"type": "response.output_text.delta", "delta": token, "logprobs": [], **place}
        )
    text = item["content"][0]["text"]
    events += [
        {"type": "response.output_text.done", "text": text, "logprobs": [], **place},
        {"type": "response.output_item.done", "item": item, "output_index": 0},
        {"type": "response.completed", "response": whole},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _message_events(whole: Json, tokens: list[str]) -> list[Json]:
    usage = {"input_tokens": 10, "output_tokens": 0}
    begun = {**whole, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    return [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0},
        *(
            {
                "type": "content_block_delta",
                "delta": {"type": "text_delta", "text": token},
                "index": 0,
            }
            for token in tokens
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ended, "usage": whole["usage"]},
        {"type": "message_stop"},
    ]


def _card(name: str, root: str, parent: str | None, max_model_len: int | None) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [],
    }


def _usage(made: int) -> Json:
    return {"prompt_tokens": 10, "total_tokens": 10 + made, "completion_tokens": made}


def _token(index: int, token: str) -> Json:
    # The later choice is the likelier one, so that ranking by probability can be seen.
    return {"token": token, "logprob": -1.0 / (index + 1), "bytes": [], "top_logprobs": []}


def _event(value: Json) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _error(status: int, message: str, type_: str, param: str | None = None) -> Response:
    error = {"message": message, "type": type_, "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def _invalid(place: str, kind: str, message: str) -> Response:
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{message}'}}"
    return _error(400, text, "Bad Request", place)


def _failed(scripted: tuple[int, Json]) -> Response:
    status, body = scripted
    return JSONResponse(body, status_code=status)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- adapters that the fake engine can prove --------------------------------------------------

RANK = 8


def safetensors(tensors: dict[str, tuple[str, list[int]]], fill: bytes = b"\0") -> bytes:
    """A safetensors file of tensors given as (dtype, shape), filled with one byte."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = shape[0] * shape[1] * {"F32": 4, "F16": 2, "BF16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + fill * offset


def write_adapter(directory: Path, *, fill: bytes = b"\1", **config: Any) -> None:
    """Write a LoRA adapter whose effect on the fake engine its probe foretells."""
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = safetensors(
        {
            f"{prefix}.lora_A.weight": ("F32", [RANK, 16]),
            f"{prefix}.lora_B.weight": ("F32", [16, RANK]),
        },
        fill,
    )
    (directory / "adapter_model.safetensors").write_bytes(weights)
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 16,
        "bias": "none",
        "modules_to_save": None,
        "target_modules": ["q_proj"],
        "use_dora": False,
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    texts = []
    for start in (1, 2, 3):
        ids = [start * 7 + i * 3 for i in range(12)]
        rows = [[logprob(w, ids[:i], ids[i]) for i in range(1, len(ids))] for w in (b"", weights)]
        texts.append(
            probe.ProbeText(token_ids=ids, base_logprobs=rows[0], adapter_logprobs=rows[1])
        )
    probe.write(directory, texts)


def add_adapter(registry: Registry, *, fill: bytes = b"\1", **config: Any) -> Adapter:
    """Register such an adapter; another `fill` is another adapter."""
    return registry.add(
        lambda directory: write_adapter(directory, fill=fill, **config),
        base_model=BASE,
        base_sha256="0" * 64,
        rank=RANK,
        recipe="test",
        cycle_id=None,
        lineage={},
        actor="test",
    )
