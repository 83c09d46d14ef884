"""What the command line prints: rows out of the store, as tables for people or JSON for programs.

Everything here reads and renders; nothing is changed. A report is made of plain values first, so
that both forms show the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from ops import learning, swaps, trials
from ops.doctor import Check
from ops.records import (
    Adapter,
    AdapterState,
    Alias,
    ApiKey,
    Cycle,
    CycleState,
    Feedback,
    Interaction,
    SwapReceipt,
    now,
)
from ops.registry import Registry, lineage
from ops.settings import Settings
from ops.store import Store

Json = dict[str, Any]

WIDEST = 10_000
"""Columns of a table that nobody looks at in a terminal."""


def show(value: Any, *, as_json: bool, text: Callable[[Any], None]) -> None:
    """Print a report."""
    if as_json:
        print(json.dumps(plain(value), indent=1, ensure_ascii=False))  # noqa: T201
    else:
        text(value)


def plain(value: Any) -> Any:
    """Return a value as JSON knows it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (StrEnum, Path)):
        return str(value)
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    return value


# --- status ---------------------------------------------------------------------------------


def status(state: Json | None, store: Store, registry: Registry, settings: Settings) -> Json:
    """Return what runs (None: no `journeyman up`), what answers, what is learned and recorded."""
    champion = registry.at(Alias.CHAMPION)
    improver = settings.improver
    thresholds = {
        "feedback": improver.after_feedback,
        "failures": improver.after_failures,
        "accepted": improver.after_accepted,
    }
    return {
        "up": state,
        "console": f"{settings.server_url}/console",
        "alive": [
            {
                "process": beat.process,
                "pid": beat.pid,
                "seen_s_ago": _seconds_ago(beat.at),
                "engines": beat.state.get("engines"),
            }
            for beat in store.heartbeats()
            if now() - beat.at < timedelta(seconds=swaps.ALIVE_S)
        ],
        "champion": champion.name if champion else None,
        "aliases": {str(alias): version for alias, version in store.aliases().items()},
        "record": store.count(),
        "learning": learning.learning(
            store, thresholds=thresholds, schedule=improver.schedule, at=now()
        ),
    }


def status_text(report: Json) -> None:
    """Print a status: first whether it learns, then what runs."""
    for line in learning.lines(report["learning"], now()):
        _print(line)
    state = report["up"]
    if state is None:
        _print("no `journeyman up` runs on this data directory")
    else:
        ready = f"ready since {state['ready_at']}" if state["ready_at"] else "starting"
        _print(f"{state['url']}  {ready}  (process {state['pid']})")
        _print(f"console {report['console']}")
        _print(f"model {state['model']['name']}, engine {state['engine']}")
        _print(f"sandbox {state['sandbox']}")
        _table(
            ["service", "state", "process", "restarts", "log"],
            (
                [child["name"], child["state"], child["pid"], child["restarts"], child["log"]]
                for child in state["services"]
            ),
        )
    for beat in report["alive"]:
        engines = beat["engines"]
        words = f", {engines['serving']} of {engines['all']} engines answer" if engines else ""
        _print(f"alive: {beat['process']} ({beat['seen_s_ago']:.0f} s ago){words}")
    _print(f"`code` means {report['champion'] or 'the base model'}")
    _print(", ".join(f"{count} {what}" for what, count in report["record"].items()))


# --- adapters -------------------------------------------------------------------------------


def adapter_rows(store: Store) -> list[Json]:
    """Return every adapter with the aliases that point at it."""
    at: dict[int, list[str]] = {}
    for alias, version in store.aliases().items():
        at.setdefault(version, []).append(str(alias))
    return [
        {"name": adapter.name, "aliases": at.get(adapter.version, []), **asdict(adapter)}
        for adapter in store.adapters()
    ]


