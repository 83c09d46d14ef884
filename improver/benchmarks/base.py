"""The contract of a benchmark: tasks with checks, and how they are put to a model.

A task is judged by execution with all its checks, visible and hidden. Its reference solution passes
and stub answers (`None`, a constant, nothing) fail: tests see to it. All tasks of every benchmark
go into the firewall, whichever of them an examination uses. How an answer becomes the program that
is checked is the task's `Form`: most answers are programs, some are a line of a program or a value.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import ClassVar, Protocol

from improver.errors import BenchmarkError
from improver.firewall import Exam
from ops.records import Json
from sandbox.errors import SpecError
from sandbox.extract import program_for
from sandbox.spec import KINDS, Example, Kind, Spec, Test, extend_prompt, literal_calls, parse_spec


@dataclass(frozen=True)
class Form:
    """How an answer becomes the program that is checked. Here: the answer is the program."""

    is_function: ClassVar[bool] = True
    """Whether the answer defines the function that the checks call: only then is it named."""

    def program(self, text: str, spec: Spec) -> str | None:
        """Take out of an answer what was asked for; None where it is not there."""
        return program_for(text, spec)

    def complete(self, program: str) -> str:
        """Put around it what its checks need."""
        return program


@dataclass(frozen=True, kw_only=True)
class Task:
    """An examination task. `text` is the request in a user's words, without the specification.

    `reference` is an answer that is right, as a model would give it.
    """

    id: str
    benchmark: str
    text: str
    spec: Spec
    reference: str | None = None
    form: Form = Form()

    def shown(self, kinds: Sequence[Kind] = KINDS) -> Spec:
        """The visible part of the specification, as far as it is of these kinds.

        The function's name stays whatever is left away: a checker that looks for it would
        otherwise measure guessing.
        """
        spec = self.spec.visible()
        away: dict[str, object] = {}
        if "types" not in kinds:
            away |= {"types": None, "inputs": (), "outputs": ()}
        if "examples" not in kinds:
            away |= {"examples": (), "tests": (), "stdio": (), "cells": ()}
        if "summary" not in kinds:
            away |= {"summary": None}
        return spec.model_copy(update=away)

    def messages(self, *, with_spec: bool = True, kinds: Sequence[Kind] = KINDS) -> list[Json]:
        """Return the task as it is put to a model.

        Args:
            with_spec: without, it is an ordinary request; the function is named in words.
            kinds: which kinds of specification are written, of the visible part.
        """
        if not self.form.is_function:
            return [{"role": "user", "content": self.text}]
        if with_spec:
            return [{"role": "user", "content": extend_prompt(self.text, self.shown(kinds))}]
        name = self.spec.entry_point
        ask = f"{self.text}\n\nCall it `{name}`." if name else self.text
        return [{"role": "user", "content": ask}]

    def program(self, text: str) -> str | None:
        """The program that is checked, out of an answer; None where it holds none."""
        program = self.form.program(text, self.spec)
        return None if program is None else self.form.complete(program)

    @property
    def solution(self) -> str | None:
        """The reference as it is checked."""
        return None if self.reference is None else self.form.complete(self.reference)

    def exam(self) -> Exam:
        """What the firewall needs to know of the task."""
        return Exam(
            id=self.id,
            benchmark=self.benchmark,
            text=self.text,
            spec=self.spec,
            # A part of a program may be indented: as Python it is compared without that.
            reference=None if self.reference is None else dedent(self.reference),
        )


class Benchmark(Protocol):
    """A set of tasks."""

    name: str

    def tasks(self) -> Sequence[Task]:
        """Return all tasks.

        Raises:
            BenchmarkError: they cannot be read.
        """


STUBS = ("return None", "return 0", "return []", "return True", "pass")
CONSTANTS = ("None", "0", "[]", "x = 1\n", "result = None\n")


def stub_programs(task: Task) -> list[str]:
    """Answers that must fail, as they are checked: functions that say nothing, and constants."""
    name = task.spec.entry_point or "solution"
    functions = [f"def {name}(*args, **kwargs):\n    {body}\n" for body in STUBS]
    return [task.form.complete(answer) for answer in (*functions, *CONSTANTS)]


def shown_and_held(asserts: Sequence[str], entry_point: str) -> Spec:
    """Make a spec of asserts: the first is shown, the others are held back.

    Asserts over literals become examples, so that prompts of the examination look like those that
    clients and training rows have; others stay test code.
    """
    examples: list[Example] = []
    tests: list[Test] = []
    for place, code in enumerate(asserts):
        calls = literal_calls(code)
        if calls and all(call.function == entry_point for call in calls):
            examples += [c.example.model_copy(update={"hidden": place > 0}) for c in calls]
        else:
            tests.append(Test(code=code, hidden=place > 0))
    return Spec(entry_point=entry_point, examples=tuple(examples), tests=tuple(tests))


def parameters_of(program: str, name: str) -> str | None:
    """The parameters of a function as `(a, b)`, for a signature in a prompt."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError):
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return f"({ast.unparse(node.args)})"
    return None


def read_jsonl(path: Path) -> Iterator[tuple[int, Json]]:
    """Yield the objects of a file of JSON lines, gzipped or not, with their line numbers.

    Raises:
        BenchmarkError: the file or one of its lines cannot be read.
    """
    try:
        opened = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8")
        with opened as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise BenchmarkError(f"{path}:{number}: a JSON object is wanted")
                    yield number, row
    except (OSError, EOFError, ValueError) as error:
        raise BenchmarkError(f"cannot read {path}: {error}") from error


def all_different(tasks: Sequence[Task], where: str) -> list[Task]:
    """Return the tasks, if there are any and their ids differ.

    Raises:
        BenchmarkError: they do not.
    """
    if not tasks:
        raise BenchmarkError(f"{where} holds no task")
    if len({task.id for task in tasks}) != len(tasks):
        raise BenchmarkError(f"{where}: two tasks have the same id")
    return list(tasks)


def plain_task(row: Json, benchmark: str, where: str) -> Task:
    """Read a task of the plain shape: `id`, `text`, `spec`, and optionally `reference`.

    Raises:
        BenchmarkError: a field is missing or malformed.
    """
    try:
        task = Task(
            id=str(row["id"]),
            benchmark=benchmark,
            text=str(row["text"]),
            spec=parse_spec(row["spec"], location="spec"),
            reference=row.get("reference"),
        )
    except (KeyError, SpecError) as error:
        raise BenchmarkError(f"{where}: {error}") from error
    if not task.spec.has_checks:
        raise BenchmarkError(f"{where}: nothing in its spec tells right from wrong")
    return task
