from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

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


@pytest.mark.parametrize(
    ("toml", "meant"),
    [
        ("[server]\nprt = 1\n", "server.port?"),
        ("[sever]\nport = 1\n", "server?"),
        ("port = 1\n", "server.port"),
        ("[improver.gate]\nguard_task = 1\n", "improver.gate.guard_tasks?"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(
    tmp_path: Path, toml: str, meant: str
) -> None:
    file = tmp_path / "journeyman.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError, match="no such setting; did you mean") as caught:
        settings.load(file)
    assert meant in str(caught.value)


def test_nothing_is_suggested_where_nothing_is_near(tmp_path: Path) -> None:
    file = tmp_path / "journeyman.toml"
    file.write_text("nonsense = 1\n")
    with pytest.raises(SettingsError, match=r"nonsense: no such setting$"):
        settings.load(file)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("JOURNEYMAN_SERVR__PORT", "server.port"),
        ("JOURNEYMAN_SERVER__PRT", "server.port"),
        ("JOURNEYMAN_LOGFORMAT", "JOURNEYMAN_LOG_FORMAT"),
        ("JOURNEYMAN_NONSENSE__X", "JOURNEYMAN_NONSENSE__X: no such setting"),
    ],
)
def test_an_unknown_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match="no such setting") as caught:
        settings.load()
    assert meant in str(caught.value)


def test_variables_of_others_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "PORT_8000_TCP_ADDR", "API_KEY", "DEVICE"):
        monkeypatch.setenv(f"JOURNEYMAN_{name}", "10.0.0.1")
    assert settings.load().server.port == 8000


def test_a_malformed_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNEYMAN_SANDBOX__RUNTIME", "[not json")
    with pytest.raises(SettingsError, match="sandbox"):
        settings.load()


def test_differences_are_named() -> None:
    changed = settings.load(server={"port": 9, "max_concurrency": 7}, log_level="debug")
    found = settings.differences(settings.load(), changed)
    assert sorted(found) == ["log_level", "server.max_concurrency", "server.port"]
    assert set(settings.RELOADED) <= set(settings.names())


def test_a_stated_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        settings.load(tmp_path / "none.toml")


def test_a_wildcard_host_is_reached_on_loopback() -> None:
    assert settings.load(server={"host": "0.0.0.0"}).server_url == "http://127.0.0.1:8000"


def test_every_setting_is_described() -> None:
    def silent(section: type[BaseModel], prefix: str = "") -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += silent(inner, f"{prefix}{name}.")
            elif not field.description:
                found.append(f"{prefix}{name}")
        return found

    assert silent(settings.Settings) == []
    assert silent(settings.KeySettings) == []
