"""The real thing, started once for all tests: `journeyman up`, its vLLM serves the small starter.

`system` is all of it. `real_engine` is its engine alone, for tests that bring a server of their
own; they run before those that use `system`, whose last one stops it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ops import models, services
from ops.errors import ProcessError
from ops.store import Store

READY_S = 600
ADAPTERS = 4
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class RealEngine:
    """A running vLLM and adapters for it, each with random weights of its own."""

    url: str
    model: models.Model
    adapters: tuple[Path, ...]

    def unload_adapters(self) -> None:
        """Leave nothing of an earlier test's installation, whose versions bore the same names."""
        for model in httpx.get(f"{self.url}/v1/models", timeout=60).json()["data"]:
            if model.get("parent"):
                body = {"lora_name": model["id"]}
                httpx.post(f"{self.url}/v1/unload_lora_adapter", json=body, timeout=60)


@dataclass
class System:
    """A running `journeyman up`."""

    url: str
    engine_url: str
    data_dir: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes]
    store: Store
    notes: dict[str, Any] = field(default_factory=dict)

    def journeyman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ops.cli", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)

    def ask(self, **extra: Any) -> Any:
        with self.client() as client:
            return client.chat.completions.create(
                model="code",
                messages=[{"role": "user", "content": "Write a function that doubles a number."}],
                **{"max_tokens": 64, "temperature": 0, **extra},
            )

    def ready(self) -> httpx.Response:
        return httpx.get(f"{self.url}/ready", timeout=10)

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "journeyman up ended"
            try:
                if self.ready().status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        pytest.fail(f"not ready within {timeout_s} s; see {self.data_dir / 'logs'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def starting_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """`journeyman up`, perhaps not ready yet."""
    try:
        services.engine_build()
    except ProcessError as error:
        pytest.skip(str(error))
    data_dir = tmp_path_factory.mktemp("system")
    port, engine_port = _free_port(), _free_port()
    env = os.environ | {
        "JOURNEYMAN_DATA_DIR": str(data_dir),
        "JOURNEYMAN_SERVER__PORT": str(port),
        "JOURNEYMAN_ENGINE__PORT": str(engine_port),
        "JOURNEYMAN_ENGINE__MODEL": "starter-small",
        "JOURNEYMAN_ENGINE__MAX_MODEL_LEN": "2048",
        # Small enough for a minute; every stage still does its real work.
        "JOURNEYMAN_IMPROVER__ILF__SAMPLES": "2",
        "JOURNEYMAN_IMPROVER__ILF__MAX_ANSWER_TOKENS": "96",
        "JOURNEYMAN_IMPROVER__ILF__MIN_ROWS": "4",
        # So small a model refines next to nothing, and here the loop is tested, not the learning.
        "JOURNEYMAN_IMPROVER__ILF__DEMONSTRATIONS": "all",
        "JOURNEYMAN_IMPROVER__NICE": "0",  # other tests run beside it, and are no users
        "JOURNEYMAN_IMPROVER__TRAIN__EPOCHS": "2",
        "JOURNEYMAN_IMPROVER__TRAIN__LEARNING_RATE": "0.001",
        "JOURNEYMAN_IMPROVER__GATE__MAX_TASKS": "4",
        "JOURNEYMAN_IMPROVER__GATE__GUARD_TASKS": "4",
        "JOURNEYMAN_IMPROVER__GATE__MAX_ANSWER_TOKENS": "96",
    }
    with (data_dir / "up.log").open("wb") as log:
        process = subprocess.Popen(
            # Nothing is left when the tests are killed.
            ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "ops.cli", "up"],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    store = Store.open(f"sqlite:///{data_dir / 'journeyman.db'}")
    try:
        yield System(
            url=f"http://127.0.0.1:{port}",
            engine_url=f"http://127.0.0.1:{engine_port}",
            data_dir=data_dir,
            env=env,
            process=process,
            store=store,
        )
    finally:
        store.close()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)


@pytest.fixture(scope="session")
def system(starting_system: System) -> System:
    """The whole system, ready and with nothing in it."""
    starting_system.wait_ready()
    return starting_system


@pytest.fixture(scope="session")
def real_engine(starting_system: System, tmp_path_factory: pytest.TempPathFactory) -> RealEngine:
    """The system's engine, and adapters that were made while it started."""
    model = models.resolve("starter-small")
    made = tmp_path_factory.mktemp("adapters")
    script = ROOT / "tests" / "contracts" / "make_adapter.py"
    seeds = [str(seed + 1) for seed in range(ADAPTERS)]
    subprocess.run(
        [sys.executable, str(script), str(model.directory), str(made), *seeds],
        check=True,
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, **services.cpu_environment()},
        timeout=400,
    )
    starting_system.wait_ready()
    return RealEngine(
        url=starting_system.engine_url,
        model=model,
        adapters=tuple(made / seed for seed in seeds),
    )
