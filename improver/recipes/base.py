"""The contract of a recipe: cases in, training rows with provenance out.

A recipe asks the served model (`policy`), judges programs (`pool`), shows every row to the firewall
before it yields it, and notes in a journal what it has done, so that a killed cycle does not ask
twice. It reads no database and trains nothing; which cases it gets is `collect`'s business, what
becomes of its rows `screen`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from improver.attempts import Judge
from improver.firewall import Firewall
from improver.policy import Policy
from improver.types import Case, Drop, Row
from improver.workspace import Journal
from ops.records import Json
from sandbox.spec import Spec, extend_prompt


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a recipe works with."""

    policy: Policy
    pool: Judge
    firewall: Firewall
    journal: Journal
    seed: int
    on_case: Callable[[], None] = lambda: None
    """Called after each case, for a progress bar."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a recipe made: rows, everything that did not become one, and its own numbers."""

    rows: list[Row]
    drops: list[Drop]
    report: Json = field(default_factory=dict)


class Recipe(Protocol):
    """A way to make training rows."""

    name: str

    async def build(self, cases: Sequence[Case], tools: Tools) -> Built:
        """Make rows out of cases.

        Raises:
            PolicyError: the model cannot be asked at all.
        """


def live_messages(messages: Sequence[Json], spec: Spec) -> list[Json]:
    """Return the conversation as the server sends it: the last user message with its spec.

    Training prompts are made by the same function that makes live prompts, or the adapter would
    learn to answer something nobody asks.
    """
    extended = [dict(message) for message in messages]
    for message in reversed(extended):
        if message["role"] == "user":
            message["content"] = extend_prompt(text_of(message), spec)
            break
    return extended


def text_of(message: Json) -> str:
    """The text of a message, also where it is a list of parts; what is not text is left out."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = [p.get("text", "") for p in content or () if p.get("type") == "text"]
    return "\n".join(parts)


def request_text(messages: Sequence[Json]) -> str:
    """The last thing the user said."""
    return next((text_of(m) for m in reversed(messages) if m["role"] == "user"), "")


def fenced(program: str) -> str:
    """Write a program as the served model should answer: one fenced block, nothing else."""
    return f"```python\n{program.strip()}\n```"


def messages_sha256(messages: Sequence[Json]) -> str:
    """The identity of a prompt."""
    text = json.dumps(list(messages), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def case_seed(seed: int, key: str) -> int:
    """A seed of a case's own, so that its samples do not depend on what ran before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{key}".encode()).digest()[:4]) >> 1
