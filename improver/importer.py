"""Bring another model's interactions into the record: `journeyman import FILE`.

Each row becomes an interaction of source `imported` with its program judged in our own sandbox, and
its feedback, in one transaction. The same row twice is one interaction: the id is made of the row's
content. A bad row is counted and named by its line; it never stops the others and leaves nothing.

Two shapes, one JSON object a line:

`ilf`: the human annotations of the ILF paper (arXiv 2303.16749). `task_id`, `prompt` (a docstring
with the task and one example, then the code up to the signature), `original` (the wrong program),
`feedback` (a person's words), `refinement` (the program that should have been), `test` (a
`check(candidate)` of asserts), `paper_split`: only rows of `Refine` and `Train` are taken. The task
becomes a chat message; the first assert, which the prompt shows, is the visible example and the
others are hidden. Deviation: code above the signature is not shown, since in some rows it holds
the solution's own helper functions.

`jsonl`: the plain shape. Wanted: `messages` (or `prompt`) and `program` (or `answer`, from which
the program is taken). Optional: `spec` (an I/O specification), `comment`, `demonstration`,
`accepted`, `rating`, `model`, `user`, `metadata` (text by text), `id`, `created_at`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from improver.attempts import Judge
from improver.errors import ImportFileError
from ops.errors import NotFound
from ops.records import (
    Attempt,
    Execution,
    FeedbackSource,
    Json,
    Metric,
    Source,
    imported_attempt,
    imported_interaction,
    new_feedback,
    new_id,
    now,
)
from ops.redaction import Scrubber
from ops.store import Recording, Store
from sandbox.errors import SandboxError, SpecError
from sandbox.extract import extract_program, program_for, program_sha256
from sandbox.spec import Example, Spec, literal_calls, parse_spec
from sandbox.types import Verification

ILF_SPLITS = ("Refine", "Train")
IDENTIFIER = "import"
"""Marks imported feedback, so that importing again overwrites it and nobody else's."""


class _BadRow(ValueError):
    """A row that cannot be used; the message says why."""


class _Skipped(ValueError):
    """A row that is left out on purpose; the message is the reason that is counted."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of any shape, read."""

    key: str
    messages: list[Json]
    program: str
    answer: str
    spec: Spec | None
    feedback: list[tuple[Metric, bool | float | str]]
    model: str
    user: str | None
    metadata: dict[str, str]
    created_at: datetime | None = None


@dataclass(kw_only=True)
class ImportReport:
    """What became of a file's rows. `problems` names each bad row by its line."""

    rows: int = 0
    imported: int = 0
    known: int = 0
    verified: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> Json:
        """The report as plain data."""
        return {
            "rows": self.rows,
            "imported": self.imported,
            "known_already": self.known,
            "verified": self.verified,
            "skipped": dict(self.skipped),
            "bad": len(self.problems),
            "problems": self.problems,
        }


async def import_file(
    path: Path,
    shape: str,
    store: Store,
    pool: Judge,
    scrubber: Scrubber | None = None,
    *,
    on_row: Callable[[], None] = lambda: None,
) -> ImportReport:
    """Import a file.

    Args:
        path: JSON lines.
        shape: `ilf` or `jsonl`.
        store: the record.
        pool: judges the programs.
        scrubber: what every row passes before it is kept.
        on_row: called after each row, for a progress bar.

    Raises:
        ImportFileError: the file cannot be read, or no such shape is known.
        StoreUnavailable: the record cannot be written; rows before this one are in.
    """
    read = SHAPES.get(shape)
    if read is None:
        raise ImportFileError(f"no shape {shape!r}; known are {', '.join(sorted(SHAPES))}")
    report = ImportReport()
    for number, line in _lines(path):
        report.rows += 1
        try:
            entry = read(_object(line))
            await _import(entry, shape, store, pool, scrubber or Scrubber(), report)
        except _Skipped as reason:
            report.skipped[str(reason)] += 1
        except (_BadRow, SpecError, SandboxError) as error:
            report.problems.append(f"line {number}: {error}")
        on_row()
    return report


def count_lines(path: Path) -> int:
    """Return how many rows a file has.

    Raises:
        ImportFileError: it cannot be read.
    """
    return sum(1 for _ in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise ImportFileError(f"cannot read {path}: {error}") from error


def _object(line: str) -> Json:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise _BadRow("a JSON object is wanted")
    return row


async def _import(
    entry: Entry,
    shape: str,
    store: Store,
    pool: Judge,
    scrubber: Scrubber,
    report: ImportReport,
) -> None:
    interaction_id = _content_id(f"{shape}|{entry.key}")
    try:
        store.interaction(interaction_id)
    except NotFound:
        pass
    else:
        report.known += 1
        return
    verification = None
    if entry.spec is not None and entry.spec.has_checks:
        verification = await pool.check(entry.program, entry.spec)
    store.add([scrubber.recording(_recording(interaction_id, entry, verification))])
    report.imported += 1
    report.verified += verification is not None and verification.verified


def _content_id(content: str) -> str:
    """A UUIDv8 (RFC 9562, section 5.8) out of a row's content.

    Its first 48 bits are zero: ids sort by time, and what was imported comes before what was
    served.
    """
    digest = int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:10])
    digest = digest & ~(0xF << 76) | 0x8 << 76
    digest = digest & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=digest))


