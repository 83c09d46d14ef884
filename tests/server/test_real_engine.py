"""The endpoints that are passed on, against a real vLLM: through real clients, and side by side.

Side by side means: vLLM is asked directly and through the server. Answers may differ in their ids,
times and fingerprint, and by what the server adds (`OURS`); in nothing else.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.real_system import RealEngine
from tests.server.clients import HERE, Llm, node_clients, python_clients, run
from tests.server.conftest import Running, SharedPool, serving

pytestmark = [pytest.mark.slow, pytest.mark.engine]
MESSAGES: list[Any] = [{"role": "user", "content": "Say hi."}]


@pytest.fixture(scope="module")
def real(
    real_engine: RealEngine, pool: SharedPool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with serving(real_engine, tmp_path_factory.mktemp("real"), checker=pool) as running:  # type: ignore[arg-type]
        yield running


# What the model writes, and when it ends, is its own affair: what is said of an answer is compared
# with what else is said of it.


def test_responses(real: Running) -> None:
    client = real.openai.with_options(timeout=300)
    whole = client.responses.create(
        model="code", input="Say hi.", instructions="Be brief.", max_output_tokens=5
    )
    with client.responses.stream(model="code", input=MESSAGES, max_output_tokens=5) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text
    for answer in (whole, final):
        row = real.store.interaction(answer.id.removeprefix("resp_"))
        assert row.choices[0]["message"]["content"] == answer.output_text
        assert answer.usage is not None
        assert row.usage["output_tokens"] == answer.usage.output_tokens <= 5
        assert answer.status == "completed" or answer.usage.output_tokens == 5
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="code", input="x", temperature=-1)


def test_a_response_goes_on_from_a_recorded_one(real: Running) -> None:
    client = real.openai.with_options(timeout=300)
    first = client.responses.create(
        model="code", input="Say hi.", instructions="Be brief.", max_output_tokens=5
    )
    second = client.responses.create(
        model="code", input="Again.", previous_response_id=first.id, max_output_tokens=5
    )
    assert second.previous_response_id == first.id
    rows = [real.store.interaction(r.id.removeprefix("resp_")) for r in (first, second)]
    assert [m["role"] for m in rows[1].messages] == ["user", "assistant", "user"]
    assert rows[1].messages[1]["content"] == first.output_text
    assert rows[0].episode_id == rows[1].episode_id
    # The conversation was read: it is longer than its last message.
    assert rows[1].usage["input_tokens"] > 5 + len(first.output_text.split())


BEGUN = re.compile(r'\s*(\{\s*("where"|$)|$)')
"""What is left of an object whose spaces took all the tokens there were."""


class Look(BaseModel):
    """Where to look."""

    where: Literal["here", "there"]


def test_structured_output(real: Running) -> None:
    client = real.openai.with_options(timeout=300)
    try:
        answer: Any = client.chat.completions.parse(
            model="code", messages=MESSAGES, response_format=Look, max_tokens=40, temperature=0
        )
    except openai.LengthFinishReasonError as error:  # JSON may hold spaces without end
        answer = error.completion
        assert BEGUN.match(answer.choices[0].message.content)
    else:
        assert answer.choices[0].message.parsed.where in ("here", "there")
    row = real.store.interaction(answer.id.removeprefix("chatcmpl-"))
    assert row.choices[0]["message"]["content"] == answer.choices[0].message.content


def test_messages(real: Running) -> None:
    with anthropic.Anthropic(
        base_url=real.url, api_key="none", max_retries=0, timeout=300
    ) as client:
        whole = client.messages.create(
            model="code", system="Be brief.", messages=MESSAGES, max_tokens=5
        )
        with client.messages.stream(model="code", messages=MESSAGES, max_tokens=5) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        counted = client.messages.count_tokens(model="code", messages=MESSAGES)
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="code", messages=MESSAGES, max_tokens=-1)
    assert text == "".join(block.text for block in final.content)  # type: ignore[union-attr]
    assert final.stop_reason == "end_turn" or final.usage.output_tokens == 5
    assert counted.input_tokens == final.usage.input_tokens
    for answer in (whole, final):
        row = real.store.interaction(answer.id.removeprefix("msg_"))
        text = "".join(block.text for block in answer.content)  # type: ignore[union-attr]
        assert row.choices[0]["message"]["content"] == text


def test_llm(real: Running, tmp_path: Path) -> None:
    llm = Llm(real.url, tmp_path / "llm")
    options = ("-o", "max_tokens", "5", "-o", "temperature", "0")
    said = [llm.ask("Say hi.", *options, *more) for more in ((), ("--no-stream",))]
    logged = llm.logged()
    assert sorted(logged.values()) == sorted(said)
    for answer_id, text in logged.items():
        row = real.store.interaction(answer_id.removeprefix("chatcmpl-"))
        assert row.choices[0]["message"]["content"] == text


def test_litellm(real: Running) -> None:
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    program, asked = python_clients() / "python", ("whole", "stream", "text")
    found = json.loads(run(program, HERE / "litellm_client.py", real.url, *asked, **local))
    assert found.keys() == {*asked, "asynchronous"}
    for name, said in found.items():
        row = real.store.interaction(said["id"].removeprefix("chatcmpl-").removeprefix("cmpl-"))
        [choice] = row.choices
        text = choice["text"] if name == "text" else choice["message"]["content"]
        assert text == said["text"], name


def test_the_node_clients_stream_a_tool_call(real: Running) -> None:
    # The tool is named in the request: whether a model calls one, and with what, is its own affair.
    node, directory = node_clients()
    found = json.loads(run(node, HERE / "tools.mjs", real.url, directory))
    assert found.keys() == {"openai", "vercel"}
    for client, said in found.items():
        row = real.store.interaction(said["id"].removeprefix("chatcmpl-"))
        [call] = row.choices[0]["message"]["tool_calls"]
        assert call["function"]["name"] == said["name"] == "look"
        whole = call["function"]["arguments"]
        # Vercel's takes a call to be over as soon as what has come of it is JSON.
        assert said["arguments"] == (
            whole if client == "openai" else whole[: len(said["arguments"])]
        )


# --- side by side -----------------------------------------------------------------------------

Json = dict[str, Any]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OURS = frozenset(("adapter", "episode_id"))
FLEETING = frozenset(("id", "created", "system_fingerprint"))
LOOK = {
    "name": "look",
    "parameters": {
        "type": "object",
        "properties": {"where": {"enum": ["here", "there"]}},
        "required": ["where"],
    },
}
NAMED = {"type": "function", "function": {"name": "look"}}
SCHEMA = {"name": "look", "schema": LOOK["parameters"], "strict": True}
PROMPT = "def add(a, b):"
BODIES: dict[str, tuple[str, Json]] = {
    "chat": (CHAT, {"messages": MESSAGES}),
    "chat with logprobs": (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}),
    "chat with token ids": (CHAT, {"messages": MESSAGES, "return_token_ids": True}),
    "chat with a stop": (CHAT, {"messages": MESSAGES, "stop": ["e"], "max_tokens": 40}),
    "chat with several choices": (CHAT, {"messages": MESSAGES, "n": 2, "temperature": 0.01}),
    "chat with a tool": (
        CHAT,
        {
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": LOOK}],
            "tool_choice": NAMED,
            "max_tokens": 40,
        },
    ),
    "chat with a tool to choose": (
        CHAT,
        {
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": LOOK}],
            "tool_choice": "auto",
        },
    ),
    "chat with a schema": (
        CHAT,
        {
            "messages": MESSAGES,
            "response_format": {"type": "json_schema", "json_schema": SCHEMA},
            "max_tokens": 40,
        },
    ),
    "text": (TEXT, {"prompt": PROMPT}),
    "text with logprobs": (TEXT, {"prompt": PROMPT, "logprobs": 2, "echo": True}),
    "text of several prompts": (TEXT, {"prompt": [PROMPT, "import "]}),
}


def _ask(url: str, path: str, body: Json) -> list[Json]:
    """Ask and return the answer, or the events of its stream."""
    response = httpx.post(url + path, json=body, timeout=300)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return [response.json()]
    *events, last = response.text.strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _near(value: Any) -> Any:
    """The value with its numbers rounded: bfloat16 is not exact from one batch to the next."""
    if isinstance(value, dict):
        return {key: _near(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_near(inner) for inner in value)
    return pytest.approx(value, abs=0.02) if isinstance(value, float) else value


def _folded(events: list[Json]) -> tuple[list[Json], dict[int, str], list[Any]]:
    """What a stream says, however it is cut: its kinds of events, the words, what each token is.

    vLLM joins tokens when their reader is slow, and choices take turns as they come.
    """
    kinds: list[Json] = []
    words: dict[int, str] = {}
    tokens: list[Any] = []
    for event in copy.deepcopy(events):
        for choice in event["choices"]:
            part, place = choice.get("delta", choice), choice["index"]
            said = [part.pop(name) or "" for name in ("content", "text") if name in part]
            for call in part.get("tool_calls") or []:
                call.pop("id", None)
                said.append(call["function"].pop("arguments", None) or "")
            words[place] = words.get(place, "") + "".join(said)
            tokens += [(place, known) for known in _entries(choice.pop("logprobs", None))]
            tokens += [(place, known) for known in choice.pop("token_ids", None) or []]
        if event not in kinds:
            kinds.append(event)
    kinds.sort(key=lambda event: [choice["index"] for choice in event["choices"]] or [99])
    return kinds, words, sorted(tokens, key=lambda token: token[0])


def _entries(logprobs: Json | None) -> list[Any]:
    """The log-probabilities of a chunk, token by token."""
    if logprobs is None:
        return []
    if "content" in logprobs:
        return list(logprobs["content"])
    return list(zip(*(logprobs[name] for name in sorted(logprobs)), strict=True))


def _stripped(answer: Json) -> Json:
    kept = {name: v for name, v in answer.items() if name not in FLEETING | OURS}
    for choice in kept["choices"]:
        for call in (choice.get("message") or {}).get("tool_calls") or []:
            call.pop("id")
    return kept


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", BODIES)
def test_an_answer_is_what_vllm_says(
    real: Running, real_engine: RealEngine, case: str, streamed: bool
) -> None:
    path, given = BODIES[case]
    body = {"model": real_engine.model.name, "temperature": 0, "seed": 7, "max_tokens": 8} | given
    if streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    _ask(real_engine.url, path, body | {"max_tokens": 1})  # both find the prompt in vLLM's cache
    through, direct = (_ask(url, path, body) for url in (real.url, real_engine.url))
    assert through[-1].keys() - direct[-1].keys() <= OURS | {"system_fingerprint"}
    mine, theirs = ([_stripped(event) for event in events] for events in (through, direct))
    if not streamed:
        assert mine == _near(theirs)
        return
    assert _folded(mine)[:2] == _folded(theirs)[:2]
    assert _folded(mine)[2] == _near(_folded(theirs)[2])


RESPONSES, ANTHROPIC = "/v1/responses", "/v1/messages"
RENAMED = frozenset(("id", "item_id", "created_at", "completed_at", "metadata"))
"""Of typed answers: what is new in each of them, and `metadata`, which vLLM never sees."""
TYPED: dict[str, tuple[str, Json]] = {
    "response": (RESPONSES, {"input": MESSAGES, "max_output_tokens": 8, "store": False}),
    "response under instructions": (
        RESPONSES,
        {"input": "hi", "instructions": "Be brief.", "max_output_tokens": 8, "store": False},
    ),
    "message": (ANTHROPIC, {"messages": MESSAGES, "max_tokens": 8}),
    "message under a system": (
        ANTHROPIC,
        {"messages": MESSAGES, "system": "Be brief.", "max_tokens": 8, "stop_sequences": ["zz"]},
    ),
}


def _bare(value: Any) -> Any:
    """A typed answer without what is fleeting or ours, at every depth."""
    if isinstance(value, dict):
        left = value.keys() - RENAMED - OURS - {"system_fingerprint"}
        return {name: _bare(value[name]) for name in left}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _typed(url: str, path: str, body: Json) -> list[Json]:
    """The answer, or the events of its stream, each named as its data says."""
    response = httpx.post(url + path, json=body, timeout=300)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return [response.json()]
    events = []
    for block in response.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        if lines["data"] != "[DONE]":
            events.append(json.loads(lines["data"]))
            assert lines.get("event") == events[-1]["type"]
    return events


def _told(events: list[Json]) -> tuple[list[Any], str]:
    """The events of a stream without its pieces of text, and the text."""
    said, kinds = "", []
    for event in map(_bare, events):
        event.pop("sequence_number", None)  # of pieces, which are cut anew each time
        delta = event.pop("delta", None)
        if isinstance(delta, str):
            said += delta
        elif isinstance(delta, dict) and "text" in delta:
            said += delta["text"]
        elif delta is not None:
            event["delta"] = delta
        if event not in kinds:
            kinds.append(event)
    return kinds, said


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", TYPED)
def test_a_typed_answer_is_what_vllm_says(
    real: Running, real_engine: RealEngine, case: str, streamed: bool
) -> None:
    path, given = TYPED[case]
    body = {"model": real_engine.model.name, "temperature": 0, **given}
    if streamed:
        body["stream"] = True
    _typed(real_engine.url, path, body)  # now both find the prompt in vLLM's cache
    mine, theirs = (_typed(url, path, body) for url in (real.url, real_engine.url))
    if streamed:
        assert _told(mine) == _told(theirs)
    else:
        assert _bare(mine) == _bare(theirs)


REFUSED: dict[str, tuple[str, Json]] = {
    "chat, temperature": (CHAT, {"messages": MESSAGES, "temperature": -1}),
    "chat, top_p": (CHAT, {"messages": MESSAGES, "top_p": 2}),
    "chat, too long": (CHAT, {"messages": MESSAGES, "max_tokens": 10_000_000}),
    "chat, a role": (CHAT, {"messages": [{"role": 3, "content": "x"}]}),
    "chat, a schema": (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_schema"}}),
    "text, logprobs": (TEXT, {"prompt": PROMPT, "logprobs": 1000}),
    "text, n": (TEXT, {"prompt": PROMPT, "n": 100_000}),
    "response, temperature": (RESPONSES, {"input": "x", "temperature": -1, "store": False}),
    "message, max_tokens": (ANTHROPIC, {"messages": MESSAGES, "max_tokens": -1}),
}


LATE = frozenset(("text, logprobs",))
"""Asked for as a stream, these are an answer to vLLM, with the error as an event of it."""


@pytest.mark.parametrize(
    ("case", "streamed"),
    [(case, streamed) for case in REFUSED for streamed in (False, True)[: 2 - (case in LATE)]],
)
def test_a_refusal_is_what_vllm_says(
    real: Running, real_engine: RealEngine, case: str, streamed: bool
) -> None:
    path, given = REFUSED[case]
    body = {"model": real_engine.model.name, "stream": streamed, **given}
    mine, theirs = (
        httpx.post(url + path, json=body, timeout=300) for url in (real.url, real_engine.url)
    )
    assert 400 <= theirs.status_code < 500, theirs.text
    assert (mine.status_code, mine.json()) == (theirs.status_code, theirs.json())
