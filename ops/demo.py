"""The journey on real input: `journeyman demo`.

Imports programs of another model with the language feedback people gave on them, asks a running
installation for programs under specifications, lets it learn from both in one ILF cycle, and
prints what happened. Everything goes through the front door: the OpenAI client, and the commands a
user would type. Nothing is asserted here and no number is required to be good: a rejected
candidate is an outcome, and then the swap and the way back are shown by force.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ops import keys
from ops import settings as settings_
from ops.errors import OpsError, ProcessError
from ops.records import AdapterState, Alias, Cycle, CycleState
from ops.registry import Registry
from ops.settings import Settings
from ops.store import Store

EXAMPLES = Path(__file__).parent / "examples"
BESIDE = Path(__file__).parents[2] / "shared" / "data"
CONCURRENCY = 4
SEED = 7

console = Console()


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of a run. `exam` None means the benchmark that ships with the improver."""

    feedback: Path
    tasks: Path
    exam: Path | None

    @classmethod
    def find(cls, data: Path | None) -> Inputs:
        """Use the files of a data directory, or the small ones that ship with the product.

        Without a directory, `shared/data` beside the checkout is taken where it is there.

        Raises:
            ProcessError: the directory lacks a file.
        """
        if data is None and BESIDE.is_dir():
            data = BESIDE
        if data is None:
            return cls(
                feedback=EXAMPLES / "feedback.jsonl", tasks=EXAMPLES / "tasks.jsonl", exam=None
            )
        inputs = cls(
            feedback=data / "train" / "ilf_human_feedback.jsonl",
            tasks=data / "train" / "mbpp_train.jsonl",
            exam=data / "eval" / "mbpp_eval.jsonl",
        )
        for path in (inputs.feedback, inputs.tasks, inputs.exam):
            if path is not None and not path.is_file():
                raise ProcessError(f"{data} lacks {path.relative_to(data)}")
        return inputs


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(prog="journeyman demo", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="directory with train/ilf_human_feedback.jsonl, train/mbpp_train.jsonl and "
        "eval/mbpp_eval.jsonl; default: shared/data beside the checkout, else the small files that "
        "ship with the product",
    )
    parser.add_argument("--count", type=int, default=40, help="spec requests to send")
    parser.add_argument("--model", help="model to start when nothing is running")
    parser.add_argument("--data-dir", type=Path, help="data directory of the installation")
    parser.add_argument("--port", type=int, help="port of the server")
    given = parser.parse_args(arguments)
    flags: dict[str, Any] = {"data_dir": given.data_dir}
    if given.model:
        flags["engine"] = {"model": given.model}
    if given.port:
        flags["server"] = {"port": given.port}
    try:
        settings = settings_.load(**flags)
        inputs = Inputs.find(given.data)
        system = _start_unless_running(settings)
        try:
            _run(settings, inputs, given.count)
        finally:
            if system is not None:
                _stop(system)
    except OpsError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; `journeyman improve --resume` goes on with a cycle that had begun")
        return 130
    return 0


def _run(settings: Settings, inputs: Inputs, count: int) -> None:
    store = Store.open(settings.store_url)
    try:
        began = time.monotonic()
        console.rule("1. Programs of another model, with what people said of them")
        _journeyman(settings, "import", str(inputs.feedback), "--format", "ilf")
        console.rule(f"2. Up to {count} requests with a specification, through the OpenAI client")
        _report_requests(store, asyncio.run(_ask(settings, inputs.tasks, count)))
        console.rule("3. One improvement cycle: imitation learning from language feedback")
        exam = [] if inputs.exam is None else ["--tasks", str(inputs.exam), "--subset", "core60"]
        _journeyman(settings, "improve", "--recipe", "ilf", *exam)
        cycle = store.cycles(limit=1)[0]
        console.rule("4. Which adapter answers now")
        _report_outcome(settings, store, cycle)
        console.print(f"The demo took {(time.monotonic() - began) / 60:.1f} minutes.")
    finally:
        store.close()


# --- requests -------------------------------------------------------------------------------


async def _ask(settings: Settings, tasks: Path, count: int) -> list[Any]:
    """Send the tasks as spec requests: the first assert visible, the others hidden."""
    chosen = _choose(tasks, count)
    gate = asyncio.Semaphore(CONCURRENCY)
    client = openai.AsyncOpenAI(
        base_url=f"{settings.server_url}/v1", api_key=_key(settings), timeout=900
    )

    async def one(row: dict[str, Any]) -> Any:
        tests = [{"code": code, "hidden": place > 0} for place, code in enumerate(row["test_list"])]
        async with gate:
            answer = await client.chat.completions.create(
                model="code",
                messages=[{"role": "user", "content": row["text"]}],
                max_tokens=384,
                temperature=0.8,
                # Without early_stop the first attempt is always judged, so that "at first try"
                # and "with candidates" are measured on the same requests.
                extra_body={"io_spec": {"tests": tests, "early_stop": False}},
            )
        progress.advance(bar)
        return answer

    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("requests", total=len(chosen))
        async with client:
            return await asyncio.gather(*(one(row) for row in chosen))


