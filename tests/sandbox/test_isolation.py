"""Walls: what tidies up, what is shown of the host, and that each wall stands in a real child."""

import os
from pathlib import Path

import pytest

from sandbox import isolation
from sandbox.isolation import Place
from sandbox.types import Tier
from tests.sandbox.conftest import Lab


def place(parent: Path) -> Place:
    return Place(Tier.PROCESS, str(parent), None, ())


def test_a_hostile_scratch_directory_is_emptied(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    parent = tmp_path / "parent"
    scratch = parent / "tmp"
    scratch.mkdir(parents=True)
    (scratch / "link").symlink_to(outside)
    (parent / "file").write_text("x")
    deep = os.open(scratch, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 10, dir_fd=deep)
        below = os.open("d" * 10, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.mkdir("locked", dir_fd=deep)
    os.chmod("locked", 0, dir_fd=deep)
    os.close(deep)
    os.chmod(scratch, 0o100)
    isolation.renew_scratch(place(parent), 1 << 20, 100)
    assert os.listdir(parent) == ["tmp"]
    assert os.listdir(scratch) == []
    assert (outside / "keep").read_text() == "x"


def test_usage_counts_files_and_bytes_and_gives_up_in_time(tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    (scratch / "a").write_bytes(bytes(8192))
    (scratch / "link").symlink_to("/etc")
    (scratch / "sub").mkdir()
    size, count = isolation.usage(place(tmp_path), 100)
    assert size >= 8192
    assert count == 3
    for number in range(200):
        (scratch / f"f{number}").touch()
    assert isolation.usage(place(tmp_path), 100)[1] > 100


def test_only_installed_libraries_are_shown(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shown = list(isolation.library_dirs(["", str(checkout), str(packages), "/nonexistent"]))
    assert str(packages) in shown
    assert str(checkout) not in shown
    assert os.path.dirname(os.__file__) in shown


@pytest.mark.isolation
def test_what_a_program_sees_of_the_file_system(lab: Lab) -> None:
    if not lab.pool.tier.has_namespaces:
        pytest.skip("needs namespaces: tier 1 shows the host's names, though not their contents")
    code = (
        "import os\ndef f(paths):\n    return [p for p in paths if os.path.lexists(p)], os.getcwd()"
    )
    hidden = ["/proc", "/sys", "/var", "/run", "/boot", "/etc/passwd", "/etc/hostname", "/bin/sh"]
    hidden += ["/usr/bin", "/root/.ssh", __file__, "/dev/shm", "/dev/pts", "/dev/tty", "/dev/mem"]
    run = lab.run(code, entry="f", calls=[[[*hidden, os.__file__, "/tmp"]]])
    seen, here = run.values[0]  # type: ignore[misc]
    assert seen == [os.__file__, "/tmp"]
    assert here == "/scratch/tmp"


@pytest.mark.isolation
def test_threads_are_capped(lab: Lab) -> None:
    code = (
        "import threading, time\ndef f():\n    n = 0\n    try:\n        while n < 1000:\n"
        "            threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n"
        "            n += 1\n    except RuntimeError:\n        pass\n    return n"
    )
    run = lab.run(code, entry="f", calls=[[]])
    assert run.word == "MEMORY" or 4 <= run.values[0] <= 130  # type: ignore[operator]
