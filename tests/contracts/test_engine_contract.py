"""What the server leans on in an engine, held against the fake one and against vLLM itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ops import probe
from ops.records import AdapterState
from ops.registry import Registry
from server.engine import Engine, LoadRefused
from server.errors import EngineRefusal
from server.proof import run_probe
from tests.fake_engine import BASE, FakeEngine, write_adapter
from tests.real_system import RealEngine
from tests.server.conftest import SharedPool, pool, serving

__all__ = ["pool"]

MESSAGES = [{"role": "user", "content": "Say hi"}]
OPEN_MESSAGES = [{"role": "user", "content": "Name one animal, nothing else."}]
SLOTS = 3
"""`engine.max_loras` by default."""
SAME = 0.03
"""Total variation between two looks at one adapter, at most."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Subject:
    """An engine under test and an adapter that fits it."""

    url: str
    model: str
    adapter: Path
    adapters: tuple[Path, ...]
    """As many as the engine has slots, each with weights of its own."""

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        given = {"model": self.model} | body
        return httpx.post(self.url + path, json=given, headers=headers, timeout=300)

    def chat(self, **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 6} | body)


@pytest.fixture(
    scope="module",
    params=["fake", pytest.param("vllm", marks=[pytest.mark.engine, pytest.mark.slow])],
)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    if request.param == "fake":
        made = []
        for number in range(1 + SLOTS):
            made.append(tmp_path_factory.mktemp("adapter"))
            write_adapter(made[-1], fill=bytes([10 + number]))
        fake = FakeEngine()
        fake.start()
        yield Subject(fake.url, BASE, made[0], tuple(made[1:]))
        fake.stop()
        return
    real: RealEngine = request.getfixturevalue("real_engine")
    yield Subject(real.url, real.model.name, real.adapters[0], real.adapters[1:])


CHAT_KEYS = {
    "id",
    "object",
    "created",
    "model",
    "choices",
    "service_tier",
    "system_fingerprint",
    "usage",
    "prompt_logprobs",
    "prompt_token_ids",
    "prompt_text",
    "kv_transfer_params",
    "ec_transfer_params",
    "metrics",
}
CHOICE_KEYS = {
    "index",
    "message",
    "logprobs",
    "finish_reason",
    "stop_reason",
    "token_ids",
    "routed_experts",
}


def test_a_chat_completion_has_the_known_fields_and_our_id(subject: Subject) -> None:
    url = "/v1/chat/completions"
    body = {"messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    answer = subject.post(url, body, **{"X-Request-Id": "abc-1"}).json()
    assert answer.keys() == CHAT_KEYS
    assert answer["id"] == "chatcmpl-abc-1"
    assert answer["model"] == subject.model
    (choice,) = answer["choices"]
    assert choice.keys() == CHOICE_KEYS
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length" or choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_several_choices_come_with_logprobs(subject: Subject) -> None:
    answer = subject.chat(n=3, temperature=1.0, logprobs=True, unknown_field=1).json()
    assert sorted(choice["index"] for choice in answer["choices"]) == [0, 1, 2]
    for choice in answer["choices"]:
        assert choice["logprobs"]["content"]
        assert all(token["logprob"] <= 0 for token in choice["logprobs"]["content"])


def _events(response: httpx.Response) -> list[dict[str, Any]]:
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def test_a_stream_finishes_every_choice_and_ends_with_usage(subject: Subject) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = subject.chat(
        n=2, temperature=1.0, logprobs=True, stream=True, stream_options=options
    )
    *chunks, last = _events(response)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0
    finished = [c["choices"][0] for c in chunks if c["choices"][0]["finish_reason"] is not None]
    assert {part["index"] for part in finished} == {0, 1}
    assert all("usage" in chunk for chunk in chunks)
    counted = {c["choices"][0]["index"]: c["usage"]["completion_tokens"] for c in chunks}
    assert sum(counted.values()) == last["usage"]["completion_tokens"]


def test_a_stream_without_usage_ends_with_the_finished_choice(subject: Subject) -> None:
    *_, last = _events(subject.chat(stream=True))
    assert last["choices"][0]["finish_reason"] is not None
    assert last["system_fingerprint"]


def test_a_text_completion_has_the_known_fields(subject: Subject) -> None:
    body = {"prompt": "def f(", "max_tokens": 4}
    answer = subject.post("/v1/completions", body, **{"X-Request-Id": "abc-2"}).json()
    assert answer["id"] == "cmpl-abc-2"
    assert isinstance(answer["choices"][0]["text"], str)
    *_, last = _events(subject.post("/v1/completions", body | {"stream": True}))
    assert last["choices"][0]["finish_reason"] is not None


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "nope"}, 404, "model"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 0, "n": 2}, 400, None),
        ({"max_tokens": "x"}, 400, "body.max_tokens"),
        ({"temperature": -1, "stream": True}, 400, "temperature"),
    ],
)
def test_refusals_are_4xx_with_an_error_object(
    subject: Subject, change: dict[str, Any], status: int, param: str | None
) -> None:
    response = subject.chat(**change)
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["code"] == status