def _choose(tasks: Path, count: int) -> list[dict[str, Any]]:
    """Draw tasks that may be learned from: MBPP's test split is not, nor what step 1 brought."""
    rows = [json.loads(line) for line in tasks.read_text(encoding="utf-8").splitlines()]
    usable = [
        row
        for row in rows
        if len(row["test_list"]) > 1
        and not row.get("test_setup_code")
        and row.get("split", "train") in ("train", "validation")
        and not row.get("ilf_annotated")
    ]
    random.Random(SEED).shuffle(usable)
    return usable[:count]


def _key(settings: Settings) -> str:
    return os.environ.get("JOURNEYMAN_API_KEY") or keys.own(settings.data_dir)


def _report_requests(store: Store, answers: list[Any]) -> None:
    first = verified = 0
    for answer in answers:
        interaction_id = answer.id.removeprefix("chatcmpl-")
        # Of equal programs one was run, for all of them.
        executions = {run.program_sha256: run for run in store.executions(interaction_id)}
        attempts = store.attempts(interaction_id)
        opening = executions.get(attempts[0].program_sha256 or "") if attempts else None
        first += opening is not None and opening.verified
        verified += bool(answer.choices[0].model_extra["verification"]["verified"])
    table = Table("requests", "verified at first try", "verified with candidates")
    total = max(len(answers), 1)
    table.add_row(
        str(len(answers)),
        f"{first} ({first / total:.0%})",
        f"{verified} ({verified / total:.0%})",
    )
    console.print(table)


# --- outcome --------------------------------------------------------------------------------


def _report_outcome(settings: Settings, store: Store, cycle: Cycle) -> None:
    if cycle.state is not CycleState.SUCCEEDED or cycle.adapter_version is None:
        console.print(f"The cycle ended as {cycle.state}; {_answering(settings)}.")
        return
    registry = Registry(store, settings.adapters_dir)
    adapter = registry.get(cycle.adapter_version)
    if adapter.state is AdapterState.CHAMPION:
        console.print(f"{adapter.name} was promoted; {_answering(settings)}.")
    else:
        console.print(
            f"{adapter.name} was rejected; {_answering(settings)}.\n"
            "The swap all the same, by force, and the way back:"
        )
        _journeyman(settings, "adapters", "promote", adapter.name, "--force")
        console.print(f"After the forced promotion {_answering(settings)}.")
        _journeyman(settings, "rollback")
        console.print(f"After the rollback {_answering(settings)}.")
    _report_swaps(store, registry)


def _report_swaps(store: Store, registry: Registry) -> None:
    table = Table("swap", "accepted", "seconds", "shift (nats/token)", "engine - trainer", "reason")
    for receipt in reversed(store.receipts(limit=10)):
        table.add_row(
            f"v{receipt.from_version} → v{receipt.version}",
            "yes" if receipt.accepted else "no",
            f"{sum(receipt.phases_s.values()):.2f}",
            *(
                f"{receipt.probe[name]:.3f}" if name in receipt.probe else ""
                for name in ("engine_shift", "engine_error")
            ),
            receipt.reason,
        )
    console.print(table)
    champion = registry.at(Alias.CHAMPION)
    console.print(f"Champion: {champion.name if champion else 'the base model'}")


def _answering(settings: Settings) -> str:
    with openai.OpenAI(
        base_url=f"{settings.server_url}/v1", api_key=_key(settings), timeout=300
    ) as client:
        answer = client.chat.completions.create(
            model="code",
            messages=[
                {"role": "user", "content": "Write a Python function that adds two numbers."}
            ],
            max_tokens=48,
            temperature=0,
        )
    adapter = (answer.model_extra or {})["adapter"]
    name = f"{adapter['name']}@v{adapter['version']}" if adapter["version"] else "the base model"
    return f"`code` is answered by {name}"


# --- the system -----------------------------------------------------------------------------


def _journeyman(settings: Settings, *arguments: str) -> None:
    """Run a command as its user would, its output shown.

    Raises:
        ProcessError: it failed.
    """
    console.print(f"[dim]$ journeyman {' '.join(arguments)}[/dim]")
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", *arguments], env=_environment(settings), check=False
    )
    if done.returncode != 0:
        raise ProcessError(f"journeyman {arguments[0]} ended with status {done.returncode}")


def _environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "JOURNEYMAN_DATA_DIR": str(settings.data_dir),
        "JOURNEYMAN_SERVER__PORT": str(settings.server.port),
        "JOURNEYMAN_ENGINE__PORT": str(settings.engine.port),
        "JOURNEYMAN_ENGINE__MODEL": settings.engine.model,
    }


def _ready(settings: Settings) -> bool:
    try:
        return httpx.get(f"{settings.server_url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _start_unless_running(settings: Settings) -> subprocess.Popen[bytes] | None:
    """Start `journeyman up` when nothing answers, and wait until it is ready.

    Raises:
        ProcessError: it ended before it was ready.
    """
    if _ready(settings):
        console.print(f"Using the system that runs at {settings.server_url}.")
        return None
    console.print("Nothing runs yet: starting `journeyman up`.")
    system = subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "up"], env=_environment(settings), start_new_session=True
    )
    try:
        while not _ready(settings):
            if system.poll() is not None:
                raise ProcessError(f"journeyman up ended with status {system.returncode}")
            time.sleep(0.5)
    except BaseException:
        _stop(system)
        raise
    return system


def _stop(system: subprocess.Popen[bytes]) -> None:
    if system.poll() is None:
        system.terminate()
        system.wait(timeout=120)


if __name__ == "__main__":
    sys.exit(main())
