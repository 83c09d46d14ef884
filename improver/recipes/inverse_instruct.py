"""Learning from code: Inverse-Instruct (arXiv 2407.05700, AAAI 2025).

Models are better at saying what code does than at writing it. So the served model writes several
instructions for code that is known to be good, judges its own, and the best one of each program is
learned: first the self-made pairs, then the trusted ones, always from the base. (In the paper's
ablation, ending on self-made data costs 12 points of HumanEval pass@1.)

Of the paper are: 10 summaries with a random opening each, temperature 0.8, repetition penalty 1.1,
stop at a fence; the score by Yes against No at the first token; the best one of each program
without any threshold; decontamination of the new pairs; 1 epoch of self-made, 2 of trusted rows.

Deviations: the model that writes and judges is the one that is served, not one tuned on the corpus
before; programs are run; docstrings are taken out of a share of them, since summaries copy them;
summaries that speak of "the code above" or repeat its lines are dropped; and the judge is tried on
mutated programs first (`judge.rank`). Where it is no better than chance, running programs takes its
place where a program has checks (or, if allowed, the program's likelihood), else a random choice,
which lost little in the paper's ablation; the report says which.
"""

from __future__ import annotations

import ast
import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from improver.attempts import attempt, together
from improver.corpus import Snippet
from improver.errors import PolicyError, PolicyUnavailable
from improver.firewall import jaccard, text_shingles
from improver.judge import Judge, Likelihood, Ranking, Score, YesNo, rank
from improver.mutants import mutants, plain
from improver.policy import Sample
from improver.recipes.base import (
    Built,
    Tools,
    case_seed,
    fenced,
    live_messages,
    messages_sha256,
)
from improver.trace import Runner
from improver.types import Drop, Phase, Row, from_json, to_json
from ops.records import Json
from sandbox.errors import SandboxError
from sandbox.extract import program_sha256
from sandbox.spec import Spec, derive_spec
from sandbox.syntax import parse_bounded
from sandbox.types import INFRASTRUCTURE, Verdict

SELF_MADE, TRUSTED = int(Phase.SELF_MADE), int(Phase.TRUSTED)
EPOCHS = {SELF_MADE: 1, TRUSTED: 2}

OPENINGS = (
    "Write a Python",
    "Create a Python",
    "Implement a Python",
    "Develop a Python",
    "Design a Python",
    "Build a Python",
    "I want a Python",
)
FENCE = "```"
REPETITION_PENALTY = 1.1
NEAR = 0.6
"""Word bigrams this alike are an old instruction again."""
OUTSIDE = frozenset(
    (
        "FileNotFoundError",
        "PermissionError",
        "ConnectionError",
        "ConnectionRefusedError",
        "gaierror",
        "URLError",
        "EOFError",
        "ModuleNotFoundError",
    )
)
"""Errors that speak of files, network, input or libraries that are not there."""
LEAST_WORDS = 6
LATIN = 0x24F
"""The last of the Latin letters: an opening in English must not go on in another script."""
COPIED_CHARS = 30


class Selection(StrEnum):
    """How the best instruction of a program is found."""

    AUTO = "auto"
    """The model's own judgement where it is better than chance, else execution."""
    JUDGE = "judge"
    """The model's own judgement, whatever it is worth (the paper's)."""
    LIKELIHOOD = "likelihood"
    """The program's likelihood under each instruction."""
    EXECUTION = "execution"
    """How many checks a program written for the instruction passes."""
    RANDOM = "random"
    """None: a control."""


