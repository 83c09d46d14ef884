"""The two commands, as people and `journeyman sandbox` call them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import ROOT

pytestmark = pytest.mark.isolation


def command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_running_a_file(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("def f(a, b):\n    print('called')\n    return a + b\n")
    done = command("run", str(program), "--entry", "f", "--args", "[1, 2]")
    assert done.returncode == 0
    assert done.stdout == "called\n3\n"
    assert done.stderr.startswith("OK in ")
    found: dict[str, Any] = json.loads(
        command("run", str(program), "--entry", "f", "--args", '["a", 2]', "--json").stdout
    )
    assert found["verdict"] == "ERROR"
    assert found["error_type"] == "TypeError"


def test_checking_a_program_from_standard_input(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"entry_point": "f", "examples": [{"input": [2], "output": 4}]}')
    done = command("run", "-", "--spec", str(spec), stdin="def f(x): return x * x")
    assert (done.returncode, done.stdout[:17]) == (0, "OK: 1 of 1 passed")
    done = command(
        "run",
        "-",
        "--spec",
        str(spec),
        stdin="def f(x): return x",
    )
    assert done.returncode == 1
    spec.write_text('{"examples": 3}')
    done = command("run", "-", "--spec", str(spec))
    assert done.returncode == 2
    assert "spec.examples" in done.stderr


def test_a_missing_file_is_an_error_not_a_traceback() -> None:
    done = command("run", "/nonexistent.py")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
