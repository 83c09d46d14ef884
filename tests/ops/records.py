"""Complete records with plausible values, for tests that need any."""

from __future__ import annotations

from typing import Any

from ops.records import (
    Attempt,
    Cycle,
    CycleState,
    Execution,
    Feedback,
    FeedbackSource,
    Interaction,
    Metric,
    Source,
    new_id,
    now,
)


def interaction(**changes: Any) -> Interaction:
    values: dict[str, Any] = {
        "id": new_id(),
        "created_at": now(),
        "source": Source.SERVED,
        "endpoint": "chat",
        "model": "code",
        "base_model": "base",
        "adapter_name": "",
        "adapter_version": 0,
        "adapter_sha256": "",
        "messages": [{"role": "user", "content": "Add two numbers."}],
        "params": {"temperature": 0.8},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "…"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        "spec": {"examples": [{"input": [1, 2], "output": 3}]},
        "verified": True,
        "episode_id": new_id(),
    }
    return Interaction(**values | changes)


def attempt(of: Interaction, **changes: Any) -> Attempt:
    values: dict[str, Any] = {
        "id": new_id(),
        "interaction_id": of.id,
        "attempt_index": 0,
        "choice_index": 0,
        "text": "```python\ndef add(a, b): return a + b\n```",
        "program": "def add(a, b): return a + b\n",
        "program_sha256": "ab" * 32,
        "mean_logprob": -0.25,
    }
    return Attempt(**values | changes)


def execution(of: Attempt, **changes: Any) -> Execution:
    values: dict[str, Any] = {
        "id": new_id(),
        "created_at": now(),
        "source": Source.SERVED,
        "interaction_id": of.interaction_id,
        "attempt_id": of.id,
        "program_sha256": "ab" * 32,
        "verdict": "OK",
        "verified": True,
        "passed": 1,
        "total": 1,
        "examples": [{"index": 0, "verdict": "OK"}],
        "tier": "namespaces",
        "duration_s": 0.004,
    }
    return Execution(**values | changes)


def comment(of: Interaction, text: str = "It ignores negatives.", **changes: Any) -> Feedback:
    values: dict[str, Any] = {
        "id": new_id(),
        "created_at": now(),
        "updated_at": now(),
        "interaction_id": of.id,
        "episode_id": None,
        "metric": Metric.COMMENT,
        "value": text,
        "source": FeedbackSource.HUMAN,
    }
    return Feedback(**values | changes)


def cycle(**changes: Any) -> Cycle:
    values: dict[str, Any] = {
        "id": new_id(),
        "created_at": now(),
        "recipe": "ilf",
        "trigger": "test",
        "state": CycleState.RUNNING,
        "stage": "collect",
        "settings": {},
        "directory": "cycles/x",
    }
    return Cycle(**values | changes)
