"""A model that says what a test wants, and a firewall that knows one task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from improver.firewall import Exam, Firewall
from improver.policy import Policy
from improver.recipes.base import Tools
from improver.workspace import Journal
from sandbox.spec import parse_spec

Json = dict[str, Any]
Script = Callable[[Json, int], str | Json]


class Model:
    """Answers chat requests by a script; keeps what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[Json] = []

    def policy(self) -> Policy:
        return Policy("http://scripted", transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        choices = []
        prompt_logprobs = None
        for index in range(body.get("n", 1)):
            said = self.script(body, index)
            choice = {"text": said} if isinstance(said, str) else dict(said)
            if "status" in choice:
                error = {"message": "too long", "type": "BadRequestError"}
                return httpx.Response(choice["status"], json={"error": error})
            prompt_logprobs = choice.pop("prompt_logprobs", prompt_logprobs)
            choices.append(
                {
                    "index": index,
                    "finish_reason": choice.get("finish_reason", "stop"),
                    "message": {"role": "assistant", "content": choice.get("text", "")},
                    "logprobs": choice.get("logprobs"),
                }
            )
        answer = {
            "model": body["model"],
            "choices": choices,
            "usage": {"completion_tokens": 7 * len(choices)},
            "adapter": {"name": "code@v3", "version": 3},
            "prompt_logprobs": prompt_logprobs,
        }
        return httpx.Response(200, json=answer)


def said_last(body: Json) -> str:
    return str(body["messages"][-1]["content"])


def firewall() -> Firewall:
    exam = Exam(
        id="exam/1",
        benchmark="tests",
        text="Write a function that counts the vowels of a text, case aside.",
        spec=parse_spec(
            {"entry_point": "count_vowels", "examples": [{"input": ["a"], "output": 1}]}
        ),
        reference=(
            "def count_vowels(text):\n    total = 0\n    for letter in text.lower():\n"
            "        if letter in 'aeiou':\n            total += 1\n    return total\n"
        ),
    )
    return Firewall([exam])


def tools(model: Model, pool: Any, directory: Path) -> tuple[Tools, Journal]:
    """Tools and their journal, which the caller enters."""
    directory.mkdir(exist_ok=True)
    journal = Journal(directory / "journal.jsonl")
    made = Tools(policy=model.policy(), pool=pool, firewall=firewall(), journal=journal, seed=7)
    return made, journal
