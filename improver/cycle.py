"""One improvement cycle: the whole story.

    collect    what the recipes can learn from              store, tables, corpus → cases.jsonl
    build      each recipe asks the served model            → rows.jsonl, drops.jsonl
    screen     firewall, secrets, duplicates, caps          rows → rows.jsonl, quarantine.jsonl
    dataset    split by task, lineage                       rows → train.jsonl, held_out.jsonl
    train      LoRA in a process of its own                 → adapter/, registered as code@vN
    evaluate   champion and candidate, same tasks           → outcomes.jsonl
    decide     the gate                                     → judgement
    shadow     logged requests again, where that is set     → its report
    release    promote or reject, wait for the server       → swap

Each stage reads the folders of earlier ones and leaves its own (`workspace`), so a killed cycle is
resumed at the stage it was in. Too little to learn from ends it as `skipped`. What a stage does is
its module's business; here is only the order.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from improver import (
    cookbook,
    dataset,
    decide,
    divergence,
    drift,
    evaluate,
    orders,
    refiner,
    release,
    screen,
    shadow,
    trainer,
)
from improver.benchmarks import catalogue
from improver.benchmarks.base import Task
from improver.benchmarks.builtin import Builtin
from improver.benchmarks.mbpp import TaskFile
from improver.benchmarks.replay import Replay
from improver.errors import CycleError, FirewallError, Halted, ImproverError, NotEnough
from improver.firewall import Firewall
from improver.policy import Policy
from improver.progress import Show
from improver.recipes.base import Built, Tools
from improver.recipes.ilf import REFINER, Control, Ilf
from improver.trace import Runner
from improver.types import (
    Arm,
    Case,
    Drop,
    Judgement,
    Outcome,
    Row,
    Suite,
    TrainJob,
    read_lines,
    to_json,
    write_lines,
)
from improver.workspace import Journal, Workspace
from ops import tracing
from ops.errors import Conflict, OpsError, StoreUnavailable
from ops.models import Model
from ops.records import (
    Adapter,
    AdapterState,
    Alias,
    Cycle,
    CycleEvent,
    CycleState,
    Decision,
    Json,
    new_id,
    now,
)
from ops.redaction import Scrubber
from ops.registry import Registry
from ops.settings import ImproverSettings, ReleaseSettings, Settings
from ops.store import Store
from sandbox.errors import SandboxError
from sandbox.spec import Spec, parse_spec

logger = logging.getLogger(__name__)

HELD_BACK = 2000
"""The most requests of the record that are kept from training, for the replay suite."""
SEVERAL_TEMPERATURE = 0.8
RESUMABLE = (CycleState.QUEUED, CycleState.RUNNING, CycleState.PAUSED, CycleState.FAILED)


class Plan(BaseModel):
    """What a cycle was started with; kept in its row, so that it is resumed with the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    improver: ImproverSettings
    engine_model: str
    max_lora_rank: int
    dry_run: bool = False
    benchmarks_dir: Path | None = None
    swap_timeout_s: float = 300.0
    release: ReleaseSettings = ReleaseSettings()

    @classmethod
    def of(cls, settings: Settings, *, dry_run: bool = False) -> Plan:
        """What a cycle needs of an installation's settings."""
        return cls(
            improver=settings.improver,
            engine_model=settings.engine.model,
            max_lora_rank=settings.engine.max_lora_rank,
            dry_run=dry_run,
            benchmarks_dir=settings.benchmarks_dir,
            release=settings.release,
        )


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a cycle works with. `resolve` finds the base model's files."""

    store: Store
    registry: Registry
    policy: Policy
    pool: Runner
    resolve: Callable[[str], Model]
    environment: Mapping[str, str]
    show: Show
    train: trainer.Train = trainer.run_training
    scrubber: Scrubber = field(default_factory=Scrubber)


