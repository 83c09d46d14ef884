"""Clients that stand on OpenAI's protocol: the `llm` command-line tool and LiteLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_engine import PROGRAM
from tests.server.clients import HERE, Llm, python_clients, run
from tests.server.conftest import Running

pytestmark = pytest.mark.slow
LOOK = "def look(where: str) -> str:\n    return 'nothing in ' + where\n"


def test_llm_asks_and_is_answered(server: Running, tmp_path: Path) -> None:
    llm = Llm(server.url, tmp_path / "llm")
    for streamed in (True, False):
        assert llm.ask("add", *["--no-stream"][streamed:]) == PROGRAM
        assert bool(server.engine.bodies()[-1].get("stream")) == streamed
    logged = llm.logged()
    assert len(logged) == 2
    for answer_id, text in logged.items():
        row = server.store.interaction(answer_id.removeprefix("chatcmpl-"))
        assert row.choices[0]["message"]["content"] == text == PROGRAM


def test_llm_runs_the_tools_it_is_asked_to(server: Running, tmp_path: Path) -> None:
    server.engine.tool = ("look", '{"where":"here"}')
    llm = Llm(server.url, tmp_path / "llm")
    assert llm.ask("add", "--functions", LOOK) == PROGRAM
    *_, result = server.engine.bodies()[-1]["messages"]
    assert (result["role"], result["content"]) == ("tool", "nothing in here")


def test_litellm_understands_the_server(server: Running) -> None:
    server.engine.tool = ("look", '{"where":"here"}')
    python = python_clients() / "python"
    # Its list of prices comes with it; it would fetch a newer one.
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    found = json.loads(run(python, HERE / "litellm_client.py", server.url, **local))
    for name in ("whole", "stream", "asynchronous", "verified"):
        assert found[name]["text"] == PROGRAM, name
        row = server.store.interaction(found[name]["id"].removeprefix("chatcmpl-"))
        assert row.choices[0]["message"]["content"] == PROGRAM
    assert found["text"]["text"] == PROGRAM
    assert found["tool"] == {"arguments": {"where": "here"}, "text": PROGRAM}
    assert found["stream_tool"] == {"where": "here"}
    assert found["refused"] == 404
