"""The papers' tables in miniature, on the starter models: what holds at this size, what does not.

    python ops/bench/reproduce.py PART --data DIR --work DIR [--model starter] [--limit N]
    python ops/bench/reproduce.py report --work DIR [--out ops/docs]

The parts:

    feedback   ILF's table 2 (arXiv 2303.16749): is a person's correction likelier under the model
               when it reads the feedback on this very program, on another one, or none? By the
               log-probability of the correction, which takes no sampling. No server is needed.
    repair     the same table by sampling: how many of `--samples` refinements pass all tests, under
               each arm. Starts an engine of its own, on a free port.
    tuning     ILF's table 4 in shape: the base model, and adapters trained on its own refinements
               (`ilf`), on people's (`human`), on reference programs (`gold`), and on its own right
               answers (`resample`: rejection sampling), for the same tasks; pass@1 on MBPP tasks
               that none of them is near to. Starts an engine of its own as well.
    order      Inverse-Instruct's ablations (arXiv 2407.05700): self-made pairs first, last or mixed
               in, chosen by the judge or at random, or none; by the loss on held-out pairs of the
               corpus (`train/codeinstruct_python.jsonl`). Starts an engine of its own as well.
    specs      GIFT4Code's main table in shape (arXiv 2402.08073): no specification, TypeDesc, I/O
               Examples, I/O Summary, each for the base model and one tuned on other tables
               (`tables/*.csv`); by the likelihood of programs that meet the specification on
               held-out tables, and by what is executable and right among programs sampled for
               them (`--samples` each, at most `--asked` tasks; 0: none).

Each finished unit of work is a line of `PART.jsonl` in the work directory, so a run that was
killed, or was given only so many `--minutes`, goes on where it was: with the same options, others
want a directory of their own. `report` makes tables with intervals (bootstrap over tasks, paired
where arms are compared) and plots of whatever is there.

`--data` holds rows as the papers publish them: `train/ilf_human_feedback.jsonl`,
`train/mbpp_train.jsonl`, `eval/mbpp_eval.jsonl`. No row of the paper's test split is trained on,
and every row passes the firewall against all tasks that are asked.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import random
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from improver import contexts, corpus, importer, score
from improver.attempts import Attempted, Judge, attempt, together
from improver.benchmarks.base import Task, read_jsonl
from improver.benchmarks.mbpp import TaskFile
from improver.contexts import Context
from improver.corpus import Snippet
from improver.dataset import split
from improver.firewall import Firewall
from improver.policy import Policy
from improver.recipes import ilf
from improver.recipes.base import Tools, case_seed, fenced, live_messages, request_text
from improver.recipes.gift4code import Gift4Code
from improver.recipes.gift4code import Options as GiftOptions
from improver.recipes.ilf import Control
from improver.recipes.inverse_instruct import InverseInstruct, Order, Selection, arrange
from improver.recipes.inverse_instruct import Options as InverseOptions
from improver.trace import Rejected, Runner, settle, trace
from improver.trainer import run_training
from improver.types import Case, Phase, Row, TrainJob, to_json
from improver.workspace import Journal
from ops import models, services
from ops.models import Model
from ops.processes import Child, Patience, State
from ops.records import Json, Metric
from ops.settings import EngineSettings, Settings
from sandbox.check import matches
from sandbox.extract import extract_program
from sandbox.pool import Pool
from sandbox.spec import Spec, parse_spec
from sandbox.types import Limits, Verdict

RESAMPLES = 10_000
SEED = 7
FEEDBACK_ARMS = {
    "own": Control.FEEDBACK,
    "shuffled": Control.SHUFFLED,
    "none": Control.NONE,
}
TUNING_ARMS = ("resample", "ilf", "human", "gold")
TRAIN_SPLIT = "Train"
RIGHT = "right"
AT_ONCE = 8
"""Wrong programs whose refinements are asked for side by side."""
Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every part is given."""

    data: Path
    directory: Path
    model: str
    limit: int | None
    until: float
    """When to stop, by `time.monotonic`; what is done is kept."""
    samples: int = 4
    asked: int | None = None
    """Only so many of the held-out tasks, in a seeded order."""
    seeds: int = 1
    learning_rate: float = 1e-4
    epochs: int = 2

    def journal(self, part: str) -> Journal:
        """The finished units of a part."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return Journal(self.directory / f"{part}.jsonl")

    def left(self) -> bool:
        """Whether there is time for another unit."""
        return time.monotonic() < self.until


def say(text: str) -> None:
    """Tell how far it got."""
    print(text, file=sys.stderr, flush=True)


def units(items: Sequence[Any], work: Work) -> Iterator[Any]:
    """Yield items while there is time."""
    for number, item in enumerate(items):
        if not work.left():
            say(f"out of time after {number} of {len(items)}")
            return
        yield item
        if (number + 1) % 20 == 0:
            say(f"{number + 1} of {len(items)}")


# --- the annotations ---------------------------------------------------------------------------


def feedback_cases(path: Path, split: str | None = None) -> list[Case]:
    """The paper's triples: a wrong program, a person's words, and the person's correction.

    Args:
        path: the annotations.
        split: only those of this split; None: all, for what trains nothing.
    """
    cases = []
    for _, row in read_jsonl(path):
        of = str(row["paper_split"]).removeprefix("MBPP_")
        entry = importer.read_ilf(row | {"paper_split": TRAIN_SPLIT})
        said = dict(entry.feedback)
        wanted = split is None or of == split
        if not wanted or entry.spec is None or Metric.DEMONSTRATION not in said:
            continue
        cases.append(
            Case(
                interaction_id=str(row["task_id"]),
                messages=entry.messages,
                spec=entry.spec.to_json(),
                program=entry.program,
                feedback=str(said[Metric.COMMENT]),
                feedback_ids=[],
                feedback_source="HUMAN",
                source="imported",
                demonstration=str(said[Metric.DEMONSTRATION]),
                metadata={"task_id": f"MBPP/{row['task_id']}"},
            )
        )
    return cases


# --- ILF, table 2: whose feedback helps --------------------------------------------------------


def feedback(work: Work) -> None:
    """Score each correction under each arm, one task after the other."""
    from improver import train  # torch is slow to import

    cases = feedback_cases(work.data / "train" / "ilf_human_feedback.jsonl")
    others = {case.interaction_id: case.feedback for case in ilf.shuffled(cases, SEED)}
    random.Random(SEED).shuffle(cases)
    scorer = Scorer(models.resolve(work.model).directory)
    with work.journal("feedback") as journal:
        for case in units(cases[: work.limit], work):
            key = f"{work.model}|{case.interaction_id}"
            if key in journal.done:
                continue
            spec = parse_spec(case.spec)
            answer = fenced(case.demonstration or "")
            ids: list[int] = []
            found: Json = {}
            for arm, control in FEEDBACK_ARMS.items():
                words = others[case.interaction_id] if arm == "shuffled" else case.feedback
                prompt = ilf.refinement_prompt(replace(case, feedback=words), spec, control)
                row = train.encode(scorer.tokenizer, prompt, answer)
                ids = row.ids[row.prompt :]
                found[arm] = [round(value, 4) for value in scorer.answer(row)]
            told = {
                "model": work.model,
                "task": case.interaction_id,
                "seed": SEED,
                "dtype": str(scorer.dtype).removeprefix("torch."),
                "code_like": code_like(case.feedback),
                "changed": changed(scorer.ids(fenced(case.program)), ids),
                "logprobs": found,
            }
            journal.add(key, told)


def repair(work: Work) -> None:
    """Sample refinements of each wrong program under each arm, as far as the time goes."""
    asyncio.run(_repair(work))


async def _repair(work: Work) -> None:
    model = models.resolve(work.model)
    cases = feedback_cases(work.data / "train" / "ilf_human_feedback.jsonl")
    others = {case.interaction_id: case.feedback for case in ilf.shuffled(cases, SEED)}
    random.Random(SEED).shuffle(cases)
    with work.journal("repair") as journal, engine(model, work.directory) as url:
        async with _asked(url, Limits(wall_s=10.0, cpu_s=8)) as (policy, pool):
            policy.model = model.name
            chosen = cases[: work.limit]
            for start in units(range(0, len(chosen), AT_ONCE), work):
                await together(
                    repaired(work, case, others[case.interaction_id], policy, pool, journal)
                    for case in chosen[start : start + AT_ONCE]
                )


async def repaired(
    work: Work, case: Case, other: str, policy: Policy, pool: Judge, journal: Journal
) -> None:
    """Count the refinements of one wrong program that pass, with each arm's feedback."""
    key = f"{work.model}|{work.samples}|{case.interaction_id}"
    if key in journal.done:
        return
    spec = parse_spec(case.spec)
    passed: dict[str, int] = {}
    for arm, control in FEEDBACK_ARMS.items():
        told = replace(case, feedback=other if arm == "shuffled" else case.feedback)
        tried = await attempt(
            policy,
            pool,
            ilf.refinement_prompt(told, spec, control),
            spec,
            n=work.samples,
            temperature=0.8,
            max_tokens=256,
            seed=case_seed(SEED, case.interaction_id),
            stop=[ilf.END_OF_PROGRAM],
        )
        passed[arm] = sum(one.passed is True for one in tried)
    journal.add(key, {"model": work.model, "samples": work.samples, "passed": passed})


