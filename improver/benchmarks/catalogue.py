"""Every benchmark by its name, and where its rows are looked for.

Rows do not ship, but for `builtin`: a user names a file or a directory (`--data`, or the setting
`benchmarks_dir`), in which they are looked for under the names their authors gave them. Nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from improver.benchmarks.base import Benchmark
from improver.benchmarks.builtin import Builtin
from improver.benchmarks.cruxeval import CruxEval
from improver.benchmarks.ds1000 import DS1000
from improver.benchmarks.humaneval import HumanEval
from improver.benchmarks.mbpp import TaskFile
from improver.benchmarks.pandaseval import PandasEval
from improver.benchmarks.replay import Replay
from improver.errors import BenchmarkError
from ops.store import Store


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A benchmark that is read from a file: what its file may be called, and its reader."""

    files: tuple[str, ...]
    make: Callable[[Path], Benchmark]
    about: str


_HUMANEVAL_PLUS = (
    "HumanEvalPlus.jsonl",
    "HumanEvalPlus-Mini.jsonl",
    "humanevalplus.jsonl",
    "humanevalplus_mini.jsonl",
)
_MBPP_PLUS = ("mbppplus.jsonl", "mbpp_plus.jsonl", "mbpp_eval.jsonl")
_DS = ("ds_eval.jsonl",)

ENTRIES: Mapping[str, Entry] = {
    "humaneval": Entry(
        files=("HumanEval.jsonl", "humaneval.jsonl", *_HUMANEVAL_PLUS),
        make=HumanEval,
        about="functions from a docstring",
    ),
    "humaneval+": Entry(
        files=_HUMANEVAL_PLUS,
        make=lambda path: HumanEval(path, plus=True),
        about="the same with EvalPlus' inputs",
    ),
    "mbpp": Entry(
        files=("mbpp.jsonl", *_MBPP_PLUS),
        make=lambda path: TaskFile(path, plus=False, name="mbpp"),
        about="short functions, three asserts each",
    ),
    "mbpp+": Entry(
        files=_MBPP_PLUS,
        make=lambda path: TaskFile(path, name="mbpp+"),
        about="the same with EvalPlus' tests",
    ),
    "ds1000": Entry(files=("ds1000.jsonl",), make=DS1000, about="questions about numpy and pandas"),
    "ds1000-numpy": Entry(
        files=("ds1000.jsonl",),
        make=lambda path: DS1000(path, library="numpy"),
        about="its numpy part",
    ),
    "ds1000-pandas": Entry(
        files=("ds1000.jsonl",),
        make=lambda path: DS1000(path, library="pandas"),
        about="its pandas part",
    ),
    "numpyeval": Entry(
        files=("NumpyEval.jsonl", "numpyeval.jsonl", *_DS),
        make=lambda path: PandasEval(path, library="numpy"),
        about="the next lines of numpy programs",
    ),
    "pandaseval": Entry(
        files=("PandasEval.jsonl", "pandaseval.jsonl", *_DS),
        make=lambda path: PandasEval(path, library="pandas"),
        about="the next lines of pandas programs",
    ),
    "cruxeval-output": Entry(
        files=("cruxeval.jsonl",),
        make=lambda path: CruxEval(path, predict="output"),
        about="what a function returns",
    ),
    "cruxeval-input": Entry(
        files=("cruxeval.jsonl",),
        make=lambda path: CruxEval(path, predict="input"),
        about="for what it returns that",
    ),
}
NAMES = ("builtin", "replay", *ENTRIES)


def find(
    name: str, *, data: Path | None = None, store: Store | None = None, share: float = 0.2
) -> Benchmark:
    """Return a benchmark.

    Args:
        name: one of `NAMES`, or the path of a file of tasks.
        data: the benchmark's file, or a directory that holds it (itself or in `eval`).
        store: the record, for `replay`.
        share: the share of its requests that is held back, for `replay`.

    Raises:
        BenchmarkError: there is no such benchmark, or its rows are not where they should be.
    """
    if name == Builtin.name:
        return Builtin()
    if name == Replay.name:
        if store is None:
            raise BenchmarkError("replay needs the record of an installation")
        return Replay(store=store, share=share)
    if name in ENTRIES:
        entry = ENTRIES[name]
        return entry.make(_file(name, entry, data))
    if Path(name).is_file():
        return TaskFile(Path(name), name=Path(name).stem)
    raise BenchmarkError(f"no benchmark {name!r}; known are {', '.join(NAMES)}, or a file of tasks")


def present(directory: Path | None) -> list[Benchmark]:
    """Every benchmark whose rows lie in a directory.

    Rows that cannot be read are an error when the benchmark is asked for its tasks.
    """
    found = []
    for name, entry in ENTRIES.items():
        try:
            path = _file(name, entry, directory)
        except BenchmarkError:
            continue
        found.append(entry.make(path))
    return found


def _file(name: str, entry: Entry, data: Path | None) -> Path:
    if data is None:
        raise BenchmarkError(
            f"{name} does not ship: name its file or directory with --data or the setting "
            f"benchmarks_dir (looked for: {', '.join(entry.files)}, gzipped or not)"
        )
    if data.is_file():
        return data
    for folder in (data, data / "eval"):
        for file in entry.files:
            for path in (folder / file, folder / f"{file}.gz"):
                if path.is_file():
                    return path
    raise BenchmarkError(f"{data} holds none of {', '.join(entry.files)} (gzipped or not)")
