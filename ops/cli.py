"""The command line: `journeyman COMMAND`.

Starts what runs (`up`, `serve`, `improver`), hands what the other packages do to their own
commands (`improve`, `eval`, `import`, `sandbox`), and reads and moves what the store and the
registry hold. Other packages are started by command and never imported. Errors of `ops` become one
line and exit status 1, bad usage and bad settings 2.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from ops import (
    backup,
    doctor,
    export,
    models,
    opinions,
    origins,
    processes,
    reports,
    services,
    swaps,
    trials,
)
from ops import keys as keys_
from ops import settings as settings_
from ops.differences import difference
from ops.erasure import Erased, Eraser, certificate
from ops.errors import NotFound, OpsError, ProcessError, SettingsError
from ops.records import Alias
from ops.registry import Registry
from ops.settings import Settings
from ops.store import Store

app = typer.Typer(
    name="journeyman",
    help="A self-hosted code model that learns on the job.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
adapters = typer.Typer(help="Adapter versions: look at them, put them into service, refuse them.")
interactions = typer.Typer(help="Requests and their answers.")
feedback = typer.Typer(help="What people and programs said of the answers.")
cycles = typer.Typer(help="Improvement cycles.")
model_commands = typer.Typer(help="Models on this disk.")
config_commands = typer.Typer(help="Settings.")
users = typer.Typer(help="People whose data is in the record.")
keys = typer.Typer(help="API keys: who may ask, for what, and how much.")
for name, group in {
    "adapters": adapters,
    "interactions": interactions,
    "feedback": feedback,
    "cycles": cycles,
    "models": model_commands,
    "config": config_commands,
    "users": users,
    "keys": keys,
}.items():
    group.info.no_args_is_help = True
    app.add_typer(group, name=name)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="settings file (TOML)")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="where database, adapters and logs lie")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Limit = Annotated[int, typer.Option(min=1, help="the most lines")]
Reason = Annotated[str, typer.Option(help="why; it is kept with the decision")]
Wait = Annotated[float, typer.Option("--wait", min=0, help="seconds to wait for the swap's proof")]
Share = Annotated[int | None, typer.Option(min=1, help="the most of it; none given: no limit")]
AdapterName = Annotated[str, typer.Argument(help="code@v12, v12 or 12")]

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands whose options are another program's."""

SWAP_WAIT_S = 120.0
HANGING = ("attempts", "executions", "feedback")
"""What an interaction has, as the store counts it."""


