"""The improver's commands. `journeyman improve`, `import` and `improver` come here.

    python -m improver                      the daemon
    python -m improver improve …            one cycle, now
    python -m improver import FILE …        another model's interactions into the record
    python -m improver eval BENCHMARK …     a benchmark put to one model

Settings are read here and nowhere else in this package.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from improver import cookbook, importer, lease, report, score
from improver.benchmarks import catalogue
from improver.benchmarks.base import Task
from improver.cycle import CycleRun, Means, Plan, fail, note, start
from improver.errors import BenchmarkError, ImproverError, PolicyError, PolicyUnavailable
from improver.evaluate import fooled, judgeable
from improver.idle import Idle, Metrics, TrainWhenIdle
from improver.policy import ALIAS, Policy
from improver.progress import LogShow, Show, TerminalShow
from improver.trainer import Train, run_training, step_back
from improver.worker import Worker
from improver.workspace import Journal
from ops import logs, models, services, tracing
from ops import settings as settings_
from ops.errors import OpsError, SettingsError
from ops.records import Cycle, CycleState
from ops.redaction import Scrubber
from ops.registry import Registry
from ops.settings import Settings
from ops.store import Store
from sandbox.errors import SandboxError
from sandbox.pool import Pool
from sandbox.spec import KINDS
from sandbox.types import Limits, Tier

FAULTS = (ImproverError, OpsError, SandboxError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        settings = settings_.load(given.config, **_flags(given))
        settings = _with_options(settings, given)
        logs.configure(settings.log_format, settings.log_level)
        traced = settings.tracing
        tracing.configure(traced.endpoint, "journeyman-improver", share=traced.share)
        if given.command == "improve":
            return asyncio.run(_improve(settings, given, console))
        if given.command == "import":
            return asyncio.run(_import(settings, given, console))
        if given.command == "eval":
            run = _references if given.references else _eval
            return asyncio.run(run(settings, given, console))
        return asyncio.run(_daemon(settings))
    except FAULTS as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, help="settings file")
    shared.add_argument("--data-dir", type=Path, help="data directory of the installation")
    parser = argparse.ArgumentParser(
        prog="journeyman", description="The improvement cycle.", parents=[shared]
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("run", parents=[shared], help="the daemon (also without a command)")
    improve = commands.add_parser("improve", parents=[shared], help="run one cycle now")
    improve.add_argument(
        "--recipe",
        help=f"how training rows are made: {', '.join(cookbook.RECIPES)}, or {cookbook.ALL} for "
        "each that has enough data (default: ilf)",
    )
    improve.add_argument("--tables", type=Path, help="directory of CSV files, for gift4code")
    improve.add_argument(
        "--corpus", type=Path, help="right code: .py and .jsonl, for inverse_instruct and gift4code"
    )
    improve.add_argument("--tasks", type=Path, help="JSONL of the tasks that decide")
    improve.add_argument("--subset", help="only tasks whose row has this field true")
    improve.add_argument("--samples", type=int, help="refinements asked for each wrong program")
    improve.add_argument(
        "--control",
        choices=("shuffled", "none", "resample"),
        help="in a dry run: what the refiner is told instead, to see what feedback is worth",
    )
    improve.add_argument(
        "--learning-rate",
        type=_rates,
        help="a rate, several with commas, or `sweep`: held-out rows choose among them",
    )
    improve.add_argument(
        "--preferences",
        choices=("none", "dpo", "kto"),
        help="also learn which answers were kept and refused (with --recipe preferences or all)",
    )
    improve.add_argument("--epochs", type=int)
    improve.add_argument("--dry-run", action="store_true", help="build rows, train nothing")
    improve.add_argument("--resume", metavar="ID", help="go on with a cycle that was stopped")
    improve.add_argument("--json", action="store_true", help="print the report as JSON")
    _add_eval(commands.add_parser("eval", parents=[shared], help="put a benchmark to a model"))
    bring = commands.add_parser("import", parents=[shared], help="import interactions")
    bring.add_argument("file", type=Path)
    bring.add_argument("--format", choices=sorted(importer.SHAPES), default="jsonl")
    bring.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _add_eval(put: argparse.ArgumentParser) -> None:
    put.add_argument("benchmark", help=f"{', '.join(catalogue.NAMES)}, or a file of tasks")
    put.add_argument("--model", default=ALIAS, help="code (the default), code@v3, a base model")
    put.add_argument(
        "--spec",
        choices=("none", *KINDS),
        help="the one kind of specification that is shown; default: all that a task shows",
    )
    put.add_argument("--candidates", type=_positive, default=1, help="attempts to choose among")
    put.add_argument("--samples", type=_positive, default=1, help="answers a task, for pass@k")
    put.add_argument("--limit", type=_positive, help="the most tasks, a random part")
    put.add_argument("--temperature", type=float, help="default: 0; 0.8 with several answers")
    put.add_argument("--max-tokens", type=_positive, default=512, help="longest answer")
    put.add_argument("--seed", type=int, default=7)
    put.add_argument(
        "--references",
        action="store_true",
        help="ask no model: run the reference solutions, which must pass, and empty answers, "
        "which must not",
    )
    put.add_argument("--url", help="another server's address, without /v1")
    put.add_argument("--data", type=Path, help="the benchmark's file or directory")
    put.add_argument("--out", type=Path, help="where the result goes (JSON)")
    put.add_argument("--json", action="store_true", help="print the result as JSON")


def _rates(text: str) -> float | tuple[float, ...] | str:
    if text == "sweep":
        return text
    rates = tuple(float(part) for part in text.split(","))
    return rates if len(rates) > 1 else rates[0]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 is wanted")
    return number


def _flags(given: argparse.Namespace) -> dict[str, Any]:
    return {"data_dir": given.data_dir}


def _with_options(settings: Settings, given: argparse.Namespace) -> Settings:
    """Put the options of `improve` over the settings."""
    if given.command != "improve":
        return settings
    improver = settings.improver
    gate = _changed(improver.gate, tasks=_resolved(given.tasks), subset=given.subset)
    ilf = _changed(improver.ilf, samples=given.samples, control=given.control)
    train = _changed(
        improver.train,
        learning_rate=given.learning_rate,
        epochs=given.epochs,
        preferences=given.preferences,
    )
    sources = _changed(
        improver.sources, tables=_resolved(given.tables), corpus=_resolved(given.corpus)
    )
    improver = _changed(
        improver, recipe=given.recipe, gate=gate, ilf=ilf, train=train, sources=sources
    )
    return settings.model_copy(update={"improver": improver})


def _resolved(path: Path | None) -> Path | None:
    """A path that means the same to the process that goes on with the cycle."""
    return None if path is None else path.resolve()


def _changed(section: Any, **options: Any) -> Any:
    """A settings section with the options that were given, validated."""
    found = {name: value for name, value in options.items() if value is not None}
    try:
        return type(section).model_validate({**dict(section), **found})
    except ValueError as error:
        raise SettingsError(f"{type(section).__name__}: {error}") from error


@asynccontextmanager
async def _means(
    settings: Settings, store: Store, show: Show, train: Train = run_training
) -> AsyncIterator[Means]:
    policy = Policy(settings.server_url, api_key=os.environ.get("JOURNEYMAN_API_KEY"))
    async with _pool(settings) as pool, policy:
        yield Means(
            store=store,
            registry=Registry(store, settings.adapters_dir),
            policy=policy,
            pool=pool,
            resolve=models.resolve,
            environment=os.environ | services.cpu_environment(),
            show=show,
            train=train,
            scrubber=_scrubber(settings),
        )


def _pool(settings: Settings) -> Pool:
    sandbox = settings.sandbox
    return Pool(
        workers=sandbox.workers,
        limits=Limits(
            wall_s=sandbox.wall_s, cpu_s=sandbox.cpu_s, memory_bytes=sandbox.memory_bytes
        ),
        min_tier=Tier(sandbox.min_tier),
        allow_unsafe=sandbox.allow_unsafe,
        runtime=sandbox.runtime,
    )


# --- improve ---------------------------------------------------------------------------------


async def _improve(settings: Settings, given: argparse.Namespace, console: Console) -> int:
    cookbook.names(settings.improver.recipe)
    store = Store.open(settings.store_url)
    try:
        async with lease.held(store):
            left = None if given.resume is None else store.cycle(given.resume)
            await _require_server(settings)
            cycle = left or start(
                store,
                Plan.of(settings, dry_run=given.dry_run),
                settings.cycles_dir,
                trigger="command",
                state=CycleState.RUNNING,
            )
            show: Show = TerminalShow(console) if console.is_terminal else LogShow(cycle.id)
            try:
                async with _means(settings, store, show) as means:
                    cycle = await CycleRun(cycle, means).run()
            except FAULTS as error:
                if cycle.state is CycleState.RUNNING:
                    fail(store, cycle, error)
                raise
            finally:
                show.close()
    finally:
        store.close()
    print(json.dumps(_as_json(cycle), indent=1) if given.json else report.render(cycle))
    return 1 if cycle.state is CycleState.FAILED else 0


async def _require_server(settings: Settings) -> None:
    """Say at once that no server answers; within a cycle a restart is waited for.

    Raises:
        PolicyUnavailable: names the URL.
    """
    key = os.environ.get("JOURNEYMAN_API_KEY")
    try:
        async with Policy(settings.server_url, api_key=key, patience_s=5.0) as policy:
            await policy.models()
    except PolicyUnavailable as error:
        raise PolicyUnavailable(f"{error}. Is it up? `journeyman up` starts it.") from error


def _as_json(cycle: Cycle) -> dict[str, Any]:
    return {
        "id": cycle.id,
        "recipe": cycle.recipe,
        "state": str(cycle.state),
        "error": cycle.error,
        "adapter_version": cycle.adapter_version,
        "report": cycle.report,
    }


# --- import ----------------------------------------------------------------------------------


def _scrubber(settings: Settings) -> Scrubber:
    return Scrubber(settings.scrub.personal, settings.scrub.phone_region)


async def _import(settings: Settings, given: argparse.Namespace, console: Console) -> int:
    rows = importer.count_lines(given.file)
    store = Store.open(settings.store_url)
    try:
        async with _pool(settings) as pool:
            with Progress(console=console, transient=True) as progress:
                bar = progress.add_task("importing", total=rows)
                done = await importer.import_file(
                    given.file,
                    given.format,
                    store,
                    pool,
                    _scrubber(settings),
                    on_row=lambda: progress.advance(bar),
                )
    finally:
        store.close()
    found = done.as_json()
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        skipped = ", ".join(f"{count} of {reason}" for reason, count in found["skipped"].items())
        print(
            f"{found['rows']} rows: {found['imported']} imported "
            f"({found['verified']} of them pass their checks), "
            f"{found['known_already']} known already, "
            f"{skipped or 'none'} left out, {found['bad']} bad"
        )
        for problem in found["problems"]:
            print(f"  {problem}")
    return 1 if found["bad"] else 0


# --- eval ------------------------------------------------------------------------------------


async def _eval(settings: Settings, given: argparse.Namespace, console: Console) -> int:
    several = given.samples > 1 or given.candidates > 1
    kinds = KINDS if given.spec is None else tuple(kind for kind in KINDS if kind == given.spec)
    plan = score.Plan(
        benchmark=Path(given.benchmark).stem if "/" in given.benchmark else given.benchmark,
        model=given.model,
        kinds=kinds,
        samples=given.samples,
        candidates=given.candidates,
        limit=given.limit,
        temperature=given.temperature
        if given.temperature is not None
        else (0.8 if several else 0.0),
        max_answer_tokens=given.max_tokens,
        seed=given.seed,
    )
    tasks = score.choose(_tasks(settings, given), plan)
    url = (given.url or settings.server_url).removesuffix("/").removesuffix("/v1")
    out = given.out or settings.data_dir / "evaluations" / plan.file_name(url)
    journal_file = out.with_name(f"{out.name}.journal")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        journal_file.touch()
    except OSError as error:
        raise BenchmarkError(f"nothing can be written to {out.parent}: {error}") from error
    key = os.environ.get("JOURNEYMAN_API_KEY")
    await _require_answers(url, key, plan.model)
    began = time.monotonic()
    async with _pool(settings) as pool, Policy(url, plan.model, api_key=key) as policy:
        kept, left_out = await judgeable(tasks, pool)
        if not kept:
            raise BenchmarkError(f"no reference solution of {plan.benchmark} passes here")
        with Progress(console=console, transient=True) as progress, Journal(journal_file) as done:
            bar = progress.add_task(plan.benchmark, total=len(kept))
            scores = await score.score(
                kept, plan, policy, pool, done, on_task=lambda: progress.advance(bar)
            )
    found = score.report(
        plan,
        scores,
        left_out=left_out,
        prompts=score.prompt_sha256(kept, plan),
        seconds=time.monotonic() - began,
        url=url,
    )
    score.write(out, found)
    print(json.dumps(found, indent=1) if given.json else score.table(found))
    console.print(f"written to {out}", highlight=False)
    if found["not_judged"]:
        console.print("some answers could not be judged: the same command tries these again")
        return 1
    journal_file.unlink(missing_ok=True)
    return 0


async def _references(settings: Settings, given: argparse.Namespace, console: Console) -> int:
    """Say which tasks of a benchmark can be judged here; a task that is fooled is a failure."""
    plan = score.Plan(
        benchmark=given.benchmark, model=given.model, limit=given.limit, seed=given.seed
    )
    tasks = score.choose(_tasks(settings, given), plan)
    async with _pool(settings) as pool:
        with console.status(f"{given.benchmark}: {len(tasks)} tasks"):
            kept, failing = await judgeable(tasks, pool)
            empty = await fooled(tasks, pool)
    found = {
        "benchmark": given.benchmark,
        "tasks": len(tasks),
        "without_reference": sum(task.solution is None for task in tasks),
        "references_fail": failing,
        "empty_answers_pass": empty,
    }
    passed = len(kept) - found["without_reference"]
    words = [
        f"{given.benchmark}: {passed} of {len(tasks)} reference solutions pass",
        *([f"left out of examinations: {', '.join(failing)}"] if failing else []),
        *([f"passed by an empty answer: {', '.join(empty)}"] if empty else []),
    ]
    print(json.dumps(found, indent=1) if given.json else "\n".join(words))
    return 1 if empty else 0


def _tasks(settings: Settings, given: argparse.Namespace) -> Sequence[Task]:
    data = given.data or settings.benchmarks_dir
    if given.benchmark != "replay":
        return catalogue.find(given.benchmark, data=data).tasks()
    store = Store.open(settings.store_url)
    try:
        share = settings.improver.gate.replay_share
        tasks = catalogue.find(given.benchmark, store=store, share=share).tasks()
    finally:
        store.close()
    if not tasks:
        raise BenchmarkError(
            "the record holds no request with hidden examples that is held back for replay "
            f"({share:.0%} of them are: improver.gate.replay_share)"
        )
    return tasks


async def _require_answers(url: str, key: str | None, model: str) -> None:
    """Say at once that nobody answers, or not to this name.

    Raises:
        PolicyError: names the URL.
    """
    async with Policy(url, api_key=key, patience_s=5.0) as policy:
        known = await policy.models()
    if model not in known:
        raise PolicyError(f"{url} has no model {model!r}; it has {', '.join(known)}")


# --- the daemon ------------------------------------------------------------------------------


async def _daemon(settings: Settings) -> int:
    # What is sampled and judged steps back too, and training further still (`improver.trainer`).
    os.nice(settings.improver.nice // 2)
    step_back(os.getpid(), settings.improver.nice // 2)
    store = Store.open(settings.store_url)
    idle: Idle | None = None
    if (minutes := settings.improver.idle_minutes) is not None:
        # Of a name with several addresses one is asked.
        urls = [url.removeprefix("dns+") for url in settings.engine_urls]
        idle = Idle(Metrics(*urls), minutes * 60)

    async def run_cycle(cycle: Cycle) -> Cycle:
        show = LogShow(cycle.id)
        train: Train = run_training
        if idle is not None:
            train = TrainWhenIdle(run_training, idle, partial(note, store, cycle.id))
        async with _means(settings, store, show, train) as means:
            return await CycleRun(cycle, means).run()

    try:
        worker = Worker(settings, store, run_cycle, idle)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        await worker.run()
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