def adapters_text(rows: Sequence[Json]) -> None:
    """Print the adapters."""
    if not rows:
        _print("no adapter yet: `code` means the base model")
        return
    _table(
        ["adapter", "state", "alias", "made", "recipe", "rank", "sha256", "cycle"],
        (
            [
                row["name"],
                f"{row['state']}, tainted" if row["tainted_by"] else row["state"],
                ", ".join(row["aliases"]),
                _time(row["created_at"]),
                row["recipe"],
                row["rank"],
                row["sha256"][:12],
                row["cycle_id"] or "",
            ]
            for row in rows
        ),
    )


def trial_report(store: Store, rules: trials.Rules) -> Json | None:
    """Return the trial on live traffic that is under way, with what it says so far."""
    trial = trials.current(store, rules)
    if trial is None:
        return None
    elapsed_s = max(0.0, (now() - trial.since).total_seconds())
    found = trials.judge(store, trial, rules, elapsed_s=elapsed_s)
    return {
        "kind": str(trial.kind),
        "version": trial.version,
        "against": trial.against,
        "share": trial.share,
        "since": trial.since,
        "reason": found.reason,
        "numbers": found.numbers,
    }


def trial_text(trial: Json) -> None:
    """Print a trial."""
    what = "the canary, answers" if trial["kind"] == "canary" else "watched; the one before answers"
    share = f"{trial['share']:.0%} of the requests"
    _print(f"code@v{trial['version']} is {what} {share} ({trial['reason']})")
    _print(trials.describe(trial["numbers"]))


def adapter_report(store: Store, adapter: Adapter) -> Json:
    """Return all that is known of an adapter."""
    history = store.transitions(adapter.version)
    examined = [t.evidence.get("text") for t in history if t.to_state is AdapterState.EXAMINED]
    return {
        "adapter": {"name": adapter.name, **asdict(adapter)},
        "made_of": _made_of(store, adapter),
        "decision": examined[-1] if examined else None,
        "transitions": [asdict(change) for change in history],
        "swaps": [asdict(receipt) for receipt in store.receipts(version=adapter.version)],
    }


def difference_text(found: Json) -> None:
    """Print what sets two versions apart."""
    _print(found["text"])


def _made_of(store: Store, adapter: Adapter) -> Json:
    found = lineage(store, adapter)
    return {
        "rows": len(found.rows),
        "interaction_ids": found.interaction_ids,
        "feedback_ids": found.feedback_ids,
    }


def adapter_text(report: Json) -> None:
    """Print what is known of an adapter."""
    pairs_text({key: value for key, value in report["adapter"].items() if value is not None})
    made = report["made_of"]
    _print(
        f"made of {made['rows']} rows, out of {len(made['interaction_ids'])} interactions and "
        f"{len(made['feedback_ids'])} pieces of feedback"
    )
    _table(
        ["at", "from", "to", "by", "reason"],
        (
            [
                _time(row["at"]),
                row["from_state"] or "",
                row["to_state"],
                row["actor"],
                row["reason"],
            ]
            for row in report["transitions"]
        ),
    )
    if report["decision"]:
        _print(report["decision"])
    for row in report["transitions"]:
        if "trial" in row["evidence"]:
            _print(f"{_time(row['at'])}, {row['evidence']['trial']} on live traffic:")
            _print(trials.describe(row["evidence"]))
    for receipt in report["swaps"]:
        _print(receipt_line(SwapReceipt(**receipt)))


def given_state_text(report: Json) -> None:
    """Print what a version was made."""
    if report["state"] == "canary":
        _print(f"{report['name']} is the canary; `journeyman adapters list` shows how it does")
    else:
        _print(f"{report['name']} is {report['state']}")


def retained_text(report: Json) -> None:
    """Print whose files went, or would."""
    what = "would be erased" if report["dry_run"] else "erased"
    _print(f"{what}: {', '.join(report['erased']) or 'none'}")