async def test_adapters_are_loaded_listed_proved_and_unloaded(subject: Subject) -> None:
    async with Engine(subject.url, timeout_s=300) as engine:
        await engine.load("code@v1", str(subject.adapter))
        with pytest.raises(LoadRefused, match="already been loaded"):
            await engine.load("code@v1", str(subject.adapter))
        listed = {model.id: model for model in await engine.models()}
        assert listed["code@v1"].root == str(subject.adapter)
        assert listed["code@v1"].parent == subject.model
        assert listed[subject.model].parent is None
        result = await run_probe(
            engine, subject.adapter, base=subject.model, name="code@v1", salt="a" * 64
        )
        assert result.accepted, result
        own = await run_probe(
            engine, subject.adapter, base=subject.model, name=subject.model, salt="b" * 64
        )
        assert not own.accepted
        assert "changes nothing" in own.reason
        await engine.unload("code@v1")
        await engine.unload("code@v1")
        assert {model.id for model in await engine.models()} == {subject.model}
        with pytest.raises(EngineRefusal):
            await engine.token_logprobs("code@v1", [[1, 2, 3]], cache_salt="c")
        with pytest.raises(LoadRefused):
            await engine.load("code@v2", str(subject.adapter / "nowhere"))


async def test_base_and_adapters_share_a_batch_and_stay_apart(
    subject: Subject,
) -> None:
    """Every slot taken and generating: the log-probabilities of each model are what they were."""
    adapters = subject.adapters
    texts = [text.token_ids for text in probe.read(adapters[0])]
    names = [f"code@v{10 + number}" for number in range(len(adapters))]
    async with Engine(subject.url, timeout_s=300) as engine:
        for name, directory in zip(names, adapters, strict=True):
            await engine.load(name, str(directory))
        models = [subject.model, *names]
        alone = {
            model: await engine.token_logprobs(model, texts, cache_salt="alone") for model in models
        }
        with ThreadPoolExecutor(len(models)) as threads:
            asked = [
                threads.submit(
                    subject.chat, model=model, max_tokens=64, temperature=1.0, ignore_eos=True
                )
                for model in models
            ]
            await asyncio.sleep(0.5)
            beside = await asyncio.gather(
                *(engine.token_logprobs(model, texts, cache_salt="beside") for model in models)
            )
            for future in asked:
                response = await asyncio.wrap_future(future)
                assert response.status_code == 200, response.text
        for name in names:
            await engine.unload(name)
    for model, rows in zip(models, beside, strict=True):
        # A batch rounds otherwise than a request alone (bfloat16): about 0.05 on this text.
        own = _mean_gap(rows, alone[model])
        others = [_mean_gap(rows, alone[other]) for other in models if other != model]
        assert own < 0.1, model
        assert min(others) > 2 * own, (model, own, others)
    assert httpx.get(f"{subject.url}/health").status_code == 200


