"""Text completions: passed through, recorded."""

from __future__ import annotations

import re

import pytest

from tests.fake_engine import BASE, PROGRAM
from tests.server.conftest import Running


def test_a_text_completion_is_passed_through_and_recorded(server: Running) -> None:
    answer = server.openai.completions.create(model="code", prompt="def add(", max_tokens=50)
    assert answer.choices[0].text == PROGRAM
    assert answer.id.startswith("cmpl-")
    assert answer.model_extra is not None
    assert answer.model_extra["adapter"]["version"] == 0
    sent = server.engine.bodies("/v1/completions")[-1]
    assert sent == {"model": BASE, "prompt": "def add(", "max_tokens": 50}
    row = server.store.interaction(answer.id.removeprefix("cmpl-"))
    assert row.endpoint == "/v1/completions"
    assert row.messages == [{"role": "user", "content": "def add("}]
    assert row.choices[0]["text"] == PROGRAM


def test_a_text_completion_streams(server: Running) -> None:
    stream = server.openai.completions.create(
        model="code", prompt="x", max_tokens=50, stream=True, user="u"
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == PROGRAM
    row = server.store.interaction(chunks[0].id.removeprefix("cmpl-"))
    assert (row.choices[0]["text"], row.user) == (PROGRAM, "u")


def test_a_prompt_is_needed(server: Running) -> None:
    response = server.http.post("/v1/completions", json={"model": "code"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_a_suffix_is_refused_for_a_model_without_that_mode(server: Running) -> None:
    body = {"model": "code", "prompt": "x", "suffix": "y"}
    response = server.http.post("/v1/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
    wrong = server.http.post("/v1/completions", json=body | {"suffix": 1})
    assert wrong.json()["error"]["param"] == "suffix"
    assert server.http.post("/v1/completions", json=body | {"suffix": ""}).status_code == 200


def test_a_suffix_becomes_the_familys_prompt(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "server.fim._FAMILIES", ((re.compile("fake"), "<P>{prefix}<S>{suffix}<M>"),)
    )
    body = {"model": "code", "prompt": "def f({suffix}", "suffix": "return x"}
    answer = server.http.post("/v1/completions", json=body).json()
    sent = server.engine.bodies("/v1/completions")[-1]
    assert sent["prompt"] == "<P>def f({suffix}<S>return x<M>"
    assert "suffix" not in sent
    row = server.store.interaction(answer["id"].removeprefix("cmpl-"))
    (message,) = row.messages
    assert message == {"role": "user", "content": "def f({suffix}", "suffix": "return x"}