def start(store: Store, plan: Plan, cycles_dir: Path, *, trigger: str, state: CycleState) -> Cycle:
    """Write the row of a new cycle."""
    cycle_id = new_id()
    cycle = Cycle(
        id=cycle_id,
        created_at=now(),
        recipe=plan.improver.recipe,
        trigger=trigger,
        state=state,
        stage="",
        settings=plan.model_dump(mode="json"),
        directory=str(cycles_dir / cycle_id),
    )
    recipes = cookbook.names(plan.improver.recipe)
    control = Control(plan.improver.ilf.control)
    if Ilf.name in recipes and control is not Control.FEEDBACK and not plan.dry_run:
        raise CycleError(
            f"improver.ilf.control = {plan.improver.ilf.control} is for comparison only: --dry-run"
        )
    store.add_cycle(cycle)
    return cycle


def fail(store: Store, cycle: Cycle, error: Exception) -> Cycle:
    """Write down that a cycle could not even be run; it can be resumed.

    One that its user has paused or cancelled meanwhile stays so.
    """
    words = f"{type(error).__name__}: {error}"
    waiting = (CycleState.QUEUED, CycleState.RUNNING)
    try:
        return store.move_cycle(
            cycle.id, waiting, CycleState.FAILED, error=words, finished_at=now()
        )
    except Conflict:
        return store.cycle(cycle.id)


def abandoned(store: Store, registry: Registry) -> bool:
    """Whether a candidate is loaded whose cycle was halted while nobody ran it."""
    candidate = registry.at(Alias.CANDIDATE)
    if candidate is None or candidate.cycle_id is None:
        return False
    halted = (CycleState.PAUSED, CycleState.CANCELLED)
    return store.cycle(candidate.cycle_id).state in halted


def note(
    store: Store, cycle_id: str, message: str, *, level: str = "info", data: Json | None = None
) -> None:
    """Write a line into a cycle's log."""
    event = CycleEvent(
        id=new_id(),
        cycle_id=cycle_id,
        created_at=now(),
        level=level,
        message=message,
        data=data or {},
    )
    store.add_event(event)