def main() -> int:
    """Run the command line and return the exit status."""
    try:
        app(prog_name="journeyman")
    except SettingsError as error:
        print(f"journeyman: {error}", file=sys.stderr)
        return 2
    except OpsError as error:
        print(f"journeyman: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("journeyman: interrupted", file=sys.stderr)
        return 130
    return 0


# --- what runs ------------------------------------------------------------------------------


@app.command()
def up(
    model: Annotated[
        str | None, typer.Option(help="starter, starter-small, a Hub id, or a directory")
    ] = None,
    port: Annotated[int | None, typer.Option(help="port of the server")] = None,
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="address the server listens on")] = None,
    engine_port: Annotated[int | None, typer.Option(help="loopback port of the engine")] = None,
    engine_url: Annotated[
        str | None, typer.Option(help="use this running vLLM instead of starting one")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Start engine, server and improver, and keep them running until Ctrl-C."""
    from ops.up import up as run

    engine = {"model": model, "port": engine_port, "url": engine_url}
    server = {"port": port, "host": host}
    settings = _settings(config, data_dir, engine=engine, server=server)
    raise typer.Exit(run(settings, Console(stderr=True)))


@app.command()
def engine(data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Run the engine alone: vLLM with model and options, as `up` starts it."""
    settings = _settings(config, data_dir)
    build = services.engine_build()
    model = models.resolve(settings.engine.model, say=_say)
    service = services.engine(settings, model, build)
    sys.stdout.flush()
    os.execvpe(service.command[0], [*service.command], {**os.environ, **service.environment})


@app.command()
def serve(data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Run the server alone, against the engine of the settings."""
    _become(_settings(config, data_dir), services.SERVER, [])


@app.command()
def improver(data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Run the improver alone: cycles on their schedule and on request."""
    _become(_settings(config, data_dir), services.IMPROVER, [])


@app.command()
def status(data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False) -> None:
    """Say whether it is learning, what runs, and what answers."""
    settings = _settings(config, data_dir)
    state = processes.read_state(settings.data_dir)
    with _registry(settings) as (store, registry):
        report = reports.status(state, store, registry, settings)
    reports.show(report, as_json=json, text=reports.status_text)
    if state is None:
        raise typer.Exit(3)


@app.command("doctor")
def doctor_(data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False) -> None:
    """Check what an installation needs: device, engine, sandbox, disk, database, ports."""
    checks = doctor.examine(_settings(config, data_dir))
    reports.show(checks, as_json=json, text=reports.checks_text)
    if not all(check.good for check in checks):
        raise typer.Exit(1)


@app.command(context_settings=PASS_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Show the whole journey on real input, against a running system or a new one."""
    from ops.demo import main as run

    raise typer.Exit(run(context.args))


# --- what other packages do -----------------------------------------------------------------


@app.command(context_settings=PASS_ON, add_help_option=False)
def improve(context: typer.Context, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Run one improvement cycle; `--help` after it lists its options."""
    _become(_settings(config, data_dir), services.IMPROVER, ["improve", *context.args])


@app.command("import", context_settings=PASS_ON, add_help_option=False)
def import_(context: typer.Context, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Bring an export (a directory) or another model's interactions (FILE) into the record."""
    settings = _settings(config, data_dir)
    paths = [word for word in context.args if not word.startswith("-")]
    if not paths or not export.is_export(Path(paths[0])):
        _become(settings, services.IMPROVER, ["import", *context.args])
        return
    if unknown := sorted({*context.args} - {paths[0], "--json"}):
        raise typer.BadParameter(f"an export is imported without {unknown[0]}")
    source = Path(paths[0])
    total = export.row_count(export.read_manifest(source))
    with _store(settings) as store, _progress("importing", total) as on_row:
        report = export.read(store, source, on_row=on_row).as_json()
    reports.show(report, as_json="--json" in context.args, text=reports.import_text)


@app.command("eval", context_settings=PASS_ON, add_help_option=False)
def eval_(context: typer.Context, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Put a benchmark to a model: BENCHMARK, --model NAME, --spec KIND, --samples, --limit."""
    _become(_settings(config, data_dir), services.IMPROVER, ["eval", *context.args])


@app.command(context_settings=PASS_ON, add_help_option=False)
def sandbox(context: typer.Context, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Check what isolation this machine offers (check), or run a program in it (run)."""
    settings = _settings(config, data_dir)
    runtime = shlex.join(settings.sandbox.runtime)
    given = ["--runtime", runtime] if runtime else []
    # First the command's own word (check, run), so that what is given by hand comes last and wins.
    _become(settings, services.SANDBOX, [*context.args[:1], *given, *context.args[1:]])


@app.command("export")
def export_(
    target: Annotated[Path, typer.Argument(help="a directory that is made")],
    tenant: Annotated[str | None, typer.Option(help="only what is this tenant's")] = None,
    since: Annotated[
        datetime | None, typer.Option(help="only interactions from then on (UTC)")
    ] = None,
    datasets: Annotated[
        bool, typer.Option("--datasets", help="also the training rows of all cycles, as text")
    ] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Write the record as JSON lines: interactions, executions, feedback, cycles and lineage."""
    settings = _settings(config, data_dir)
    with _store(settings) as store:
        total = sum(store.count()[name] for name in ("interactions", *HANGING))
        with _progress("exporting", total) as on_row:
            manifest = export.write(
                store,
                target,
                tenant=tenant,
                since=since.replace(tzinfo=UTC) if since else None,
                cycles_dir=settings.cycles_dir if datasets else None,
                on_row=on_row,
            )
    reports.show({"directory": target, **manifest}, as_json=json, text=reports.export_text)


@app.command("backup")
def backup_(
    target: Annotated[Path, typer.Argument(help="a directory that is made")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Write everything the installation knows: record, adapters, cycles. The server may run."""
    places = _places(_settings(config, data_dir), config, data_dir)
    with _progress("copying", None) as on_file:
        manifest = backup.write(places, target.resolve(), on_file=on_file)
    report = {
        "directory": target.resolve(),
        "created_at": manifest["created_at"],
        "database": manifest["database"],
        "files": len(manifest["files"]),
    }
    reports.show(report, as_json=json, text=reports.pairs_text)


@app.command("restore")
def restore_(
    source: Annotated[Path, typer.Argument(help="a backup")],
    replace: Annotated[
        bool, typer.Option("--replace", help="also where there is a record already")
    ] = False,
    erasures: Annotated[
        Path | None,
        typer.Option(help="erasures.jsonl of a later export: who was erased stays erased"),
    ] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Put a backup in the place of an installation that does not run."""
    settings = _settings(config, data_dir)
    with processes.only_one(settings.data_dir):
        done = backup.restore(
            source.resolve(),
            _places(settings, config, data_dir),
            policy=settings.erasure.tainted,
            replace=replace,
            certificates=backup.read_certificates(erasures) if erasures else (),
        )
    reports.show(asdict(done), as_json=json, text=reports.pairs_text)


# --- keys -----------------------------------------------------------------------------------


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="who holds it, for logs and limits")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="inference, feedback, admin; may be given again (default: the first two)"
        ),
    ] = None,
    tenant: Annotated[str, typer.Option(help="whose answers it sees")] = "default",
    requests_per_minute: Share = None,
    tokens_per_minute: Share = None,
    executions_per_minute: Annotated[
        int | None, typer.Option(min=0, help="programs of its own; 0: none")
    ] = None,
    as_settings: Annotated[
        bool,
        typer.Option("--settings", help="keep it nowhere; print the settings that admit it"),
    ] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Make an API key and print it, once. Running servers take it within a second."""
    wanted: dict[str, Any] = {
        "tenant": tenant,
        "scopes": tuple(scope or keys_.DEFAULT_SCOPES),
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "executions_per_minute": executions_per_minute,
    }
    try:
        settings_.KeySettings(name=name, sha256="0" * 64, **wanted)
    except ValueError as error:
        raise SettingsError(settings_.problems(error)) from error
    new = keys_.make(name, created_by=_actor(), **wanted)
    if as_settings:
        print(f"# {new.secret}   (shown this once)\n{keys_.as_settings(new.key)}")
        return
    with _store(_settings(config, data_dir)) as store:
        store.add_key(new.key)
    report = {"key": new.secret, **reports.key_row(new.key)}
    reports.show(report, as_json=json, text=reports.new_key_text)


@keys.command("list")
def keys_list(data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False) -> None:
    """List the API keys of the record and of the settings; never a key itself."""
    settings = _settings(config, data_dir)
    with _store(settings) as store:
        rows = reports.key_rows(store, settings)
    reports.show(rows, as_json=json, text=reports.keys_text)


@keys.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(help="the key's name or id")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Make an API key useless for good. Running servers refuse it within a second."""
    settings = _settings(config, data_dir)
    with _store(settings) as store:
        try:
            key = store.revoke_key(name)
        except NotFound as error:
            if name in {key.name for key in settings.server.keys}:
                file = settings_.config_file(config, data_dir)
                raise SettingsError(
                    f"the key {name!r} stands in the settings: take it out of {file}, then "
                    "`journeyman config reload`"
                ) from error
            raise
    reports.show(reports.key_row(key), as_json=json, text=reports.revoked_text)


# --- adapters -------------------------------------------------------------------------------


@adapters.command("list")
def adapters_list(
    data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False
) -> None:
    """List all versions, newest first, and the trial on live traffic that is under way."""
    settings = _settings(config, data_dir)
    with _store(settings) as store:
        rows = reports.adapter_rows(store)
        rules = trials.Rules.among(settings.release.model_dump())
        trial = reports.trial_report(store, rules)
    reports.show(rows, as_json=json, text=reports.adapters_text)
    if trial is not None and not json:
        reports.trial_text(trial)


@adapters.command("show")
def adapters_show(
    name: AdapterName, data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False
) -> None:
    """Show a version: what it is made of, what happened to it, the proofs of its swaps."""
    with _registry(_settings(config, data_dir)) as (store, registry):
        report = reports.adapter_report(store, registry.find(name))
    reports.show(report, as_json=json, text=reports.adapter_text)


@adapters.command("promote")
def adapters_promote(
    name: AdapterName,
    force: Annotated[
        bool, typer.Option("--force", help="also when it was rejected or never examined")
    ] = False,
    reason: Reason = "promoted by hand",
    wait: Wait = SWAP_WAIT_S,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Make a version the champion: `code` answers with it once a server has proved it."""
    with _registry(_settings(config, data_dir)) as (store, registry):
        version = registry.find(name).version
        mark = swaps.mark(store)
        registry.promote(version, actor=_actor(), reason=reason, force=force)
        _await_swap(store, mark, version, wait, json)


@adapters.command("diff")
def adapters_diff(
    older: Annotated[str, typer.Argument(help="code@v11, v11 or 11; base: the base model")],
    newer: AdapterName,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Tell two versions apart: how they were made, and task by task what each can do."""
    with _registry(_settings(config, data_dir)) as (store, registry):
        before = 0 if older == "base" else registry.find(older).version
        found = difference(store, registry, before, registry.find(newer).version)
    reports.show(found, as_json=json, text=reports.difference_text)


@adapters.command("canary")
def adapters_canary(
    name: AdapterName,
    share: Annotated[
        float | None,
        typer.Option(min=0.001, max=0.5, help="of the requests; else release.canary_share"),
    ] = None,
    reason: Reason = "canary by hand",
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Let an examined version answer a share of the requests; what happens there decides."""
    with _registry(_settings(config, data_dir)) as (_, registry):
        adapter = registry.find(name)
        evidence = {} if share is None else {"share": share}
        registry.canary(adapter.version, actor=_actor(), reason=reason, evidence=evidence)
    report = {"name": adapter.name, "version": adapter.version, "state": "canary"}
    reports.show(report, as_json=json, text=reports.given_state_text)


@adapters.command("reject")
def adapters_reject(
    name: AdapterName,
    reason: Reason = "rejected by hand",
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Mark a version as one that shall not go live."""
    with _registry(_settings(config, data_dir)) as (_, registry):
        adapter = registry.find(name)
        registry.reject(adapter.version, actor=_actor(), reason=reason)
    report = {"name": adapter.name, "version": adapter.version, "state": "rejected"}
    reports.show(report, as_json=json, text=reports.given_state_text)


@adapters.command("retain")
def adapters_retain(
    recent: Annotated[int | None, typer.Option(min=1, help="how many of the newest")] = None,
    best: Annotated[
        int | None, typer.Option(min=0, help="how many of the best beside them")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Erase the files of old versions: never of the champion, the way back, or one at work."""
    settings = _settings(config, data_dir)
    keep = settings.improver.adapters
    recent = keep.keep_recent if recent is None else recent
    best = keep.keep_best if best is None else best
    with _registry(settings) as (_, registry):
        if dry_run:
            gone = registry.expendable(keep_recent=recent, keep_best=best)
        else:
            gone = registry.retain(keep_recent=recent, keep_best=best, actor=_actor())
    report = {"dry_run": dry_run, "erased": [adapter.name for adapter in gone]}
    reports.show(report, as_json=json, text=reports.retained_text)


@adapters.command("rollback")
@app.command()
def rollback(
    reason: Reason = "rolled back by hand",
    wait: Wait = SWAP_WAIT_S,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Put the previous champion back; the base model where there was none."""
    with _registry(_settings(config, data_dir)) as (store, registry):
        mark = swaps.mark(store)
        back = registry.rollback(actor=_actor(), reason=reason)
        _await_swap(store, mark, back.version if back else 0, wait, json)


# --- the record -----------------------------------------------------------------------------


@interactions.command("list")
def interactions_list(
    limit: Limit = 20,
    verified: Annotated[
        bool | None, typer.Option("--verified/--failed", help="only those (not) verified")
    ] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """List interactions, newest first."""
    with _store(_settings(config, data_dir)) as store:
        rows = store.interactions(limit=limit, verified=verified)
    reports.show(rows, as_json=json, text=reports.interactions_text)


@interactions.command("show")
def interactions_show(
    interaction_id: Annotated[str, typer.Argument(help="with or without its chatcmpl- prefix")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Show an interaction with its attempts, executions, feedback and pupils."""
    with _store(_settings(config, data_dir)) as store:
        report = reports.interaction_report(store, reports.bare_id(interaction_id))
    reports.show(report, as_json=json, text=reports.interaction_text)


@feedback.command("list")
def feedback_list(
    interaction: Annotated[str | None, typer.Option(help="only on this interaction")] = None,
    metric: Annotated[str | None, typer.Option(help="only of this metric")] = None,
    limit: Limit = 20,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """List feedback, that on the newest interactions first."""
    with _store(_settings(config, data_dir)) as store:
        rows = reports.feedback_rows(store, interaction=interaction, metric=metric, limit=limit)
    reports.show(rows, as_json=json, text=reports.feedback_text)


@feedback.command("add")
def feedback_add(
    interaction_id: Annotated[str, typer.Argument(help="with or without its chatcmpl- prefix")],
    accepted: Annotated[
        bool | None, typer.Option("--accepted/--rejected", help="whether the answer was kept")
    ] = None,
    rating: Annotated[float | None, typer.Option(help="a number; more is better")] = None,
    comment: Annotated[str | None, typer.Option(help="what is wrong, and how to mend it")] = None,
    demonstration: Annotated[
        Path | None, typer.Option(help="file with the code that should have been")
    ] = None,
    user: Annotated[str | None, typer.Option(help="who says so")] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Say something of an answer, through the running server (key: $JOURNEYMAN_API_KEY)."""
    settings = _settings(config, data_dir)
    said = opinions.read(
        accepted=accepted, rating=rating, comment=comment, demonstration=demonstration
    )
    secret = os.environ.get("JOURNEYMAN_API_KEY") or services.api_key(settings).get(
        "JOURNEYMAN_API_KEY"
    )
    rows = opinions.send(
        settings.server_url, reports.bare_id(interaction_id), said, key=secret, user=user
    )
    reports.show(rows, as_json=json, text=reports.sent_text)


@cycles.command("list")
def cycles_list(
    limit: Limit = 20, data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False
) -> None:
    """List improvement cycles, newest first."""
    with _store(_settings(config, data_dir)) as store:
        rows = store.cycles(limit=limit)
    reports.show(rows, as_json=json, text=reports.cycles_text)


@cycles.command("show")
def cycles_show(
    cycle_id: str, data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False
) -> None:
    """Show a cycle: its report, its log, what became of its rows."""
    with _store(_settings(config, data_dir)) as store:
        report = reports.cycle_report(store, cycle_id)
    reports.show(report, as_json=json, text=reports.cycle_text)


@cycles.command("pause")
def cycles_pause(
    cycle_id: str, data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False
) -> None:
    """Hold a cycle back; a running one stops within seconds and keeps what it has done."""
    with _store(_settings(config, data_dir)) as store:
        cycle = store.pause_cycle(cycle_id)
    reports.show(cycle, as_json=json, text=reports.moved_text)


@cycles.command("resume")
def cycles_resume(
    cycle_id: str, data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False
) -> None:
    """Queue a paused or failed cycle; the improver goes on where it was."""
    with _store(_settings(config, data_dir)) as store:
        cycle = store.resume_cycle(cycle_id)
    reports.show(cycle, as_json=json, text=reports.moved_text)


@cycles.command("cancel")
def cycles_cancel(
    cycle_id: str,
    reason: Reason = "cancelled by its operator",
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """End a cycle for good; a running one stops within seconds."""
    with _store(_settings(config, data_dir)) as store:
        cycle = store.cancel_cycle(cycle_id, reason)
    reports.show(cycle, as_json=json, text=reports.moved_text)


@users.command("erase")
def users_erase(
    user: Annotated[str, typer.Argument(help="the `user` of requests and feedback")],
    tenant: Annotated[str | None, typer.Option(help="only in this tenant")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only count")] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Erase all data of a user, take adapters that learned from it out of service; certify it."""
    with _eraser(_settings(config, data_dir)) as eraser:
        erased = eraser.erase(user, actor=_actor(), tenant=tenant, dry_run=dry_run)
    report = {**certificate(erased), "dry_run": dry_run}
    reports.show(report, as_json=json, text=reports.erasure_text)


@users.command("erasures")
def users_erasures(
    data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False
) -> None:
    """List the certificates of all erasures, newest first."""
    with _eraser(_settings(config, data_dir)) as eraser:
        rows = [certificate(Erased(erasure=one)) for one in eraser.certificates()]
    reports.show(rows, as_json=json, text=reports.erasures_text)


# --- models and settings --------------------------------------------------------------------


@model_commands.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="starter, starter-small, a Hub id, or a directory")],
    json: AsJson = False,
) -> None:
    """Make a model ready on this disk, and say where it lies."""
    model = models.resolve(name, say=_say)
    reports.show(models.as_json(model), as_json=json, text=reports.pairs_text)


@config_commands.command("show")
def config_show(
    origin: Annotated[bool, typer.Option("--origin", help="where each value comes from")] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Show all settings as they are in force."""
    file = settings_.config_file(config, data_dir)
    rows = origins.setting_rows(_settings(config, data_dir), file, {"data_dir": data_dir})
    reports.show(
        rows if origin else {row["name"]: row["value"] for row in rows},
        as_json=json,
        text=reports.settings_text if origin else reports.pairs_text,
    )


@config_commands.command("reload")
def config_reload(
    data_dir: DataDir = None, config: ConfigFile = None, json: AsJson = False
) -> None:
    """Let the running server read its settings again: keys, concurrency, log level."""
    settings = _settings(config, data_dir)  # refuses what the server would refuse
    with _store(settings) as store:
        here, alive = socket.gethostname(), swaps.living_servers(store)
        servers = [
            beat
            for beat in store.heartbeats()
            if beat.process in alive and beat.host == here and _is_alive(beat.pid)
        ]
    if not servers:
        raise ProcessError("no server of this record runs on this machine")
    for beat in servers:
        os.kill(beat.pid, signal.SIGHUP)
    report = {"told": [beat.process for beat in servers], "taken_over": settings_.RELOADED}
    reports.show(report, as_json=json, text=reports.reloaded_text)


# --- plumbing -------------------------------------------------------------------------------


def _settings(config: Path | None, data_dir: Path | None, **sections: dict[str, Any]) -> Settings:
    """Read the settings; flags that were not given do not hide what other sources say."""
    given = {
        name: found
        for name, section in sections.items()
        if (found := {key: value for key, value in section.items() if value is not None})
    }
    settings = settings_.load(config, data_dir=data_dir and data_dir.resolve(), **given)
    if config is not None:  # children read the same file
        os.environ["JOURNEYMAN_CONFIG"] = str(config.resolve())
    return settings


@contextmanager
def _store(settings: Settings) -> Iterator[Store]:
    store = Store.open(settings.store_url)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, in a terminal only; yields what to call after each row."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda: progress.advance(bar)


@contextmanager
def _registry(settings: Settings) -> Iterator[tuple[Store, Registry]]:
    with _store(settings) as store:
        yield store, Registry(store, settings.adapters_dir)


@contextmanager
def _eraser(settings: Settings) -> Iterator[Eraser]:
    with _registry(settings) as (store, registry):
        yield Eraser(
            store,
            registry,
            cycles_dir=settings.cycles_dir,
            evaluations_dir=settings.evaluations_dir,
            policy=settings.erasure.tainted,
        )


def _places(settings: Settings, config: Path | None, data_dir: Path | None) -> backup.Places:
    return backup.Places(
        store_url=settings.store_url,
        data_dir=settings.data_dir,
        adapters_dir=settings.adapters_dir,
        cycles_dir=settings.cycles_dir,
        evaluations_dir=settings.evaluations_dir,
        settings_file=settings_.config_file(config, data_dir),
    )


def _become(settings: Settings, command: Sequence[str], arguments: Sequence[str]) -> None:
    """Go on as another package's command, in the same process: signals and status are its own."""
    environment = {**os.environ, **services.environment(settings)}
    elsewhere = any(word.split("=")[0] == "--url" for word in arguments)
    if command == services.IMPROVER and not elsewhere:
        environment |= services.api_key(settings)
    sys.stdout.flush()
    os.execvpe(command[0], [*command, *arguments], environment)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _actor() -> str:
    return f"cli:{os.environ.get('USER') or os.getuid()}"


def _await_swap(store: Store, mark: swaps.Mark, version: int, wait_s: float, json: bool) -> None:
    """Tell what the living servers did about a move of the alias.

    Raises:
        RegistryError: a server refused it.
    """
    what = f"code@v{version}" if version else "the base model"
    result = swaps.wait(store, mark, version, wait_s)
    champion = store.aliases().get(Alias.CHAMPION, 0)
    report = {"version": version, "champion": champion, **reports.swap_report(result)}
    if json:
        reports.show(report, as_json=True, text=reports.pairs_text)
    elif not result.servers:
        print(f"`code` means {what}. No server runs: the next one to start takes it up.")
    else:
        for receipt in result.receipts:
            print(reports.receipt_line(receipt))
        for server in result.silent:
            print(
                f"{server}: no proof after {wait_s:.0f} s; `journeyman adapters show` has it later"
            )
    result.raise_if_refused()


if __name__ == "__main__":
    sys.exit(main())