class Order(StrEnum):
    """In which order the two kinds of rows are trained."""

    SELF_MADE_FIRST = "self_made_first"
    """The paper's."""
    TRUSTED_FIRST = "trusted_first"
    """A control."""
    MIXED = "mixed"
    """A control."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is sampled and how it is chosen.

    No summaries at all (0) leave the trusted rows alone: the control that shows what the self-made
    ones add.

    `prompt_logprobs` allows the likelihood judge: vLLM 0.32 on a CPU with LoRA has died of such
    requests, so it is off unless asked for.
    """

    summaries: int = 10
    temperature: float = 0.8
    max_summary_tokens: int = 256
    top_k: int = 1
    selection: Selection = Selection.AUTO
    prompt_logprobs: bool = False
    order: Order = Order.SELF_MADE_FIRST
    max_snippets: int = 400
    run_snippets: bool = True
    bare_share: float = 0.5
    calibration: int = 40
    round_trips: int = 2
    max_answer_tokens: int = 384


class InverseInstruct:
    """The recipe.

    Args:
        options: See there.
        snippets: The corpus (`corpus.read_corpus`, `corpus.of_record`), best first.
        runner: The sandbox, with its `run`.
    """

    name = "inverse_instruct"

    def __init__(self, options: Options, *, snippets: Sequence[Snippet], runner: Runner) -> None:
        self._options = options
        self._snippets = snippets
        self._runner = runner

    async def build(self, cases: Sequence[object], tools: Tools) -> Built:
        """Make rows out of the corpus; failed interactions (`cases`) play no part.

        Raises:
            PolicyUnavailable: the model does not answer.
        """
        work = _Work(self._options, self._runner, tools)
        offered = self._snippets[: self._options.max_snippets]
        written = await asyncio.gather(*(work.once("write", s, work.write) for s in offered))
        usable = [s for s, found in zip(offered, written, strict=True) if found["usable"]]
        summaries = {s.id: f["summaries"] for s, f in zip(offered, written, strict=True)}
        old = [text_shingles(snippet.instruction) for snippet in usable if snippet.messages]
        near = _take_near(summaries, old)
        selection, rankings = await work.calibrate(usable, summaries)
        scored = await asyncio.gather(
            *(
                work.once(
                    f"choose:{selection}",
                    snippet,
                    lambda s: work.choose(s, summaries[s.id], selection),
                )
                for snippet in usable
            )
        )
        rows: list[Row] = []
        drops: list[Drop] = []
        for found in (*written, *scored):
            rows += [from_json(Row, row) for row in found["rows"]]
            drops += [from_json(Drop, drop) for drop in found["drops"]]
        drops += near
        trusted = [row for row in rows if row.provenance["phase"] == TRUSTED]
        made = [row for row in rows if row.provenance["phase"] == SELF_MADE]
        ordered = arrange([*made, *trusted], self._options.order, tools.seed)
        report = {
            "snippets": len(offered),
            "snippets_usable": len(usable),
            "snippets_with_checks": sum(s.spec.has_checks for s in usable),
            "summaries_asked": sum(found["asked"] for found in written),
            "summaries_usable": sum(map(len, summaries.values())),
            "selection_wanted": str(self._options.selection),
            "selection": str(selection),
            "judges": [ranking.to_json() for ranking in rankings],
            "selected_by": dict(Counter(row.provenance["selected_by"] for row in made)),
            "rows_self_made": len(made),
            "rows_trusted": len(trusted),
            "order": str(self._options.order),
            "epochs": {"self_made": EPOCHS[SELF_MADE], "trusted": EPOCHS[TRUSTED]},
            "nearest_old_instruction": _nearest(made, old),
            "licences": dict(Counter(str(row.provenance["licence"]) for row in rows)),
        }
        return Built(rows=ordered, drops=drops, report=report)


