"""The clients of the npm registry: OpenAI's, Anthropic's and Vercel's AI SDK.

They are no part of the environment. `NODE_CLIENTS` names a directory into which somebody did
`npm install openai @anthropic-ai/sdk ai @ai-sdk/openai-compatible`; without it this is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fake_engine import PROGRAM
from tests.server.conftest import Running

SCRIPT = Path(__file__).with_name("clients.mjs")


@pytest.mark.slow
def test_the_node_clients_understand_the_server(server: Running) -> None:
    node, directory = shutil.which("node"), os.environ.get("NODE_CLIENTS")
    if node is None or directory is None:
        pytest.skip("needs node, and NODE_CLIENTS with the clients from the npm registry")
    server.engine.tool = ("look", '{"where":"here"}')
    done = subprocess.run(
        [node, str(SCRIPT), server.url, directory], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
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
