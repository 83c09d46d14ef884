from __future__ import annotations

from pathlib import Path

import pytest

from ops import settings
from ops.errors import SettingsError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def test_flags_win_over_environment_over_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data_dir = tmp_path / "journeyman"
    data_dir.mkdir()
    (data_dir / "journeyman.toml").write_text("[server]\nport = 1001\nmax_candidates = 5\n")
    assert settings.load().server.port == 1001
    monkeypatch.setenv("JOURNEYMAN_SERVER__PORT", "1002")
    read = settings.load()
    assert (read.server.port, read.server.max_candidates) == (1002, 5)
    flagged = settings.load(server={"port": 1003})
    assert flagged.server.port == 1003
    assert flagged.server.max_candidates == 5


def test_defaults_fit_together() -> None:
    read = settings.load()
    assert read.engine_url == "http://127.0.0.1:8001"
    assert read.server_url == "http://127.0.0.1:8000"
    assert read.store_url.endswith("/journeyman/journeyman.db")


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("[server]\nprt = 1\n", "server.prt"),
        ("nonsense = 1\n", "nonsense"),
        ("[server]\nport = 'x'\n", "server.port"),
        ("[engine]\nmax_loras = 1\n", "engine.max_loras"),
        ("[server\n", "journeyman.toml"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, toml: str, named: str) -> None:
    file = tmp_path / "journeyman.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError, match=named):
        settings.load(file)


def test_a_stated_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        settings.load(tmp_path / "none.toml")


def test_a_wildcard_host_is_reached_on_loopback() -> None:
    assert settings.load(server={"host": "0.0.0.0"}).server_url == "http://127.0.0.1:8000"