def _mean_gap(rows: list[list[float]], others: list[list[float]]) -> float:
    pairs = [pair for row in zip(rows, others, strict=True) for pair in zip(*row, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "prompt_logprobs": 2}),
        ("/v1/completions", {"prompt": "def add(a, b):", "prompt_logprobs": 2}),
        ("/v1/completions", {"prompt": "def add(a, b):", "echo": True, "logprobs": 2}),
        ("/v1/completions", {"prompt": "def add(a, b):", "logprobs": 2, "seed": 7}),
    ],
)
async def test_no_field_of_a_client_ends_the_engine(
    subject: Subject, path: str, body: dict[str, Any]
) -> None:
    """Each of these once killed vLLM's CPU build, for everybody, in a batch with others."""
    asked = [
        asyncio.to_thread(subject.post, path, body | {"max_tokens": 8, "temperature": 1.0})
        for _ in range(4)
    ]
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert httpx.get(f"{subject.url}/health").status_code == 200


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_adapter_is_swapped_under_load(
    real_engine: RealEngine, pool: SharedPool, tmp_path: Path
) -> None:
    """Peft adapters go live in a real vLLM: proved, flipped, no failed request."""
    made = {1: real_engine.adapters[0], 2: real_engine.adapters[1], 3: tmp_path / "made-3"}
    shutil.copytree(real_engine.adapters[2], made[3])
    # The third has the weights of one and the probe of another, as if the engine mixed them up.
    (made[3] / probe.FILE).write_bytes((made[1] / probe.FILE).read_bytes())
    with serving(real_engine, tmp_path / "data", checker=pool, poll_s=0.5) as server:
        base = _behaviour(server.http)
        stop = threading.Event()
        failed: list[str] = []

        def ask() -> None:
            while not stop.is_set():
                response = server.chat(max_tokens=8, messages=MESSAGES)
                if response.status_code != 200:
                    failed.append(response.text)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        seen = []
        try:
            for number in (1, 2):
                _release_real(server.registry, real_engine.model, made[number])
                server.until(lambda n=number: _version(server.http) == n, timeout_s=120)  # type: ignore[misc]
                seen.append(_behaviour(server.http))
            _release_real(server.registry, real_engine.model, made[3])
            server.until(
                lambda: server.registry.get(3).state is AdapterState.REJECTED, timeout_s=120
            )
            server.until(lambda: _version(server.http) == 2)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failed == []
        distances = [_far(*pair) for pair in itertools.combinations([base, *seen], 2)]
        assert min(distances) > 2 * SAME, distances
        for number in (1, 2):
            (receipt,) = server.store.receipts(version=number)
            assert receipt.accepted, receipt
        assert not server.store.receipts(version=3)[0].accepted
        receipts = [(r.version, r.phases_s, r.reason) for r in server.store.receipts()]
        logging.getLogger(__name__).warning("receipts: %s", receipts)
        # The refusal put v2 back, so the way back from there is the base.
        server.registry.promote(1, actor="test", reason="test", force=True)
        server.until(lambda: _version(server.http) == 1, timeout_s=60)
        again = [_far(_behaviour(server.http), seen[0])]
        server.registry.rollback(actor="test", reason="test")
        server.until(lambda: _version(server.http) == 2)
        again.append(_far(_behaviour(server.http), seen[1]))
        logging.getLogger(__name__).warning("apart %s, again %s", distances, again)
        assert max(again) < SAME, again


def _behaviour(http: httpx.Client) -> dict[str, float]:
    """What `code` makes of one prompt: the probabilities of the first token.

    A greedy text would do on paper; in bf16 it changes with what else is in the batch.
    """
    body = {"model": "code", "messages": OPEN_MESSAGES, "max_tokens": 1, "temperature": 0}
    body |= {"logprobs": True, "top_logprobs": 20}
    response = http.post("/v1/chat/completions", json=body, timeout=300)
    (step,) = response.json()["choices"][0]["logprobs"]["content"]
    return {top["token"]: math.exp(top["logprob"]) for top in step["top_logprobs"]}


def _far(one: dict[str, float], other: dict[str, float]) -> float:
    """Total variation distance, of what both lists tell."""
    return sum(abs(one.get(t, 0.0) - other.get(t, 0.0)) for t in one | other) / 2


def _version(http: httpx.Client) -> int | None:
    adapter = http.get("/ready").json()["adapter"]
    return None if adapter is None else int(adapter["version"])


def _release_real(registry: Registry, model: Any, made: Path) -> None:
    def write(draft: Path) -> None:
        for path in made.iterdir():
            (draft / path.name).write_bytes(path.read_bytes())

    adapter = registry.add(
        write,
        base_model=model.name,
        base_sha256=model.sha256,
        rank=8,
        recipe="test",
        cycle_id=None,
        lineage={},
        actor="test",
    )
    registry.promote(adapter.version, actor="test", reason="test", force=True)
