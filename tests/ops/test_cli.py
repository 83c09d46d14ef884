"""The command line against a real store and registry; what it starts is only looked at."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner, Result

from ops import cli, doctor, keys, models, processes, services, swaps
from ops.doctor import Check
from ops.errors import Conflict, NotFound, RegistryError, SettingsError
from ops.models import Model
from ops.records import Adapter, Alias, CycleState, Heartbeat, Metric, SwapReceipt, new_id, now
from ops.registry import Registry
from ops.settings import load
from ops.store import Recording, Store
from tests.ops import records

SERVER = "server@test:8000"

Run = Callable[..., Result]


@pytest.fixture
def run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on a data directory of its own."""
    for name in list(os.environ):
        if name.startswith("JOURNEYMAN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JOURNEYMAN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "240")
    if store.kind == "postgresql":
        monkeypatch.setenv("JOURNEYMAN_STORE__URL", store.url)
    runner = CliRunner()

    def invoke(*arguments: str) -> Result:
        return runner.invoke(cli.app, list(arguments), catch_exceptions=False)

    return invoke


@pytest.fixture
def main(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a command as its user would: exit status, and what went to standard error."""

    def invoke(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["journeyman", *arguments])
        try:
            status = cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return status, capsys.readouterr().err

    return invoke


@pytest.fixture
def adapter(registry: Registry) -> Adapter:
    return add(registry, "a")


def add(registry: Registry, content: str) -> Adapter:
    def write(draft: Path) -> None:
        (draft / "adapter_model.safetensors").write_text(content)

    return registry.add(
        write,
        base_model="base",
        base_sha256="ff",
        rank=16,
        recipe="ilf",
        cycle_id=None,
        lineage={},
        actor="test",
    )


@pytest.fixture
def server(store: Store) -> Iterator[list[SwapReceipt]]:
    """Something that answers every move of the alias with a receipt, as a server does."""
    store.beat(Heartbeat(process=SERVER, at=now(), pid=1, host="test"))
    written: list[SwapReceipt] = []
    stop = threading.Event()

    def follow() -> None:
        at = store.aliases().get(Alias.CHAMPION, 0)
        while not stop.wait(0.02):
            champion = store.aliases().get(Alias.CHAMPION, 0)
            if champion == at:
                continue
            receipt = SwapReceipt(
                id=new_id(),
                at=now(),
                server=SERVER,
                version=champion,
                from_version=at,
                phases_s={"load": 0.08, "probe": 0.3},
                probe={"engine_shift": 0.125},
                accepted=True,
                reason="differs from the base",
            )
            store.add_receipt(receipt)
            written.append(receipt)
            at = champion

    thread = threading.Thread(target=follow)
    thread.start()
    yield written
    stop.set()
    thread.join()


# --- adapters -------------------------------------------------------------------------------


def test_old_versions_are_erased_when_asked_for(run: Run, adapter: Adapter) -> None:
    assert "would be erased: none" in run("adapters", "retain", "--dry-run").stdout
    assert "erased: none" in run("adapters", "retain", "--recent", "1", "--best", "0").stdout
    assert run("adapters", "retain", "--recent", "0").exit_code == 2


def test_adapters_are_listed_and_shown(run: Run, adapter: Adapter) -> None:
    assert "code@v1" in run("adapters", "list").stdout
    rows = json.loads(run("adapters", "list", "--json").stdout)
    assert [(row["name"], row["state"], row["aliases"]) for row in rows] == [
        ("code@v1", "built", [])
    ]
    assert "trained" in run("adapters", "show", "v1").stdout
    assert "made of 0 rows" in run("adapters", "show", "v1").stdout
    shown = json.loads(run("adapters", "show", "1", "--json").stdout)
    assert shown["adapter"]["sha256"] == adapter.sha256
    assert shown["transitions"][0]["to_state"] == "built"


def test_an_empty_list_says_what_answers(run: Run) -> None:
    assert "the base model" in run("adapters", "list").stdout
    assert json.loads(run("adapters", "list", "--json").stdout) == []


def test_promotion_without_a_server_is_taken_up_later(
    run: Run, registry: Registry, adapter: Adapter
) -> None:
    shown = run("adapters", "promote", "code@v1", "--force")
    assert "No server runs" in shown.stdout
    champion = registry.at(Alias.CHAMPION)
    assert champion is not None
    assert champion.version == 1


def test_promotion_and_rollback_wait_for_the_proof(
    run: Run, registry: Registry, adapter: Adapter, server: list[SwapReceipt]
) -> None:
    shown = run("adapters", "promote", "v1", "--force", "--wait", "10")
    assert shown.exit_code == 0
    assert f"{SERVER} answers with code@v1" in shown.stdout
    assert "0.125 nats a token (load 0.08 s, probe 0.30 s)" in shown.stdout
    back = run("rollback", "--wait", "10", "--json", "--reason", "worse")
    report = json.loads(back.stdout)
    assert (report["version"], report["champion"]) == (0, 0)
    assert [receipt["version"] for receipt in report["receipts"]] == [0]
    assert registry.at(Alias.CHAMPION) is None


def test_a_server_that_says_nothing_is_named(run: Run, store: Store, adapter: Adapter) -> None:
    store.beat(Heartbeat(process=SERVER, at=now(), pid=1, host="test"))
    shown = run("adapters", "promote", "v1", "--force", "--wait", "0.1")
    assert f"{SERVER}: no proof after 0 s" in shown.stdout


def test_a_refusal_is_an_error_with_the_reason(store: Store) -> None:
    store.beat(Heartbeat(process=SERVER, at=now(), pid=1, host="test"))
    mark = swaps.mark(store)
    receipt = SwapReceipt(
        id=new_id(),
        at=now(),
        server=SERVER,
        version=3,
        from_version=0,
        accepted=False,
        reason="the adapter changes nothing",
        phases_s={},
    )
    store.add_receipt(receipt)
    result = swaps.wait(store, mark, 3, timeout_s=5)
    with pytest.raises(RegistryError, match="changes nothing"):
        result.raise_if_refused()


def test_a_server_that_died_is_not_waited_for(store: Store) -> None:
    old = now() - 2 * timedelta(seconds=swaps.ALIVE_S)
    store.beat(Heartbeat(process=SERVER, at=old, pid=1, host="test"))
    began = time.monotonic()
    assert swaps.wait(store, swaps.mark(store), 1, timeout_s=60).servers == ()
    assert time.monotonic() - began < 5


def test_rejection_is_recorded(run: Run, registry: Registry, adapter: Adapter) -> None:
    assert "rejected" in run("adapters", "reject", "v1", "--reason", "too timid").stdout
    shown = json.loads(run("adapters", "show", "v1", "--json").stdout)
    assert shown["transitions"][-1]["reason"] == "too timid"
    assert shown["transitions"][-1]["actor"].startswith("cli:")


def test_a_canary_is_made_and_shown_with_what_it_does(
    run: Run, registry: Registry, store: Store, adapter: Adapter
) -> None:
    evidence = {"text": "PROMOTE: better than the champion."}
    registry.examined(1, actor="gate", reason="better", evidence=evidence)
    assert "code@v1 is the canary" in run("adapters", "canary", "v1", "--share", "0.25").stdout
    assert store.aliases() == {Alias.CANARY: 1}
    listed = run("adapters", "list").stdout
    assert "code@v1 is the canary, answers 25% of the requests (0 of 200 live requests)" in listed
    assert "code@v1 answered 0 requests, the base model 0." in listed
    assert "PROMOTE: better than the champion." in run("adapters", "show", "v1").stdout
    assert run("adapters", "canary", "v1", "--share", "0.9").exit_code == 2


def test_two_versions_are_told_apart(run: Run, registry: Registry, adapter: Adapter) -> None:
    add(registry, "b")
    assert "code@v1 is built: ilf, rank 16" in run("adapters", "diff", "v1", "v2").stdout
    found = json.loads(run("adapters", "diff", "base", "v2", "--json").stdout)
    assert (found["from"], found["to"]) == ("the base model", "code@v2")
    with pytest.raises(NotFound):
        run("adapters", "diff", "v1", "v9")


# --- the record -----------------------------------------------------------------------------


def test_ids_stay_whole_however_narrow_the_window_is(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = records.interaction()
    store.add([Recording(interaction=row)])
    monkeypatch.setenv("COLUMNS", "40")
    assert row.id in run("interactions", "list").stdout
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    assert row.id in run("interactions", "list").stdout


def test_interactions_and_feedback_are_listed_and_shown(run: Run, store: Store) -> None:
    good, bad = records.interaction(), records.interaction(verified=False)
    attempt = records.attempt(bad)
    execution = records.execution(attempt, verdict="WRONG", verified=False, passed=0)
    store.add(
        [
            Recording(interaction=good),
            Recording(interaction=bad, attempts=[attempt], executions=[execution]),
        ]
    )
    store.put_feedback(
        [records.comment(bad), records.comment(good, metric=Metric.RATING, value=4.0)]
    )
    listed = run("interactions", "list").stdout
    assert good.id in listed
    assert bad.id in listed
    failed = json.loads(run("interactions", "list", "--failed", "--json").stdout)
    assert [row["id"] for row in failed] == [bad.id]

    shown = run("interactions", "show", f"chatcmpl-{bad.id}").stdout
    assert "Add two numbers." in shown
    assert "WRONG, 0 of 1" in shown
    assert "It ignores negatives." in shown

    rows = json.loads(run("feedback", "list", "--json").stdout)
    assert {row["metric"] for row in rows} == {"comment", "rating"}
    assert len(json.loads(run("feedback", "list", "--json", "--metric", "comment").stdout)) == 1
    only = json.loads(run("feedback", "list", "--json", "--interaction", good.id).stdout)
    assert [row["value"] for row in only] == [4.0]
    assert "It ignores negatives." in run("feedback", "list").stdout


def test_text_that_looks_like_markup_is_printed_as_it_is(run: Run, store: Store) -> None:
    store.add(
        [
            Recording(
                interaction=records.interaction(
                    messages=[{"role": "user", "content": "sort [red]xs[/red] [/nothing]"}]
                )
            )
        ]
    )
    assert "sort [red]xs[/red] [/nothing]" in run("interactions", "list").stdout


def test_cycles_are_listed_and_shown(run: Run, store: Store) -> None:
    cycle = records.cycle(report={"rows": 3})
    store.add_cycle(cycle)
    assert cycle.id in run("cycles", "list").stdout
    shown = json.loads(run("cycles", "show", cycle.id, "--json").stdout)
    assert shown["cycle"]["report"] == {"rows": 3}
    assert shown["rows_dropped"] == {}
    assert '"rows": 3' in run("cycles", "show", cycle.id).stdout


def test_a_cycle_is_paused_resumed_and_cancelled(run: Run, store: Store) -> None:
    cycle = records.cycle(state=CycleState.RUNNING)
    store.add_cycle(cycle)
    assert "cycles resume" in run("cycles", "pause", cycle.id).stdout
    assert store.cycle(cycle.id).state is CycleState.PAUSED
    assert run("cycles", "resume", cycle.id).exit_code == 0
    assert store.cycle(cycle.id).state is CycleState.QUEUED
    assert run("cycles", "cancel", cycle.id, "--reason", "wrong tables").exit_code == 0
    ended = store.cycle(cycle.id)
    assert (ended.state, ended.error) == (CycleState.CANCELLED, "wrong tables")
    for verb in ("pause", "resume", "cancel"):
        with pytest.raises(Conflict, match="is cancelled"):
            run("cycles", verb, cycle.id)
        with pytest.raises(NotFound, match="no cycle x"):
            run("cycles", verb, "x")


# --- what runs ------------------------------------------------------------------------------


def test_status_without_a_system_says_so(run: Run) -> None:
    shown = run("status")
    assert shown.exit_code == 3
    assert "no `journeyman up` runs" in shown.stdout
    assert json.loads(run("status", "--json").stdout)["up"] is None


def test_status_of_a_system(run: Run, tmp_path: Path, store: Store) -> None:
    state = {
        "pid": 1,
        "url": "http://127.0.0.1:8000",
        "ready_at": "2026-11-21T12:00:00+00:00",
        "model": {"name": "Tiny"},
        "engine": "vLLM 0.32.0 on cpu",
        "sandbox": "namespaces",
        "services": [
            {"name": "engine", "state": "ready", "pid": 2, "restarts": 0, "log": "/x/engine.log"}
        ],
    }
    engines = {"engines": {"serving": 2, "all": 3}}
    store.beat(Heartbeat(process=SERVER, at=now(), pid=1, host="test", state=engines))
    with processes.only_one(tmp_path):
        processes.write_state(tmp_path, state)
        shown = run("status")
    assert shown.exit_code == 0
    for word in (
        "2 of 3 engines answer",
        "http://127.0.0.1:8000",
        "Tiny",
        "/x/engine.log",
        SERVER,
        "the base model",
        "/console",
    ):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "becomes"),
    [
        (["serve"], ("server",)),
        (["improver"], ("improver",)),
        (
            ["improve", "--recipe", "ilf", "--resume", "x"],
            ("improver", "improve", "--recipe", "ilf", "--resume", "x"),
        ),
        (["import", "rows.jsonl", "--format", "ilf"], ("improver", "import", "rows.jsonl")),
        (["improve", "--help"], ("improver", "improve", "--help")),
        (["sandbox", "check", "--json"], ("sandbox", "check", "--json")),
    ],
)
def test_other_packages_are_started_by_command(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    becomes: tuple[str, ...],
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *given: seen.append(given))
    assert run(*arguments, "--data-dir", str(tmp_path / "else")).exit_code == 0
    [(_, command, environment)] = seen
    assert tuple(command[1:3]) == ("-m", becomes[0])
    assert tuple(command[3 : 2 + len(becomes)]) == becomes[1:]
    assert environment["JOURNEYMAN_DATA_DIR"] == str(tmp_path / "else")


def test_the_engine_alone_is_what_up_would_start(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    build = services.EngineBuild(device="cpu", version="0.32.0")
    model = Model(name="Tiny", directory=tmp_path, sha256="ff", origin="here")
    monkeypatch.setattr(services, "engine_build", lambda: build)
    monkeypatch.setattr(models, "resolve", lambda name, say: model)
    monkeypatch.setattr(os, "execvpe", lambda *given: seen.append(given))
    assert run("engine").exit_code == 0
    [(_, command, environment)] = seen
    wanted = services.engine(load(), model, build)
    assert tuple(command) == wanted.command
    assert wanted.environment.items() <= environment.items()


def test_the_operator_s_runtime_goes_along_and_one_given_by_hand_wins(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *given: seen.append(given))
    monkeypatch.setenv("JOURNEYMAN_SANDBOX__RUNTIME", '["runsc", "--root", "/a b", "do"]')
    assert run("sandbox", "check", "--runtime", "mine").exit_code == 0
    [(_, command, _)] = seen
    runtime = ["--runtime", "runsc --root '/a b' do"]
    assert list(command[3:]) == ["check", *runtime, "--runtime", "mine"]


@pytest.mark.parametrize("command", [services.SERVER, services.IMPROVER, services.SANDBOX])
def test_every_command_names_a_module_that_is_there(command: tuple[str, ...]) -> None:
    assert command[1] == "-m"
    assert importlib.util.find_spec(f"{command[2]}.__main__") is not None


def test_the_engine_s_command_names_a_module_that_is_there() -> None:
    package, *rest = services.ENGINE[2].split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    # Without importing vLLM, which takes its time.
    assert Path(spec.origin).parent.joinpath(*rest).with_suffix(".py").is_file()


def test_the_doctor_s_word_is_the_exit_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Check(name="sandbox", good=True, found="tier namespaces")
    monkeypatch.setattr(doctor, "_sandbox", lambda runtime: good)
    monkeypatch.setattr(doctor, "_ports", lambda settings: [])
    shown = run("doctor", "--json")
    names = [check["name"] for check in json.loads(shown.stdout)]
    assert {"python", "device", "engine", "sandbox", "database", "keys"} <= set(names)
    monkeypatch.setenv("JOURNEYMAN_SERVER__HOST", "0.0.0.0")
    assert "→ the server would not start" in run("doctor").stdout
    run("keys", "create", "ide")
    assert "1 are good" in run("doctor").stdout
    bad = Check(name="sandbox", good=False, found="nothing isolates", remedy="mend it")
    monkeypatch.setattr(doctor, "_sandbox", lambda runtime: bad)
    shown = run("doctor")
    assert shown.exit_code == 1
    assert "→ mend it" in shown.stdout


# --- settings and errors --------------------------------------------------------------------


def test_settings_are_shown_with_their_origin(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "journeyman.toml").write_text(
        '[server]\nport = 9000\n[store]\nurl = "postgresql://me:hunter2@db/x"\n'
    )
    monkeypatch.setenv("JOURNEYMAN_ENGINE__MODEL", "starter-small")
    monkeypatch.delenv("JOURNEYMAN_STORE__URL", raising=False)
    rows = {
        row["name"]: row for row in json.loads(run("config", "show", "--origin", "--json").stdout)
    }
    assert rows["server.port"]["value"] == 9000
    assert rows["server.port"]["origin"].endswith("journeyman.toml")
    assert rows["engine.model"]["origin"] == "environment (JOURNEYMAN_ENGINE__MODEL)"
    assert rows["server.host"]["origin"] == "default"
    assert rows["store.url"]["value"] == "postgresql://me:***@db/x"
    assert "hunter2" not in run("config", "show").stdout


def test_no_secret_is_shown_among_the_settings(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNEYMAN_STORE__URL", raising=False)
    table = run("keys", "create", "ide", "--settings").stdout
    extra = ["--hf-token", "s3cret-1", "--api-key=s3cret-2", "--seed", "7"]
    (tmp_path / "journeyman.toml").write_text(
        "[store]\nurl = 'postgresql://me:s3cret-3/@x@db/y?sslpassword=s3cret-4&x=1'\n"
        f"[engine]\nextra_args = {extra}\n{table}"
    )
    for form in ([], ["--origin"], ["--json"], ["--json", "--origin"]):
        shown = run("config", "show", *form).stdout
        assert "s3cret" not in shown
        assert not re.search(r"[0-9a-f]{64}", shown)
        assert "ide" in shown
    values = json.loads(run("config", "show", "--json").stdout)
    assert values["store.url"] == "postgresql://me:***@db/y?sslpassword=***&x=1"
    assert values["engine.extra_args"] == ["--hf-token", "***", "--api-key=***", "--seed", "7"]


def test_a_section_given_as_json_is_named_as_the_origin(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNEYMAN_SERVER", '{"port": 9000}')
    shown = json.loads(run("config", "show", "--origin", "--json").stdout)
    rows = {row["name"]: row["origin"] for row in shown}
    assert rows["server.port"] == "environment (JOURNEYMAN_SERVER)"
    assert rows["server.host"] == "default"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["adapters", "show", "code@v9"], "no adapter version 9"),
        (["adapters", "show", "nonsense"], "versions are named code@v1"),
        (["rollback"], "nothing to roll back"),
        (["interactions", "show", "x"], "no interaction x"),
        (["feedback", "list", "--interaction", "x"], "no interaction x"),
        (["cycles", "show", "x"], "no cycle x"),
        (["models", "get", "nonsense"], "starter"),
    ],
)
def test_errors_are_one_line(
    main: Callable[..., tuple[int, str]], arguments: list[str], words: str
) -> None:
    status, said = main(*arguments)
    assert status == 1
    assert said.startswith("journeyman: ")
    assert words in said
    assert "Traceback" not in said


def test_bad_usage_and_bad_settings_are_status_2(
    main: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main("up", "--prot", "1")[0] == 2
    assert main("nonsense")[0] == 2
    monkeypatch.setenv("JOURNEYMAN_SERVER__PORT", "many")
    status, said = main("adapters", "list")
    assert status == 2
    assert "server.port" in said


def test_flags_reach_the_settings_and_hide_nothing(
    main: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("ops.up.up", lambda settings, console: seen.append(settings) or 0)
    monkeypatch.setenv("JOURNEYMAN_ENGINE__PORT", "9100")
    assert main("up", "--model", "starter-small", "--port", "9000")[0] == 0
    [settings] = seen
    assert (settings.engine.model, settings.engine.port) == ("starter-small", 9100)
    assert settings.server.port == 9000


# --- exports --------------------------------------------------------------------------------


def test_an_export_is_written_and_taken_in_again(run: Run, store: Store, tmp_path: Path) -> None:
    row = records.interaction()
    store.add([Recording(interaction=row)])
    out = tmp_path / "out"
    shown = run("export", str(out), "--since", "2020-01-01")
    assert "1  interactions.jsonl" in shown.stdout
    store.delete([row.id])
    assert "imported: 1 interactions" in run("import", str(out)).stdout
    assert store.interaction(row.id) == row
    again = json.loads(run("import", str(out), "--json").stdout)
    assert again["known_already"] == {"interactions": 1}


def test_a_directory_that_is_no_export_is_refused(
    main: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    assert "is no export" in main("import", str(tmp_path))[1]
    assert main("import", str(tmp_path), "--format", "ilf")[0] == 2


def test_a_backup_is_written_and_restored(
    run: Run, main: Callable[..., tuple[int, str]], store: Store, tmp_path: Path
) -> None:
    if store.kind != "sqlite":
        pytest.skip("a new data directory is a new record with SQLite only")
    row = records.interaction()
    store.add([Recording(interaction=row)])
    out = tmp_path / "backup"
    assert json.loads(run("backup", str(out), "--json").stdout)["database"] == "sqlite"
    assert main("restore", str(out))[0] == 1  # there is a record already
    new = ["--data-dir", str(tmp_path / "new")]
    assert json.loads(run("restore", str(out), *new, "--json").stdout)["record"] == "sqlite"
    assert row.id in run("interactions", "list", *new).stdout
    with processes.only_one(tmp_path):
        status, said = main("restore", str(out), "--replace")
    assert (status, "journeyman: " in said) == (1, True)


# --- keys -----------------------------------------------------------------------------------


def test_a_key_is_made_listed_and_revoked(run: Run, store: Store) -> None:
    made = json.loads(
        run("keys", "create", "ide", "--scope", "inference", "--tenant", "t", "--json").stdout
    )
    [kept] = store.api_keys()
    assert kept.sha256 == keys.digest(made["key"])
    assert (kept.scopes, kept.tenant) == (["inference"], "t")
    second = run("keys", "create", "ci", "--requests-per-minute", "30").stdout
    for form in ([], ["--json"]):
        listed = run("keys", "list", *form).stdout
        assert "ide" in listed
        assert "ci" in listed
        for secret in (made["key"], second.split()[0], kept.sha256):
            assert secret not in listed
    with pytest.raises(Conflict, match="already"):
        run("keys", "create", "ide")
    assert "revoked" in run("keys", "revoke", "ide").stdout
    assert run("keys", "create", "ide").exit_code == 0
    with pytest.raises(NotFound, match="no key 'none'"):
        run("keys", "revoke", "none")


def test_keys_of_the_settings_are_shown_and_not_revoked_here(run: Run, tmp_path: Path) -> None:
    printed = run("keys", "create", "ide", "--settings", "--executions-per-minute", "0").stdout
    (tmp_path / "journeyman.toml").write_text(printed)
    [row] = json.loads(run("keys", "list", "--json").stdout)
    assert (row["name"], row["kept_in"], row["executions_per_minute"]) == ("ide", "settings", 0)
    assert "in the settings" in run("keys", "list").stdout
    with pytest.raises(SettingsError, match="take it out of"):
        run("keys", "revoke", "ide")


def test_no_key_means_loopback(run: Run) -> None:
    assert "loopback only" in run("keys", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "ide", "--tenant", "a b"], "tenant: "),
        (["create", "x" * 65], "name: "),
    ],
)
def test_a_key_that_the_settings_would_refuse_is_refused(
    main: Callable[..., tuple[int, str]], arguments: list[str], words: str
) -> None:
    status, said = main("keys", *arguments)
    assert (status, words in said) == (2, True)
    assert main("keys", "create", "ide", "--scope", "root")[0] == 2


# --- feedback and reloading -----------------------------------------------------------------


class _Feedback(http.server.BaseHTTPRequestHandler):
    """Takes feedback on one interaction, as the server does."""

    seen: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.headers["Authorization"], body))
        known = body["inference_id"] == "known"
        answer = {"feedback_id": "f1"} if known else {"error": {"message": "no interaction x"}}
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch, run: Run) -> Iterator[list[Any]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Feedback)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JOURNEYMAN_SERVER__PORT", str(server.server_address[1]))
    _Feedback.seen.clear()
    yield _Feedback.seen
    server.shutdown()
    server.server_close()


def test_feedback_is_said_through_the_server_with_the_installation_s_own_key(
    run: Run, tmp_path: Path, listener: list[Any]
) -> None:
    better = tmp_path / "better.py"
    better.write_text("x = 1\n")
    said = ["--rejected", "--comment", "off by one", "--demonstration", str(better)]
    shown = run("feedback", "add", "chatcmpl-known", *said, "--user", "ann")
    assert "kept f1: accepted False" in shown.stdout
    assert {key for key, _ in listener} == {f"Bearer {keys.own(tmp_path)}"}
    bodies = [body for _, body in listener]
    assert {body["metric_name"]: body["value"] for body in bodies} == {
        "accepted": False,
        "comment": "off by one",
        "demonstration": "x = 1\n",
    }
    assert {body["user"] for body in bodies} == {"ann"}


def test_feedback_that_is_refused_says_why(
    main: Callable[..., tuple[int, str]], tmp_path: Path, listener: list[Any]
) -> None:
    assert main("feedback", "add", "x", "--accepted") == (
        1,
        "journeyman: the server refuses: no interaction x\n",
    )
    assert "nothing is said" in main("feedback", "add", "known")[1]
    assert "cannot read" in main("feedback", "add", "x", "--demonstration", str(tmp_path))[1]
    assert len(listener) == 1


def test_feedback_without_a_server_says_how_to_start_one(
    main: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("JOURNEYMAN_SERVER__PORT", str(taken.getsockname()[1]))
        status, said = main("feedback", "add", "x", "--accepted")
    assert (status, "`journeyman up` starts one" in said) == (1, True)


def test_reloading_needs_a_server(main: Callable[..., tuple[int, str]], store: Store) -> None:
    assert "no server of this record" in main("config", "reload")[1]
    store.beat(Heartbeat(process=SERVER, at=now(), pid=os.getpid(), host="another"))
    assert "no server of this record" in main("config", "reload")[1]


def test_a_running_server_is_told_to_reload(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *given: told.append(given))
    beat = Heartbeat(process=SERVER, at=now(), pid=4242, host=socket.gethostname())
    store.beat(beat)
    assert f"{SERVER} was told" in run("config", "reload").stdout
    assert told[-1] == (4242, signal.SIGHUP)


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, below in command.commands.items():
        yield from leaves(below, (*path, name))


RUNS = {"up", "engine", "serve", "improver"}
"""They go on until they are stopped."""


def test_whatever_prints_data_prints_json_too() -> None:
    silent = [
        name
        for name, command in leaves(typer.main.get_command(cli.app))
        if not command.context_settings.get("ignore_unknown_options")  # another program's
        and not any("--json" in getattr(one, "opts", ()) for one in command.params)
    ]
    assert set(silent) == RUNS


def test_completion_can_be_shown(main: Callable[..., tuple[int, str]]) -> None:
    environment = os.environ | {
        "_JOURNEYMAN_COMPLETE": "complete_bash",
        "COMP_WORDS": "journeyman adap",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-m", "ops.cli"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["adapters"], done.stderr


# --- users ----------------------------------------------------------------------------------


def test_users_are_erased_with_a_certificate(run: Run, store: Store) -> None:
    for user in ("ann", "bob"):
        store.add([Recording(interaction=records.interaction(user=user))])
    dry = run("users", "erase", "ann", "--dry-run")
    assert "would erase: 1 interactions" in dry.stdout
    assert store.count_interactions() == 2
    erased = json.loads(run("users", "erase", "ann", "--json").stdout)
    assert (erased["counts"]["interactions"], erased["already"]) == (1, False)
    assert erased["actor"].startswith("cli:")
    assert [row.user for row in store.interactions()] == ["bob"]
    again = run("users", "erase", "ann")
    assert again.stdout.startswith("nothing is left to erase")
    assert erased["id"] in again.stdout
    (listed,) = json.loads(run("users", "erasures", "--json").stdout)
    assert listed["id"] == erased["id"]
    assert erased["id"] in run("users", "erasures").stdout


def test_users_that_are_unknown_or_unclear_are_refused(
    main: Callable[..., tuple[int, str]], store: Store
) -> None:
    for tenant in ("one", "two"):
        interaction = records.interaction(user="ann", tenant=tenant)
        store.add([Recording(interaction=interaction)])
    assert main("users", "erase", "carol") == (1, "journeyman: no user 'carol'\n")
    status, said = main("users", "erase", "ann")
    assert (status, "one, two" in said) == (1, True)
    assert main("users", "erase", "ann", "--tenant", "three")[0] == 1
    assert main("users", "erase")[0] == 2
    assert store.count_interactions() == 2
