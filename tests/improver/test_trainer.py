"""The training process: followed, not trusted; nothing of torch comes into this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from improver.errors import TrainingError
from improver.trainer import run_training, step_back
from improver.types import TrainJob
from ops import probe

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


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "train.jsonl").write_text(text)
    (tmp_path / "held_out.jsonl").write_text("")
    return tmp_path


@pytest.mark.slow
async def test_a_process_of_its_own_leaves_an_adapter(directory: Path, tiny_model: Path) -> None:
    report = await run_training(directory, job(tiny_model), nice=5, environment=os.environ)
    assert report["steps"] == 2
    assert probe.read(directory / "adapter")
    # Run again it finds its work done.
    (directory / "job.json").write_text("{}")
    again = await run_training(directory, job(tiny_model), nice=5, environment=os.environ)
    assert again == report


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
