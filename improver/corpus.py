"""Code to learn from: a corpus on disk, or what the record knows to be right.

Inverse-Instruct writes instructions for it; GIFT4Code replays the part that has instructions. A
corpus is a folder of `.py` files, one function a snippet, or a file of JSON lines. From the record
come answers that passed their checks, answers that people kept, and people's demonstrations.

Source: step 2 of Inverse-Instruct (arXiv 2407.05700) takes the first fenced block of a response.
Deviation: every Python block is looked at, and what only prints or comments is left out.

Not here: running snippets (the recipes do), writing instructions.
"""

from __future__ import annotations

import ast
import builtins
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from improver.errors import ImportFileError
from improver.types import Origin
from ops.records import Interaction, Json, Metric, Source
from ops.store import Recording, Store
from sandbox.errors import SpecError
from sandbox.extract import extract_program, program_sha256
from sandbox.spec import Spec, Test, derive_spec, parse_spec
from sandbox.syntax import parse_bounded

CODE_FIELDS = ("code", "program", "refinement", "snippet", "solution", "response", "output")
TEXT_FIELDS = ("instruction", "prompt", "question", "text", "rewritten_intent", "intent")
TEST_FIELDS = ("test_list", "tests", "asserts")
ID_FIELDS = ("id", "task_id", "question_id")
LEAST_CODE_CHARS = 20
MAX_CODE_CHARS = 4000
MAX_FILE_BYTES = 64 << 20
PAGE = 200


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A program that is taken to be right, and where it comes from.

    `messages` is the request it answers, without a rendered specification; empty where nobody
    asked. `spec` holds its checks, hidden ones included.
    """

    id: str
    code: str
    messages: list[Json] = field(default_factory=list)
    spec: Spec = field(default_factory=Spec)
    origin: Origin
    source: str
    licence: str | None = None
    interaction_ids: list[str] = field(default_factory=list)
    feedback_ids: list[str] = field(default_factory=list)
    user: str | None = None
    tenant: str | None = None
    model: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def instruction(self) -> str:
        """The last thing that was asked; empty where nobody asked."""
        for message in reversed(self.messages):
            if message["role"] == "user":
                content = message["content"]
                if isinstance(content, str):
                    return content
                return "\n".join(p.get("text", "") for p in content if p.get("type") == "text")
        return ""

    @property
    def task_ids(self) -> list[str]:
        """Names under which a benchmark may know the task."""
        return [self.metadata["task_id"]] if self.metadata.get("task_id") else []


@dataclass(kw_only=True)
class Corpus:
    """Snippets, and what was left out with its reason."""

    snippets: list[Snippet] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    _seen: set[str] = field(default_factory=set, repr=False)

    def add(self, snippet: Snippet) -> None:
        """Take a snippet unless its code is there already or is none worth having."""
        if why := unfit(snippet.code):
            self.skipped[why] += 1
        elif snippet.id in self._seen:
            self.skipped["same code again"] += 1
        else:
            self.snippets.append(snippet)
            self._seen.add(snippet.id)

    def report(self) -> Json:
        """The numbers as plain data."""
        return {
            "snippets": len(self.snippets),
            "with_instruction": sum(bool(s.messages) for s in self.snippets),
            "with_checks": sum(s.spec.has_checks for s in self.snippets),
            "by_origin": dict(Counter(str(s.origin) for s in self.snippets)),
            "by_licence": dict(Counter(str(s.licence) for s in self.snippets)),
            "skipped": dict(self.skipped),
        }


def unfit(code: str) -> str | None:
    """Why text is no snippet worth learning from; None where it is one."""
    if len(code.strip()) < LEAST_CODE_CHARS:
        return "code too short"
    if len(code) > MAX_CODE_CHARS:
        return "code too long"
    tree = parse_bounded(code)
    if tree is None:
        return "not Python"
    if all(_says_nothing(statement) for statement in tree.body):
        return "only prints or comments"
    return None


def _says_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass)):
        return True
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    called = value.func if isinstance(value, ast.Call) else None
    return isinstance(value, ast.Constant) or (
        isinstance(called, ast.Name) and called.id == "print"
    )


# --- a corpus on disk --------------------------------------------------------------------------


def read_corpus(path: Path, *, licence: str | None = None) -> Corpus:
    """Read a corpus.

    Args:
        path: A folder, whose `.py` and `.jsonl` files are read, or one such file.
        licence: For snippets whose row names none.

    Raises:
        ImportFileError: there is nothing of that name, or it cannot be read.
    """
    if not path.exists():
        raise ImportFileError(f"there is no corpus at {path}")
    files = [path] if path.is_file() else sorted([*path.rglob("*.py"), *path.rglob("*.jsonl")])
    corpus = Corpus()
    for file in files:
        if file.stat().st_size > MAX_FILE_BYTES:
            corpus.skipped["file too big"] += 1
            continue
        name = file.name if path.is_file() else str(file.relative_to(path))
        try:
            text = file.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ImportFileError(f"{file} cannot be read: {error}") from error
        read = _of_module if file.suffix == ".py" else _of_lines
        for snippet in read(text, name, licence, corpus.skipped):
            corpus.add(snippet)
    return corpus


def _of_lines(
    text: str, name: str, licence: str | None, skipped: Counter[str]
) -> Iterator[Snippet]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            skipped["line is no JSON object"] += 1
            continue
        written = _first(row, CODE_FIELDS)
        if written is None:
            skipped["row without code"] += 1
            continue
        code = clean(written)
        if code is None:
            skipped["not Python"] += 1
            continue
        asked = _first(row, TEXT_FIELDS) or ""
        if asked and isinstance(extra := row.get("input"), str) and extra.strip():
            asked += f"\n\nInput: {extra.strip()}"
        identity = _first(row, ID_FIELDS)
        yield Snippet(
            id=program_sha256(code)[:24],
            code=code,
            messages=[{"role": "user", "content": asked.strip()}] if asked.strip() else [],
            spec=_row_spec(row, asked),
            origin=Origin.CORPUS,
            source=f"{name}:{number}",
            licence=_first(row, ("licence", "license")) or licence,
            metadata={"task_id": identity[:100]} if identity else {},
        )


def _first(row: Json, names: Sequence[str]) -> str | None:
    for name in names:
        value = row.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value
    return None


def _row_spec(row: Json, asked: str) -> Spec:
    """The checks that a row brings: asserts in a field, else those that its text holds."""
    for name in TEST_FIELDS:
        tests = row.get(name)
        if isinstance(tests, list) and tests and all(isinstance(t, str) and t for t in tests):
            return Spec(tests=tuple(Test(code=test) for test in tests[:20]))
    if isinstance(row.get("io_spec"), dict):
        try:
            return parse_spec(row["io_spec"])
        except SpecError:
            return Spec()
    return derive_spec(asked) or Spec()


def clean(written: str) -> str | None:
    """The program of a response: its Python blocks, or all of it where it has no fence."""
    written = written.replace("\r\n", "\n").replace("\r", "\n")
    if "```" in written:
        return extract_program(written)
    return f"{written.strip()}\n" if parse_bounded(written) is not None else None


def _of_module(
    text: str, name: str, licence: str | None, skipped: Counter[str]
) -> Iterator[Snippet]:
    """Each top-level function that stands by itself, with the imports that it needs."""
    tree = parse_bounded(text, max_chars=1_000_000)
    if tree is None:
        skipped["not Python"] += 1
        return
    imports = _module_imports(tree)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        free = _free_names(node)
        if not free <= imports.keys():
            skipped["function leans on its module"] += 1
            continue
        needed = list(dict.fromkeys(imports[one] for one in sorted(free)))
        source = ast.get_source_segment(text, node) or ""
        decorators = [f"@{ast.unparse(one)}" for one in node.decorator_list]
        code = "\n".join((*needed, *([""] * 2 if needed else ()), *decorators, source)) + "\n"
        yield Snippet(
            id=program_sha256(code)[:24],
            code=code,
            spec=derive_spec(ast.get_docstring(node) or "") or Spec(),
            origin=Origin.CORPUS,
            source=f"{name}:{node.lineno}",
            licence=licence,
        )


def _module_imports(tree: ast.Module) -> dict[str, str]:
    found = {}
    for node in tree.body:
        relative = isinstance(node, ast.ImportFrom) and node.level
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not relative:
            for alias in node.names:
                alone = type(node)(**{**vars(node), "names": [alias]})
                found[(alias.asname or alias.name).split(".")[0]] = ast.unparse(alone)
    return found


def _free_names(function: ast.FunctionDef) -> set[str]:
    """Names that a function reads and neither binds nor finds among the builtins."""
    bound = set(dir(builtins)) | {function.name}
    read: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return read - bound


# --- the record --------------------------------------------------------------------------------


def of_record(store: Store, *, limit: int = 2000, before: datetime | None = None) -> Corpus:
    """Collect what the record knows to be right: demonstrations, kept and verified answers.

    A demonstration is taken before the model's own answer to the same request. An answer that a
    person refused, or that failed a check, is never taken.

    Args:
        store: The record.
        limit: The most requests looked at; those with people's words first, of each group the
            newest.
        before: Requests made later are left aside.
    """
    corpus = Corpus()
    seen: set[str] = set()
    groups = (
        newest(store, before, with_feedback=Metric.DEMONSTRATION),
        newest(store, before, with_feedback=Metric.ACCEPTED),
        newest(store, before, verified=True),
    )
    for recording in (one for group in groups for one in group):
        if len(seen) >= limit:
            break
        if recording.interaction.id in seen:
            continue
        seen.add(recording.interaction.id)
        found = _of_recording(recording)
        if isinstance(found, str):
            corpus.skipped[found] += 1
        else:
            corpus.add(found)
    return corpus


def newest(
    store: Store,
    before: datetime | None,
    *,
    with_feedback: str | None = None,
    verified: bool | None = None,
) -> Iterator[Recording]:
    """Interactions with all that belongs to them, newest first; in pages: memory stays flat."""
    last = None
    while True:
        page = store.interactions(
            limit=PAGE, before=last, with_feedback=with_feedback, verified=verified
        )
        yield from store.recordings(
            [one for one in page if before is None or one.created_at <= before]
        )
        if len(page) < PAGE:
            return
        last = page[-1].id


def is_request(interaction: Interaction) -> bool:
    """Whether its messages ask for something; text to be completed is no request."""
    return interaction.source is not Source.CLIENT and interaction.endpoint != "/v1/completions"


def _of_recording(recording: Recording) -> Snippet | str:
    interaction, given = recording.interaction, recording.feedback
    try:
        spec = parse_spec(interaction.spec or {})
    except SpecError:
        return "spec not readable"
    base = Snippet(
        id="",
        code="",
        messages=interaction.messages if is_request(interaction) else [],
        spec=spec,
        origin=Origin.DEMONSTRATION,
        source=str(interaction.source),
        interaction_ids=[interaction.id],
        user=interaction.user,
        tenant=interaction.tenant,
        metadata=interaction.metadata,
    )
    shown = [one for one in given if one.metric == Metric.DEMONSTRATION and one.value]
    if shown:
        code = clean(str(shown[-1].value))
        if code is None:
            return "demonstration is not Python"
        return replace(base, id=program_sha256(code)[:24], code=code, feedback_ids=[shown[-1].id])
    verdicts = [one for one in given if one.metric == Metric.ACCEPTED]
    if any(one.value is False for one in verdicts):
        return "answer was refused"
    if interaction.verified is False:
        return "answer failed its checks"
    attempts = recording.attempts
    choice = verdicts[-1].choice_index if verdicts else 0
    chosen = next((a for a in attempts if a.choice_index == choice and a.program), None)
    if chosen is None or chosen.program is None:
        return "no program in the answer"
    return replace(
        base,
        id=program_sha256(chosen.program)[:24],
        code=chosen.program,
        origin=Origin.ACCEPTED,
        feedback_ids=[one.id for one in verdicts],
        model=f"{interaction.adapter_name or interaction.model}@{interaction.adapter_version}",
    )


# --- choosing ----------------------------------------------------------------------------------


def draw(snippets: Iterable[Snippet], count: int, seed: int) -> list[Snippet]:
    """Draw snippets that have a request, the same ones for the same seed."""
    usable = sorted((s for s in snippets if s.messages), key=lambda s: (s.id, s.source))
    random.Random(seed).shuffle(usable)
    return usable[:count]