class _Work:
    """The stages of one snippet, each kept in the journal."""

    def __init__(self, options: Options, runner: Runner, tools: Tools) -> None:
        self.options = options
        self.runner = runner
        self.tools = tools

    async def once(
        self, stage: str, snippet: Snippet, work: Callable[[Snippet], Awaitable[Json]]
    ) -> Json:
        """Do a stage of a snippet, unless a cycle that was killed has done so."""
        key = f"{InverseInstruct.name}:{stage}:{snippet.id}"
        done = self.tools.journal.done.get(key)
        if done is None:
            done = await work(snippet)
            self.tools.journal.add(key, done)
        if stage == "write":
            self.tools.on_case()
        return done

    # --- code to text --------------------------------------------------------------------------

    async def write(self, snippet: Snippet) -> Json:
        """Run a snippet, then ask for instructions that it would answer."""
        found = _Found(snippet)
        why = await self._runs(snippet)
        if why is not None:
            found.drop(*why)
            return found.as_json(usable=False, summaries=[], asked=0)
        if snippet.messages:
            self._offer(trusted_row(snippet), snippet, found)
        shown = self._shown(snippet)
        try:
            asked = await self._ask(snippet, shown)
        except PolicyUnavailable:
            raise
        except PolicyError as error:
            found.drop("request refused", str(error))
            asked = []
        summaries: list[Json] = []
        for opening, sample in asked:
            text = tidy(opening, sample.text)
            fault = unfit(text, shown, cut=sample.finish_reason == "length")
            if fault is None and any(text == other["text"] for other in summaries):
                fault = "same summary twice"
            if fault is not None:
                found.drop(fault, text)
                continue
            summaries.append(
                {
                    "text": text,
                    "opening": opening,
                    "model": sample.model,
                    "adapter_version": sample.adapter_version,
                }
            )
        return found.as_json(usable=True, summaries=summaries, asked=len(asked))

    async def _ask(self, snippet: Snippet, shown: str) -> list[tuple[str, Sample]]:
        """Sample summaries with random openings; those of one opening in one request."""
        seed = case_seed(self.tools.seed, f"summaries:{snippet.id}")
        rng = random.Random(seed)
        openings = Counter(rng.choice(OPENINGS) for _ in range(self.options.summaries))

        async def sample(number: int, opening: str, count: int) -> list[tuple[str, Sample]]:
            samples = await self.tools.policy.sample(
                summary_messages(shown, opening),
                n=count,
                temperature=self.options.temperature,
                max_tokens=self.options.max_summary_tokens,
                seed=(seed + number) % 2**31,
                stop=(FENCE,),
                extra={
                    "repetition_penalty": REPETITION_PENALTY,
                    "continue_final_message": True,
                    "add_generation_prompt": False,
                },
            )
            return [(opening, one) for one in samples]

        # Side by side: so a killed cycle has whole snippets in its journal, in their order.
        numbered = enumerate(sorted(openings.items()))
        found = await together(sample(n, opening, count) for n, (opening, count) in numbered)
        return [one for some in found for one in some]

    async def _runs(self, snippet: Snippet) -> tuple[str, str] | None:
        """Why a snippet cannot be used; None where it runs and meets its checks."""
        if not self.options.run_snippets:
            return None
        try:
            if snippet.spec.has_checks:
                verification = await self.runner.check(snippet.code, snippet.spec)
                if verification.verified:
                    return None
                if verification.verdict in INFRASTRUCTURE:
                    return "sandbox error", str(verification.verdict)
                return "code fails its own checks", str(verification.verdict)
            run = await self.runner.run(snippet.code)
        except SandboxError as error:
            return "sandbox error", str(error)
        if run.verdict in INFRASTRUCTURE:
            return "sandbox error", run.word
        if run.verdict is Verdict.OK:
            return None
        outside = run.error_type in OUTSIDE
        return "code needs what the sandbox lacks" if outside else "code does not run", run.word

    def _shown(self, snippet: Snippet) -> str:
        """The code that is summarised and learned: a share of it without its docstrings."""
        seed = case_seed(self.tools.seed, f"bare:{snippet.id}")
        if random.Random(seed).random() >= self.options.bare_share:
            return snippet.code
        return without_docstrings(snippet.code)

    # --- what the judge is worth ---------------------------------------------------------------

    async def calibrate(
        self, usable: Sequence[Snippet], summaries: dict[str, list[Json]]
    ) -> tuple[Selection, list[Ranking]]:
        """Find out which selection to use, and how good the judges are.

        A right pair is a program with its trusted instruction, or with its first summary where it
        has none; a wrong one has the program mutated, and where there are checks, failing them.
        """
        wanted = self.options.selection
        key = f"{InverseInstruct.name}:judge:{wanted}"
        kept = self.tools.journal.done.get(key)
        if kept is not None:
            return Selection(kept["selection"]), [Ranking(**found) for found in kept["rankings"]]
        judges: list[Judge] = []
        if wanted in (Selection.AUTO, Selection.JUDGE):
            judges.append(YesNo(self.tools.policy))
        allowed = wanted is Selection.AUTO and self.options.prompt_logprobs
        if allowed or wanted is Selection.LIKELIHOOD:
            judges.append(Likelihood(self.tools.policy))
        trial = await self._trial(usable, summaries) if judges else []
        selection, rankings = wanted, []
        if wanted is Selection.AUTO:
            selection = Selection.EXECUTION
        for judge in judges:
            ranking = await self._rank(judge, trial)
            rankings.append(ranking)
            if wanted is Selection.AUTO and ranking.better_than_chance:
                selection = Selection.JUDGE if judge.name == YesNo.name else Selection.LIKELIHOOD
                break
        self.tools.journal.add(
            key, {"selection": str(selection), "rankings": [asdict(r) for r in rankings]}
        )
        return selection, rankings

    async def _trial(
        self, usable: Sequence[Snippet], summaries: dict[str, list[Json]]
    ) -> list[tuple[str, str, str, list[str]]]:
        """(id, instruction, right program, mutants) of a drawn part of the corpus."""
        drawn = sorted(usable, key=lambda s: case_seed(self.tools.seed, f"trial:{s.id}"))
        trial: list[tuple[str, str, str, list[str]]] = []
        for snippet in drawn:
            if len(trial) >= self.options.calibration:
                break
            texts = [summary["text"] for summary in summaries[snippet.id]]
            instruction = snippet.instruction or (texts[0] if texts else "")
            right = plain(without_docstrings(snippet.code))
            if not instruction or right is None:
                continue
            seed = case_seed(self.tools.seed, snippet.id)
            wrong = mutants(right, count=4, seed=seed)
            if snippet.spec.has_checks and self.options.run_snippets:
                wrong = [code for code in wrong if await self._fails(code, snippet.spec)]
            if wrong:
                trial.append((snippet.id, instruction, right, wrong[:2]))
        return trial

    async def _fails(self, code: str, spec: Spec) -> bool:
        try:
            verification = await self.runner.check(code, spec)
        except SandboxError:
            return False
        return not verification.verified and verification.verdict not in INFRASTRUCTURE

    async def _rank(
        self, judge: Judge, trial: Sequence[tuple[str, str, str, list[str]]]
    ) -> Ranking:
        async def both(
            key: str, instruction: str, right: str, wrong: list[str]
        ) -> tuple[str, Score | None, list[Score | None]]:
            scores = await asyncio.gather(
                *(judge.score(instruction, code) for code in (right, *wrong))
            )
            return key, scores[0], list(scores[1:])

        found = await asyncio.gather(*(both(*one) for one in trial))
        return rank(
            judge.name,
            {key: score for key, score, _ in found if score is not None},
            {key: [s for s in scores if s is not None] for key, _, scores in found},
            seed=self.tools.seed,
        )

    # --- choosing ------------------------------------------------------------------------------

    async def choose(self, snippet: Snippet, summaries: list[Json], selection: Selection) -> Json:
        """Score all instructions of a program and offer the best."""
        found = _Found(snippet)
        if not summaries:
            found.drop("no usable summary")
            return found.as_json()
        shown = self._shown(snippet)
        scores, by = await self._scores(snippet, shown, summaries, selection)
        order = sorted(
            range(len(summaries)),
            key=lambda i: (-(s.value if (s := scores[i]) is not None else -1e9), i),
        )
        for place, index in enumerate(order[: self.options.top_k]):
            row = self_made_row(
                snippet,
                shown,
                summaries[index],
                {
                    "selected_by": str(by),
                    "place": place,
                    "scores": [None if s is None else round(s.value, 6) for s in scores],
                    "score_bounded": (score := scores[index]) is not None and score.bounded,
                    "temperature": self.options.temperature,
                    "bare": shown != snippet.code,
                },
            )
            self._offer(row, snippet, found)
        for _ in order[self.options.top_k :]:
            found.drop("another summary of the same code")
        return found.as_json()

    async def _scores(
        self, snippet: Snippet, shown: str, summaries: list[Json], selection: Selection
    ) -> tuple[list[Score | None], Selection]:
        texts = [summary["text"] for summary in summaries]
        judge: Judge | None = None
        if selection is Selection.JUDGE:
            judge = YesNo(self.tools.policy)
        elif selection is Selection.LIKELIHOOD:
            judge = Likelihood(self.tools.policy)
        scores: list[Score | None] = []
        if judge is not None:
            scores = list(await asyncio.gather(*(judge.score(text, shown) for text in texts)))
        elif selection is Selection.EXECUTION and snippet.spec.has_checks:
            scores = list(await asyncio.gather(*(self._round_trip(t, snippet) for t in texts)))
        if any(score is not None for score in scores):
            return scores, selection
        rng = random.Random(case_seed(self.tools.seed, f"random:{snippet.id}"))
        return [Score(value=rng.random()) for _ in texts], Selection.RANDOM

    async def _round_trip(self, instruction: str, snippet: Snippet) -> Score | None:
        """The share of checks that programs written for an instruction pass."""
        name = snippet.spec.entry_point or defined_name(snippet.code)
        content = f"{instruction}\n\nThe function is called `{name}`." if name else instruction
        try:
            attempts = await attempt(
                self.tools.policy,
                self.tools.pool,
                [{"role": "user", "content": content}],
                snippet.spec,
                n=self.options.round_trips,
                temperature=self.options.temperature,
                max_tokens=self.options.max_answer_tokens,
                seed=case_seed(self.tools.seed, instruction),
            )
        except PolicyUnavailable:
            raise
        except PolicyError:
            return None
        shares = []
        for one in attempts:
            if one.passed is None:
                continue
            check = one.verification
            shares.append(check.passed / check.total if check and check.total else 0.0)
        return Score(value=sum(shares) / len(shares)) if shares else None

    def _offer(self, row: Row, snippet: Snippet, found: _Found) -> None:
        text = str(row.provenance["instruction"])
        hit = self.tools.firewall.check(
            text=text,
            spec=snippet.spec.merged(derive_spec(text) or Spec())
            if not snippet.spec.cells
            else snippet.spec,
            program=row.program,
            task_ids=snippet.task_ids,
        )
        if hit is None:
            found.rows.append(row)
        else:
            found.drop(f"examination: {hit.reason}", hit.exam_id, row)