class CycleRun:
    """A cycle being run, from wherever it stands. The caller holds the lease."""

    def __init__(self, cycle: Cycle, means: Means) -> None:
        if cycle.state not in RESUMABLE:
            raise CycleError(f"cycle {cycle.id} is {cycle.state} and cannot be resumed")
        self.cycle = cycle
        try:
            self.plan = Plan.model_validate(cycle.settings)
        except ValidationError as error:
            raise CycleError(
                f"cycle {cycle.id} has settings of another version: {error}"
            ) from error
        self.means = means
        self.workspace = Workspace(Path(cycle.directory))
        self._replay: list[Task] | None = None
        self._stages = (
            ("collect", "looking for what can be learned from", self._collect),
            ("build", "asking the model for rows", self._build),
            ("screen", "checking every row", self._screen),
            ("dataset", "splitting, writing lineage", self._dataset),
            ("train", "training the adapter", self._train),
            ("evaluate", "examining champion and candidate", self._evaluate),
            ("decide", "deciding", self._decide),
            *self._optional(),
            ("release", "releasing", self._release),
        )

    def _optional(self) -> list[tuple[str, str, Callable[[Path], Awaitable[Json]]]]:
        if not self.plan.release.shadow_requests:
            return []
        return [("shadow", "answering logged requests, seen by nobody", self._shadow)]

    async def run(self) -> Cycle:
        """Run every stage that is not done and return the cycle's row as it ends.

        When this call is cancelled, or the record cannot be reached, the cycle stays `running` in
        the record: it will be resumed.
        Paused or cancelled by its user, it stops within seconds, except while it is released.
        """
        began = self.cycle.started_at or now()
        try:
            self._move(self.cycle.state, started_at=began, finished_at=None, error=None)
            with tracing.span("cycle", cycle_id=self.cycle.id, recipe=self.cycle.recipe):
                async with orders.heeded(self.means.store, self.cycle.id):
                    for name, words, work in self._stages:
                        if self.plan.dry_run and name == "train":
                            break
                        if not self.workspace.done(name):
                            await self._do(name, words, work)
        except Halted:
            return self._halt()
        except NotEnough as error:
            return self._end(CycleState.SKIPPED, str(error))
        except StoreUnavailable:
            # No fault of the cycle's: it stays `running` and goes on when the record is back.
            raise
        except (ImproverError, OpsError, SandboxError, OSError) as error:
            logger.exception("the cycle failed", extra=self._extra())
            self._withdraw()
            return self._end(CycleState.FAILED, f"{type(error).__name__}: {error}")
        return self._end(CycleState.SUCCEEDED, None)

    # --- the stages --------------------------------------------------------------------------

    async def _collect(self, directory: Path) -> Json:
        settings = self.plan.improver
        recipes = cookbook.chosen(settings)
        material, report = await asyncio.to_thread(
            cookbook.gather,
            recipes,
            self.means.store,
            settings,
            before=self.cycle.created_at,
            keep=not self.plan.dry_run,
        )
        write_lines(directory / "cases.jsonl", material.cases)
        lacks = {name: cookbook.missing(name, settings, material, report) for name in recipes}
        left_out = {name: why for name, why in lacks.items() if why is not None}
        if len(left_out) == len(recipes):
            raise NotEnough("; ".join(left_out.values()))
        taken = [name for name in recipes if name not in left_out]
        return {"recipes": taken, "left_out": left_out, **report}

    async def _build(self, directory: Path) -> Json:
        settings = self.plan.improver
        recipes = self._recipes()
        material, _ = await asyncio.to_thread(
            cookbook.gather,
            recipes,
            self.means.store,
            settings,
            before=self.cycle.created_at,
            cases=self._cases(),
        )
        firewall = await asyncio.to_thread(self._firewall)
        built: dict[str, Built] = {}
        reports: Json = {}
        with Journal(directory / "journal.jsonl") as journal:
            for name in recipes:
                began = time.monotonic()
                items = cookbook.items(name, settings, material)
                tools = Tools(
                    policy=self.means.policy,
                    pool=self.means.pool,
                    firewall=firewall,
                    journal=journal,
                    seed=settings.train.seed,
                    on_case=self._counter(items, name),
                )
                if name == Ilf.name and settings.ilf.refiner == "own" and not self.plan.dry_run:
                    built[name] = await self._refine(directory / "refiner", material, tools)
                else:
                    recipe = cookbook.make_recipe(name, settings, material, self.means.pool)
                    built[name] = await recipe.build(material.cases, tools)
                reports[name] = _told(built[name], time.monotonic() - began)
        rows = [row for found in built.values() for row in found.rows]
        drops = [drop for found in built.values() for drop in found.drops]
        # Tables, corpora and the model's own answers have not been through the record.
        rows = [screen.scrubbed(row, self.means.scrubber) for row in rows]
        drops = [screen.scrubbed_drop(drop, self.means.scrubber) for drop in drops]
        write_lines(directory / "rows.jsonl", rows)
        write_lines(directory / "drops.jsonl", drops)
        return {"rows": len(rows), "dropped": _reasons(drops), "by_recipe": reports}

    async def _refine(self, directory: Path, material: cookbook.Material, tools: Tools) -> Built:
        """ILF with a refiner of its own, where there are corrections enough to train one."""
        means, settings = self.means, self.plan.improver
        directory.mkdir(exist_ok=True)
        wanted = settings.ilf.corrections
        rows, left = await refiner.corrections(
            material.cases,
            means.pool,
            tools.firewall,
            self._caps(),
            wanted=wanted,
            seed=settings.train.seed,
        )
        told: Json = {"corrections": len(rows), "corrections_wanted": wanted}
        if len(rows) < wanted or len(left) < settings.ilf.min_rows:
            recipe = cookbook.make_recipe(Ilf.name, settings, material, means.pool)
            built = await recipe.build(material.cases, tools)
            return replace(built, report=built.report | told)
        write_lines(directory / "train.jsonl", rows)
        adapter, _ = await self._adapter(directory, REFINER, rows)
        async with refiner.serving(
            means.store,
            means.registry,
            means.policy,
            adapter.version,
            timeout_s=self.plan.swap_timeout_s,
        ) as refused:
            name = None if refused else adapter.name
            recipe = cookbook.make_recipe(Ilf.name, settings, material, means.pool, refiner=name)
            built = await recipe.build(left, tools)
        return replace(built, report=built.report | told | {"refiner_refused": refused})

    async def _screen(self, directory: Path) -> Json:
        rows = list(read_lines(self.workspace.stage("build") / "rows.jsonl", Row))
        found = await asyncio.to_thread(
            screen.screen, rows, self._specs(rows), self._firewall(), self._caps()
        )
        write_lines(directory / "rows.jsonl", found.rows)
        write_lines(directory / "drops.jsonl", found.drops)
        write_lines(directory / "quarantine.jsonl", found.quarantine)
        return found.report

    async def _dataset(self, directory: Path) -> Json:
        rows = list(read_lines(self.workspace.stage("screen") / "rows.jsonl", Row))
        drops = [
            drop
            for place in ("build/drops", "screen/drops", "screen/quarantine")
            for drop in read_lines(self.workspace.stage(f"{place}.jsonl"), Drop)
        ]
        # What a refiner learned is part of the cycle's lineage, though not of its dataset.
        taught = list(read_lines(self.workspace.stage("build") / "refiner" / "train.jsonl", Row))
        dataset.keep_lineage(self.means.store, self.cycle.id, [*rows, *taught], drops)
        least = {name: cookbook.least_rows(name, self.plan.improver) for name in self._recipes()}
        dataset.require(rows, least, drops)
        settings = self.plan.improver.train
        made = dataset.split(rows, held_out_share=settings.held_out_share, seed=settings.seed)
        dataset.write(directory, made)
        return made.report

    async def _train(self, directory: Path) -> Json:
        made = self.workspace.stage("dataset")
        rows = [r for name in dataset.FILES for r in read_lines(made / f"{name}.jsonl", Row)]
        self._check_again(rows)
        for name in dataset.FILES:
            # A dataset that an older version left has no preferences.
            if (made / f"{name}.jsonl").exists():
                shutil.copyfile(made / f"{name}.jsonl", directory / f"{name}.jsonl")
        adapter, trained = await self._adapter(directory, self.cycle.recipe, rows)
        too_long = trained.get("rows_too_long", [])
        dataset.drop_from_lineage(self.means.store, self.cycle.id, too_long, "too long")
        self._update(adapter_version=adapter.version)
        return {"version": adapter.version, "adapter": adapter.name, **trained}

    async def _adapter(
        self, directory: Path, recipe: str, rows: Sequence[Row]
    ) -> tuple[Adapter, Json]:
        """Train on the files in a directory and register what comes of it, with the report."""
        model = await asyncio.to_thread(self.means.resolve, self.plan.engine_model)
        job = self._job(model)
        trained = await self.means.train(
            directory,
            job,
            nice=self.plan.improver.nice,
            environment=self.means.environment,
            on_progress=self._training_progress,
        )
        too_long = trained.get("rows_too_long", [])
        adapter = self.means.registry.add(
            lambda draft: _copy_files(directory / "adapter", draft),
            base_model=model.name,
            base_sha256=model.sha256,
            rank=job.rank,
            recipe=recipe,
            cycle_id=self.cycle.id,
            lineage={
                "rows": [row.id for row in rows if row.id not in too_long],
                "settings": self.cycle.settings,
                "seed": job.seed,
                "code": code_version(),
            },
            actor=release.ACTOR,
        )
        return adapter, trained

    async def _evaluate(self, directory: Path) -> Json:
        means = self.means
        number = self._version()
        refused = await self._refused(number)
        rules = self._rules()
        exam, unsound = await self._exam()
        champion = means.registry.at(Alias.CHAMPION)
        models = {
            Arm.CHAMPION: champion.name if champion else await means.policy.base_model(),
            Arm.CANDIDATE: means.registry.get(number).name,
        }
        outcomes: list[Outcome] = []
        away: Json | None = None
        if not refused:
            with Journal(directory / "journal.jsonl") as journal:
                outcomes = await evaluate.examine(
                    exam,
                    models,
                    means.policy,
                    means.pool,
                    journal,
                    enough=lambda found, left: decide.settled(found, left, rules),
                    promising=lambda found: decide.promising(found, rules),
                    on_task=lambda done, total: means.show.progress(done, total, "tasks"),
                )
                away = await self._divergence(exam, models[Arm.CANDIDATE], journal)
        write_lines(directory / "outcomes.jsonl", outcomes)
        asked = {o.task_id for o in outcomes if o.suite is Suite.TARGET}
        return {
            "champion": models[Arm.CHAMPION],
            "candidate": models[Arm.CANDIDATE],
            "refused": refused,
            "divergence": away,
            "target_tasks": len(exam.target),
            "target_asked": len(asked),
            "target_left_out": unsound,
            "guard_tasks": len(exam.guard),
            "replay_tasks": len(exam.replay),
            "vault_tasks": len(exam.vault),
            "vault_asked": len({o.task_id for o in outcomes if o.suite is Suite.VAULT}),
            "secrets": len(exam.secrets),
            "answers": len(outcomes),
            "tokens": sum(outcome.tokens for outcome in outcomes),
            "errors": sum(outcome.passed is None for outcome in outcomes),
        }

    async def _refused(self, number: int) -> str:
        """Bring a candidate into the server; return why it cannot be examined, empty if it can."""
        means = self.means
        state = means.registry.get(number).state
        if state not in (AdapterState.BUILT, AdapterState.EXAMINED):
            return f"it is {state}"
        means.registry.nominate(number)
        return await evaluate.wait_for_candidate(
            means.store,
            means.registry,
            means.policy,
            number,
            timeout_s=self.plan.swap_timeout_s,
        )

    async def _divergence(
        self, exam: evaluate.Exam, candidate: str, journal: Journal
    ) -> Json | None:
        if self.plan.improver.gate.max_divergence is None:
            return None
        policy = self.means.policy
        found = await divergence.measure(
            exam.guard, policy, journal, base=await policy.base_model(), candidate=candidate
        )
        return found.as_json()

    async def _decide(self, directory: Path) -> Json:
        examined = self.workspace.stage("evaluate")
        judgement = decide.decide(
            list(read_lines(examined / "outcomes.jsonl", Outcome)),
            self._rules(),
            refused=self.workspace.report("evaluate")["refused"],
            divergence=self.workspace.report("evaluate").get("divergence"),
        )
        write_lines(directory / "judgement.jsonl", [judgement])
        release.record_examination(self.means.registry, self._version(), judgement)
        return to_json(judgement)

    async def _shadow(self, directory: Path) -> Json:
        means, number = self.means, self._version()
        if self._judgement().decision is not Decision.PROMOTE:
            return {"skipped": "it is not promoted"}
        wanted = self.plan.release.shadow_requests
        refused = await release.into_shadow(
            means.store,
            means.registry,
            means.policy,
            number,
            reason=f"up to {wanted} logged requests before it goes live",
            timeout_s=self.plan.swap_timeout_s,
        )
        if refused:
            return {"worse": f"the server refused it: {refused}", "text": ""}
        evaluated = self.workspace.report("evaluate")
        outcomes = read_lines(self.workspace.stage("evaluate") / "outcomes.jsonl", Outcome)
        tasks = await asyncio.to_thread(
            shadow.recent,
            means.store,
            self.cycle.id,
            limit=wanted,
            asked={outcome.task_id for outcome in outcomes},
        )
        exam, _ = await self._exam()
        with Journal(directory / "journal.jsonl") as journal:
            found = await shadow.run(
                tasks,
                {Arm.CHAMPION: evaluated["champion"], Arm.CANDIDATE: evaluated["candidate"]},
                means.policy,
                means.pool,
                journal,
                exam,
                self._rules(),
            )
        return {"worse": found.worse, "text": found.text, **found.numbers}

    async def _release(self, directory: Path) -> Json:
        champion = str(self.workspace.report("evaluate")["champion"])
        adapter = champion.removeprefix("code@v")
        done = await release.release(
            self.means.store,
            self.means.registry,
            self.means.policy,
            self._version(),
            self._judgement(),
            timeout_s=self.plan.swap_timeout_s,
            against=int(adapter) if adapter != champion else 0,
            canary_share=self.plan.release.canary_share,
        )
        keep = self.plan.improver.adapters
        erased = await asyncio.to_thread(
            release.tidy,
            self.means.registry,
            keep_recent=keep.keep_recent,
            keep_best=keep.keep_best,
        )
        return done.as_json() | {"erased": erased}

    # --- what the stages share -----------------------------------------------------------------

    def _judgement(self) -> Judgement:
        """The gate's word, with what the shadow adds to it."""
        word = next(read_lines(self.workspace.stage("decide") / "judgement.jsonl", Judgement))
        seen = self.workspace.report("shadow")
        if "worse" not in seen:
            return word
        return replace(
            word,
            decision=Decision.REJECT if seen["worse"] else word.decision,
            reason=seen["worse"] or word.reason,
            numbers=word.numbers | {"shadow": seen},
            text=f"{word.text}\n{seen['text']}".strip(),
        )

    def _cases(self) -> list[Case]:
        return list(read_lines(self.workspace.stage("collect") / "cases.jsonl", Case))

    def _recipes(self) -> list[str]:
        """The recipes that take part."""
        taken: list[str] = self.workspace.report("collect")["recipes"]
        return taken

    def _specs(self, rows: Sequence[Row]) -> dict[str, Spec]:
        """The specification each row was accepted by, hidden part included.

        A row that was made for a specification of its own says it; others have their request's.
        """
        asked = {case.interaction_id: case.spec for case in self._cases()}
        found: dict[str, Spec] = {}
        for row in rows:
            own = row.provenance.get("spec")
            found[row.id] = parse_spec(asked[row.interaction_ids[0]] if own is None else own)
        return found

    def _tasks(self) -> list[Task]:
        """The target's tasks."""
        gate = self.plan.improver.gate
        if gate.tasks is None:
            return list(Builtin().tasks())
        return TaskFile(gate.tasks, subset=gate.subset).tasks()

    async def _exam(self) -> tuple[evaluate.Exam, list[str]]:
        """The examination, and the ids of tasks that cannot be judged here."""
        gate, pool, store = self.plan.improver.gate, self.means.pool, self.means.store
        further = [] if gate.guard_file is None else TaskFile(gate.guard_file).tasks()
        guard, not_guard = await evaluate.judgeable(further, pool)
        replay, not_replay = await evaluate.judgeable(self._held_back()[: gate.replay_tasks], pool)
        target, unsound = await evaluate.judgeable(self._tasks(), pool)
        target, vault = evaluate.cut_vault(
            target, parts=gate.vault_parts, looks=evaluate.vault_looks(store)
        )
        exam = evaluate.Exam(
            target=target[: gate.max_tasks],
            guard=[*Builtin().tasks()[: gate.guard_tasks], *guard],
            replay=replay,
            vault=vault[: gate.max_tasks],
            secrets=[] if gate.secrets is None else evaluate.read_secrets(gate.secrets),
            logprobs=gate.logprobs,
            # Several answers that are all the likeliest one would be one answer.
            temperature=gate.temperature or (SEVERAL_TEMPERATURE if gate.seeds > 1 else 0.0),
            seeds=gate.seeds,
            max_answer_tokens=gate.max_answer_tokens,
            seed=self.plan.improver.train.seed,
        )
        return exam, [*unsound, *not_guard, *not_replay]

    def _rules(self) -> decide.Rules:
        """What the gate goes by."""
        gate = self.plan.improver.gate
        return decide.Rules(
            error_rate=gate.error_rate,
            minimum_effect=gate.minimum_effect,
            guard_margin=gate.guard_margin,
            replay_margin=gate.replay_margin,
            vault_margin=gate.vault_margin,
            limits=drift.Limits(
                length_ratio=gate.max_length_ratio,
                refusal_rise=gate.max_refusal_rise,
                similarity_rise=gate.max_similarity_rise,
                entropy_ratio=gate.min_entropy_ratio,
                # Where it is unset, nothing is measured that could exceed it.
                divergence=gate.max_divergence or drift.Limits.divergence,
            ),
        )

    def _held_back(self) -> list[Task]:
        """Requests of the record that are only examined with, the newest first."""
        gate = self.plan.improver.gate
        if not gate.replay_tasks:
            return []
        if self._replay is None:
            replay = Replay(
                store=self.means.store,
                share=gate.replay_share,
                limit=HELD_BACK,
                before=self.cycle.id,
            )
            self._replay = list(replay.tasks())
        return self._replay

    def _firewall(self) -> Firewall:
        """Every task of every benchmark, also those this examination leaves out."""
        tasks = list(Builtin().tasks())
        if self.plan.improver.gate.tasks is not None:
            tasks += TaskFile(self.plan.improver.gate.tasks).tasks()
        if self.plan.improver.gate.guard_file is not None:
            tasks += TaskFile(self.plan.improver.gate.guard_file).tasks()
        tasks += self._held_back()
        # Whatever lies where benchmarks are looked for may be examined with one day.
        present = catalogue.present(self.plan.benchmarks_dir)
        # Of one task's forms the last has the most checks.
        brought = {(task.id, task.text): task for one in present for task in one.tasks()}
        return Firewall(task.exam() for task in (*tasks, *brought.values()))

    def _check_again(self, rows: Sequence[Row]) -> None:
        firewall, specs = self._firewall(), self._specs(rows)
        for row in rows:
            hit = screen.check_row(row, specs[row.id], firewall)
            if hit is not None:
                raise FirewallError(f"row {row.id} touches the examination: {hit[0]} ({hit[1]})")

    def _job(self, model: Model) -> TrainJob:
        train = self.plan.improver.train
        return TrainJob(
            base_directory=str(model.directory),
            base_name=model.name,
            base_sha256=model.sha256,
            max_lora_rank=self.plan.max_lora_rank,
            rank=train.rank,
            alpha=train.alpha,
            dropout=train.dropout,
            learning_rate=train.learning_rates[0],
            learning_rates=train.learning_rates,
            preferences=train.preferences,
            beta=train.beta,
            preference_learning_rate=train.preference_learning_rate,
            preference_epochs=train.preference_epochs,
            epochs=train.epochs,
            batch_rows=train.batch_rows,
            max_tokens=train.max_tokens,
            seed=train.seed,
            gradient_checkpointing=train.gradient_checkpointing,
        )

    def _caps(self) -> screen.Caps:
        chosen = self.plan.improver.screen
        return screen.Caps(
            per_user=chosen.rows_per_user,
            per_tenant=chosen.rows_per_tenant,
            per_task=chosen.rows_per_task,
            distrusted=frozenset(chosen.distrusted_users),
        )

    def _version(self) -> int:
        return int(self.workspace.report("train")["version"])

    # --- the record ----------------------------------------------------------------------------

    async def _do(self, name: str, words: str, work: Callable[[Path], Awaitable[Json]]) -> None:
        began, tokens = time.monotonic(), self.means.policy.tokens
        busy_s = self.means.policy.busy_s
        self._move(CycleState.RUNNING, stage=name)
        self._event("info", f"{name}: {words}")
        self.means.show.stage(name, words)
        with tracing.span(name, cycle_id=self.cycle.id):
            found = await work(self.workspace.begin(name))
        seconds = round(time.monotonic() - began, 2)
        worked = self.means.policy.busy_s - busy_s + trainer.model_s(found)
        found |= {"seconds": seconds, "model_s": round(min(worked, seconds), 2)}
        if sampled := self.means.policy.tokens - tokens:
            found |= {
                "sampled_tokens": sampled,
                "sampled_tokens_per_s": round(sampled / max(seconds, 0.01), 1),
            }
        self.workspace.finish(name, found)
        self._update(report=self._report())
        self._event("info", f"{name}: done in {seconds} s", _short(found))
        self.means.show.end(f"{seconds:.0f} s")

    def _end(self, state: CycleState, error: str | None) -> Cycle:
        changes: Json = {"error": error, "finished_at": now(), "report": self._report()}
        try:
            self._move(CycleState.RUNNING, state, **changes)
        except Halted:
            return self._halt()
        if error:
            self._event("error" if state is CycleState.FAILED else "warn", error)
        self._event("info", f"ended as {state}")
        return self.cycle

    def _halt(self) -> Cycle:
        """Leave the cycle as its user wants it: to be resumed, or ended."""
        self._withdraw()
        self._update(report=self._report())
        reason = f": {self.cycle.error}" if self.cycle.error else ""
        where = f" at stage {self.cycle.stage}" if self.cycle.stage else ""
        self._event("warn", f"stopped{where}, it is {self.cycle.state} now{reason}")
        return self.cycle

    def _withdraw(self) -> None:
        """Take the candidate back, or servers would go on trying to load it."""
        candidate = self.means.registry.at(Alias.CANDIDATE)
        if candidate is not None and candidate.cycle_id == self.cycle.id:
            self.means.registry.nominate(None)

    def _report(self) -> Json:
        stages = {name: self.workspace.report(name) for name, *_ in self._stages}
        return {name: found for name, found in stages.items() if found} | {
            "dry_run": self.plan.dry_run
        }

    def _move(
        self, was: CycleState, state: CycleState = CycleState.RUNNING, **changes: object
    ) -> None:
        """Change the row, unless its user has changed the state meanwhile.

        Raises:
            Halted: that.
        """
        try:
            self.cycle = self.means.store.move_cycle(self.cycle.id, (was,), state, **changes)
        except Conflict as error:
            raise Halted(str(error)) from error

    def _update(self, **changes: object) -> None:
        self.cycle = self.means.store.update_cycle(self.cycle.id, **changes)

    def _event(self, level: str, message: str, data: Json | None = None) -> None:
        note(self.means.store, self.cycle.id, message, level=level, data=data)

    def _counter(self, total: int, note: str) -> Callable[[], None]:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            self.means.show.progress(done, total, note)

        return count

    def _training_progress(self, line: Json) -> None:
        words = ", ".join(
            f"{name.replace('_', ' ')} {line[name]:.3f}"
            for name in ("loss", "held_out_loss")
            if name in line
        )
        self.means.show.progress(
            line["step"], line["steps"], f"{words}, {line['tokens_per_s']:.0f} tokens/s"
        )
        if "held_out_loss" in line:
            self._event("info", f"train: step {line['step']}, {words}", line)

    def _extra(self) -> Json:
        return {"action": "cycle", "cycle_id": self.cycle.id, "stage": self.cycle.stage}


def _told(built: Built, seconds: float) -> Json:
    """The numbers of one recipe."""
    return {
        "rows": len(built.rows),
        "dropped": _reasons(built.drops),
        "build_s": round(seconds, 2),
        **built.report,
    }


def _reasons(drops: Sequence[Drop]) -> dict[str, int]:
    return dict(Counter(drop.reason for drop in drops))


def code_version() -> str:
    """Return the installed version, and in a checkout the commit."""
    try:
        installed = version("journeyman")
    except PackageNotFoundError:
        installed = "unknown"
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return installed
    commit = done.stdout.strip() if done.returncode == 0 else ""
    return f"{installed}+{commit}" if commit else installed


def _copy_files(source: Path, draft: Path) -> None:
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, draft / path.name)


def _short(found: Json) -> Json:
    """Only the numbers and words of a report: long lists stay in the report itself."""
    return {k: v for k, v in found.items() if isinstance(v, (int, float, str, bool))}
