"""HumanEval and HumanEval+: functions to write from a signature and a docstring.

Two shapes of rows are read: OpenAI's, with `test` (`check(candidate)`), and EvalPlus', with
`base_input` and `plus_input`, where the expected values are what the canonical solution returns
(arXiv 2107.03374 and 2305.01210). HumanEval+ checks both inputs, as EvalPlus does.

Deviation: both papers let the model continue the text of the function. Here it is asked in words,
as the product is: the docstring's prose is the request, the signature its types, the doctests its
examples. The prompt's imports and helper functions stand above an answer before it is checked.
"""

from __future__ import annotations

import ast
import doctest
import re
from dataclasses import dataclass
from pathlib import Path

from improver.benchmarks.base import Form, Task, all_different, read_jsonl
from improver.errors import BenchmarkError
from ops.records import Json
from sandbox.spec import Spec, Test, derive_spec

CONTRADICTED = frozenset(("HumanEval/47",))
"""Tasks with a doctest that their own solution does not pass: it stays in no prompt."""

_SAME = """
import copy

def same(found, wanted, atol):
    if atol == 0 and (isinstance(wanted, float) or (
        isinstance(wanted, (list, tuple)) and wanted and all(isinstance(w, float) for w in wanted)
    )):
        atol = 1e-6
    if isinstance(wanted, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(found) == len(wanted) and all(same(f, w, atol) for f, w in zip(found, wanted))
    if isinstance(wanted, bool) or isinstance(found, bool) or atol == 0:
        return found == wanted
    if isinstance(wanted, (int, float)) and isinstance(found, (int, float)):
        return found == wanted or abs(found - wanted) <= atol + 1e-7 * abs(wanted)
    return found == wanted

def large(value):
    # A result that cannot cross between processes cannot be compared: EvalPlus has a few.
    if isinstance(value, int):
        return value.bit_length() > 50_000
    if isinstance(value, str):
        return len(value) > 40_000
    if isinstance(value, (list, tuple)):
        return len(value) > 10_000 or any(map(large, value))
    return False

def check(candidate):
    for given in GIVEN:
        wanted = ORACLE(*copy.deepcopy(given))
        if large(wanted):
            continue
        assert same(candidate(*copy.deepcopy(given)), wanted, ATOL), given
"""

_ROOT = """
import copy

def check(candidate):
    for [given] in GIVEN:
        found = candidate(copy.deepcopy(given))
        value = sum(factor * found ** power for power, factor in enumerate(given))
        assert abs(value) <= 1e-4, given
"""
"""HumanEval/32 asks for any root of a polynomial: many are right."""


@dataclass(frozen=True)
class Below(Form):
    """The answer stands below what the prompt defines beside the function."""

    above: str

    def complete(self, program: str) -> str:
        """Put imports and helper functions of the prompt above an answer."""
        return f"{self.above}\n\n{program}" if self.above else program


class HumanEval:
    """The tasks of a file.

    Args:
        path: JSON lines of either shape.
        plus: check EvalPlus' further inputs as well; the rows must have them.
    """

    def __init__(self, path: Path, *, plus: bool = False) -> None:
        self.path = path
        self.plus = plus
        self.name = "humaneval+" if plus else "humaneval"

    def tasks(self) -> list[Task]:
        """Return the file's tasks.

        Raises:
            BenchmarkError: it cannot be read, or one of its rows is malformed.
        """
        tasks = [
            self._task(row, f"{self.path.name}:{number}") for number, row in read_jsonl(self.path)
        ]
        return all_different(tasks, str(self.path))

    def _task(self, row: Json, where: str) -> Task:
        try:
            prompt, name = str(row["prompt"]), str(row["entry_point"])
            tree = ast.parse(f"{prompt}    pass\n")
            function = next(
                node
                for node in tree.body
                if isinstance(node, ast.FunctionDef) and node.name == name
            )
            above = "\n\n".join(ast.unparse(node) for node in tree.body if node is not function)
            docstring = ast.get_docstring(function) or ""
            task_id = str(row["task_id"])
            found = None if task_id in CONTRADICTED else derive_spec(prompt)
            examples = found.examples if found is not None and found.entry_point == name else ()
            result = f" -> {ast.unparse(function.returns)}" if function.returns else ""
            spec = Spec(
                entry_point=name,
                types=f"({ast.unparse(function.args)}){result}",
                examples=examples,
                tests=(Test(code=self._test(row, task_id), hidden=True),),
            )
            return Task(
                id=task_id,
                benchmark=self.name,
                text=_request(name, docstring, above),
                spec=spec,
                reference=f"{_header(prompt, name)}{row['canonical_solution']}",
                form=Below(above),
            )
        except (KeyError, TypeError, ValueError, SyntaxError, StopIteration) as error:
            raise BenchmarkError(f"{where}: {error!r}") from error

    def _test(self, row: Json, task_id: str) -> str:
        if "base_input" not in row:
            if self.plus:
                raise KeyError("plus_input")
            return str(row["test"])
        given = list(row["base_input"]) + (list(row["plus_input"]) if self.plus else [])
        if task_id == "HumanEval/32":
            return f"GIVEN = {given!r}\n{_ROOT}"
        name = str(row["entry_point"])
        # Under another name: a test must not define what it takes from the program.
        made = _indented(f"{row['prompt']}{row['canonical_solution']}")
        return (
            f"def _make():\n{made}\n    return {name}\n\n\nORACLE = _make()\n"
            f"inf, nan = float('inf'), float('nan')\nGIVEN = {given!r}\n"
            f"ATOL = {float(row.get('atol') or 0)!r}\n{_SAME}"
        )


def _request(name: str, docstring: str, above: str) -> str:
    parts = doctest.DocTestParser()
    try:
        prose = "".join(p for p in parts.parse(docstring) if isinstance(p, str))
    except ValueError:  # an example without the blank after its prompt
        prose = docstring
    prose = re.sub(r"\n\s*\n+", "\n", prose).strip()
    text = f"Write a Python function `{name}`.\n{prose}"
    helpers = [line for line in above.splitlines() if line.startswith("def ")]
    if helpers:
        text += f"\n\nThis is defined already:\n```python\n{above}\n```"
    return text


def _header(prompt: str, name: str) -> str:
    """The function's own lines of the prompt, without what stands above it."""
    at = re.search(rf"^def {re.escape(name)}\b", prompt, re.M)
    if at is None:
        raise ValueError(f"no {name} in the prompt")
    return prompt[at.start() :]


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" if line.strip() else line for line in code.splitlines())