class _Found:
    """What one stage made of one snippet."""

    def __init__(self, snippet: Snippet) -> None:
        self.snippet = snippet
        self.rows: list[Row] = []
        self.drops: list[Drop] = []

    def drop(self, reason: str, detail: str = "", row: Row | None = None) -> None:
        ids = list(self.snippet.interaction_ids)
        self.drops.append(Drop(reason=reason, detail=detail[:200], interaction_ids=ids, row=row))

    def as_json(self, **more: object) -> Json:
        return {
            "rows": [to_json(row) for row in self.rows],
            "drops": [to_json(drop) for drop in self.drops],
            **more,
        }


# --- words -------------------------------------------------------------------------------------


def summary_messages(code: str, opening: str) -> list[Json]:
    """The request for a problem to a given response, and the first words of the answer."""
    # Asked about special cases, small models make some up; told not to show code, they pass it on.
    content = (
        "Below is the response to a programming problem. Write the problem, as somebody asked it "
        f"who has not seen the code: what goes in, and what must come out.\n\n{fenced(code)}"
    )
    # No blank at the end: it would keep the model from its usual next token.
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": opening},
    ]


def tidy(opening: str, continuation: str) -> str:
    """The instruction: opening and continuation, without what leads up to a solution."""
    glue = "" if continuation[:1] in ("", " ", ",", "\n") else " "
    text = f"{opening}{glue}{continuation.split(FENCE)[0]}".strip()
    text = _SOLUTION.split(text)[0].strip()
    lines = text.splitlines()
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].rstrip().endswith(":")):
        lines.pop()
    if lines and lines[-1].rstrip().endswith(":"):
        lines[-1] = _LAST_SENTENCE.sub("", lines[-1])
    return "\n".join(line.rstrip() for line in lines).strip()


