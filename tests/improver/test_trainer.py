"""The training process: followed, not trusted; nothing of torch comes into this one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from improver import trainer
from improver.errors import TrainingError
from improver.trainer import run_training, step_back
from improver.types import TrainJob

ROWS = [
    {
        "id": f"r{i}",
        "messages": [{"role": "user", "content": f"Write f{i}."}],
        "answer": f"```python\ndef f{i}():\n    return {i}\n```",
    }
    for i in range(8)
]


def job(model: Path, **changes: Any) -> TrainJob:
    values: dict[str, Any] = {
        "base_directory": str(model),
        "base_name": "tiny",
        "base_sha256": "00",
        "max_lora_rank": 16,
        "rank": 8,
        "alpha": 16,
        "dropout": 0.0,
        "learning_rate": 1e-2,
        "epochs": 1,
        "batch_rows": 4,
        "max_tokens": 256,
        "seed": 7,
    }
    return TrainJob(**values | changes)


def rows_in(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (directory / "train.jsonl").write_text(text)
    (directory / "held_out.jsonl").write_text("")
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return rows_in(tmp_path)


async def test_a_process_that_will_not_end_is_killed(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "END_S", 0.2)
    package = tmp_path / "fake" / "improver"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1], 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "fake")}
    training = asyncio.ensure_future(
        run_training(directory, job(tmp_path), nice=0, environment=environment)
    )
    pid = directory / "pid"
    async with asyncio.timeout(10):
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0.02)
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_a_process_that_fails_tells_why(directory: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "fake")}
    package = tmp_path / "fake" / "improver"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text("import sys\nsys.exit('rank 12 cannot be served')\n")
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(TrainingError, match="ended with 1: rank 12 cannot be served"):
            await run_training(directory, job(tmp_path), nice=0, environment=environment)
    finally:
        os.chdir(before)


def test_the_rest_of_the_improver_stays_light() -> None:
    code = (
        "import sys, improver.__main__;"
        "print(sorted({'torch', 'transformers', 'peft', 'fastapi', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_steps_back_behind_every_other_session() -> None:
    process = subprocess.Popen(["sleep", "30"], start_new_session=True)
    group = Path(f"/proc/{process.pid}/autogroup")
    try:
        if not group.exists():
            pytest.skip("this kernel does not group by session")
        step_back(process.pid, 7)
        assert group.read_text().split()[-1] == "7"
    finally:
        process.kill()
        process.wait()
    step_back(process.pid, 7)  # it is gone: nothing to do


class Steps:
    """Stands for the processes: each leaves a report whose loss depends on its learning rate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[tuple[str, str, dict[str, Any]]] = []
        self.broken: set[float] = set()
        monkeypatch.setattr(trainer, "_run", self._run)

    async def _run(self, module: str, directory: Path, *rest: object) -> None:
        told = json.loads((directory / "job.json").read_text())
        self.ran.append((module, directory.name, told))
        rate = told["learning_rate"]
        if rate in self.broken:
            raise TrainingError("the loss is nan")
        (directory / "adapter").mkdir(exist_ok=True)
        (directory / "adapter" / "made_by").write_text(module)
        loss = abs(rate - 2e-4)
        report = {"held_out_loss_base": 1.0, "held_out_loss": loss, "steps": 3}
        (directory / "training.json").write_text(json.dumps(report | {"rows_too_long": [module]}))


RATES = (5e-5, 2e-4, 4e-4)


def held_out_in(directory: Path) -> Path:
    (directory / "held_out.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    return directory


async def train_it(directory: Path, job: TrainJob) -> dict[str, Any]:
    return await run_training(directory, job, nice=0, environment={})


async def test_held_out_rows_choose_among_learning_rates(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    monkeypatch.setattr(trainer, "SWEEP_ROWS", 5)
    wanted = job(directory, learning_rates=RATES, epochs=3)
    report = await train_it(held_out_in(directory), wanted)
    assert report["sweep"]["learning_rate"] == 2e-4
    assert [one["learning_rate"] for one in report["sweep"]["tried"]] == list(RATES)
    assert [told["epochs"] for _, _, told in steps.ran] == [1, 1, 1, 3]
    assert steps.ran[-1][2]["learning_rate"] == 2e-4
    short = (directory / "sweep" / "5e-05" / "train.jsonl").read_text().splitlines()
    assert len(short) == 5
    assert len({*short}) == 5
    # Gone through again after a kill, nothing is done twice.
    again = await train_it(directory, wanted)
    assert again == report
    assert len(steps.ran) == 4


async def test_a_rate_that_breaks_is_noted_and_not_chosen(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    steps.broken = {2e-4}
    report = await train_it(held_out_in(directory), job(directory, learning_rates=RATES))
    assert report["sweep"]["learning_rate"] == 5e-5
    assert "nan" in report["sweep"]["tried"][1]["error"]
    steps.broken = set(RATES)
    for done in directory.rglob("training.json"):
        done.unlink()
    with pytest.raises(TrainingError, match="no learning rate works"):
        await train_it(directory, job(directory, learning_rates=RATES))


async def test_without_held_out_rows_there_is_no_choice(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    report = await train_it(directory, job(directory, learning_rate=1e-4, learning_rates=RATES))
    assert "no held-out rows" in report["sweep"]["why"]
    assert [told["learning_rate"] for _, _, told in steps.ran] == [1e-4]


async def test_preferences_go_on_from_what_was_trained(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    (directory / "preferences_held_out.jsonl").write_text("")
    (directory / "preferences.jsonl").write_text((json.dumps(ROWS[0]) + "\n") * 8)
    report = await train_it(directory, job(directory, preferences="dpo"))
    modules = ["improver.train", "improver.prefer"]
    assert [module for module, _, _ in steps.ran] == modules
    start = directory / "preferred" / "start" / "made_by"
    assert start.read_text() == "improver.train"
    assert (directory / "adapter" / "made_by").read_text() == "improver.prefer"
    assert report["rows_too_long"] == modules
    assert report["preferred"]["steps"] == 3


async def test_a_few_preferences_beside_rows_are_left_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    (directory / "preferences.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    report = await train_it(directory, job(directory, preferences="dpo"))
    assert [module for module, _, _ in steps.ran] == ["improver.train"]
    assert report["preferences_left_out"] == 1
    assert "preferred" not in report


async def test_preferences_alone_need_no_rows_to_imitate(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    (directory / "train.jsonl").write_text("")
    for name in ("preferences", "preferences_held_out"):
        (directory / f"{name}.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    report = await train_it(directory, job(directory, preferences="kto", learning_rates=RATES))
    assert [module for module, _, _ in steps.ran] == ["improver.prefer"]
    assert not (directory / "preferred" / "start").exists()
    assert report["steps"] == report["preferred"]["steps"]
    assert (directory / "adapter" / "made_by").exists()
