"""The real engine, started once: vLLM with the small starter model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ops import guard, models, services
from ops.errors import ProcessError
from ops.settings import EngineSettings, Settings


@dataclass(frozen=True)
class RealEngine:
    """A running vLLM."""

    url: str
    model: models.Model

    def unload_adapters(self) -> None:
        """Leave nothing of an earlier test's installation, whose versions bore the same names."""
        for model in httpx.get(f"{self.url}/v1/models", timeout=60).json()["data"]:
            if model.get("parent"):
                body = {"lora_name": model["id"]}
                httpx.post(f"{self.url}/v1/unload_lora_adapter", json=body, timeout=60)


@pytest.fixture(scope="session")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """vLLM with the small starter model, on loopback."""
    try:
        build = services.engine_build()
    except ProcessError as error:
        pytest.skip(str(error))
    model = models.resolve("starter-small")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(engine=EngineSettings(model="starter-small", port=port, max_model_len=2048))
    service = services.engine(settings, model, build)
    log = tmp_path_factory.mktemp("engine") / "log"
    with log.open("wb") as output:
        # Behind a guard, as in production: nothing is left when the tests are killed.
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, "20", *service.command],
            env={**os.environ, **service.environment},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield RealEngine(url=f"http://127.0.0.1:{port}", model=model)
    finally:
        process.terminate()
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError("the engine did not start: " + log.read_text()[-4000:])
