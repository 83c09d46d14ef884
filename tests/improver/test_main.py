"""The commands, as their user types them."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from improver import __main__ as improver
from ops.errors import SettingsError
from ops.records import AdapterState, CycleState
from ops.registry import Registry
from ops.settings import SWEEP, Settings
from ops.store import Store
from tests.improver.conftest import StubServer
from tests.improver.test_cycle import EXAMPLES, NAME, TASKS


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Take back what `main` did to the logs: its handler writes where pytest soon stops reading."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def options(*arguments: str) -> Settings:
    given = improver._parser().parse_args(["improve", *arguments])
    return improver._with_options(Settings(), given)


def test_options_go_over_the_settings(tmp_path: Path) -> None:
    found = options(
        *("--recipe", "ilf", "--tasks", str(tmp_path / "t.jsonl"), "--subset", "core60"),
        *("--samples", "9", "--learning-rate", "0.01", "--epochs", "5"),
        *("--tables", str(tmp_path), "--corpus", "code.jsonl"),
    ).improver
    assert found.sources.tables == tmp_path
    assert found.sources.corpus == Path("code.jsonl").resolve()
    assert found.gate.tasks == tmp_path / "t.jsonl"
    assert found.gate.subset == "core60"
    assert found.ilf.samples == 9
    assert found.train.learning_rate == 0.01
    assert found.train.epochs == 5
    assert options() == Settings()


@pytest.mark.parametrize(
    ("given", "rates"),
    [("1e-4", (1e-4,)), ("1e-4,3e-4", (1e-4, 3e-4)), ("sweep", SWEEP)],
)
def test_one_learning_rate_several_or_a_sweep(given: str, rates: tuple[float, ...]) -> None:
    found = options("--learning-rate", given, "--preferences", "kto").improver.train
    assert found.learning_rates == rates
    assert found.preferences == "kto"


@pytest.mark.parametrize(
    "arguments", [("--samples", "0"), ("--learning-rate", "0"), ("--learning-rate", "1e-4,-1")]
)
def test_a_wrong_option_is_refused(arguments: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match=arguments[0].strip("-").replace("-", "_")):
        options(*arguments)


def test_what_is_no_learning_rate_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--learning-rate", "fast")
    assert "--learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["improve", "--recipe", "alchemy"], "no recipe 'alchemy'"),
        (["import", "absent.jsonl"], "cannot read absent.jsonl"),
        (["improve", "--resume", "nothing"], "no cycle nothing"),
        (["eval", "humaneval"], "does not ship"),
        (["eval", "alchemy"], "no benchmark 'alchemy'"),
        (["eval", "builtin", "--spec", "summary"], "shows any summary"),
        (["eval", "replay"], "holds no request"),
        (["eval", "builtin", "--out", "/dev/null/out.json"], "nothing can be written"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert improver.main([*arguments, "--data-dir", str(tmp_path)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert words in told
    assert "Traceback" not in told


def test_without_a_server_it_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNEYMAN_SERVER__PORT", "9")
    assert improver.main(["improve", "--data-dir", str(tmp_path)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "http://127.0.0.1:9 did not answer" in told
    assert "journeyman up" in told
    store = Store.open(f"sqlite:///{tmp_path / 'journeyman.db'}")
    assert store.cycles() == []
    store.close()


def test_a_number_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--samples", "--candidates", "--limit", "--max-tokens"):
        for value in ("0", "-3", "many"):
            with pytest.raises(SystemExit):
                improver.main(["eval", "builtin", option, value])
            assert option in capsys.readouterr().err


@pytest.mark.isolation
def test_a_benchmark_is_put_to_a_server(
    server: StubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(body: dict[str, Any], index: int) -> str:
        found = NAME.search(body["messages"][-1]["content"])
        name = (found and (found[1] or found[2])) or ""
        return f"```python\n{TASKS[name].reference}```"

    server.script = answer
    out = tmp_path / "out.json"
    arguments = ["eval", "builtin", "--limit", "4", "--url", f"{server.url}/v1", "--json"]
    arguments += ["--data-dir", str(tmp_path), "--out", str(out)]
    assert improver.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert found["pass_at"]["1"]["mean"] == 1.0
    assert (found["url"], found["temperature"]) == (server.url, 0.0)
    assert list(tmp_path.glob("*.journal")) == []
    assert not (tmp_path / "journeyman.db").exists()
    assert improver.main([*arguments, "--model", "code@v9"]) == 1
    assert "has no model 'code@v9'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.isolation
def test_a_benchmark_is_tried_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"entry_point": "f", "tests": ["assert f(2) == 4"]}
    weak = {"entry_point": "f", "tests": ["assert f(2) is None"]}
    rows = [
        {"id": "a", "text": "Double.", "spec": spec, "reference": "def f(x):\n    return 2 * x\n"},
        {"id": "b", "text": "Double.", "spec": spec, "reference": "def f(x):\n    return x + 3\n"},
        {"id": "c", "text": "Anything.", "spec": weak},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    arguments = ["eval", str(path), "--references", "--data-dir", str(tmp_path)]
    assert improver.main(arguments) == 0
    told = capsys.readouterr().out
    assert "1 of 2 reference solutions pass" in told
    assert "left out of examinations: b" in told
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert improver.main([*arguments, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["empty_answers_pass"], found["without_reference"]) == (["c"], 1)


@pytest.mark.slow
@pytest.mark.isolation
def test_a_cycle_killed_in_training_is_resumed(
    server: StubServer,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data_dir = tmp_path / "data"
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "JOURNEYMAN_DATA_DIR": str(data_dir),
        "JOURNEYMAN_IMPROVER__SERVER_URL": server.url,
        "JOURNEYMAN_ENGINE__MODEL": str(tiny_model),
        "JOURNEYMAN_IMPROVER__NICE": "0",
        "JOURNEYMAN_IMPROVER__TRAIN__EPOCHS": "3",
        "JOURNEYMAN_IMPROVER__TRAIN__RANK": "8",
        "JOURNEYMAN_IMPROVER__TRAIN__MAX_TOKENS": "1000",
        "JOURNEYMAN_IMPROVER__GATE__MAX_TASKS": "16",
        "JOURNEYMAN_IMPROVER__ILF__SAMPLES": "1",
        "JOURNEYMAN_IMPROVER__ILF__MIN_ROWS": "4",
        "JOURNEYMAN_IMPROVER__GATE__GUARD_TASKS": "2",
    }.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> dict[str, Any]:
        status = improver.main([*arguments, "--json"])
        told = capsys.readouterr()
        assert status == 0, told.err[-2000:]
        found: dict[str, Any] = json.loads(told.out)
        return found

    right = {
        json.loads(line)["prompt"].split("def ")[1].split("(")[0]: json.loads(line)["refinement"]
        for line in EXAMPLES.read_text(encoding="utf-8").splitlines()
    }

    def answer(body: dict[str, Any], index: int) -> str:
        text = [m["content"] for m in body["messages"] if m["role"] == "user"][-1]
        found = NAME.search(text)
        name = (found and (found[1] or found[2])) or ""
        if "### Feedback" in text:
            return f"```python\n{right[name]}\n```"
        return f"```python\n{TASKS[name].reference}```" if "@" in body["model"] else "pass"

    server.script = answer
    assert run("import", str(EXAMPLES), "--format", "ilf")["imported"] == 20
    store = Store.open(f"sqlite:///{data_dir / 'journeyman.db'}")
    server.follow(store, Registry(store, data_dir / "adapters"))
    process = subprocess.Popen(
        [sys.executable, "-m", "improver", "improve"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(data_dir.glob("cycles/*/train.partial/progress.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    [cycle] = store.cycles()
    assert (cycle.state, cycle.stage) == (CycleState.RUNNING, "train")
    ended = run("improve", "--resume", cycle.id)
    assert ended["state"] == "succeeded", ended
    assert ended["report"]["decide"]["decision"] == "promote"
    assert (
        ended["report"]["train"]["held_out_loss"] < ended["report"]["train"]["held_out_loss_base"]
    )
    [adapter] = store.adapters()
    assert adapter.state is AdapterState.CHAMPION
    store.close()
