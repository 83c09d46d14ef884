"""Imitation learning from language feedback (ILF, arXiv 2303.16749; TMLR 02/2024).

Algorithm 1 of the paper: a wrong program and somebody's words about it go to a refiner; its
refinements are kept when they pass all tests; of each task one is kept at random; the policy is
trained from its base on the task alone, without the wrong program and without the feedback, to
give the refinement.

Deviations: the refiner is the served model itself, unless one is trained on people's corrections
first, as in the paper (`improver.refiner`); the prompt is written for a model that follows
instructions, not for one that completes text; where no refinement passes, a human demonstration
that does may take its place (a row of another origin, counted apart, at most one for each
refinement unless told otherwise); and some feedback is a program's words about a failing visible
example, marked as such (the paper's section 4.3 finds written feedback of people better).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from improver.attempts import SANDBOX_ERROR, Attempted, Judge, attempt, judge, together
from improver.errors import PolicyError, PolicyUnavailable
from improver.policy import Sample
from improver.recipes.base import (
    Built,
    Tools,
    case_seed,
    fenced,
    live_messages,
    messages_sha256,
    request_text,
)
from improver.types import Case, Drop, Origin, Row, from_json, to_json
from ops.records import Json
from sandbox.errors import SandboxError, SpecError
from sandbox.extract import program_sha256
from sandbox.spec import Spec, extend_prompt, parse_spec, show_value
from sandbox.values import decode

REFINER = "ilf_refiner"
"""Recipe of the rows and the adapter of a refiner."""
OLD_PROGRAM_CHARS = 2000
"""The paper cuts the old code to 512 tokens, and nothing else, when a prompt gets too long."""
FEEDBACK_CHARS = 2000

END_OF_PROGRAM = "\n```\n"
"""Where a refinement ends: what a model says after its program is paid for and thrown away."""

INSTRUCTION = (
    "Below are a programming task, a program that was meant to solve it but does not, and a "
    "reviewer's feedback on that program. Write the corrected program."
)
CLOSING_ALONE = "Answer with the whole corrected program in one ```python block and nothing else."
CLOSING = f"Follow the feedback. {CLOSING_ALONE}"
INSTRUCTION_ALONE = (
    "Below are a programming task and a program that was meant to solve it but does not. Write "
    "the corrected program."
)


class Control(StrEnum):
    """What the refiner is told: the recipe itself, and what it has to be compared with.

    Without the controls nobody can say that feedback helps: asking again repairs some programs by
    luck (the paper's table 2 has 2.0 % with the program's own feedback, 0.4 % with another's).
    """

    FEEDBACK = "feedback"
    """The recipe: the wrong program and the words about it."""
    SHUFFLED = "shuffled"
    """The wrong program and words about another one."""
    NONE = "none"
    """The wrong program alone."""
    RESAMPLE = "resample"
    """The task alone, as often: rejection sampling at equal compute."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is sampled and what is accepted.

    `demonstrations_per_refinement` caps people's programs against the model's own; None: no cap.
    The paper has no mixture. Trained on people's refinements alone its policy reaches 33 % pass@1,
    on the model's own 36 %, which are likelier under the model and so easier to learn. A small
    model refines few programs, and without a cap would learn from people almost only.
    """

    samples: int = 4
    temperature: float = 0.8
    max_answer_tokens: int = 384
    demonstrations: bool = True
    demonstrations_per_refinement: float | None = 1.0
    control: Control = Control.FEEDBACK
    refiner: str | None = None
    """The model that is asked for refinements; None: the one that is served."""


class Ilf:
    """The recipe."""

    name = "ilf"

    def __init__(self, options: Options) -> None:
        self._options = options

    async def build(self, cases: Sequence[Case], tools: Tools) -> Built:
        """Refine every case, keep what passes, choose one per task, cap demonstrations.

        Raises:
            PolicyUnavailable: the model does not answer.
        """
        if self._options.control is Control.SHUFFLED:
            cases = shuffled(cases, tools.seed)
        tried = await together(self._once(case, tools) for case in cases)
        rows: list[Row] = []
        drops: list[Drop] = []
        for found in tried:
            rows += [from_json(Row, row) for row in found["rows"]]
            drops += [from_json(Drop, drop) for drop in found["drops"]]
        chosen, passed_over = choose_one_per_task(rows, tools.seed)
        kept, too_many = cap_demonstrations(
            chosen, self._options.demonstrations_per_refinement, tools.seed
        )
        drops += passed_over + too_many
        return Built(rows=kept, drops=drops, report=self._report(cases, tried, kept))

    async def _once(self, case: Case, tools: Tools) -> Json:
        """Do one case, unless a cycle that was killed has done so."""
        done = tools.journal.done.get(case.interaction_id)
        if done is None:
            done = await _Work(case, self._options, tools).run()
            tools.journal.add(case.interaction_id, done)
        tools.on_case()
        return done

    def _report(self, cases: Sequence[Case], tried: Sequence[Json], chosen: list[Row]) -> Json:
        solved = Counter(t["feedback_source"] for t in tried if t["passed"])
        return {
            "control": str(self._options.control),
            "refiner": self._options.refiner or "the served model",
            "cases": len(cases),
            "cases_by_feedback": dict(Counter(case.feedback_source for case in cases)),
            "samples": sum(t["samples"] for t in tried),
            "refinements_passed": sum(t["passed"] for t in tried),
            "passed_visible_but_not_hidden": sum(t["visible_only"] for t in tried),
            "cases_refined": sum(solved.values()),
            "cases_refined_by_feedback": dict(solved),
            "rows_by_origin": dict(Counter(str(row.origin) for row in chosen)),
            "rows_without_hidden_checks": sum(
                not row.provenance["hidden_checks"] for row in chosen
            ),
            "feedback_naming_a_hidden_value": sum(names_hidden_value(case) for case in cases),
            "temperature": self._options.temperature,
            "samples_per_case": self._options.samples,
        }


class _Work:
    """One case: sample refinements, accept what passes, else its demonstration."""

    def __init__(self, case: Case, options: Options, tools: Tools) -> None:
        self.case = case
        self.options = options
        self.tools = tools
        self.rows: list[Json] = []
        self.drops: list[Json] = []
        self.samples = self.passed = self.visible_only = 0

    async def run(self) -> Json:
        """Return what came of the case, as the journal keeps it."""
        spec = self._spec()
        if spec is not None:
            attempts = await self._sample(spec)
            self._accept(attempts or [], spec)
            wanted = self.options.demonstrations and not self.rows
            if attempts is not None and wanted and self.case.demonstration is not None:
                await self._demonstrate(self.case.demonstration, spec)
        return {
            "rows": self.rows,
            "drops": self.drops,
            "samples": self.samples,
            "passed": self.passed,
            "visible_only": self.visible_only,
            "feedback_source": self.case.feedback_source,
        }

    def drop(self, reason: str, detail: str = "", row: Row | None = None) -> None:
        dropped = Drop(
            reason=reason, interaction_ids=[self.case.interaction_id], detail=detail, row=row
        )
        self.drops.append(to_json(dropped))

    def _spec(self) -> Spec | None:
        """The request's specification, where it can tell right from wrong."""
        try:
            spec = parse_spec(self.case.spec)
        except SpecError as error:
            self.drop("spec not readable", str(error))
            return None
        if not spec.has_checks:
            self.drop("nothing to check a refinement with")
            return None
        return spec

    async def _sample(self, spec: Spec) -> list[Attempted] | None:
        """Ask for refinements and judge them; None where the model refuses the request."""
        options = self.options
        # No seed: vLLM's CPU build dies of one when a prompt is prefilled in parts ("CPU Generator
        # does not use offset"). The journal keeps what was sampled, so nothing is drawn twice.
        try:
            attempts = await attempt(
                self.tools.policy,
                self.tools.pool,
                refinement_prompt(self.case, spec, options.control),
                spec,
                n=options.samples,
                temperature=options.temperature,
                max_tokens=options.max_answer_tokens,
                model=options.refiner,
                stop=[END_OF_PROGRAM],
            )
        except PolicyUnavailable:
            raise
        except PolicyError as error:
            self.drop("request refused", str(error))
            return None
        self.samples = len(attempts)
        self.visible_only = sum(map(_passes_visible_only, attempts))
        return attempts

    def _accept(self, attempts: Sequence[Attempted], spec: Spec) -> None:
        """Offer the refinements that pass all checks and are new."""
        wrong = program_sha256(self.case.program)
        seen: set[str] = set()
        for number, attempted in enumerate(attempts):
            program = self._passing(attempted, "refinement fails")
            if program is None:
                continue
            digest = program_sha256(program)
            if digest == wrong:
                self.drop("refinement equals the wrong program")
            elif digest in seen:
                self.drop("refinement twice")
            else:
                seen.add(digest)
                self.passed += 1
                told = _sampling(attempted.sample, number, self.options)
                self._offer(make_row(self.case, spec, program, Origin.REFINEMENT, told), spec)

    async def _demonstrate(self, text: str, spec: Spec) -> None:
        """Offer the program that a person says should have been, where it passes."""
        attempted = await judge(self.tools.pool, _written(text), spec)
        program = self._passing(attempted, "demonstration fails")
        if program is not None:
            self._offer(make_row(self.case, spec, program, Origin.DEMONSTRATION, {}), spec)

    def _passing(self, attempted: Attempted, otherwise: str) -> str | None:
        """The program of an attempt that passes; else why not is noted."""
        if attempted.verdict == SANDBOX_ERROR:
            self.drop("sandbox error", attempted.error or "")
        elif not attempted.passed or attempted.program is None:
            self.drop(otherwise, attempted.verdict)
        else:
            return attempted.program
        return None

    def _offer(self, row: Row, spec: Spec) -> None:
        """Show a row to the firewall and keep it where it is clean."""
        hit = self.tools.firewall.check(
            text=request_text(self.case.messages),
            spec=spec,
            program=row.program,
            task_ids=task_ids(self.case.metadata),
        )
        if hit is None:
            self.rows.append(to_json(row))
        else:
            self.drop(f"examination: {hit.reason}", hit.exam_id, row)


def _written(text: str) -> Sample:
    """What a person wrote, in the shape of a model's answer."""
    return Sample(
        text=text if "```" in text else fenced(text),
        finish_reason="stop",
        tokens=0,
        model="human",
        adapter_version=0,
    )


def task_of(case: Case) -> str | None:
    """The task of the rows that a case makes; None where its specification cannot be read."""
    try:
        return messages_sha256(live_messages(case.messages, parse_spec(case.spec)))
    except SpecError:
        return None


async def correction(case: Case, pool: Judge) -> Row | None:
    """A training row for a refiner: the refinement prompt, and the program that should have been.

    None where nobody gave one, it does not pass, or nothing tells whether it does.

    Raises:
        SandboxError: the sandbox failed.
    """
    try:
        spec = parse_spec(case.spec)
    except SpecError:
        return None
    if case.demonstration is None or not spec.has_checks:
        return None
    attempted = await judge(pool, _written(case.demonstration), spec)
    if attempted.verdict == SANDBOX_ERROR:
        raise SandboxError(attempted.error or "the sandbox failed")
    if not attempted.passed or attempted.program is None:
        return None
    row = make_row(case, spec, attempted.program, Origin.DEMONSTRATION, {})
    messages = refinement_prompt(case, spec)
    return replace(
        row,
        id=messages_sha256([{"refiner": row.id}])[:24],
        recipe=REFINER,
        messages=messages,
        prompt_sha256=messages_sha256(messages),
        feedback_ids=[*case.feedback_ids, *case.demonstration_ids],
    )


def refinement_prompt(case: Case, spec: Spec, control: Control = Control.FEEDBACK) -> list[Json]:
    """The three parts of the paper's refinement prompt, as one message of a chat.

    Only the visible part of the specification is in it. Earlier messages of the conversation stay
    in front.
    """
    if control is Control.RESAMPLE:
        return live_messages(case.messages, spec)
    before = list(case.messages[: _last_user(case.messages)])
    task = extend_prompt(request_text(case.messages), spec)
    program = case.program.strip()
    if len(program) > OLD_PROGRAM_CHARS:
        program = program[:OLD_PROGRAM_CHARS] + "\n# … (cut)"
    told = control is not Control.NONE
    parts = (
        INSTRUCTION if told else INSTRUCTION_ALONE,
        f"### Task\n{task}",
        f"### Program\n{fenced(program)}",
        *([f"### Feedback\n{case.feedback.strip()[:FEEDBACK_CHARS]}"] if told else []),
        f"### Corrected program\n{CLOSING if told else CLOSING_ALONE}",
    )
    return [*before, {"role": "user", "content": "\n\n".join(parts)}]


def shuffled(cases: Sequence[Case], seed: int) -> list[Case]:
    """Give every case the feedback of another one: a turn of a seeded shuffle."""
    order = list(range(len(cases)))
    random.Random(seed).shuffle(order)
    words = {order[i]: cases[order[i - 1]].feedback for i in range(len(order))}
    return [replace(case, feedback=words[i]) for i, case in enumerate(cases)]


def make_row(case: Case, spec: Spec, program: str, origin: Origin, provenance: Json) -> Row:
    """The training row: the live prompt, without feedback, and the right program."""
    messages = live_messages(case.messages, spec)
    prompt, digest = messages_sha256(messages), program_sha256(program)
    feedback_ids = [*case.feedback_ids]
    if origin is Origin.DEMONSTRATION:
        feedback_ids = [*case.demonstration_ids]
    return Row(
        id=messages_sha256([{"prompt": prompt, "program": digest, "of": case.interaction_id}])[:24],
        recipe=Ilf.name,
        origin=origin,
        task=prompt,
        messages=messages,
        answer=fenced(program),
        program=program,
        interaction_ids=[case.interaction_id],
        feedback_ids=feedback_ids,
        prompt_sha256=prompt,
        program_sha256=digest,
        provenance={
            "feedback_source": case.feedback_source,
            "source": case.source,
            "user": case.user,
            "tenant": case.tenant,
            "hidden_checks": _count(spec.hidden()),
            "visible_checks": _count(spec.visible()),
            "metadata": case.metadata,
            **provenance,
        },
    )


def choose_one_per_task(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Drop]]:
    """Keep one row of each task: a refinement before a demonstration, else at random."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    chosen, drops = [], []
    for task, offered in sorted(tasks.items()):
        refined = [row for row in offered if row.origin is Origin.REFINEMENT] or offered
        refined.sort(key=lambda row: row.id)
        kept = random.Random(case_seed(seed, task)).choice(refined)
        chosen.append(kept)
        drops += [
            Drop(reason="another of the same task", interaction_ids=row.interaction_ids, row=row)
            for row in offered
            if row is not kept
        ]
    return chosen, drops


def cap_demonstrations(
    rows: Sequence[Row], per_refinement: float | None, seed: int
) -> tuple[list[Row], list[Drop]]:
    """Keep so many demonstrations for each row of the model's own, drawn at random.

    Without a row of its own none is kept. None: all are.
    """
    if per_refinement is None:
        return list(rows), []
    shown = sorted((r for r in rows if r.origin is Origin.DEMONSTRATION), key=lambda row: row.id)
    room = int(per_refinement * (len(rows) - len(shown)))
    random.Random(case_seed(seed, "demonstrations")).shuffle(shown)
    over = {row.id for row in shown[room:]}
    drops = [
        Drop(
            reason="more demonstrations than allowed", interaction_ids=row.interaction_ids, row=row
        )
        for row in shown[room:]
    ]
    return [row for row in rows if row.id not in over], drops


def names_hidden_value(case: Case) -> bool:
    """Whether the feedback's words hold an expected value of a hidden example (a flag only)."""
    try:
        hidden = parse_spec(case.spec).hidden()
    except SpecError:
        return False
    values = [show_value(decode(e.output)) for e in hidden.examples if e.has_output]
    return any(len(value) > 3 and value in case.feedback for value in values)


def task_ids(metadata: dict[str, str]) -> list[str]:
    """Names under which a task may be known to a benchmark."""
    return [metadata["task_id"]] if metadata.get("task_id") else []


def _passes_visible_only(attempted: Attempted) -> bool:
    result = attempted.verification
    return (
        result is not None
        and not result.verified
        and result.total_visible > 0
        and result.passed_visible == result.total_visible
    )


def _sampling(sample: Sample, number: int, options: Options) -> Json:
    return {
        "model": sample.model,
        "adapter_version": sample.adapter_version,
        "sample": number,
        "temperature": options.temperature,
    }


def _last_user(messages: Sequence[Json]) -> int:
    return max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)


def _count(spec: Spec) -> int:
    return len(spec.examples) + len(spec.tests) + len(spec.stdio) + len(spec.cells)
