"""How fast the improver is, beside its rivals, in tables.

    python ops/bench/improve.py collect [--rows 1000000] [--store URL]
    python ops/bench/improve.py train [--model starter-small] [--rows 48]
    python ops/bench/improve.py sample [--model starter-small]
    python ops/bench/improve.py sample --url http://127.0.0.1:8000 [--served NAME]
    python ops/bench/improve.py outside --data-dir DIR
    python ops/bench/improve.py all --small

    collect   what all recipes find in a record of a million interactions: seconds, and memory
    train     tokens/s of `improver.train` and of TRL's SFTTrainer with its defaults: one epoch over
              the same rows (functions of Python's own library), same model, LoRA and device
    sample    tokens/s of the improver's client (`n`, many requests at once), and of a loop that
              asks for the same answers one by one: from a running server, or without `--url` from
              an engine that is started for it
    outside   the share of a finished cycle's time that is spent neither sampling nor training

Each rival is run in the same call, one after the other. `--small` makes everything tiny, to see
that it works; its figures mean nothing. Collecting runs in a process of its own, so that its memory
can be told; making the record is not part of its time. Not measured: what a user notices meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from improver import cookbook, report
from improver.benchmarks.builtin import Builtin
from improver.policy import Policy
from improver.types import TrainJob, to_json
from ops import models
from ops.records import (
    Attempt,
    Execution,
    Feedback,
    FeedbackSource,
    Interaction,
    Json,
    Metric,
    Source,
    new_id,
    now,
)
from ops.settings import ImproverSettings
from ops.store import Recording, Store
from ops.tables.schema import attempts, executions, feedback, interactions

COLLECT_TARGET_S = 10.0
TRAIN_TARGET = 1.5
SAMPLE_TARGET = 5.0
OUTSIDE_TARGET = 0.1
KINDS = 1000
"""Different interactions; a larger record holds them again and again, each time of another name."""
MARK = "QQQ"
"""What is different in each repetition."""
SOURCES = (
    "statistics",
    "textwrap",
    "heapq",
    "bisect",
    "fractions",
    "colorsys",
    "calendar",
    "shlex",
)


def table(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """Print rows of a name, a figure and what is said of it."""
    print(title)
    for name, figure, words in rows:
        print(f"  {name:<34} {figure:>16}   {words}")
    print(flush=True)


# --- collecting --------------------------------------------------------------------------------


def recording(number: int) -> Recording:
    """An interaction of a plausible mixture: half pass, a third fails, few are spoken of."""
    verified = (True, False, True, None, True, False)[number % 6]
    program = f"def task_{MARK}_{number}(a, b):\n    return a + b * {number}\n"
    request = f"Write a function that weighs a and b, number {number} of {MARK}."
    asked = {"entry_point": f"task_{MARK}_{number}", "examples": _examples(number)}
    interaction = Interaction(
        id=new_id(),
        created_at=now(),
        source=Source.SERVED,
        endpoint="/v1/chat/completions",
        model="code",
        base_model="base",
        adapter_name="",
        adapter_version=0,
        adapter_sha256="",
        messages=[{"role": "user", "content": request}],
        params={"temperature": 0.8},
        choices=[{"index": 0, "message": {"role": "assistant", "content": program}}],
        usage={"prompt_tokens": 50, "completion_tokens": 40},
        spec=asked,
        verified=verified,
    )
    attempt = Attempt(
        id=new_id(),
        interaction_id=interaction.id,
        attempt_index=0,
        choice_index=0,
        text=f"```python\n{program}```",
        program=program,
        program_sha256=f"{number:064x}",
        mean_logprob=-0.3,
    )
    run = Execution(
        id=new_id(),
        created_at=now(),
        source=Source.SERVED,
        interaction_id=interaction.id,
        attempt_id=attempt.id,
        program_sha256=attempt.program_sha256 or "",
        verdict="OK" if verified else "WRONG",
        verified=bool(verified),
        passed=int(bool(verified)),
        total=1,
        # Most failures are seen by hidden examples only: nothing can be said of them.
        examples=[{"index": 0, "hidden": number % 10 != 1, "verdict": "WRONG", "message": "no"}],
        tier="namespaces",
        duration_s=0.01,
    )
    said: list[Feedback] = []
    for every, metric, value in (
        (50, Metric.COMMENT, "It forgets the weight of b; multiply it first."),
        (40, Metric.ACCEPTED, number % 80 != 0),
        (200, Metric.DEMONSTRATION, program.replace("return", "return 0 +")),
    ):
        if number % every in (0, 1):
            said.append(_word(interaction, metric, value))
    return Recording(
        interaction=interaction,
        attempts=[attempt],
        executions=[run] if verified is not None else [],
        feedback=said,
    )


def _examples(number: int) -> list[Json]:
    return [
        {"input": [n, n + 1], "output": n + (n + 1) * number, "hidden": n > 1} for n in range(3)
    ]


def _word(of: Interaction, metric: Metric, value: Any) -> Feedback:
    return Feedback(
        id=new_id(),
        created_at=now(),
        updated_at=now(),
        interaction_id=of.id,
        episode_id=None,
        metric=metric,
        value=value,
        source=FeedbackSource.HUMAN,
    )


def fill(store: Store, rows: int) -> None:
    """Make a record of so many interactions: some thousand, then copies of them by SQL alone."""
    kinds = min(rows, KINDS)
    store.add([recording(number) for number in range(kinds)])
    copies = max(1, rows // kinds) - 1
    if not copies:
        return
    keys = {"id", "interaction_id", "attempt_id", "target", "episode_id"}
    texts = {"messages", "choices", "spec", "text", "program", "value"}
    # The writer's own connection: nothing of the product ever copies rows.
    with store._write() as connection:
        for made in (interactions, attempts, executions, feedback):
            names = [f'"{column.name}"' for column in made.columns]
            shown = [
                f"printf('%07x', 1 + n) || substr({name}, 8)"
                if name.strip('"') in keys
                else f"replace({name}, '{MARK}', 'r' || n)"
                if name.strip('"') in texts
                else name
                for name in names
            ]
            connection.exec_driver_sql(
                f"WITH RECURSIVE copy(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy "
                f"WHERE n < {copies}) INSERT INTO {made.name} ({', '.join(names)}) "
                f"SELECT {', '.join(shown)} FROM {made.name}, copy"
            )


def look(url: str) -> Json:
    """Collect for all recipes, and say how long it took and how much memory."""
    store = Store.open(url)
    settings = ImproverSettings.model_validate({"train": {"preferences": "kto"}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parts: Json = {}
    for name, recipes in {
        **{one: (one,) for one in cookbook.RECIPES},
        "all": cookbook.RECIPES,
    }.items():
        began, cpu = time.monotonic(), time.process_time()
        material, _ = cookbook.gather(recipes, store, settings, before=now(), keep=False)
        parts[name] = {
            "seconds": time.monotonic() - began,
            "cpu_s": time.process_time() - cpu,
            "found": sum(cookbook.rows_at_most(one, settings, material) for one in recipes),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = store.count_interactions()
    store.close()
    return {"interactions": count, "parts": parts, "grown_mib": (peak - before) / 1024}


def collect(given: argparse.Namespace) -> bool:
    """Make a record, and collect from it in a fresh process."""
    rows = 3000 if given.small else given.rows
    with tempfile.TemporaryDirectory() as directory:
        url = given.store or f"sqlite:///{directory}/record.db"
        store = Store.open(url)
        began = time.monotonic()
        if not store.count_interactions():
            fill(store, rows)
        made_s = time.monotonic() - began
        store.close()
        command = [sys.executable, __file__, "look", "--store", url]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    total = found["parts"]["all"]["seconds"]
    lines = [
        (
            name,
            f"{part['seconds']:.2f} s",
            f"{part['cpu_s']:.2f} s of CPU; up to {part['found']} rows",
        )
        for name, part in found["parts"].items()
    ]
    grown, made = f"{found['grown_mib']:.0f} MiB", f"the record was made in {made_s:.0f} s"
    lines.append(("memory grown by", grown, made))
    title = (
        f"Collecting from {found['interactions']:,} interactions, target {COLLECT_TARGET_S:.0f} s"
    )
    table(title, lines)
    return bool(total <= COLLECT_TARGET_S)


# --- training ----------------------------------------------------------------------------------


def training_rows(count: int) -> list[Json]:
    """Rows as a recipe makes them: functions of Python's library, and what each is asked by."""
    found: list[Json] = []
    for name in SOURCES:
        module = __import__(name)
        for one in vars(module).values():
            if not inspect.isfunction(one) or one.__module__ != name or not one.__doc__:
                continue
            source = textwrap.dedent(inspect.getsource(one))
            asked = f"Write the Python function `{one.__name__}`. {inspect.getdoc(one)}"
            if 200 < len(source) < 2500:
                found.append(
                    {
                        "id": f"{name}.{one.__name__}",
                        "messages": [{"role": "user", "content": asked[:800]}],
                        "answer": f"```python\n{source.strip()}\n```",
                    }
                )
    return (found * (1 + count // len(found)))[:count]


def our_training(directory: Path, job: TrainJob) -> tuple[float, int]:
    """Seconds and tokens of one epoch of the product's own step, loading left out."""
    from improver import train

    run = train.Run(directory, job, lambda line: None)
    began = time.monotonic()
    run.run()
    return time.monotonic() - began, run.progress.tokens


def sft_training(rows: Sequence[Json], job: TrainJob) -> float:
    """Seconds of one epoch of TRL's SFTTrainer: its defaults, and the same LoRA."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from improver import train

    device = train.pick_device()
    base = AutoModelForCausalLM.from_pretrained(job.base_directory, local_files_only=True)
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=base,
            args=SFTConfig(
                output_dir=output,
                num_train_epochs=1,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=device.type == "cpu",
            ),
            train_dataset=Dataset.from_list(
                [
                    {
                        "prompt": row["messages"],
                        "completion": [{"role": "assistant", "content": row["answer"]}],
                    }
                    for row in rows
                ]
            ),
            processing_class=AutoTokenizer.from_pretrained(
                job.base_directory, local_files_only=True
            ),
            peft_config=train.lora_config(job, base),
        )
        began = time.monotonic()
        trainer.train()
        return time.monotonic() - began


def train_(given: argparse.Namespace) -> bool:
    """One epoch each, over the same rows."""
    model = models.resolve(given.model)
    rows = training_rows(6 if given.small else given.train_rows)
    train_settings = ImproverSettings().train
    job = TrainJob(
        base_directory=str(model.directory),
        base_name=model.name,
        base_sha256=model.sha256,
        max_lora_rank=train_settings.rank,
        rank=train_settings.rank,
        alpha=train_settings.alpha,
        dropout=0.0,
        learning_rate=1e-4,
        epochs=1,
        batch_rows=train_settings.batch_rows,
        max_tokens=4096,
        seed=7,
        checkpoint_s=1e9,
    )
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "job.json").write_text(json.dumps(to_json(job)))
        (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "held_out.jsonl").write_text("")
        ours_s, tokens = our_training(place, job)
    theirs_s = sft_training(rows, job)
    ratio = theirs_s / ours_s
    table(
        f"Training {model.name}, LoRA of rank {job.rank}: {len(rows)} rows, {tokens} tokens, once",
        [
            ("improver.train", f"{tokens / ours_s:.1f} tokens/s", f"{ours_s:.1f} s"),
            ("TRL SFTTrainer, defaults", f"{tokens / theirs_s:.1f} tokens/s", f"{theirs_s:.1f} s"),
            ("ours over theirs", f"{ratio:.2f}", f"target {TRAIN_TARGET}"),
        ],
    )
    return bool(ratio >= TRAIN_TARGET)


# --- sampling ----------------------------------------------------------------------------------


async def _sampled(url: str, model: str | None, tasks: int, n: int, at_once: bool) -> Json:
    async with Policy(url, concurrency=16 if at_once else 1) as policy:
        name = model or await policy.base_model()
        prompts = [task.messages() for task in Builtin().tasks()[:tasks]]
        began = time.monotonic()
        told: Json = {"temperature": 0.8, "max_tokens": 128, "model": name}
        if at_once:
            await asyncio.gather(*(policy.sample(one, n=n, **told) for one in prompts))
        else:
            for one in prompts:
                for _ in range(n):
                    await policy.sample(one, n=1, **told)
        return {"tokens": policy.tokens, "seconds": time.monotonic() - began}


def sample(given: argparse.Namespace) -> bool:
    """The same answers, all at once and one by one."""
    if given.url is None:
        from ops.bench.reproduce import engine

        model = models.resolve(given.model)
        with tempfile.TemporaryDirectory() as directory, engine(model, Path(directory)) as url:
            return sample(argparse.Namespace(**vars(given) | {"url": url, "served": model.name}))
    tasks, n = (2, 2) if given.small else (given.tasks, 8)
    ours = asyncio.run(_sampled(given.url, given.served, tasks, n, True))
    loop = asyncio.run(_sampled(given.url, given.served, tasks, n, False))
    speeds = [one["tokens"] / max(one["seconds"], 1e-9) for one in (ours, loop)]
    ratio = speeds[0] / max(speeds[1], 1e-9)
    table(
        f"Sampling {n} answers to each of {tasks} tasks, at most 128 tokens",
        [
            ("improver.policy", f"{speeds[0]:.1f} tokens/s", f"{ours['seconds']:.1f} s"),
            ("a loop of single requests", f"{speeds[1]:.1f} tokens/s", f"{loop['seconds']:.1f} s"),
            ("ours over the loop", f"{ratio:.2f}", f"target {SAMPLE_TARGET}"),
        ],
    )
    return bool(ratio >= SAMPLE_TARGET)


# --- outside the model -------------------------------------------------------------------------


def outside(given: argparse.Namespace) -> bool:
    """Read it off the cycles of an installation."""
    if given.data_dir is None:
        print(
            "the share of a cycle outside the model is left out: --data-dir names an "
            "installation that has run one\n"
        )
        return True
    store = Store.open(f"sqlite:///{given.data_dir}/journeyman.db")
    lines, kept = [], True
    for cycle in store.cycles():
        spent = report.time_spent(cycle.report)
        if spent is None:
            continue
        share = 1 - spent.model_s / spent.total_s
        kept = kept and share <= OUTSIDE_TARGET
        lines.append((f"{cycle.id} ({cycle.recipe})", f"{share:.1%}", f"of {spent.total_s:.0f} s"))
    store.close()
    table(f"Time of a cycle outside the model, target {OUTSIDE_TARGET:.0%}", lines)
    return kept


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "collect": collect,
    "train": train_,
    "sample": sample,
    "outside": outside,
}


def main() -> int:
    """Run the parts; exit status 1 when a target is missed, unless `--small`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "all", "look"])
    parser.add_argument("--small", action="store_true", help="tiny: does it work?")
    parser.add_argument("--rows", type=int, default=1_000_000, help="interactions in the record")
    parser.add_argument("--store", help="a record that is there already, or is to be made there")
    parser.add_argument("--train-rows", type=int, default=48)
    parser.add_argument(
        "--model", default="starter-small", help="the model that is trained or served"
    )
    parser.add_argument("--url", help="a running server, without /v1; unset: one is started")
    parser.add_argument("--served", help="the model that is sampled from; unset: the base model")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--data-dir", type=Path, help="of an installation that has run cycles")
    given = parser.parse_args()
    if given.part == "look":
        print(json.dumps(look(given.store)))
        return 0
    chosen = PARTS.values() if given.part == "all" else [PARTS[given.part]]
    kept = [part(given) for part in chosen]
    return 0 if all(kept) or given.small else 1


if __name__ == "__main__":
    sys.exit(main())
