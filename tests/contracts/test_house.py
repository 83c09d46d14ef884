"""The rules of the house that no linter knows."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "improver", "sandbox", "ops")


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / line for line in listed.stdout.splitlines()]


@pytest.mark.parametrize("package", PACKAGES)
def test_our_packages_are_not_shadowed_by_a_dependency(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOT / package


@pytest.mark.parametrize("package", ["sandbox", "server", "improver"])
def test_importing_a_package_stays_light(package: str) -> None:
    heavy = "{'torch', 'transformers', 'fastapi', 'pandas', 'numpy', 'pydantic', 'vllm'}"
    code = f"import sys, {package}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_top_level_is_what_was_agreed() -> None:
    agreed = {"pyproject.toml", "README.md", "LICENSE", *PACKAGES, "tests"}
    top = {path.relative_to(ROOT).parts[0] for path in _tracked()}
    assert {name for name in top if not name.startswith(".")} == agreed


def test_there_is_no_catch_all_module() -> None:
    names = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    assert [path for path in _tracked("*.py") if path.stem in names] == []


def test_the_readme_maps_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    file_map = readme.split("## File map")[1].split("\n## ")[0]
    mapped = set(re.findall(r"`([\w/]+\.py)`", file_map))
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in _tracked(f"{package}/*.py", f"{package}/**/*.py")
        if path.name != "__init__.py" and "migrations" not in path.parts
    }
    assert mapped == modules


def test_every_module_says_what_it_is() -> None:
    silent = [
        path
        for package in PACKAGES
        for path in _tracked(f"{package}/*.py", f"{package}/**/*.py")
        if path.stat().st_size and not path.read_text(encoding="utf-8").lstrip().startswith('"""')
    ]
    assert silent == []
