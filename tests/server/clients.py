"""Other people's clients: where `ops/run clients` puts them, and how one is asked."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.conftest import environment as ours

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / ".venv" / "clients"


def python_clients() -> Path:
    """The programs of the Python clients' environment; without it the test is skipped."""
    if not (INSTALLED / "python.stamp").exists():
        pytest.skip("the Python clients are not installed: `ops/run clients` says why")
    return INSTALLED / "python" / "bin"


def node_clients() -> tuple[str, Path]:
    """Node, and the directory of its clients; without either the test is skipped."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (INSTALLED / "node.stamp").exists():
        pytest.skip("the npm clients are not installed: `ops/run clients` says why")
    return node, INSTALLED / "node"


def run(*command: str | Path, **environment: str) -> str:
    """Run a client, and return what it printed; it may keep its compiled modules."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**ours(), **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


class Llm:
    """The `llm` tool, which is told of a server as of any OpenAI-compatible one."""

    def __init__(self, url: str, home: Path) -> None:
        self._program = python_clients() / "llm"
        self._environment = {"LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"}
        model = {"model_id": "journeyman", "model_name": "code", "api_base": f"{url}/v1"}
        told = json.dumps([{**model, "supports_tools": True, "supports_schema": True}])
        home.mkdir()
        (home / "extra-openai-models.yaml").write_text(told)  # YAML knows JSON

    def ask(self, *arguments: str) -> str:
        """Ask, and return what it printed."""
        asked = run(self._program, "-m", "journeyman", *arguments, **self._environment)
        return asked.removesuffix("\n")

    def logged(self) -> dict[str, str]:
        """The ids of the answers and their texts, as it logged them."""
        listed = run(self._program, "logs", "list", "-n", "0", "--json", **self._environment)
        return {entry["response_json"]["id"]: entry["response"] for entry in json.loads(listed)}