def _recording(interaction_id: str, entry: Entry, verification: Verification | None) -> Recording:
    at = entry.created_at or now()
    interaction = replace(
        imported_interaction(
            interaction_id,
            endpoint="import",
            messages=entry.messages,
            answer=entry.answer,
            at=at,
            model=entry.model,
        ),
        spec=None if entry.spec is None else entry.spec.to_json(),
        verified=None if verification is None else verification.verified,
        user=entry.user,
        metadata=entry.metadata,
    )
    attempt = imported_attempt(interaction, entry.program, program_sha256(entry.program))
    return Recording(
        interaction=interaction,
        attempts=[attempt],
        executions=[] if verification is None else [_execution(attempt, verification)],
        feedback=[
            new_feedback(
                metric,
                value,
                FeedbackSource.HUMAN,
                interaction_id=interaction_id,
                at=at,
                identifier=IDENTIFIER,
                user=entry.user,
            )
            for metric, value in entry.feedback
        ],
    )


def _execution(attempt: Attempt, verification: Verification) -> Execution:
    return Execution(
        id=new_id(),
        created_at=now(),
        source=Source.IMPORTED,
        interaction_id=attempt.interaction_id,
        attempt_id=attempt.id,
        program_sha256=attempt.program_sha256 or "",
        verdict=str(verification.verdict),
        verified=verification.verified,
        passed=verification.passed,
        total=verification.total,
        examples=[
            {
                "index": example.index,
                "kind": example.kind,
                "hidden": example.hidden,
                "verdict": str(example.verdict),
                "duration_ms": example.duration_ms,
                "message": example.message,
                "checked": example.checked,
            }
            for example in verification.examples
        ],
        tier=verification.tier.label,
        duration_s=verification.duration_s,
        error_type=verification.error_type,
        error_message=verification.error_message,
    )


# --- the ILF paper's annotations ------------------------------------------------------------------

_DOCSTRING = re.compile(r'^\s*(?:"""|\'\'\')(.*?)(?:"""|\'\'\')', re.S)
_EXAMPLE = re.compile(r"^\s*>>>\s*Example:.*$", re.M)
_DEF = re.compile(r"^def\s+(\w+)\s*\((.*?)\)\s*(?:->\s*[^:]+)?:", re.M | re.S)


def read_ilf(row: Json) -> Entry:
    """Read an annotation of the ILF paper.

    Raises:
        _Skipped: the row belongs to a split that is not for training.
        _BadRow: a field is missing or cannot be understood.
    """
    split = _text(row, "paper_split").removeprefix("MBPP_")
    if split not in ILF_SPLITS:
        raise _Skipped(f"split {split}")
    prompt = _text(row, "prompt")
    documented = _DOCSTRING.match(prompt)
    signature = list(_DEF.finditer(prompt))
    if documented is None or not signature:
        raise _BadRow("prompt: a docstring and a function's signature are wanted")
    name, parameters = signature[-1][1], " ".join(signature[-1][2].split())
    task = " ".join(_EXAMPLE.sub("", documented[1]).split())
    examples = _check_examples(_text(row, "test"), name)
    spec = Spec(
        entry_point=name,
        types=f"({parameters})",
        examples=tuple(
            example.model_copy(update={"hidden": place > 0})
            for place, example in enumerate(examples)
        ),
    )
    task_id = str(row.get("task_id", ""))
    feedback: list[tuple[Metric, bool | float | str]] = [
        (Metric.COMMENT, _text(row, "feedback").strip())
    ]
    if row.get("refinement"):
        feedback.append((Metric.DEMONSTRATION, _without_docstring(_text(row, "refinement"))))
    program = _without_docstring(_text(row, "original"))
    return Entry(
        key=json.dumps([task_id, prompt, program]),
        messages=[{"role": "user", "content": task}],
        program=program,
        answer=f"```python\n{program.rstrip()}\n```",
        spec=spec,
        feedback=feedback,
        model=str(row.get("model") or "codegen-6B-mono"),
        user=None,
        metadata={
            "task_id": f"MBPP/{task_id}" if task_id.isdecimal() else task_id,
            "split": split,
            "corpus": "ilf",
        },
    )


