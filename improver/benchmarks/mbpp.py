"""MBPP and MBPP+, and tasks from a file in the plain shape.

Three shapes of rows are MBPP's: our own (`text`, `entry_point`, `visible_test` that is shown,
`base_tests` and `plus_test` that are held back, `canonical_solution`), Google's (`text`, `code`,
`test_list`) and that of evalplus/mbppplus (`prompt`, `code`, `test_list`, `test`). In MBPP+ both
base asserts and plus tests decide: the plus tests alone pass `return []` where the expected value
is compared by `allclose`. The first assert is shown, as in the paper's prompts (arXiv 2108.07732).

The plain shape is `id`, `text`, `spec` (an I/O specification) and optionally `reference`.
"""

from __future__ import annotations

from pathlib import Path

from improver.benchmarks.base import (
    Task,
    all_different,
    parameters_of,
    plain_task,
    read_jsonl,
    shown_and_held,
)
from improver.errors import BenchmarkError
from ops.records import Json
from sandbox.spec import Test, derive_spec


class TaskFile:
    """The tasks of a file.

    Args:
        path: JSON lines.
        subset: leave only rows in which this field is true.
        plus: with MBPP+'s tests where rows have them; False leaves them away.
        name: what the benchmark is called.
    """

    def __init__(
        self, path: Path, *, subset: str | None = None, plus: bool = True, name: str = "file"
    ) -> None:
        self.path = path
        self.subset = subset
        self.plus = plus
        self.name = name

    def tasks(self) -> list[Task]:
        """Return the file's tasks.

        Raises:
            BenchmarkError: it cannot be read, holds no task, or one of its rows is malformed.
        """
        tasks = []
        for number, row in read_jsonl(self.path):
            if self.subset is None or row.get(self.subset) is True:
                tasks.append(read_task(row, f"{self.path.name}:{number}", plus=self.plus))
        of = f" with {self.subset} true" if self.subset and not tasks else ""
        return all_different(tasks, f"{self.path}{of}")


def read_task(row: Json, where: str, *, plus: bool = True) -> Task:
    """Read one row of any shape.

    Raises:
        BenchmarkError: a field is missing or malformed.
    """
    if "test_list" in row:
        row = _ours(row, where)
    if "base_tests" not in row:
        if "base_input" in row:
            raise BenchmarkError(
                f"{where}: MbppPlus.jsonl holds inputs in a form of its own; the rows of "
                "evalplus/mbppplus hold the same tests as code and can be read"
            )
        return plain_task(row, "file", where)
    try:
        name = str(row["entry_point"])
        asserts = [row["visible_test"]] + [
            test for test in row["base_tests"] if test != row["visible_test"]
        ]
        imports = "\n".join(row.get("test_imports") or ())
        spec = shown_and_held([_with(imports, code) for code in asserts], name)
        if plus and row.get("plus_test"):
            further = Test(code=_with(imports, str(row["plus_test"])), hidden=True)
            spec = spec.model_copy(update={"tests": (*spec.tests, further)})
        reference = row.get("canonical_solution")
        types = parameters_of(reference, name) if reference else None
        if types is not None:
            spec = spec.model_copy(update={"types": types})
        return Task(
            id=str(row["task_id"]),
            benchmark="mbpp",
            text=str(row["text"]),
            spec=spec,
            reference=reference,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{where}: {error!r}") from error


def _ours(row: Json, where: str) -> Json:
    """Write a row of Google's or of evalplus/mbppplus in our shape."""
    try:
        asserts = [str(test) for test in row["test_list"]]
        entry_point = derive_spec("\n".join(asserts))
        if entry_point is None or entry_point.entry_point is None:
            raise ValueError("its asserts call no function")
        setup = row.get("test_setup_code")
        return {
            "task_id": f"MBPP/{row['task_id']}",
            "text": row["text"] if "text" in row else row["prompt"],
            "entry_point": entry_point.entry_point,
            "visible_test": asserts[0],
            "base_tests": asserts,
            "test_imports": row.get("test_imports") or ([setup] if setup else []),
            "plus_test": row.get("test"),
            "canonical_solution": str(row["code"]).replace("\r", ""),
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BenchmarkError(f"{where}: {error!r}") from error


def _with(imports: str, code: str) -> str:
    return f"{imports}\n{code}" if imports else code
