"""Every hostile program in every tier that this machine offers, under each identity."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.attacks import ATTACKS
from sandbox.selfcheck import examine, table
from tests.sandbox.conftest import ROOT, Lab, as_nobody, environment, reachable_python

pytestmark = pytest.mark.isolation
HOSTS = str(Path(__file__).with_name("hosts.py"))


def test_the_table_is_complete_and_unambiguous() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    wanted = {"R": 26, "P": 11, "S": 12, "N": 6, "K": 16, "F": 30}
    for letter, count in wanted.items():
        for number in range(1, count + 1):
            assert any(a.name.startswith(f"{letter}{number:02}") for a in ATTACKS), (letter, number)


def test_in_the_strongest_tier_of_this_process(lab: Lab) -> None:
    rows = lab.do(examine(lab.pool), timeout_s=240)
    assert all(row.right for row in rows), table([row for row in rows if not row.right])
    assert len(rows) == len(ATTACKS) + 20


def judge(done: subprocess.CompletedProcess[str], tier: str) -> None:
    assert done.returncode in (0, 1), done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["tier"] == tier
    assert [row for row in found["rows"] if not row["right"]] == []
    assert len(found["rows"]) == len(ATTACKS) + 20


def nobody_python() -> str:
    python = reachable_python()
    if python is None:
        pytest.skip("no interpreter of this version can be executed by another user")
    return python


def refuses_namespaces(stderr: str) -> bool:
    return "user-namespace: the zygote did not start" in stderr and "unshare" in stderr


@pytest.mark.slow
def test_as_nobody_with_a_user_namespace() -> None:
    command = [nobody_python(), "-m", "sandbox", "check", "--json", "--tier", "user-namespace"]
    done = as_nobody(command, timeout=240)
    if done.returncode == 2 and refuses_namespaces(done.stderr):
        pytest.skip(f"the kernel gives users no namespaces: {done.stderr[:300]}")
    judge(done, "user-namespace")


@pytest.mark.slow
def test_as_nobody_without_namespaces() -> None:
    judge(as_nobody([nobody_python(), HOSTS, "check", "--json"], timeout=240), "process")


@pytest.mark.slow
def test_as_root_without_namespaces() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
    # An interpreter that only root can reach cannot serve programs of another uid in tier 1.
    python = reachable_python()
    if python is None:
        pytest.skip("no interpreter of this version can be executed by another user")
    done = subprocess.run(
        [python, HOSTS, "check", "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    judge(done, "process")


@pytest.mark.slow
def test_in_an_operators_runtime() -> None:
    """Bubblewrap stands in for a runtime such as gVisor: what matters is the way in and out."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        pytest.skip("bubblewrap is not installed")
    python = nobody_python()
    shown = ["/usr", str(ROOT), *environment()["PYTHONPATH"].split(os.pathsep)]
    runtime = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    runtime += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]  # first: we may lie in /tmp
    for path in dict.fromkeys(shown):
        runtime += ["--ro-bind", path, path]
    for path in ("/lib", "/lib64"):
        runtime += ["--symlink", f"usr{path}", path] if os.path.islink(path) else []
    command = [python, "-m", "sandbox", "check", "--json", "--tier", "runtime"]
    judge(as_nobody([*command, "--runtime", " ".join(runtime)], timeout=240), "runtime")


def test_where_namespaces_are_forbidden_the_list_of_failed_probes_says_so() -> None:
    command = [sys.executable, HOSTS, "check", "--tier", "user-namespace"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "user-namespace" in done.stderr
    assert "unshare" in done.stderr
