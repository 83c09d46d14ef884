"""DS-1000: questions about numpy and pandas as people asked them (arXiv 2211.11501).

A row brings `exec_context`, code with a hole in which an answer runs, and a test module that makes
inputs and expected results. The answer in its context runs in one sandbox as the function
`answer(test_input)`, the test module in another: inputs and results cross as data. Words that the
answer must or must not use (`test_string`) are checked as well.

The references were written for
numpy 1 and pandas 1: those that fail on the installed versions, or whose values cannot cross
between processes, are found by `evaluate.judgeable` and left out.
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
from sandbox.syntax import parse_bounded

LIBRARIES = {"numpy": "Numpy", "pandas": "Pandas"}

GUESSED = frozenset((400, 401))
"""Problems whose test a `None` passes: they tell nothing and are left out."""

ASK = (
    "Answer the question with the Python code that comes in place of BEGIN SOLUTION, in one code "
    "block, without what stands above it.\n\n"
)

_ANSWER = """
def source():
    return SOURCE

def answer(test_input):
    names = {"test_input": test_input}
    exec(CONTEXT.replace("[insert]", SOURCE), names)
    return names["result"]
"""

_CHECK = """

def check(candidate):
    if "test_string" in globals():
        test_string(source())
    for number in range(CASES):
        test_input, expected_result = generate_test_case(number + 1)
        assert exec_test(candidate(test_input), expected_result)
"""


@dataclass(frozen=True)
class Hole(Form):
    """The answer fills the hole of a context; it is run by calling `answer`."""

    is_function: ClassVar[bool] = False
    context: str

    def program(self, text: str, spec: Spec) -> str | None:
        """Take the answer's code, without the markers that the question ends with."""
        code = extract_program(text)
        if code is None:
            return None
        code = re.split(r"^(?:### )?BEGIN SOLUTION.*$", code, flags=re.M)[-1]
        return re.split(r"^\s*(?:### )?END SOLUTION|^</code>", code, flags=re.M)[0]

    def complete(self, program: str) -> str:
        """Write the program that the test calls: the answer is in it as text."""
        if re.search(r"^def [^\n]*:\n\[insert\]", self.context, re.M):
            program = _body(program)
        return f"CONTEXT = {self.context!r}\nSOURCE = {program!r}\n{_ANSWER}"


class DS1000:
    """The tasks of one library.

    Args:
        path: the file of all rows, gzipped or not.
        library: `numpy` or `pandas`; None means both.
    """

    def __init__(self, path: Path, *, library: str | None = None) -> None:
        self.path = path
        self.name = f"ds1000-{library}" if library else "ds1000"
        self._libraries = {LIBRARIES[library]} if library else set(LIBRARIES.values())

    def tasks(self) -> list[Task]:
        """Return the tasks of the library.

        Raises:
            BenchmarkError: the file cannot be read, or one of its rows is malformed.
        """
        tasks = []
        for number, row in read_jsonl(self.path):
            try:
                about = row["metadata"]
                if about["library"] in self._libraries and about["problem_id"] not in GUESSED:
                    tasks.append(self._task(row))
            except (KeyError, TypeError, ValueError, SyntaxError) as error:
                raise BenchmarkError(f"{self.path.name}:{number}: {error!r}") from error
        return all_different(tasks, str(self.path))

    def _task(self, row: Json) -> Task:
        code, about = str(row["code_context"]), row["metadata"]
        cases = re.search(r"for i in range\((\d+)\)", code)
        if cases is None:
            raise ValueError("its test does not say how many cases there are")
        test = f"{code}\nCASES = {cases[1]}\n{_CHECK}"
        return Task(
            id=f"DS-1000/{about['problem_id']}",
            benchmark=self.name,
            text=f"{ASK}{str(row['prompt']).strip()}",
            spec=Spec(entry_point="answer", tests=(Test(code=test, hidden=True),)),
            reference=str(row["reference_code"]),
            form=Hole(_context(code)),
        )


def _context(code: str) -> str:
    tree = parse_bounded(code)  # warns of nothing: rows hold escapes that Python dislikes
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "exec_context":
            return str(ast.literal_eval(node.value))
    raise ValueError("it has no exec_context")


def _body(program: str) -> str:
    """An answer inside a function: its body, indented; a model may have repeated the `def`."""
    bare = program.strip("\n")
    if bare.startswith((" ", "\t")):
        return program
    whole = re.match(r"def [^\n]*:\n", bare)
    if whole and not re.search(r"^\S", bare[whole.end() :], re.M):
        return bare[whole.end() :]
    return "\n".join(f"    {line}" if line.strip() else line for line in bare.split("\n"))
