"""NumpyEval and PandasEval: the next lines of a program that uses numpy or pandas.

From CERT (arXiv 2206.06888). A prompt is code that breaks off: after `b =`, after a comment, or
inside a function. The test looks at the variables or calls the function. Many of the original
tests define `check()` and never call it, so that any answer passes: the call is added here.
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
from sandbox.extract import extract_program
from sandbox.spec import Spec, Test

GUESSED = frozenset(("PandasEval/78",))
"""Tasks that a constant solves: they tell nothing and are left out."""

ASK = "Complete this Python program. Answer with the whole program in one code block.\n\n"


@dataclass(frozen=True)
class Continuation(Form):
    """The answer goes on with the prompt's code, or repeats all of it and goes on."""

    is_function: ClassVar[bool] = False
    prompt: str

    def program(self, text: str, spec: Spec) -> str | None:
        """Take the answer's code; where nothing is fenced the text may be the bare rest."""
        return extract_program(text, entry_point=spec.entry_point) or (
            text if "```" not in text and text.strip() else None
        )

    def complete(self, program: str) -> str:
        """Put the prompt's code before an answer that does not repeat it."""
        if self._repeats(program):
            return program
        lines = self.prompt.rstrip().split("\n")
        unfinished = re.fullmatch(r"([^\W\d]\w*)\s*=", lines[-1])
        if unfinished:
            if re.search(rf"^{unfinished[1]}\s*=[^=]", program, re.M):
                return "\n".join([*lines[:-1], program])
            return "\n".join([*lines[:-1], f"{lines[-1]} {program.strip()}\n"])
        if _goes_on(lines[-1], program):
            return f"{self.prompt.rstrip()}{program.lstrip()}"
        return f"{self.prompt.rstrip()}\n{self._indented(program)}"

    def _repeats(self, program: str) -> bool:
        """Whether the answer holds the prompt's statements, imports and comments aside."""
        said = {line.strip() for line in program.split("\n")}
        lines = [line.strip() for line in self.prompt.rstrip().split("\n")[:-1]]
        own = [
            line
            for line in lines
            if line and not line.startswith(("#", "import ", "from ", '"', "'"))
        ]
        return bool(own) and sum(line in said for line in own) * 2 > len(own)

    def _indented(self, program: str) -> str:
        """Give an answer inside a function the indentation that it lacks."""
        inside = re.search(r"^def ", self.prompt, re.M) and not re.search(
            r"^[^\s#].*$", re.split(r"^def .*$", self.prompt, flags=re.M)[-1], re.M
        )
        bare = program.strip("\n")
        if not inside or bare.startswith((" ", "\t")):
            return program
        return "\n".join(f"    {line}" if line.strip() else line for line in bare.split("\n"))


def _goes_on(last: str, program: str) -> bool:
    """Whether an answer continues the last line of the prompt: `result` and `[0] = 1`."""
    return bool(re.fullmatch(r"[^\W\d]\w*", last.strip())) and program.lstrip()[:1] in (
        "[",
        ".",
        "=",
    )


class PandasEval:
    """The tasks of a file that are NumpyEval's or PandasEval's.

    Args:
        path: JSON lines; both sets may lie in one file.
        library: `numpy` or `pandas`.
    """

    def __init__(self, path: Path, *, library: str) -> None:
        self.path = path
        self.name = f"{library}eval"

    def tasks(self) -> list[Task]:
        """Return the tasks of this library.

        Raises:
            BenchmarkError: the file cannot be read, or one of its rows is malformed.
        """
        tasks = [
            self._task(row, f"{self.path.name}:{number}")
            for number, row in read_jsonl(self.path)
            if str(row.get("task_id", self.name)).lower().startswith(self.name)
            and row.get("task_id") not in GUESSED
        ]
        return all_different(tasks, str(self.path))

    def _task(self, row: Json, where: str) -> Task:
        try:
            prompt, test = str(row["prompt"]), str(row["test"])
            name = str(row["entry_point"])
            solution = row["canonical_solution"]
            if isinstance(solution, list):
                solution = solution[0]
            spec = Spec(
                entry_point=None if name == "none" else name,
                tests=(Test(code=_called(test, None if name == "none" else name), hidden=True),),
            )
            return Task(
                id=str(row["task_id"]),
                benchmark=self.name,
                text=f"{ASK}```python\n{prompt.rstrip()}\n```",
                spec=spec,
                reference=_whole(prompt, str(solution)),
                form=Continuation(prompt),
            )
        except (KeyError, TypeError, ValueError, IndexError, SyntaxError) as error:
            raise BenchmarkError(f"{where}: {error!r}") from error


def _called(test: str, name: str | None) -> str:
    """Add the call of `check` where the test lacks it."""
    tree = ast.parse(test)
    called = any(
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "check"
        for node in tree.body
    )
    return test if called else f"{test.rstrip()}\n\n\ncheck({name or ''})\n"


def _whole(prompt: str, solution: str) -> str:
    """The finished program: the solution as it stands after the prompt."""
    for joint in ("", "\n"):
        program = f"{prompt}{joint}{solution}\n"
        try:
            ast.parse(program)
        except SyntaxError:
            continue
        return program
    return f"{prompt}{solution}\n"