def receipt_line(receipt: SwapReceipt) -> str:
    """Return a swap receipt as one line."""
    to = f"code@v{receipt.version}" if receipt.version else "the base model"
    verb = "answers with" if receipt.accepted else "refused"
    phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in receipt.phases_s.items())
    shift = receipt.probe.get("engine_shift")
    proof = f"; probe moved by {shift:.3f} nats a token" if isinstance(shift, float) else ""
    return f"{receipt.server} {verb} {to}: {receipt.reason}{proof} ({phases or 'at once'})"


def swap_report(result: swaps.Result) -> Json:
    """Return what the servers did about a swap."""
    return {
        "servers": list(result.servers),
        "silent": list(result.silent),
        "receipts": [asdict(receipt) for receipt in result.receipts],
    }


# --- interactions and feedback --------------------------------------------------------------


def bare_id(given: str) -> str:
    """Return an interaction's id without the prefix that OpenAI's clients see."""
    return given.removeprefix("chatcmpl-").removeprefix("cmpl-")


def interactions_text(rows: Sequence[Interaction]) -> None:
    """Print interactions."""
    verdicts = {True: "yes", False: "no", None: ""}
    _table(
        ["id", "at", "source", "model", "verified", "asked"],
        (
            [
                row.id,
                _time(row.created_at),
                row.source,
                f"{row.adapter_name}@v{row.adapter_version}"
                if row.adapter_version
                else row.base_model,
                verdicts[row.verified],
                _short(_last_words(row)),
            ]
            for row in rows
        ),
    )


def interaction_report(store: Store, interaction_id: str) -> Json:
    """Return an interaction with all that belongs to it."""
    return {
        "interaction": asdict(store.interaction(interaction_id)),
        "attempts": [asdict(attempt) for attempt in store.attempts(interaction_id)],
        "executions": [asdict(run) for run in store.executions(interaction_id)],
        "feedback": [asdict(row) for row in store.feedback(interaction_id)],
        "taught": [adapter.name for adapter in store.adapters_taught_by(interaction_id)],
    }


def interaction_text(report: Json) -> None:
    """Print an interaction."""
    interaction = Interaction(**report["interaction"])
    _print(f"{interaction.id}  {_time(interaction.created_at)}  {interaction.source}")
    for message in interaction.messages:
        _print(f"\n[{message.get('role', '?')}]\n{message.get('content') or ''}")
    # Of equal programs one was run, for all of them.
    runs = {run["program_sha256"]: run for run in report["executions"] if run["attempt_id"]}
    for attempt in report["attempts"]:
        run = runs.get(attempt["program_sha256"])
        verdict = f"{run['verdict']}, {run['passed']} of {run['total']}" if run else "not run"
        _print(f"\n[attempt {attempt['attempt_index']}: {verdict}]\n{attempt['text']}")
    if not report["attempts"]:
        for choice in interaction.choices:
            _print(f"\n[answer]\n{(choice.get('message') or {}).get('content') or ''}")
    for row in report["feedback"]:
        _print(f"\n[{row['metric']} by {row['source']}] {row['value']}")
    if report["taught"]:
        _print(f"\nlearned from by {', '.join(report['taught'])}")


def feedback_rows(
    store: Store, *, interaction: str | None, metric: str | None, limit: int
) -> list[Feedback]:
    """Return feedback, that on the newest interactions first."""
    if interaction is not None:
        wanted = store.interaction(bare_id(interaction))  # NotFound beats an empty list
        rows = store.feedback(wanted.id)
        return [row for row in rows if metric in (None, row.metric)][:limit]
    found: list[Feedback] = []
    before: str | None = None
    while len(found) < limit and (page := store.interactions(limit=200, before=before)):
        for one in page:
            found += [row for row in store.feedback(one.id) if metric in (None, row.metric)]
        before = page[-1].id
    return found[:limit]


def feedback_text(rows: Sequence[Feedback]) -> None:
    """Print feedback."""
    _table(
        ["interaction", "at", "metric", "by", "value"],
        (
            [
                row.interaction_id or row.episode_id,
                _time(row.updated_at),
                row.metric,
                row.source,
                _short(str(row.value)),
            ]
            for row in rows
        ),
    )


