"""Tasks from a file: MBPP rows with MBPP+ tests, or the plain shape.

MBPP rows hold `task_id`, `text`, `entry_point`, `visible_test` (shown), `base_tests` and
`plus_test` (held back), `canonical_solution`. Both base asserts and plus tests decide: the plus
tests alone pass `return []` where the expected value is compared by `allclose`.

The plain shape is `id`, `text`, `spec` (an I/O specification) and optionally `reference`.
"""

from __future__ import annotations

from pathlib import Path

from improver.benchmarks.base import (
    Task,
    parameters_of,
    plain_task,
    read_jsonl,
    shown_and_held,
)
from improver.errors import BenchmarkError
from ops.records import Json
from sandbox.spec import Test


class TaskFile:
    """The tasks of a file.

    Args:
        path: JSON lines.
        subset: leave only rows in which this field is true.
    """

    name = "file"

    def __init__(self, path: Path, *, subset: str | None = None) -> None:
        self.path = path
        self.subset = subset

    def tasks(self) -> list[Task]:
        """Return the file's tasks.

        Raises:
            BenchmarkError: it cannot be read, holds no task, or one of its rows is malformed.
        """
        tasks = []
        for number, row in read_jsonl(self.path):
            if self.subset is None or row.get(self.subset) is True:
                tasks.append(read_task(row, f"{self.path.name}:{number}"))
        if not tasks:
            of = f" with {self.subset} true" if self.subset else ""
            raise BenchmarkError(f"{self.path} holds no task{of}")
        ids = {task.id for task in tasks}
        if len(ids) != len(tasks):
            raise BenchmarkError(f"{self.path}: two tasks have the same id")
        return tasks


def read_task(row: Json, where: str) -> Task:
    """Read one row of either shape.

    Raises:
        BenchmarkError: a field is missing or malformed.
    """
    if "base_tests" not in row:
        return plain_task(row, TaskFile.name, where)
    try:
        name = str(row["entry_point"])
        asserts = [row["visible_test"]] + [
            test for test in row["base_tests"] if test != row["visible_test"]
        ]
        imports = "\n".join(row.get("test_imports") or ())
        spec = shown_and_held([_with(imports, code) for code in asserts], name)
        if row.get("plus_test"):
            plus = Test(code=_with(imports, str(row["plus_test"])), hidden=True)
            spec = spec.model_copy(update={"tests": (*spec.tests, plus)})
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


def _with(imports: str, code: str) -> str:
    return f"{imports}\n{code}" if imports else code