def _text(row: Json, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _BadRow(f"{name}: text is wanted")
    return value.replace("\r\n", "\n").replace("\r", "\n")


def _without_docstring(program: str) -> str:
    """Drop the task's docstring that opens a program of this corpus."""
    found = _DOCSTRING.match(program)
    return (program[found.end() :] if found else program).strip() + "\n"


def _check_examples(test: str, name: str) -> list[Example]:
    """Turn `check(candidate)` into examples; `approx` becomes pytest's default tolerance."""
    try:
        functions = [s for s in ast.parse(test).body if isinstance(s, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _BadRow(f"test: not Python: {error}") from error
    if len(functions) != 1:
        raise _BadRow("test: one function `check(candidate)` is wanted")
    examples = [_assert_example(statement, name) for statement in functions[0].body]
    if len(examples) < 2:
        raise _BadRow("test: one assert to show and at least one to hold back are wanted")
    return examples


def _assert_example(statement: ast.stmt, name: str) -> Example:
    approximate = False
    if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare):
        compare = statement.test
        expected = compare.comparators[0]
        if isinstance(expected, ast.Call) and getattr(expected.func, "id", "") == "approx":
            approximate = True
            compare.comparators[0] = expected.args[0]
        if isinstance(compare.left, ast.Call) and isinstance(compare.left.func, ast.Name):
            compare.left.func.id = name
        statement.msg = None
    calls = literal_calls(ast.unparse(statement))
    if not calls:
        raise _BadRow(f"test: not an assert over literals: {ast.unparse(statement)[:80]}")
    example = calls[0].example
    if approximate:
        # pytest.approx: 1e-6 of the expected value, at least 1e-12.
        numbers = [abs(float(x)) for x in _numbers(example.output)]
        example = example.model_copy(
            update={"tolerance": max([1e-12, *(1e-6 * number for number in numbers)])}
        )
    return example


def _numbers(form: Any) -> Iterator[float]:
    if isinstance(form, (int, float)) and not isinstance(form, bool):
        yield form
    elif isinstance(form, list):
        for item in form:
            yield from _numbers(item)
    elif isinstance(form, dict):
        for item in form.values():
            yield from _numbers(item)


# --- the plain shape ------------------------------------------------------------------------------

_PLAIN = frozenset(
    (
        *("id", "messages", "prompt", "program", "answer", "spec", "created_at"),
        *("comment", "demonstration", "accepted", "rating", "model", "user", "metadata"),
    )
)


def read_plain(row: Json) -> Entry:
    """Read a row of the plain shape.

    Raises:
        _BadRow: a field is missing, unknown or of the wrong type.
    """
    unknown = sorted(row.keys() - _PLAIN)
    if unknown:
        raise _BadRow(f"{unknown[0]}: not a field of this shape")
    messages = _messages(row)
    spec = None if row.get("spec") is None else parse_spec(row["spec"], location="spec")
    if row.get("program") is not None:
        program: str | None = _text(row, "program")
        answer = f"```python\n{str(program).rstrip()}\n```"
    else:
        answer = _text(row, "answer")
        program = extract_program(answer) if spec is None else program_for(answer, spec)
    if program is None:
        raise _BadRow("answer: there is no program in it")
    feedback: list[tuple[Metric, bool | float | str]] = []
    for metric in (Metric.COMMENT, Metric.DEMONSTRATION):
        if row.get(metric) is not None:
            feedback.append((metric, _text(row, metric)))
    if row.get("accepted") is not None:
        feedback.append((Metric.ACCEPTED, _typed(row, "accepted", bool)))
    if row.get("rating") is not None:
        feedback.append((Metric.RATING, float(_typed(row, "rating", int, float))))
    metadata = _typed(row, "metadata", dict) if row.get("metadata") is not None else {}
    if not all(isinstance(v, str) for v in metadata.values()):
        raise _BadRow("metadata: values are text")
    key = row.get("id")
    return Entry(
        key=json.dumps(row if key is None else {"id": key}, sort_keys=True),
        messages=messages,
        program=program,
        answer=answer,
        spec=spec,
        feedback=feedback,
        model=_optional(row, "model") or "unknown",
        user=_optional(row, "user"),
        metadata=metadata,
        created_at=_time(row),
    )


def _messages(row: Json) -> list[Json]:
    if row.get("messages") is None:
        return [{"role": "user", "content": _text(row, "prompt")}]
    messages = _typed(row, "messages", list)
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise _BadRow("messages: objects with role and text content are wanted")
        if message.get("role") not in ("system", "user", "assistant"):
            raise _BadRow("messages: a role is system, user or assistant")
    if not messages or messages[-1]["role"] != "user":
        raise _BadRow("messages: the last one must be the user's")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _typed(row: Json, name: str, *kinds: type) -> Any:
    value = row[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise _BadRow(f"{name}: {' or '.join(kind.__name__ for kind in kinds)} is wanted")
    return value


def _optional(row: Json, name: str) -> str | None:
    return None if row.get(name) is None else _text(row, name)


def _time(row: Json) -> datetime | None:
    if row.get("created_at") is None:
        return None
    try:
        at = datetime.fromisoformat(_text(row, "created_at"))
    except ValueError as error:
        raise _BadRow(f"created_at: {error}") from error
    if at.tzinfo is None:
        raise _BadRow("created_at: a time without a zone")
    return at


SHAPES: dict[str, Callable[[Json], Entry]] = {"ilf": read_ilf, "jsonl": read_plain}