def sent_text(rows: Sequence[Json]) -> None:
    """Print what was said through the server."""
    for row in rows:
        _print(f"kept {row['id']}: {row['metric']} {_short(str(row['value']))}")


# --- keys -----------------------------------------------------------------------------------


def key_row(key: ApiKey) -> Json:
    """Return a key of the record, without its digest."""
    row = {name: value for name, value in asdict(key).items() if name != "sha256"}
    return {**row, "kept_in": "record"}


def key_rows(store: Store, settings: Settings) -> list[Json]:
    """Return the keys of the settings, then those of the record, newest first."""
    blank = {"id": None, "created_at": None, "created_by": None, "revoked_at": None}
    configured = [
        blank | key.model_dump(exclude={"sha256"}) | {"kept_in": "settings"}
        for key in settings.server.keys
    ]
    return [*configured, *map(key_row, store.api_keys())]


def keys_text(rows: Sequence[Json]) -> None:
    """Print keys."""
    if not rows:
        _print("no key yet: the server listens on loopback only, and asks for none")
        return
    shares = ("requests_per_minute", "tokens_per_minute", "executions_per_minute")
    _table(
        ["name", "scopes", "tenant", "requests", "tokens", "executions", "made", "state", "id"],
        (
            [
                row["name"],
                ", ".join(row["scopes"]),
                row["tenant"],
                *(row[share] for share in shares),
                _time(row["created_at"]) if row["created_at"] else f"in the {row['kept_in']}",
                f"revoked {_time(row['revoked_at'])}" if row["revoked_at"] else "good",
                row["id"],
            ]
            for row in rows
        ),
    )


def new_key_text(report: Json) -> None:
    """Print a new key, the key itself alone on its line."""
    _print(report["key"])
    _print(
        f"Keep it: it is shown this once. It is {report['name']!r}'s, for "
        f"{', '.join(report['scopes'])} in the tenant {report['tenant']!r}."
    )


def revoked_text(report: Json) -> None:
    """Print that a key is useless."""
    _print(f"the key {report['name']!r} is revoked; running servers refuse it within a second")


# --- exports --------------------------------------------------------------------------------


def export_text(report: Json) -> None:
    """Print what an export holds."""
    for name, stated in report["files"].items():
        _print(f"{stated['rows']:>9}  {name}")
    _print(f"written to {report['directory']}")


def import_text(report: Json) -> None:
    """Print what became of an export's rows."""
    for what, counts in report.items():
        shown = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        _print(f"{what.replace('_', ' ')}: {shown or 'none'}")


# --- erasures -------------------------------------------------------------------------------


def erasure_text(report: Json) -> None:
    """Print what an erasure did, or would do."""
    if report["already"]:
        _print("nothing is left to erase; the certificate of the last time:")
    counts = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in report["counts"].items())
    _print(f"{'would erase' if report['dry_run'] else 'erased'}: {counts}")
    for adapter in report["adapters"]:
        state = f" ({adapter['state']})" if "state" in adapter else ""
        _print(f"had learned from it: {adapter['name']}{state}")
    if report["dry_run"]:
        return
    _print(f"certificate {report['id']}, by {report['actor']} at {report['created_at']}")
    if report["finished_at"] is None:
        _print(
            "not finished: an improvement cycle, or another erasure, is at work; "
            "repeat the command when it has ended"
        )


def erasures_text(rows: Sequence[Json]) -> None:
    """Print certificates."""
    _table(
        ["certificate", "at", "by", "tenant", "finished", "interactions", "adapters"],
        (
            [
                row["id"],
                row["created_at"],
                row["actor"],
                row["tenant"] or "",
                row["finished_at"] or "no",
                row["counts"].get("interactions", 0),
                ", ".join(adapter["name"] for adapter in row["adapters"]),
            ]
            for row in rows
        ),
    )


# --- cycles ---------------------------------------------------------------------------------


