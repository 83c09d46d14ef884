"""Free memory: the least of what the machine and the group have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops import memory


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       8000 kB\nMemAvailable:       4000 kB\n")
    return path


def group(tmp_path: Path, most: str, used: int, cached: int) -> Path:
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("most", "free"), [("max", 4000 * 1024), ("1000000", 700_000), ("99000000", 4000 * 1024)]
)
def test_the_least_of_machine_and_group_is_free(
    tmp_path: Path, meminfo: Path, most: str, free: int
) -> None:
    assert memory.free_bytes(meminfo, group(tmp_path, most, 500_000, 200_000)) == free


def test_without_a_group_the_machine_s_is_free(tmp_path: Path, meminfo: Path) -> None:
    assert memory.free_bytes(meminfo, tmp_path / "nothing here") == 4000 * 1024


def test_this_machine_says_something() -> None:
    assert memory.free_bytes() > 1 << 20


def test_without_a_gpu_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory.gpu_bytes() == (0, 0)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 1024, 81920\necho 1, 2\n")
    tool.chmod(0o755)
    assert memory.gpu_bytes() == (1 << 30, 80 << 30)