def code_like(words: str) -> bool:
    """Whether feedback holds something that could be copied into a program."""
    return (
        re.search(r"`|\w\(|[\[\]{}]|[-+*/%=<>!]=|\w_\w|\w\.\w+\(| [-+*/%=<>] ", words) is not None
    )


def changed(wrong: Sequence[int], right: Sequence[int]) -> list[int]:
    """The places of the correction's tokens that the wrong program does not have."""
    matcher = difflib.SequenceMatcher(a=list(wrong), b=list(right), autojunk=False)
    return [
        place
        for tag, _, _, begin, end in matcher.get_opcodes()
        if tag in ("replace", "insert")
        for place in range(begin, end)
    ]


class Scorer:
    """A model's log-probabilities of answers, in the number format that it is trained in here."""

    def __init__(self, directory: Path, adapter: Path | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from improver import train

        self._torch, self._train = torch, train
        self.device = train.pick_device()
        self.dtype = train.pick_dtype("auto", self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=self.dtype, local_files_only=True
        )
        self._model: Any = _Bare(model)
        if adapter is not None:
            from peft import PeftModel

            self._model = PeftModel.from_pretrained(model, str(adapter))
        model.to(self.device).eval()

    def ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def answer(self, row: Any) -> list[float]:
        """The log-probability of each token of a row's answer, in nats."""
        with self._torch.no_grad():
            values: list[float] = self._train.answer_logprobs(
                self._model, [row], self.device
            ).tolist()
        return values


class _Bare:
    """A model without an adapter, in the shape that the training step's functions know."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def get_base_model(self) -> Any:
        return self._model


# --- ILF, table 4: what to train on ------------------------------------------------------------


def tuning(work: Work) -> None:
    """Sample, train and examine, as far as the time goes."""
    asyncio.run(_tuning(work))


async def _tuning(work: Work) -> None:
    model = models.resolve(work.model)
    annotated = work.data / "train" / "ilf_human_feedback.jsonl"
    cases = feedback_cases(annotated, TRAIN_SPLIT)[: work.limit]
    tasks = TaskFile(work.data / "eval" / "mbpp_eval.jsonl").tasks()
    firewall = Firewall(task.exam() for task in tasks)
    tasks = sorted(tasks, key=lambda task: case_seed(SEED, task.id))[: work.asked]
    cases = [case for case in cases if _clean(case, firewall)]
    say(f"{len(cases)} tasks to learn from, {len(tasks)} to be asked")
    gold = {
        str(row["task_id"]): str(row["code"]).replace("\r", "")
        for _, row in read_jsonl(work.data / "train" / "mbpp_train.jsonl")
    }
    limits = Limits(wall_s=10.0, cpu_s=8)
    with work.journal("tuning") as journal, engine(model, work.directory) as url:
        async with _asked(url, limits) as (policy, pool):
            sampled = await _sample(work, cases, model.name, policy, pool, journal)
            rows = training_rows(cases, sampled, gold, firewall)
            await _examine(work, tasks, model.name, "base", 0, policy, pool, journal)
            for seed in range(work.seeds):
                for arm in TUNING_ARMS:
                    name = f"{arm}-{seed}-{work.learning_rate:g}-{work.epochs}-{len(rows[arm])}"
                    if asked_key(work, name, tasks) in journal.done:
                        continue
                    if await _trained(work, model, name, arm, seed, rows[arm], url, journal):
                        await _examine(work, tasks, name, arm, seed, policy, pool, journal)


@asynccontextmanager
async def _asked(url: str, limits: Limits) -> AsyncIterator[tuple[Policy, Pool]]:
    async with Pool(workers=2, limits=limits) as pool, Policy(url, concurrency=16) as policy:
        yield policy, pool


def _clean(case: Case, firewall: Firewall) -> bool:
    spec = parse_spec(case.spec)
    text = request_text(case.messages)
    return firewall.check(text=text, spec=spec, program=case.demonstration or "") is None


@contextmanager
def engine(model: Model, directory: Path) -> Iterator[str]:
    """An engine of our own, its log in a directory; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(data_dir=directory, engine=EngineSettings(port=port))
    service = services.engine(settings, model, services.engine_build())
    child = Child(service, directory / "engine.log", Patience(), say)
    began = time.monotonic()
    child.start()
    try:
        while child.state is not State.READY:
            child.tick()
            if child.state is State.WAITING:
                raise SystemExit(f"the engine ended:\n{child.tail()}")
            time.sleep(0.5)
        say(f"the engine is ready after {time.monotonic() - began:.0f} s")
        yield f"http://127.0.0.1:{port}"
    finally:
        child.ask_to_stop()
        if not child.wait(20):
            child.kill()


async def _sample(
    work: Work, cases: Sequence[Case], model: str, policy: Policy, pool: Pool, journal: Journal
) -> dict[tuple[str, str], list[Json]]:
    """What passes of the model's own answers (`resample`) and refinements (`ilf`), by task."""

    async def one(case: Case, arm: str) -> None:
        key = f"{work.model}|sample|{arm}|{work.samples}|{case.interaction_id}"
        if key in journal.done or not work.left():
            return
        spec = parse_spec(case.spec)
        control = Control.RESAMPLE if arm == "resample" else Control.FEEDBACK
        tried = await attempt(
            policy,
            pool,
            ilf.refinement_prompt(case, spec, control),
            spec,
            n=work.samples,
            temperature=0.8,
            max_tokens=256,
            model=model,
            stop=[ilf.END_OF_PROGRAM],
        )
        journal.add(key, {"arm": arm, "model": work.model, **_passing(tried)})

    for arm in ("resample", "ilf"):
        for start in range(0, len(cases), 16):
            await together(one(case, arm) for case in cases[start : start + 16])
        say(f"sampled: {arm}")
    return {
        (arm, case.interaction_id): journal.done[key]["passing"]
        for arm in ("resample", "ilf")
        for case in cases
        if (key := f"{work.model}|sample|{arm}|{work.samples}|{case.interaction_id}")
        in journal.done
    }


def _passing(tried: Sequence[Attempted]) -> Json:
    good = [one for one in tried if one.passed and one.program is not None]
    return {
        "samples": len(tried),
        "passed": len(good),
        "passing": [{"program": one.program, "text": one.sample.text} for one in good],
    }


def training_rows(
    cases: Sequence[Case],
    sampled: Mapping[tuple[str, str], Sequence[Json]],
    gold: Mapping[str, str],
    firewall: Firewall,
) -> dict[str, list[Json]]:
    """The rows of each arm: one of a task, the live prompt and a right program.

    An answer of the model's own is learned as it said it, up to the end of its program; a program
    of somebody else's is written as one block.
    """
    rows: dict[str, list[Json]] = {arm: [] for arm in TUNING_ARMS}
    for case in cases:
        spec = parse_spec(case.spec)
        task = case.interaction_id
        own = list(sampled.get(("resample", task), ()))
        refined = list(sampled.get(("ilf", task), ()))
        pick = random.Random(case_seed(SEED, task))
        said = pick.choice(own) if own else None
        offered: dict[str, str | None] = {
            "resample": str(said["program"]) if said else None,
            "ilf": pick.choice(refined)["program"] if refined else None,
            "human": case.demonstration,
            "gold": gold.get(task),
        }
        for arm, program in offered.items():
            if program is None or not _may_be_learned(case, spec, program, firewall):
                continue
            answer = fenced(program)
            if arm == "resample" and said:
                answer = _own_words(said["text"])
            messages = live_messages(case.messages, spec)
            rows[arm].append({"id": f"{arm}-{task}", "messages": messages, "answer": answer})
    return rows


def _own_words(text: str) -> str:
    """An answer that was stopped at the end of its program, with that end."""
    return f"{text.rstrip()}\n```" if text.count("```") % 2 else text


def _may_be_learned(case: Case, spec: Spec, program: str, firewall: Firewall) -> bool:
    return firewall.check(text=request_text(case.messages), spec=spec, program=program) is None


async def _trained(
    work: Work,
    model: Model,
    name: str,
    arm: str,
    seed: int,
    rows: Sequence[Json],
    url: str,
    journal: Journal,
) -> bool:
    """Train an arm and have the engine load it; False where there is no time, or nothing."""
    if not rows or not work.left():
        return False
    directory = work.directory / "adapters" / f"{work.model}-{name}"
    report = await fit(work, model, directory, rows, [], seed)
    key = f"{work.model}|trained|{name}"
    if key not in journal.done:
        told = ("rows", "steps", "loss_first", "loss_last", "tokens_per_s")
        journal.add(key, {"arm": arm, "seed": seed} | {one: report[one] for one in told})
    say(f"trained {name}: {len(rows)} rows, {report['train_s']} s")
    await load(url, name, directory)
    return True


async def load(url: str, name: str, directory: Path) -> None:
    """Have an engine load what was trained in a directory."""
    body = {"lora_name": name, "lora_path": str(directory / "adapter")}
    async with httpx.AsyncClient(timeout=120) as client:
        (await client.post(f"{url}/v1/load_lora_adapter", json=body)).raise_for_status()


async def fit(
    work: Work,
    model: Model,
    directory: Path,
    rows: Sequence[Json],
    held_out: Sequence[Json],
    seed: int,
) -> Json:
    """Train an adapter to the end, without an early stop; return the report."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", rows), ("held_out", held_out)):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    job = TrainJob(
        base_directory=str(model.directory),
        base_name=model.name,
        base_sha256=model.sha256,
        max_lora_rank=16,
        rank=16,
        alpha=32,
        dropout=0.0,
        learning_rate=work.learning_rate,
        epochs=work.epochs,
        batch_rows=8,
        max_tokens=1024,
        seed=seed,
        patience=1_000_000,
    )
    environment = os.environ | services.cpu_environment()
    return await run_training(directory, job, nice=10, environment=environment)


def asked_key(work: Work, name: str, tasks: Sequence[Task]) -> str:
    """The unit of an arm that was asked so many tasks."""
    return f"{work.model}|asked|{name}|{len(tasks)}"


async def _examine(
    work: Work,
    tasks: Sequence[Task],
    served: str,
    arm: str,
    seed: int,
    policy: Policy,
    pool: Pool,
    journal: Journal,
) -> None:
    """Ask an arm all held-out tasks, greedily."""
    name = "base" if arm == "base" else served
    key = asked_key(work, name, tasks)
    if key in journal.done or not work.left():
        return
    say(f"asking {name}")
    plan = score.Plan(benchmark="mbpp", model=served, max_answer_tokens=384)
    with Journal(work.directory / f"asked-{work.model}-{name}.jsonl") as asked:
        scores = await score.score(tasks, plan, policy, pool, asked)
    if any(one.judged == 0 for one in scores):
        say(f"{name}: not every answer could be judged; run it again")
        return
    told = {
        "model": work.model,
        "arm": arm,
        "name": name,
        "seed": seed,
        "learning_rate": work.learning_rate,
        "epochs": work.epochs,
        "passed": {one.id: one.passed for one in scores},
        "tokens": {one.id: one.tokens for one in scores},
        "prompts_sha256": score.prompt_sha256(tasks, plan),
    }
    journal.add(key, told)
    say(f"{name}: {sum(one.passed for one in scores)} of {len(tasks)}")


# --- Inverse-Instruct: order and selection -----------------------------------------------------


def order(work: Work) -> None:
    """Make the pairs with an engine, then train each arm without it."""
    model = models.resolve(work.model)
    read = corpus.read_corpus(work.data / "train" / "codeinstruct_python.jsonl").snippets
    snippets = corpus.draw(read, work.limit or 200, SEED)
    tasks = TaskFile(work.data / "eval" / "mbpp_eval.jsonl").tasks()
    firewall = Firewall(task.exam() for task in tasks)

    async def build() -> dict[str, list[Row]]:
        with engine(model, work.directory) as url:
            async with _asked(url, Limits(wall_s=10.0, cpu_s=8)) as (policy, pool):
                policy.model = model.name
                return await pairs(work, snippets, policy, pool, firewall)

    built = asyncio.run(build())
    asyncio.run(ablations(work, model, built))


async def pairs(
    work: Work, snippets: Sequence[Snippet], policy: Policy, pool: Runner, firewall: Firewall
) -> dict[str, list[Row]]:
    """The recipe's rows, chosen as in the paper and at random; what was asked is kept.

    The model's own judgement chooses whatever it is worth here: what that is, the report says.
    """
    found = {}
    for selection in (Selection.JUDGE, Selection.RANDOM):
        options = InverseOptions(summaries=work.samples, selection=selection)
        with work.journal(f"order-asked-{work.model}-{work.samples}") as journal:
            tools = Tools(policy=policy, pool=pool, firewall=firewall, journal=journal, seed=SEED)
            recipe = InverseInstruct(options, snippets=snippets, runner=pool)
            built = await recipe.build([], tools)
        say(f"{selection}: {json.dumps(built.report)[:300]}")
        found[str(selection)] = built.rows
    return found


def order_arms(built: Mapping[str, Sequence[Row]]) -> dict[str, tuple[list[Json], list[Json]]]:
    """The rows of each arm and the held-out ones: pairs of the corpus alone, the same for all."""
    judged = split(built[str(Selection.JUDGE)], held_out_share=0.2, seed=SEED)
    # A short program has a group of its own: by likeness alone its other instruction might stay.
    held = {row.program for row in judged.held_out}
    kept = [row for row in judged.train if row.program not in held]
    seen = {row.program for row in kept}
    drawn = [row for row in built[str(Selection.RANDOM)] if row.program in seen]
    trusted = int(Phase.TRUSTED)
    held_out = [row for row in judged.held_out if row.provenance["phase"] == trusted]
    only = [row for row in kept if row.provenance["phase"] == trusted]
    arms = {
        "self_made_first": arrange(kept, Order.SELF_MADE_FIRST, SEED),
        "trusted_first": arrange(kept, Order.TRUSTED_FIRST, SEED),
        "mixed": arrange(kept, Order.MIXED, SEED),
        "chosen_at_random": arrange(drawn, Order.SELF_MADE_FIRST, SEED),
        "trusted_only": only,
    }
    return {arm: ([to_json(r) for r in rows], _plain(held_out)) for arm, rows in arms.items()}


def _plain(rows: Sequence[Row]) -> list[Json]:
    """Held-out rows without a phase: they are looked at whichever phase is the last."""
    return [{"id": row.id, "messages": row.messages, "answer": row.answer} for row in rows]


async def ablations(work: Work, model: Model, built: Mapping[str, Sequence[Row]]) -> None:
    """Train every arm with every seed."""
    with work.journal("order") as journal:
        for seed in range(work.seeds):
            for arm, (rows, held_out) in order_arms(built).items():
                key = f"{work.model}|{arm}|{seed}|{work.learning_rate:g}"
                if key in journal.done or not work.left() or not rows:
                    continue
                directory = work.directory / "orders" / key.replace("|", "-")
                report = await fit(work, model, directory, rows, held_out, seed)
                looks = [one["held_out_loss"] for one in report["curve"] if "held_out_loss" in one]
                told = {"model": work.model, "arm": arm, "seed": seed, "rows": len(rows)}
                told |= {"learning_rate": work.learning_rate, "held_out": len(held_out)}
                journal.add(key, told | {"loss_base": looks[0], "loss": looks[-1]})
                say(f"{key}: {looks[0]:.4f} to {looks[-1]:.4f}")


# --- GIFT4Code: specifications -----------------------------------------------------------------


def specs(work: Work) -> None:
    """Make rows with an engine, train on some tables, and score what was made for others."""
    model = models.resolve(work.model)
    tables = contexts.read_tables(work.data / "tables").contexts
    found = sorted(tables, key=lambda context: case_seed(SEED, context.id))[: work.limit or 24]
    tasks = TaskFile(work.data / "eval" / "mbpp_eval.jsonl").tasks()
    firewall = Firewall(task.exam() for task in tasks)

    async def build() -> list[Row]:
        with engine(model, work.directory) as url:
            async with _asked(url, Limits(wall_s=10.0, cpu_s=8)) as (policy, pool):
                policy.model = model.name
                options = GiftOptions(
                    max_contexts=len(found), programs=work.samples, replay_share=0.0
                )
                recipe = Gift4Code(options, contexts=found, runner=pool)
                with work.journal(f"specs-asked-{work.model}-{work.samples}") as journal:
                    tools = Tools(
                        policy=policy, pool=pool, firewall=firewall, journal=journal, seed=SEED
                    )
                    built = await recipe.build([], tools)
                say(json.dumps(built.report)[:300])
                return built.rows

    train_rows, held_out = by_table(asyncio.run(build()))
    say(f"{len(train_rows)} rows to learn from, {len(held_out)} of other tables")
    if not train_rows or not held_out:
        raise SystemExit("too few of its programs can be learned from: --limit more tables")
    directory = work.directory / "specs" / f"{work.model}-{work.learning_rate:g}"
    told = [to_json(row) for row in train_rows]
    asyncio.run(fit(work, model, directory, told, [], SEED))
    for arm, adapter in (("base", None), ("tuned", directory / "adapter")):
        score_specs(work, held_out, arm, Scorer(model.directory, adapter))
    chosen = sorted(held_out, key=lambda row: row.id)[: work.asked]
    if chosen:
        asyncio.run(sample_specs(work, model, directory, chosen, found))


async def sample_specs(
    work: Work, model: Model, directory: Path, rows: Sequence[Row], found: Sequence[Context]
) -> None:
    """Have the base and the tuned model write programs for held-out tables, and run them."""
    of = {context.id: context for context in found}
    with engine(model, work.directory) as url, work.journal("specs-sampled") as journal:
        await load(url, "tuned", directory)
        async with _asked(url, Limits(wall_s=10.0, cpu_s=8)) as (policy, pool):
            for row in units(rows, work):
                context = of[str(row.provenance["context_id"])]
                await sample_row(work, row, context, model.name, policy, pool, journal)


async def sample_row(
    work: Work,
    row: Row,
    context: Context,
    base: str,
    policy: Policy,
    pool: Runner,
    journal: Journal,
) -> None:
    """Sample for one held-out program's task, with its specification and without, in both arms."""
    output = str(row.provenance["output"])
    wanted = await outputs(pool, row.program, context, output)
    if wanted is None:
        say(f"{row.id}: its own program cannot be run again")
        return

    async def one(arm: str, served: str, shown: str, asked: Sequence[Json]) -> None:
        key = f"{work.model}|{arm}|{work.learning_rate:g}|{shown}|{work.samples}|{row.id}"
        if key in journal.done:
            return
        samples = await policy.sample(
            asked,
            n=work.samples,
            temperature=0.8,
            max_tokens=256,
            seed=case_seed(SEED, row.id),
            model=served,
            stop=[ilf.END_OF_PROGRAM],
        )
        verdicts = [await verdict(pool, sample.text, context, wanted) for sample in samples]
        told: Json = {"model": work.model, "arm": arm, "row": row.id, "shown": shown}
        told |= {"kind": row.provenance["spec_kind"], "verdicts": verdicts}
        journal.add(key, told)

    await together(
        one(arm, served, shown, asked)
        for arm, served in (("base", base), ("tuned", "tuned"))
        for shown, asked in (("with", row.messages), ("without", without_spec(row.messages)))
    )


async def verdict(pool: Runner, text: str, context: Context, wanted: Sequence[Any]) -> str:
    """RIGHT where an answer makes what the reference makes, on the table and on another like it.

    By whatever name: a specification tells the name of the output, and must not win by that alone.
    """
    program = extract_program(_own_words(text))
    program = None if program is None else settle(program, context)
    if program is None:
        return "no program"
    traced = await trace(pool, program, context, seed=SEED)
    if isinstance(traced, Rejected):
        return traced.reason
    made = await outputs(pool, program, context, traced.output)
    if made is None:
        return "fails on other input"
    same = all(matches(one, other) for one, other in zip(made, wanted, strict=True))
    return RIGHT if same else "another output"


async def outputs(
    pool: Runner, program: str, context: Context, name: str
) -> tuple[Any, ...] | None:
    """What a program makes of its tables, and of resampled ones; None where it fails."""
    made = []
    for tables in (context.tables, context.perturbed(SEED)[1]):
        ran = await pool.run(program, variables=tables, outputs=[name])
        value = (ran.outputs or {}).get(name)
        if ran.verdict is not Verdict.OK or value is None:
            return None
        made.append(value)
    return tuple(made)


def by_table(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and held-out ones: a quarter of the tables, with all that is theirs."""
    tables = sorted({str(row.provenance["context_id"]) for row in rows})
    random.Random(SEED).shuffle(tables)
    held = set(tables[: max(1, len(tables) // 4)])
    sides: dict[bool, list[Row]] = {True: [], False: []}
    for row in rows:
        sides[str(row.provenance["context_id"]) in held].append(row)
    return sides[False], sides[True]


def without_spec(messages: Sequence[Json]) -> list[Json]:
    """The same request without its specification."""
    *before, last = messages
    return [*before, last | {"content": last["content"].rsplit("\n\nSpecification:\n", 1)[0]}]


def score_specs(work: Work, rows: Sequence[Row], arm: str, scorer: Scorer) -> None:
    """Score every held-out program with its specification and without."""
    from improver import train

    with work.journal("specs") as journal:
        for row in units(rows, work):
            key = f"{work.model}|{arm}|{work.learning_rate:g}|{row.id}"
            if key in journal.done:
                continue
            found = {"model": work.model, "arm": arm, "row": row.id}
            found |= {"kind": row.provenance["spec_kind"], "table": row.provenance["context"]}
            for name, asked in (("with", row.messages), ("without", without_spec(row.messages))):
                encoded = train.encode(scorer.tokenizer, asked, row.answer)
                found[name] = round(float(np.mean(scorer.answer(encoded))), 5)
            journal.add(key, found)


PARTS: dict[str, Callable[[Work], None]] = {
    "feedback": feedback,
    "repair": repair,
    "tuning": tuning,
    "order": order,
    "specs": specs,
}


def main() -> int:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "report"])
    parser.add_argument("--data", type=Path, help="the papers' rows")
    parser.add_argument("--work", type=Path, required=True, help="finished units, kept")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--limit", type=int, help="only so many tasks")
    parser.add_argument("--asked", type=int, help="only so many held-out tasks (tuning, specs)")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so long")
    parser.add_argument("--samples", type=int, default=4, help="answers of each prompt")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where `report` writes")
    given = parser.parse_args()
    if given.part == "report":
        from ops.bench import reproduction_report  # the one thing here that draws

        reproduction_report.write(given.work, given.out or Path("ops/docs"))
        return 0
    work = Work(
        data=given.data,
        directory=given.work.resolve(),
        model=given.model,
        limit=given.limit,
        until=time.monotonic() + 60 * given.minutes,
        samples=given.samples,
        asked=given.asked,
        seeds=given.seeds,
        learning_rate=given.learning_rate,
        epochs=given.epochs,
    )
    PARTS[given.part](work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
