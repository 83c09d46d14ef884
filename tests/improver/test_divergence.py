"""Divergence from the base model: its arithmetic, and what is asked for it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from improver.benchmarks.builtin import Builtin
from improver.divergence import POINTS, beginnings, divergence, measure
from improver.policy import Policy
from improver.workspace import Journal

TASKS = Builtin().tasks()[:5]


def _top(**chances: float) -> dict[str, float]:
    return {token: math.log(chance) for token, chance in chances.items()}


def test_what_is_known_in_full_is_exact() -> None:
    p, q = _top(a=0.7, b=0.3), _top(a=0.4, b=0.6)
    exact = 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    assert divergence(p, q) == pytest.approx(exact)
    assert divergence(p, p) == pytest.approx(0.0)


def test_what_is_known_in_part_is_a_lower_bound() -> None:
    chance = random.Random(3)
    for _ in range(200):
        raw = [[chance.random() ** 3 + 1e-6 for _ in range(12)] for _ in range(2)]
        p, q = ([x / sum(row) for x in row] for row in raw)
        exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        tops = [
            dict(
                sorted(
                    {str(n): math.log(x) for n, x in enumerate(row)}.items(), key=lambda kv: -kv[1]
                )[:5]
            )
            for row in (p, q)
        ]
        found = divergence(*tops)
        assert found is not None
        assert 0 <= found <= exact + 1e-9


def test_without_numbers_there_is_no_divergence() -> None:
    assert divergence({}, _top(a=1.0)) is None
    assert divergence(_top(a=1.0), {}) is None
    far = divergence(_top(a=1.0), {"b": 0.0})
    assert far is not None
    assert far > 10, "what the base gives no chance at all"


def test_programs_are_cut_behind_words() -> None:
    program = "def add(a, b):\n    return a + b\n"
    cuts = beginnings(program)
    assert len(cuts) == POINTS
    assert all(program.startswith(cut) and cut[-1].isalnum() for cut in cuts)
    assert [cut for cut in cuts if cut == program.rstrip()] == []
    assert beginnings("") == beginnings("x") == []


def _server(known: dict[str, dict[str, float]], asked: list[Any]) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body)
        top = [{"token": t, "logprob": v} for t, v in known[body["model"]].items()]
        content = [{"token": "x", "logprob": -0.1, "top_logprobs": top}] if top else []
        choice = {"index": 0, "message": {"content": "x"}, "logprobs": {"content": content}}
        return httpx.Response(200, json={"model": body["model"], "choices": [choice]})

    return httpx.MockTransport(answer)


async def test_both_models_are_given_the_same_beginnings_once(tmp_path: Path) -> None:
    asked: list[Any] = []
    known = {"base": _top(a=0.5, b=0.5), "code@v1": _top(a=0.9, b=0.1)}
    for _ in range(2):  # the second time from the journal
        async with Policy("http://x", transport=_server(known, asked)) as policy:
            with Journal(tmp_path / "j") as journal:
                found = await measure(TASKS, policy, journal, base="base", candidate="code@v1")
        assert found.points == len(TASKS) * POINTS
        assert found.nats == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert len(asked) == 2 * len(TASKS) * POINTS
    by_model = [
        [b["messages"] for b in asked if b["model"] == model] for model in ("base", "code@v1")
    ]
    assert sorted(map(str, by_model[0])) == sorted(map(str, by_model[1]))
    for body in asked:
        assert body["max_tokens"] == 1
        assert body["continue_final_message"] is True
        assert body["messages"][-1]["content"].startswith("```python\n")
        assert body["store"] is False


async def test_a_server_without_numbers_says_nothing(tmp_path: Path) -> None:
    async with Policy("http://x", transport=_server({"b": {}, "c": {}}, [])) as policy:
        with Journal(tmp_path / "j") as journal:
            found = await measure(TASKS, policy, journal, base="b", candidate="c")
    assert found.as_json() == {"points": 0, "nats": None}

    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"message": "too long"}})

    async with Policy("http://x", transport=httpx.MockTransport(refuse)) as policy:
        with Journal(tmp_path / "k") as journal:
            found = await measure(TASKS, policy, journal, base="b", candidate="c")
    assert found.nats is None
