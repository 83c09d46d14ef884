"""The pages for users, operators and contributors do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ops import cli, settings, swaps
from ops.registry import Registry
from ops.store import Recording, Store
from tests.ops import records
from tests.ops.test_cli import Run, add, run
from tests.ops.test_deploy import _BLOCK, DOCS, ROOT, page

__all__ = ["run"]

NEW = ("quickstart.md", "operating.md", "contributing.md")
URL = "http://127.0.0.1:8000"


def blocks(name: str, kind: str) -> list[str]:
    return [body for found, body in _BLOCK.findall(page(name)) if found == kind]


def lines(name: str) -> Iterator[list[str]]:
    """The commands in the shell blocks of a page."""
    for body in blocks(name, "sh"):
        for line in body.splitlines():
            if line.startswith(("journeyman ", "ops/run ")):
                yield shlex.split(line, comments=True)


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name in NEW for words in lines(name)]
)
def test_every_command_in_a_block_is_one(name: str, words: list[str]) -> None:
    if words[0] == "ops/run" and words[1] in ("setup", "check", "test"):
        assert f"\n  {words[1]})" in (ROOT / "ops" / "run").read_text(encoding="utf-8")
        return
    if words[1] == "import":  # it hands `--help` on to another program
        return
    assert CliRunner().invoke(cli.app, [*words[1:], "--help"]).exit_code == 0, words


@pytest.mark.parametrize("name", NEW)
def test_every_block_is_well_formed(name: str) -> None:
    for body in blocks(name, "sh"):
        subprocess.run(["bash", "-n", "-c", body], check=True)
    for body in blocks(name, "toml"):
        tomllib.loads(body)
    for body in blocks(name, "python"):
        compile(body, name, "exec")


def section(name: str, title: str) -> list[list[str]]:
    text = page(name).split(f"## {title}\n")[1].split("\n## ")[0]
    bodies = [body for kind, body in _BLOCK.findall(text) if kind == "sh"]
    found = [shlex.split(line, comments=True) for body in bodies for line in body.splitlines()]
    return [words for words in found if words]


@pytest.mark.parametrize("title", ["Settings", "Keys", "Is it learning?"])
def test_the_commands_of_the_operator_s_page_work(
    run: Run,
    title: str,
    store: Store,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swaps, "wait", lambda *given, **more: swaps.Result(servers=(), receipts=()))
    registry.promote(add(registry, "a").version, actor="t", reason="r", force=True)
    for words in section("operating.md", title):
        if words[1:] == ["config", "reload"]:  # tests/server/test_main.py does it for real
            continue
        shown = run(*words[1:])
        assert shown.exit_code in (0, 3 if words[1] == "status" else 0), (words, shown.output)
    if title == "Keys":
        assert [key.revoked_at is not None for key in store.api_keys()] == [True]
    if title == "Is it learning?":
        assert store.aliases() == {}


@pytest.mark.parametrize("title", ["Backup and restore", "Exports"])
def test_backups_and_exports_of_the_operator_s_page_work(
    run: Run,
    title: str,
    store: Store,
    tmp_path: Path,
) -> None:
    if store.kind != "sqlite":
        pytest.skip("a new data directory is a new record with SQLite only")
    row = records.interaction()
    store.add([Recording(interaction=row)])
    (tmp_path / "srv" / "backups").mkdir(parents=True)
    for words in section("operating.md", title):
        given = [word.replace("/srv/", f"{tmp_path}/srv/") for word in words[1:]]
        if "--erasures" in given:  # onto a machine that has lost its record
            given += ["--data-dir", str(tmp_path / "new")]
        shown = run(*given)
        assert shown.exit_code == 0, (words, shown.output)
    if title == "Backup and restore":
        for where in (tmp_path, tmp_path / "new"):
            back = Store.open(f"sqlite:///{where / 'journeyman.db'}")
            assert back.interaction(row.id) == row
            back.close()
    else:
        assert (tmp_path / "srv" / "new" / "manifest.json").is_file()


def test_the_settings_that_are_taken_over_are_named() -> None:
    text = page("operating.md").split("## Settings")[1].split("\n## ")[0]
    assert all(f"`{name}`" in text for name in settings.RELOADED)


def test_tabby_is_told_the_endpoints_that_there_are() -> None:
    [body] = blocks("quickstart.md", "toml")
    models = tomllib.loads(body)["model"]
    assert {one["http"]["api_endpoint"] for one in models.values()} == {f"{URL}/v1"}
    [continue_] = [
        line for line in page("clients.md").splitlines() if line.strip().startswith("autocomplete:")
    ]
    template = models["completion"]["http"]["prompt_template"]
    assert template.replace("{", "{{{").replace("}", "}}}") in continue_


def test_every_command_group_is_on_a_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    text += (ROOT / "README.md").read_text(encoding="utf-8")
    commands = typer.main.get_group(cli.app).commands
    missing = [
        name for name in commands if not re.search(rf"(journeyman|ops/run)\s+{name}\b", text)
    ]
    assert sorted(set(missing) - {"serve", "improver", "engine"}) == []