_SOLUTION = re.compile(
    r"(?:(?<=[.!?:])|^)[ \t]*(?:\*\*|#+ )?(?:"
    r"here(?:'s| is) (?:how|an? (?:example )?(?:implementation|solution)"
    r"|the (?:code|solution|implementation)|an? (?:\w+ )?(?:breakdown|explanation|step))"
    r"|in this solution|this solution (?:works|uses)|to solve this"
    r"|(?:the )?solution:|explanation:)",
    re.I | re.M,
)
"""Where a summary goes over from the problem to its solution."""
_LAST_SENTENCE = re.compile(r"(?<=[.!?])\s+[^.!?]*:\s*$")
_SPEAKS_OF_CODE = re.compile(
    r"\b(?:do not|don't|without|not) (?:show|include|mention)\w* (?:any |the )?(?:actual )?code\b"
    r"|\b(?:the|this|above|given|provided|following|my|your) "
    r"(?:python )?(?:code|snippet|implementation|response)\b|\bcode (?:above|below)\b"
    r"|\b(?:given|provided) solution\b",
    re.I,
)


def unfit(text: str, code: str, *, cut: bool) -> str | None:
    """Why a text is no instruction for a program; None where it is one."""
    if cut:
        return "summary cut off"
    if len(text.split()) < LEAST_WORDS:
        return "summary too short"
    if _SPEAKS_OF_CODE.search(text):
        return "summary speaks of the code"
    if any(c.isalpha() and ord(c) > LATIN and c not in code for c in text):
        return "summary changes its script"
    lines = {line.strip() for line in code.splitlines()}
    told = {line.strip() for line in text.splitlines()}
    if any(len(line) >= COPIED_CHARS for line in lines & told) or re.search(
        r"^\s*(?:def \w+\(.*\).*:|class \w+.*:|return \S|import \w+)\s*$", text, re.M
    ):
        return "summary holds code"
    return None