def cycles_text(rows: Sequence[Cycle]) -> None:
    """Print cycles."""
    _table(
        ["id", "at", "recipe", "trigger", "state", "stage", "adapter"],
        (
            [
                row.id,
                _time(row.created_at),
                row.recipe,
                row.trigger,
                row.state,
                row.stage,
                f"code@v{row.adapter_version}" if row.adapter_version else "",
            ]
            for row in rows
        ),
    )


def cycle_report(store: Store, cycle_id: str) -> Json:
    """Return a cycle with its log and the fate of its rows."""
    rows = store.dataset(cycle_id)
    dropped: dict[str, int] = {}
    for row in rows:
        if not row.kept:
            dropped[row.reason or "no reason"] = dropped.get(row.reason or "no reason", 0) + 1
    return {
        "cycle": asdict(store.cycle(cycle_id)),
        "rows_kept": sum(row.kept for row in rows),
        "rows_dropped": dropped,
        "events": [asdict(event) for event in store.events(cycle_id)],
    }


def cycle_text(report: Json) -> None:
    """Print a cycle."""
    cycle = report["cycle"]
    pairs_text(
        {
            key: value
            for key, value in cycle.items()
            if value is not None and key not in ("report", "settings")
        }
    )
    _print(f"rows kept: {report['rows_kept']}")
    for reason, count in sorted(report["rows_dropped"].items(), key=lambda item: -item[1]):
        _print(f"rows dropped: {count} {reason}")
    for event in report["events"]:
        _print(f"{_time(event['created_at'])} {event['level']:<7} {event['message']}")
    if cycle["report"]:
        _print(json.dumps(plain(cycle["report"]), indent=1, ensure_ascii=False))


def moved_text(cycle: Cycle) -> None:
    """Print where a cycle stands now."""
    more = ""
    if cycle.state is CycleState.PAUSED:
        more = f"; `journeyman cycles resume {cycle.id}` lets it go on"
    _print(f"cycle {cycle.id} is {cycle.state}{more}")


# --- settings and checks --------------------------------------------------------------------


def reloaded_text(report: Json) -> None:
    """Print which servers read their settings again."""
    for server in report["told"]:
        _print(
            f"{server} was told; it takes over {', '.join(report['taken_over'])}, and its log "
            "names what waits for its next start"
        )


def settings_text(rows: Sequence[Json]) -> None:
    """Print settings with their origin."""
    _table(["setting", "value", "from"], ([r["name"], r["value"], r["origin"]] for r in rows))


def checks_text(checks: Sequence[Check]) -> None:
    """Print checks."""
    for check in checks:
        _print(f"{'ok ' if check.good else 'BAD'}  {check.name:<10} {check.found}")
        if check.remedy:
            _print(f"                → {check.remedy}")


def pairs_text(pairs: Mapping[str, Any]) -> None:
    """Print names and values."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        shown = json.dumps(value) if isinstance(value, (dict, list)) else value
        _print(f"{name:<{width}}  {shown}")


# --- plumbing -------------------------------------------------------------------------------


def _print(line: str) -> None:
    Console(soft_wrap=True).print(line, markup=False, highlight=False)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        # Where width is short, the long words fold; names and ids stay whole, to be copied.
        fold = column in ("asked", "value", "reason", "log", "from")
        table.add_column(column, no_wrap=not fold, overflow="fold", min_width=24 if fold else None)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell).replace("[", r"\[") for cell in row))
    # Piped into another program: one line a row, whatever its length. In a terminal: its width, or
    # that of the columns that do not fold.
    console = Console()
    wide = Console(width=WIDEST)
    if console.is_terminal:
        wide = Console(width=max(console.width, wide.measure(table).minimum))
    wide.print(table, highlight=False)


def _time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _seconds_ago(at: datetime) -> float:
    return round((now() - at).total_seconds(), 1)


def _short(text: str, length: int = 72) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _last_words(interaction: Interaction) -> str:
    content = interaction.messages[-1].get("content") if interaction.messages else ""
    return content if isinstance(content, str) else json.dumps(content)
