"""Learning to obey a specification: GIFT4Code (arXiv 2402.08073).

The served model writes intents for inputs that are at hand (tables, calls), and programs for them.
Each program is run; what came out of it is described, in one of three kinds, and becomes the
specification of its training prompt. So the specification is true of the program, also where the
program misses the intent: the model learns to read specifications, not to trust its own ideas.

Of the paper are: 6 intents for a context and 5 programs for an intent at temperature 0.8, the
filter by execution, API diversity, the three kinds, and one part of synthetic rows to two parts of
replayed code. Deviations: one model does it all (the paper's intents and summaries come from
PaLM 2); contexts are also the logged requests of this installation; a row in four has no
specification, so that the user without one does not fare worse; inputs are perturbed against
programs that print literal tables; and see `contexts`, `trace`, `specs`. Of a 0.5B model's distinct
programs 57 % executed (3 tables, 90 programs; the paper's model: about 60 %).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from improver.contexts import Context
from improver.corpus import Snippet, draw
from improver.errors import PolicyError, PolicyUnavailable
from improver.intents import (
    CALL_EXEMPLAR,
    CALL_TASKS,
    TABLE_EXEMPLAR,
    TABLE_TASKS,
    Intents,
    diversity,
    write_intents,
)
from improver.mutants import plain
from improver.policy import Sample
from improver.recipes.base import (
    Built,
    Tools,
    case_seed,
    fenced,
    live_messages,
    messages_sha256,
)
from improver.specs import (
    SpecKind,
    clean_summary,
    examples,
    fault,
    summary_messages,
    type_desc,
)
from improver.trace import SANDBOX, Rejected, Runner, Traced, api_names, settle, trace
from improver.types import Drop, Origin, Row, from_json, to_json
from ops.records import Json
from sandbox.errors import SandboxError
from sandbox.extract import extract_program, program_sha256
from sandbox.spec import Spec

T = TypeVar("T")

AT_ONCE = 8
"""Contexts worked on side by side: enough to keep the engine busy, and few enough that a killed
cycle has most of them done and not all of them half."""
SUMMARY_TOKENS = 120
SUMMARY_TEMPERATURE = 0.7

ASK_TABLES = (
    "The code above has been run. Write the Python code that comes next and solves the task. "
    "Put the answer into a new variable whose name says what it is. Answer with one ```python "
    "block and nothing else."
)
ASK_CALLS = (
    "Write the Python function `solution` that solves the task. It returns the answer. Answer "
    "with one ```python block and nothing else."
)
TABLE_ANSWER = (
    'df["day"] = pd.to_datetime(df["day"])\n'
    'boxes_per_month = df.pivot_table(\n    index=df["day"].dt.month, columns="supplier", '
    'values="boxes", aggfunc="sum"\n)'
)
CALL_ANSWER = (
    "def solution(items, places):\n    if not items:\n        return items\n"
    "    places %= len(items)\n    return items[-places:] + items[:-places]"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is sampled, what is kept, and what the prompts say.

    `shares` are the weights of the kinds of specification. `replay_share` is the part of all rows
    that is replayed code, as far as there is any.
    """

    max_contexts: int = 40
    intents: int = 6
    programs: int = 5
    temperature: float = 0.8
    max_answer_tokens: int = 256
    kept_per_intent: int = 2
    per_signature: int = 3
    summaries: int = 3
    replay_share: float = 2 / 3
    shares: Mapping[SpecKind, float] = field(default_factory=lambda: dict.fromkeys(SpecKind, 0.25))


