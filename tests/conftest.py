"""Fixtures shared by all tests: stores on both databases, and the real system."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from ops.registry import Registry
from ops.store import Store
from tests.databases import new_database
from tests.real_system import real_engine, starting_system, system

__all__ = ["real_engine", "starting_system", "system"]

ROOT = Path(__file__).parents[1]

# A slow machine is not a finding: what must be fast is measured in `ops/bench/`.
hypothesis.settings.register_profile("journeyman", deadline=None)
hypothesis.settings.load_profile("journeyman")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: the real engine, then files with slow tests.

    Of those with the engine, the story of the whole system comes last: its end stops the engine.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    whole = {item.path for item in items if "system" in getattr(item, "fixturenames", ())}
    items.sort(
        key=lambda item: (not _needs_engine(item.path), item.path in whole, item.path not in slow)
    )


class _Files(LoadScopeScheduling):
    """Hands whole files to the processes; those that need the real engine are one.

    So it is started once: two engines on two cores would hold each other up.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "engine" if _needs_engine(ROOT / file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Files:
    """Share out the tests (`--numprocesses`)."""
    return _Files(config, log)


@cache
def _needs_engine(file: Path) -> bool:
    return "pytest.mark.engine" in file.read_text()


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store: SQLite, or PostgreSQL with `JOURNEYMAN_TEST_DATABASE=postgresql`."""
    url = f"sqlite:///{tmp_path / 'journeyman.db'}"
    if os.environ.get("JOURNEYMAN_TEST_DATABASE") == "postgresql":
        url = request.getfixturevalue("postgres_database")
    opened = Store.open(url)
    yield opened
    opened.close()


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """An empty database of its own on the throw-away PostgreSQL server."""
    with new_database(postgres_url) as url:
        yield url


@pytest.fixture
def registry(store: Store, tmp_path: Path) -> Registry:
    """A registry on the empty store."""
    return Registry(store, tmp_path / "adapters")


def _postgres_bin() -> Path | None:
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A throw-away PostgreSQL server on a Unix socket (Debian: `apt-get install postgresql`)."""
    programs = _postgres_bin()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    # initdb refuses to run as root.
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="pg-"))
    if account is not None:
        os.chown(home, account.pw_uid, account.pw_gid)

    def run(*arguments: str) -> None:
        subprocess.run(
            arguments,
            check=True,
            cwd=home,
            stdout=subprocess.DEVNULL,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )

    data = home / "data"
    control = str(programs / "pg_ctl")
    run(str(programs / "initdb"), "-D", str(data), "-U", "journeyman", "-A", "trust", "-N")
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    run(control, "-D", str(data), "-o", options, "-l", str(home / "log"), "-w", "start")
    try:
        yield f"postgresql+psycopg://journeyman@/postgres?host={home}"
    finally:
        run(control, "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)