def without_docstrings(code: str) -> str:
    """The program without docstrings; as it is where there are none, or where it would not parse.

    Only their lines go: comments and layout of the rest stay.
    """
    tree = parse_bounded(code)
    if tree is None:
        return code
    drop: set[int] = set()
    fill: dict[int, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        first = node.body[0] if node.body else None
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        if isinstance(first.value.value, str) and first.end_lineno is not None:
            drop.update(range(first.lineno, first.end_lineno + 1))
            if len(node.body) == 1 and not isinstance(node, ast.Module):
                fill[first.lineno] = " " * first.col_offset + "pass"
    if not drop:
        return code
    lines = enumerate(code.split("\n"), 1)
    kept = [fill.get(n, line) for n, line in lines if n not in drop or n in fill]
    bare = "\n".join(kept).strip("\n") + "\n"
    return bare if parse_bounded(bare) is not None else code


def defined_name(code: str) -> str | None:
    """Name of the last function that a program defines at its top level."""
    tree = parse_bounded(code)
    functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)] if tree else []
    return functions[-1] if functions else None


def _take_near(summaries: dict[str, list[Json]], old: Sequence[frozenset[str]]) -> list[Drop]:
    """Take out summaries that are a trusted instruction again, nearly word for word."""
    drops = []
    for found in summaries.values():
        for summary in list(found):
            shingles = text_shingles(summary["text"])
            if any(jaccard(shingles, other) >= NEAR for other in old):
                found.remove(summary)
                drops.append(Drop(reason="near an old instruction", interaction_ids=[]))
    return drops