class Gift4Code:
    """The recipe.

    Args:
        options: See there.
        contexts: Inputs to start from (`contexts.read_tables`, `contexts.of_requests`).
        runner: The sandbox, with its `run`.
        replay: Code with requests that is mixed in (`corpus`).
    """

    name = "gift4code"

    def __init__(
        self,
        options: Options,
        *,
        contexts: Sequence[Context],
        runner: Runner,
        replay: Sequence[Snippet] = (),
    ) -> None:
        self._options = options
        self._contexts = contexts
        self._runner = runner
        self._replay = replay
        # A description needs a second sandbox: where all are busy, the pool would start a new one.
        self._traces = asyncio.Semaphore(max(1, runner.workers - 1))
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def build(self, cases: Sequence[object], tools: Tools) -> Built:
        """Make rows out of the contexts.

        Failed interactions (`cases`) play no part: their requests are contexts like others.

        Raises:
            PolicyUnavailable: the model does not answer.
        """
        contexts = sorted(self._contexts, key=lambda context: case_seed(tools.seed, context.id))
        contexts = contexts[: self._options.max_contexts]
        done = await asyncio.gather(*(self._once(context, tools) for context in contexts))
        rows: list[Row] = []
        drops: list[Drop] = []
        for found in done:
            rows += [from_json(Row, row) for row in found["rows"]]
            drops += [from_json(Drop, drop) for drop in found["drops"]]
        kept, passed_over = choose(
            rows,
            per_intent=self._options.kept_per_intent,
            per_signature=self._options.per_signature,
        )
        replayed, touched = self._replayed(len(kept), tools)
        drops += passed_over + touched
        return Built(
            rows=kept + replayed, drops=drops, report=self._report(done, rows, kept, replayed)
        )

    async def _once(self, context: Context, tools: Tools) -> Json:
        """Do one context, unless a cycle that was killed has done so."""
        key = f"{self.name}:{context.id}"
        done = tools.journal.done.get(key)
        if done is None:
            async with self._at_once:
                work = _Work(context, self._options, self._runner, self._traces, tools)
                done = await work.run()
            tools.journal.add(key, done)
        tools.on_case()
        return done

    def _replayed(self, synthetic: int, tools: Tools) -> tuple[list[Row], list[Drop]]:
        """Rows of code that is known to be right, two for each synthetic one at the default."""
        wanted = self._replay_wanted(synthetic)
        rows: list[Row] = []
        drops: list[Drop] = []
        for snippet in draw(self._replay, len(self._replay), tools.seed):
            if len(rows) >= wanted:
                break
            row = replay_row(snippet)
            hit = tools.firewall.check(
                text=snippet.instruction,
                spec=snippet.spec,
                program=snippet.code,
                task_ids=snippet.task_ids,
            )
            if hit is None:
                rows.append(row)
            else:
                drops.append(
                    Drop(
                        reason=f"examination: {hit.reason}",
                        detail=hit.exam_id,
                        interaction_ids=row.interaction_ids,
                        row=row,
                    )
                )
        return rows, drops

    def _replay_wanted(self, synthetic: int) -> int:
        share = self._options.replay_share
        return round(synthetic * share / (1 - share)) if share < 1 else len(self._replay)

    def _report(
        self, done: Sequence[Json], made: list[Row], kept: list[Row], replayed: list[Row]
    ) -> Json:
        options = self._options
        counts: Counter[str] = Counter()
        for found in done:
            counts.update(found["counts"])
        apis = {api for row in kept for api in row.provenance["apis"]}
        rows = len(kept) + len(replayed)
        return {
            "contexts": len(done),
            "contexts_offered": len(self._contexts),
            "contexts_by_source": dict(Counter(found["source"] for found in done)),
            **counts,
            "executable_share": _share(counts["programs_run"], counts["programs_distinct"]),
            "intent_diversity": diversity([row.provenance["intent"] for row in kept]),
            "rows_before_choice": len(made),
            "rows_synthetic": len(kept),
            "rows_by_spec_kind": dict(Counter(row.provenance["spec_kind"] for row in kept)),
            "api_names": len(apis),
            "api_signatures": len({tuple(row.provenance["apis"]) for row in kept}),
            "rows_replayed": len(replayed),
            "rows_replay_wanted": self._replay_wanted(len(kept)),
            "replay_share": _share(len(replayed), rows),
            "replay_share_wanted": round(options.replay_share, 4),
            "temperature": options.temperature,
        }


