"""The clients of the npm registry: OpenAI's, Anthropic's and Vercel's AI SDK."""

from __future__ import annotations

import json

import pytest

from tests.fake_engine import PROGRAM
from tests.server.clients import HERE, node_clients, run
from tests.server.conftest import Running


@pytest.mark.slow
def test_the_node_clients_understand_the_server(server: Running) -> None:
    node, directory = node_clients()
    server.engine.tool = ("look", '{"where":"here"}')
    found = json.loads(run(node, HERE / "clients.mjs", server.url, directory))
    names = (
        "openai",
        "openaiStream",
        "openaiResponse",
        "anthropicStream",
        "vercel",
        "vercelStream",
    )
    for name in names:
        assert found[name]["text"] == PROGRAM, name
        bare = found[name]["id"].removeprefix("chatcmpl-").removeprefix("resp_")
        row = server.store.interaction(bare.removeprefix("msg_"))
        assert row.choices[0]["message"]["content"] == PROGRAM
    assert json.loads(found["openaiTool"]) == found["vercelTool"] == {"where": "here"}
    assert found["openaiError"] == {"status": 404, "code": "model_not_found"}