def _nearest(rows: Sequence[Row], old: Sequence[frozenset[str]]) -> float | None:
    """Mean likeness of new instructions to their nearest old one (the paper's: MinHash 0.116)."""
    if not rows or not old:
        return None
    nearest = [
        max(jaccard(text_shingles(str(row.provenance["instruction"])), other) for other in old)
        for row in rows
    ]
    return round(sum(nearest) / len(nearest), 4)


# --- rows --------------------------------------------------------------------------------------


def trusted_row(snippet: Snippet) -> Row:
    """The pair as it came: somebody's request and the program."""
    return _row(
        snippet,
        live_messages(snippet.messages, snippet.spec),
        snippet.code,
        TRUSTED,
        {"instruction": snippet.instruction, "selected_by": None, "model": snippet.model},
    )


def self_made_row(snippet: Snippet, code: str, summary: Json, provenance: Json) -> Row:
    """A new request for the program; the specification of the old one is not in it."""
    return _row(
        snippet,
        [{"role": "user", "content": summary["text"]}],
        code,
        SELF_MADE,
        {
            "instruction": summary["text"],
            "opening": summary["opening"],
            "model": summary["model"],
            "adapter_version": summary["adapter_version"],
            **provenance,
        },
    )


def _row(snippet: Snippet, messages: list[Json], code: str, phase: int, provenance: Json) -> Row:
    prompt, digest = messages_sha256(messages), program_sha256(code)
    return Row(
        id=messages_sha256([{"prompt": prompt, "program": digest, "phase": phase}])[:24],
        recipe=InverseInstruct.name,
        origin=snippet.origin,
        # Both pairs of one program fall on the same side of a split.
        task=messages_sha256([{"snippet": snippet.id}]),
        messages=messages,
        answer=fenced(code),
        program=code,
        interaction_ids=list(snippet.interaction_ids),
        feedback_ids=list(snippet.feedback_ids),
        prompt_sha256=prompt,
        program_sha256=digest,
        provenance={
            "phase": phase,
            "epochs": EPOCHS[phase],
            "snippet": snippet.id,
            "source": snippet.source,
            "licence": snippet.licence,
            "user": snippet.user,
            "tenant": snippet.tenant,
            "spec": snippet.spec.to_json(),
            "metadata": snippet.metadata,
            **provenance,
        },
    )


def arrange(rows: Sequence[Row], order: Order, seed: int) -> list[Row]:
    """Put rows into the order of training and number the phases accordingly."""
    if order is Order.SELF_MADE_FIRST:
        return sorted(rows, key=lambda row: row.provenance["phase"])
    if order is Order.TRUSTED_FIRST:
        turned = [_in_phase(row, TRUSTED + SELF_MADE - row.provenance["phase"]) for row in rows]
        return sorted(turned, key=lambda row: row.provenance["phase"])
    mixed = [_in_phase(row, SELF_MADE) for row in rows]
    random.Random(seed).shuffle(mixed)
    return mixed


def _in_phase(row: Row, phase: int) -> Row:
    # How often a row is seen stays with its kind: only the order is what a control changes.
    return replace(row, provenance={**row.provenance, "phase": phase})
