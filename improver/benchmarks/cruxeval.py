"""CRUXEval: predict what a function returns, or for what it returns that (arXiv 2401.03065).

The answer is a value, not a program: a literal. It is checked by running it (output: the literal
must be what the function returned; input: the function, called with it, must return the output).
An answer that is not a literal is no answer, so that nothing can be computed instead of predicted.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from improver.benchmarks.base import Form, Task, all_different, read_jsonl
from improver.errors import BenchmarkError
from ops.records import Json
from sandbox.errors import SpecError
from sandbox.spec import Spec, parse_spec
from sandbox.syntax import literal, parse_bounded
from sandbox.values import encode


@dataclass(frozen=True)
class Value(Form):
    """The answer is a literal; the program that is checked returns it, or what it leads to.

    `code` is the function where the input is asked for, and empty where the output is.
    """

    is_function: ClassVar[bool] = False
    code: str = ""

    def program(self, text: str, spec: Spec) -> str | None:
        """Take the last literal of an answer: after `==`, in `f(...)`, or alone on its line."""
        for line in reversed(text.replace("`", "").strip().splitlines()):
            found = self._from_call(line) if self.code else self._from_line(line)
            if found is not None:
                return found
        return None

    def _from_call(self, line: str) -> str | None:
        call = re.search(r"\bf\((.*)\)", line)
        inner = call[1] if call else line.strip()
        tree = parse_bounded(f"f({inner})", max_chars=20_000)
        if tree is None or not inner or len(tree.body) != 1:
            return None
        node = tree.body[0]
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
            return None
        parts = [*node.value.args, *(keyword.value for keyword in node.value.keywords)]
        return inner if parts and all(_is_literal(part) for part in parts) else None

    def _from_line(self, line: str) -> str | None:
        said = re.split(r"==|\bANSWER\b:?|->", line)[-1].strip().rstrip(".") or line.strip()
        tree = parse_bounded(said, max_chars=20_000)
        if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
            return None
        return said if _is_literal(tree.body[0].value) else None

    def complete(self, program: str) -> str:
        """Write the function `answer` that returns the value."""
        if not self.code:
            return f"def answer():\n    return ({program})\n"
        return f"{self.code}\n\n\ndef answer():\n    return f({program})\n"


class CruxEval:
    """The tasks of a file with `code`, `input` and `output`.

    Args:
        path: JSON lines.
        predict: `output` or `input`.
    """

    def __init__(self, path: Path, *, predict: str) -> None:
        self.path = path
        self.predict = predict
        self.name = f"cruxeval-{predict}"

    def tasks(self) -> list[Task]:
        """Return the file's tasks.

        Raises:
            BenchmarkError: it cannot be read, or one of its rows is malformed.
        """
        tasks = []
        for number, row in read_jsonl(self.path):
            try:
                tasks.append(self._task(row))
            except (KeyError, TypeError, ValueError, SyntaxError, SpecError) as error:
                raise BenchmarkError(f"{self.path.name}:{number}: {error!r}") from error
        return all_different(tasks, str(self.path))

    def _task(self, row: Json) -> Task:
        code, given, result = str(row["code"]), str(row["input"]), str(row["output"])
        expected = encode(literal(ast.parse(result, mode="eval").body), strict=True)
        if self.predict == "output":
            text = (
                f"What does this call return?\n\n```python\n{code}\n\nf({given})\n```\n\n"
                f"Answer with one line: `assert f({given}) ==` and the value as a Python literal."
            )
        else:
            text = (
                f"For which arguments does this function return `{result}`?\n\n"
                f"```python\n{code}\n```\n\n"
                f"Answer with one line: `assert f(...) == {result}` with literal arguments."
            )
        return Task(
            id=f"CRUXEval/{row['id']}/{self.predict}",
            benchmark=self.name,
            text=text,
            spec=_spec(expected),
            reference=result if self.predict == "output" else given,
            form=Value("" if self.predict == "output" else code),
        )


def _spec(expected: object) -> Spec:
    return parse_spec(
        {
            "entry_point": "answer",
            "examples": [{"input": [], "output": expected, "comparison": "equal", "hidden": True}],
        }
    )


def _is_literal(node: ast.expr) -> bool:
    try:
        literal(node)
    except ValueError:
        return False
    return True
