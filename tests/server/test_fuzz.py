"""Whatever JSON comes: an answer or a 4xx that names a field, never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fake_engine import FakeEngine
from tests.server.conftest import Running, SharedPool, serving

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "system", "x"]) | ANY, "content": ANY}
)
EXAMPLE = st.fixed_dictionaries(
    {}, optional={"input": ANY, "output": ANY, "hidden": ANY, "tolerance": ANY, "comparison": ANY}
)
SPEC = st.fixed_dictionaries(
    {},
    optional={
        "summary": ANY,
        "types": ANY,
        "entry_point": st.sampled_from(["add", "f"]) | ANY,
        "examples": st.lists(EXAMPLE, max_size=3) | ANY,
        "tests": st.lists(ANY, max_size=3) | ANY,
        "stdio": ANY,
        "cells": ANY,
        "inputs": ANY,
        "tolerance": ANY,
        "candidates": st.integers(1, 3) | ANY,
        "repair": st.integers(0, 1) | ANY,
        "early_stop": ANY,
    },
)
CHAT = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["code", "fake-base", "code@v1"]) | ANY,
        "messages": st.lists(MESSAGE, min_size=1, max_size=3) | ANY,
    },
    optional={
        "io_spec": SPEC | st.just("auto") | ANY,
        "n": st.integers(1, 3) | ANY,
        "stream": st.booleans() | ANY,
        "stream_options": ANY,
        "store": ANY,
        "metadata": ANY,
        "episode_id": ANY,
        "user": ANY,
        "cache_salt": ANY,
        "temperature": st.sampled_from([0, 0.0, 1]),
        "logprobs": st.booleans(),
    },
)
TEXT = st.fixed_dictionaries(
    {"model": st.just("code"), "prompt": st.text(max_size=20) | st.lists(st.text(max_size=5))},
    optional={"suffix": ANY, "user": ANY, "stream": ANY, "episode_id": ANY, "n": st.integers(1, 2)},
)
FEEDBACK = st.fixed_dictionaries(
    {},
    optional={
        "inference_id": st.text(max_size=20) | ANY,
        "episode_id": st.text(max_size=20) | ANY,
        "metric_name": st.sampled_from(["accepted", "comment", "demonstration"]) | ANY,
        "value": ANY,
        "choice_index": ANY,
        "identifier": ANY,
        "source": ANY,
        "tags": ANY,
        "user": ANY,
        "dryrun": ANY,
    },
)
EVENT = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["view", "select"]) | ANY,
        "completion_id": st.text(max_size=20) | ANY,
        "choice_index": ANY,
        "view_id": ANY,
        "elapsed": ANY,
    },
)
BLOB = st.fixed_dictionaries(
    {"name": st.sampled_from(["autocomplete", "editOutcome", "chatFeedback"]) | ANY},
    optional={
        "data": st.fixed_dictionaries(
            {"accepted": st.booleans() | ANY},
            optional={
                "feedback": st.booleans() | ANY,
                "completionId": ANY,
                "prompt": st.text(max_size=20) | ANY,
                "completion": ANY,
                "newCode": ANY,
                "modelName": ANY,
                "elapsed": ANY,
            },
        )
        | ANY,
        "schema": ANY,
        "level": st.sampled_from(["all", "noCode"]) | ANY,
    },
)
EXECUTION = st.fixed_dictionaries(
    {},
    optional={
        "source": st.sampled_from(["served", "client"]) | ANY,
        "code": st.just("def f(*a, **k): return a") | ANY,
        "calls": st.lists(st.lists(ANY, max_size=2), max_size=2) | ANY,
        "entry_point": st.just("f") | ANY,
        "stdin": ANY,
        "io_spec": SPEC | ANY,
        "limits": ANY,
        "verdict": st.sampled_from(["OK", "WRONG"]) | ANY,
        "inference_id": ANY,
    },
)
RESPONSE = st.fixed_dictionaries(
    {"model": st.just("code") | ANY, "input": st.text(max_size=20) | st.lists(ANY) | ANY},
    optional={"instructions": ANY, "metadata": ANY, "store": ANY, "stream": ANY, "user": ANY},
)
ANTHROPIC = st.fixed_dictionaries(
    {
        "model": st.just("code") | ANY,
        "messages": st.lists(MESSAGE, min_size=1, max_size=3) | ANY,
        "max_tokens": st.integers(1, 50) | ANY,
    },
    optional={"system": ANY, "metadata": ANY, "stream": ANY, "stop_sequences": ANY},
)
JOB = st.fixed_dictionaries(
    {"model": st.just("code") | ANY, "training_file": st.just("record") | ANY},
    optional={"metadata": ANY, "method": ANY, "hyperparameters": ANY, "seed": ANY, "suffix": ANY},
)
OFTEN = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def server(pool: SharedPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    fake = FakeEngine()
    fake.start()
    with serving(fake, tmp_path_factory.mktemp("fuzz"), checker=pool) as running:
        yield running
    fake.stop()


def _check(server: Running, path: str, body: Any) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)


@OFTEN
@given(body=CHAT)
def test_chat(server: Running, body: Any) -> None:
    _check(server, "/v1/chat/completions", body)


@OFTEN
@given(spec=SPEC)
def test_specs(server: Running, spec: Any) -> None:
    messages = [{"role": "user", "content": "add"}]
    _check(server, "/v1/chat/completions", {"model": "code", "messages": messages, "io_spec": spec})


@OFTEN
@given(body=TEXT)
def test_completions(server: Running, body: Any) -> None:
    _check(server, "/v1/completions", body)


@OFTEN
@given(body=FEEDBACK | st.fixed_dictionaries({"data": st.lists(FEEDBACK, max_size=3) | ANY}))
def test_feedback(server: Running, body: Any) -> None:
    _check(server, "/v1/feedback", body)


@OFTEN
@given(event=EVENT, blob=BLOB)
def test_events(server: Running, event: Any, blob: Any) -> None:
    _check(server, "/v1/events", event)
    _check(server, "/v1/ingest/continue", blob)


@OFTEN
@given(body=EXECUTION)
def test_executions(server: Running, body: Any) -> None:
    _check(server, "/v1/executions", body)


@OFTEN
@given(body=RESPONSE, message=ANTHROPIC)
def test_responses_and_messages(server: Running, body: Any, message: Any) -> None:
    _check(server, "/v1/responses", body)
    _check(server, "/v1/messages", message)
    _check(server, "/v1/messages/count_tokens", message)


@OFTEN
@given(body=JOB)
def test_jobs(server: Running, body: Any) -> None:
    _check(server, "/v1/fine_tuning/jobs", body)