class _Work:
    """One context: intents, programs, traces, specifications, rows."""

    def __init__(
        self,
        context: Context,
        options: Options,
        runner: Runner,
        traces: asyncio.Semaphore,
        tools: Tools,
    ) -> None:
        self.context = context
        self.options = options
        self.runner = runner
        self.traces = traces
        self.tools = tools
        self.seed = case_seed(tools.seed, f"gift4code:{context.id}")
        self.rows: list[Json] = []
        self.drops: list[Json] = []
        self.counts: Counter[str] = Counter()

    async def run(self) -> Json:
        intents = await self._refusable(
            write_intents(
                self.tools.policy,
                self.context,
                count=self.options.intents,
                temperature=self.options.temperature,
                seed=self.seed,
            )
        )
        if intents is not None:
            for why in intents.left_out:
                self.drop(why)
            self.counts["intents"] += len(intents.texts)
            numbers = range(len(intents.texts))
            await asyncio.gather(*(self._refusable(self._intent(intents, n)) for n in numbers))
        return {
            "rows": sorted(self.rows, key=lambda row: str(row["id"])),
            "drops": self.drops,
            "counts": dict(self.counts),
            "source": self.context.source,
        }

    async def _refusable(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do work that costs no more than itself when the model refuses a request of it."""
        try:
            return await work
        except PolicyUnavailable:
            raise
        except PolicyError as error:
            # Too long for the model, for instance.
            self.drop("request refused", str(error))
            return None

    def drop(self, reason: str, detail: str = "", row: Row | None = None) -> None:
        dropped = Drop(
            reason=reason,
            detail=detail[:200],
            interaction_ids=list(self.context.interaction_ids),
            row=row,
        )
        self.drops.append(to_json(dropped))

    async def _intent(self, intents: Intents, number: int) -> None:
        """Sample programs for one intent and follow each that is new."""
        intent = intents.texts[number]
        seed = case_seed(self.seed, intent)
        messages = program_messages(self.context, intent)
        samples = await self.tools.policy.sample(
            messages,
            n=self.options.programs,
            temperature=self.options.temperature,
            max_tokens=self.options.max_answer_tokens,
            seed=seed,
        )
        seen: set[str] = set()
        for place, sample in enumerate(samples):
            self.counts["programs"] += 1
            written = extract_program(sample.text)
            program = settle(written, self.context) if written is not None else None
            if program is None:
                self.drop("no program", sample.finish_reason)
                continue
            # Quotes and layout aside: two spellings of one program teach nothing more than one.
            if (digest := program_sha256(plain(program) or program)) in seen:
                self.drop("program twice")
                continue
            seen.add(digest)
            self.counts["programs_distinct"] += 1
            try:
                async with self.traces:
                    traced = await trace(self.runner, program, self.context, seed=seed)
            except SandboxError as error:
                traced = Rejected(reason=SANDBOX, detail=str(error))
            if isinstance(traced, Rejected):
                self.counts["programs_run"] += traced.reason not in (SANDBOX, "does not execute")
                self.drop(traced.reason, traced.detail)
                continue
            self.counts["programs_run"] += 1
            provenance = {
                "intent": intent,
                "intent_model": intents.model,
                "intent_adapter_version": intents.adapter_version,
                "model": sample.model,
                "adapter_version": sample.adapter_version,
                "sample": place,
                "temperature": self.options.temperature,
                "sampling_prompt_sha256": messages_sha256(messages),
            }
            await self._specify(traced, intent, provenance, seed + place)

    async def _specify(self, traced: Traced, intent: str, provenance: Json, seed: int) -> None:
        """Give a program its specification and offer the row to the firewall."""
        apis = api_names(traced.program)
        kind = draw_kind(self.options.shares, seed)
        spec = Spec()
        more: Json = {}
        if kind is SpecKind.SUMMARY:
            summary, more = await self._summarise(traced, intent, apis, seed)
            if summary is None:
                self.counts["summaries_given_up"] += 1
                kind = SpecKind.TYPES
            else:
                spec = Spec(summary=summary)
        if kind is SpecKind.EXAMPLES:
            shown = examples(traced, self.context)
            if shown is None:
                self.counts["examples_given_up"] += 1
                kind = SpecKind.TYPES
            else:
                spec = shown
        if kind is SpecKind.TYPES:
            spec = type_desc(traced, self.context)
        verdict = await self._holds(traced.program, spec)
        if verdict != "OK":
            self.drop(SANDBOX if verdict == SANDBOX else "specification not met", verdict)
            return
        row = make_row(self.context, traced, intent, spec, kind, provenance | more, apis)
        hit = self.tools.firewall.check(text=intent, spec=spec, program=traced.program)
        if hit is None:
            # Once with the table and its loading code, as the screen will see it.
            text = f"{self.context.shown()}\n\n{intent}"
            hit = self.tools.firewall.check(text=text, spec=spec, program=traced.program)
        if hit is None:
            self.rows.append(to_json(row))
        else:
            self.drop(f"examination: {hit.reason}", hit.exam_id, row)

    async def _holds(self, program: str, spec: Spec) -> str:
        """Whether the program meets its own specification, where that can be checked."""
        if not spec.has_checks:
            return "OK"
        try:
            async with self.traces:
                verification = await self.runner.check(program, spec)
        except SandboxError:
            return SANDBOX
        return "OK" if verification.verified else str(verification.verdict)

    async def _summarise(
        self, traced: Traced, intent: str, apis: tuple[str, ...], seed: int
    ) -> tuple[str | None, Json]:
        """Ask for summaries and take the first that holds and names no API."""
        messages = summary_messages(intent, traced, self.context)
        samples: list[Sample] = await self.tools.policy.sample(
            messages,
            n=self.options.summaries,
            temperature=SUMMARY_TEMPERATURE,
            max_tokens=SUMMARY_TOKENS,
            seed=seed,
        )
        for sample in samples:
            self.counts["summaries"] += 1
            summary = clean_summary(sample.text)
            why = fault(summary, traced, self.context, apis)
            if why is None and sample.finish_reason == "length":
                why = "summary too short or too long"
            if why is None:
                return summary, {
                    "summary_model": sample.model,
                    "summary_adapter_version": sample.adapter_version,
                }
            self.counts[why.split(":")[0]] += 1
        return None, {}


def request(context: Context, intent: str) -> str:
    """The request of a training row, as a user would write it."""
    return f"{context.shown()}\n\n{intent}"


def program_messages(context: Context, intent: str) -> list[Json]:
    """The request for a program, with one demonstration before it."""
    if context.calls:
        exemplar, task, answer, ask = CALL_EXEMPLAR, CALL_TASKS[5], CALL_ANSWER, ASK_CALLS
    else:
        exemplar, task, answer, ask = TABLE_EXEMPLAR, TABLE_TASKS[3], TABLE_ANSWER, ASK_TABLES
    return [
        {"role": "user", "content": f"{exemplar}\n\nTask: {task}\n\n{ask}"},
        {"role": "assistant", "content": fenced(answer)},
        {"role": "user", "content": f"{context.shown()}\n\nTask: {intent}\n\n{ask}"},
    ]


def draw_kind(shares: Mapping[SpecKind, float], seed: int) -> SpecKind:
    """Draw a kind of specification by its weight."""
    kinds = sorted(shares)
    return random.Random(seed).choices(kinds, [shares[kind] for kind in kinds])[0]


def make_row(
    context: Context,
    traced: Traced,
    intent: str,
    spec: Spec,
    kind: SpecKind,
    provenance: Json,
    apis: tuple[str, ...],
) -> Row:
    """The training row: context and intent with the specification, and the program."""
    messages = live_messages([{"role": "user", "content": request(context, intent)}], spec)
    prompt, digest = messages_sha256(messages), program_sha256(traced.program)
    return Row(
        id=messages_sha256([{"prompt": prompt, "program": digest, "of": context.id}])[:24],
        recipe=Gift4Code.name,
        origin=Origin.SYNTHESIS,
        # All rows of one intent fall on the same side of a split.
        task=messages_sha256([{"context": context.id, "intent": intent}]),
        messages=messages,
        answer=fenced(traced.program),
        program=traced.program,
        interaction_ids=list(context.interaction_ids),
        feedback_ids=[],
        prompt_sha256=prompt,
        program_sha256=digest,
        provenance={
            "context": context.title,
            "context_id": context.id,
            "source": context.source,
            "licence": context.licence,
            "user": context.user,
            "tenant": context.tenant,
            "spec_kind": str(kind),
            "spec": spec.to_json(),
            "output": traced.output,
            "apis": list(apis),
            "verdicts": {
                "executes": "OK",
                "repeats": "OK",
                "changes_with_input": "OK",
                "meets_spec": "OK" if spec.has_checks else "not checkable",
            },
            "libraries": traced.libraries,
            **provenance,
        },
    )


def replay_row(snippet: Snippet) -> Row:
    """A row of code that is known to be right, with its own request."""
    messages = live_messages(snippet.messages, snippet.spec)
    prompt, digest = messages_sha256(messages), program_sha256(snippet.code)
    return Row(
        id=messages_sha256([{"prompt": prompt, "program": digest, "of": "replay"}])[:24],
        recipe=Gift4Code.name,
        origin=snippet.origin,
        task=messages_sha256([{"prompt": prompt}]),
        messages=messages,
        answer=fenced(snippet.code),
        program=snippet.code,
        interaction_ids=snippet.interaction_ids,
        feedback_ids=snippet.feedback_ids,
        prompt_sha256=prompt,
        program_sha256=digest,
        provenance={
            "replay": True,
            "snippet": snippet.id,
            "source": snippet.source,
            "licence": snippet.licence,
            "user": snippet.user,
            "tenant": snippet.tenant,
            "model": snippet.model,
            "spec": snippet.spec.to_json(),
            "metadata": snippet.metadata,
        },
    )


def choose(
    rows: Iterable[Row], *, per_intent: int, per_signature: int
) -> tuple[list[Row], list[Drop]]:
    """Keep the rows that call what few others call.

    Args:
        rows: Synthetic rows.
        per_intent: The most rows of one intent.
        per_signature: The most rows that call exactly the same APIs.
    """
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    used: Counter[str] = Counter()
    signatures: Counter[tuple[str, ...]] = Counter()
    kept: list[Row] = []
    drops: list[Drop] = []
    for _, offered in sorted(tasks.items()):
        left = sorted(offered, key=lambda row: row.id)
        taken = 0
        while left:
            # Rare calls count most; max takes the first of equals, so ids decide ties.
            best = max(left, key=lambda r: sum(1 / (1 + used[a]) for a in r.provenance["apis"]))
            left.remove(best)
            signature = tuple(best.provenance["apis"])
            if taken >= per_intent:
                reason = "another of the same intent"
            elif signatures[signature] >= per_signature:
                reason = "API signature over its cap"
            else:
                kept.append(best)
                taken += 1
                signatures[signature] += 1
                used.update(signature)
                continue
            drops.append(Drop(reason=reason, interaction_ids=best.interaction_ids, row=best))
    return kept, drops


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
