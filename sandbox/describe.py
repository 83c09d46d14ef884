"""Describe an execution: what a program read and what it made, as data for a specification.

Specifications come from execution (GIFT4Code, arXiv 2402.08073): run a program, look at its
variables before and after, write down types, shapes, columns and sample values. `Recorder` works
inside the sandbox and never calls a method of a program's own class: exact types only, bounded in
nodes, columns, rows and text. `merge` and `specify` work outside, on the JSON alone.

Deviation from the paper: two runs are compared and whatever differs (random numbers, clocks, set
order) is marked volatile and left out, because nobody can be held to it.
"""

from __future__ import annotations

import ast
import platform
import sys
from typing import TYPE_CHECKING, Any

from sandbox import values

if TYPE_CHECKING:
    from sandbox.spec import Spec

MAX_NAMES = 40
MAX_COLUMNS = 60
MAX_ROWS = 3
MAX_TEXT = 80
MAX_NODES = 4_000
MAX_VALUE_ROWS = 50
MAX_SAMPLES = 50
_MISSING = object()


class Recorder:
    """Runs one program as a notebook cell and describes what went in and out (in the sandbox)."""

    def __init__(self, code: str, namespace: dict[str, Any]) -> None:
        self.code = code
        self.namespace = namespace
        self.reads: list[str] = []
        self.writes: list[str] = []
        self.inputs: list[dict[str, Any]] = []
        self.last: Any = _MISSING

    def execute(self, filename: str) -> None:
        """Run the program; whatever it raises is passed on."""
        tree = ast.parse(self.code, filename)
        self.reads, self.writes = _names(tree)
        self.inputs = [
            {"name": name, **describe_value(self.namespace[name])}
            for name in self.reads
            if name in self.namespace and not name.startswith("__")
        ]
        final = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, filename, "exec", dont_inherit=True), self.namespace)
        if final is not None and isinstance(final, ast.Expr):
            expression = ast.Expression(final.value)
            self.last = eval(compile(expression, filename, "eval"), self.namespace)

    def report(self) -> dict[str, Any]:
        """The description, as JSON."""
        outputs = []
        for name in self.writes:
            value = self.namespace.get(name, _MISSING)
            if value is not _MISSING and _is_data(value):
                outputs.append({"name": name, **describe_value(value)})
        last = None if self.last is _MISSING else describe_value(self.last)
        return {
            "inputs": [item for item in self.inputs if item["kind"] not in ("code", "module")],
            "outputs": outputs,
            "last": last,
            "libraries": _versions(),
        }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("numpy", "pandas"):
        module = sys.modules.get(name)
        version = getattr(module, "__version__", None)
        if type(version) is str:
            found[name] = version[:40]
    return found


def _is_data(value: Any) -> bool:
    return _kind(value) not in ("code", "module")


def _names(tree: ast.Module) -> tuple[list[str], list[str]]:
    """Names read before they are written, and names written, at the top level, in order.

    `df["x"] = …`, `df.x = …` and `df += …` read and write `df`.
    """
    reads: dict[str, None] = {}
    writes: dict[str, None] = {}
    for statement in tree.body:
        loaded, stored = _of_statement(statement)
        for name in loaded:
            if name not in writes:
                reads[name] = None
        writes.update(dict.fromkeys(stored))
    return list(reads)[:MAX_NAMES], list(writes)[:MAX_NAMES]


def _of_statement(statement: ast.stmt) -> tuple[list[str], list[str]]:
    loaded: list[str] = []
    stored: list[str] = []
    private: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else stored).append(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            stored.append(node.name)
        elif isinstance(node, ast.arg):
            private.add(node.arg)
        elif isinstance(node, ast.comprehension):
            private.update(n.id for n in ast.walk(node.target) if isinstance(n, ast.Name))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            stored += [(alias.asname or alias.name).split(".")[0] for alias in node.names]
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            loaded.append(node.target.id)
        if isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
            owner: ast.expr = node
            while isinstance(owner, (ast.Subscript, ast.Attribute)):
                owner = owner.value
            if isinstance(owner, ast.Name):
                stored.append(owner.id)
    keep = [name for name in stored if name not in private]
    return [name for name in loaded if name not in private], keep


# --- one value ---------------------------------------------------------------------------------


def describe_value(value: Any) -> dict[str, Any]:
    """Describe one value without calling anything that a program could have written."""
    kind = _kind(value)
    found: dict[str, Any] = {"kind": kind, "type": type_name(value)}
    try:
        if kind == "dataframe":
            found.update(_describe_frame(value))
        elif kind == "series":
            found.update(_describe_series(value))
        elif kind == "array":
            found.update(shape=list(value.shape), dtype=str(value.dtype))
            found["examples"] = [_sample(item) for item in value.ravel()[:MAX_ROWS].tolist()]
        elif kind == "container":
            found["length"] = len(value)
    except Exception as error:
        # pandas on odd data; a description is an extra and must not cost the run.
        found["incomplete"] = type(error).__name__
    if kind not in ("code", "module", "object") and not _too_big(value, kind):
        form = values.encode(value, max_nodes=MAX_NODES, max_text=4 * MAX_TEXT)
        if not (isinstance(form, dict) and "$opaque" in form):
            found["value"] = form
    return found


def _kind(value: Any) -> str:
    kind = type(value)
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if pandas is not None and kind is pandas.DataFrame:
        return "dataframe"
    if pandas is not None and kind is pandas.Series:
        return "series"
    if numpy is not None and kind is numpy.ndarray:
        return "array"
    if kind in (list, tuple, set, frozenset, dict):
        return "container"
    if kind in (type(None), bool, int, float, complex, str, bytes):
        return "scalar"
    if kind is type(sys):
        return "module"
    if kind is type or kind in _CODE or issubclass(kind, type):
        return "code"
    encoded = values.encode(value, max_nodes=10)
    opaque = isinstance(encoded, dict) and "$opaque" in encoded
    return "object" if opaque else "scalar"


_CODE: tuple[type, ...] = (type(lambda: None), type(len), type([].append))


def _too_big(value: Any, kind: str) -> bool:
    if kind in ("dataframe", "series", "array"):
        return bool(value.size > MAX_NODES or len(value.shape) == 0) or (
            len(value.shape) > 0 and value.shape[0] > MAX_VALUE_ROWS
        )
    return False


def type_name(value: Any, depth: int = 0) -> str:
    """The structural type: `list[dict[str, int | str]]`, `pandas.DataFrame`."""
    kind = type(value)
    if value is None:
        return "None"
    if kind in (list, set, frozenset):
        inner = _union(list(value)[:MAX_SAMPLES], depth)
        return f"{kind.__name__}[{inner}]" if inner else kind.__name__
    if kind is tuple:
        if depth > 3 or len(value) > 6:
            return f"tuple[{_union(list(value)[:MAX_SAMPLES], depth)}, ...]"
        return f"tuple[{', '.join(type_name(item, depth + 1) for item in value)}]"
    if kind is dict:
        items = list(value.items())[:MAX_SAMPLES]
        if not items:
            return "dict"
        keys = _union([key for key, _ in items], depth)
        return f"dict[{keys}, {_union([item for _, item in items], depth)}]"
    name = values.class_name(kind)
    for library in ("pandas", "numpy"):
        module = sys.modules.get(library)
        # Not getattr: numpy warns of names that it gave up, such as `str`.
        if module is not None and vars(module).get(name) is kind:
            return f"{library}.{name}"
    return name


def _union(items: list[Any], depth: int) -> str:
    if depth > 3:
        return "object"
    found = sorted({type_name(item, depth + 1) for item in items})
    return " | ".join(found[:4]) + (" | …" if len(found) > 4 else "")


def _describe_frame(frame: Any) -> dict[str, Any]:
    rows, width = frame.shape
    columns = []
    for place in range(min(width, MAX_COLUMNS)):
        column = frame.iloc[:, place]
        columns.append({"name": _sample(frame.columns[place]), **_column(column)})
    head = [[_sample(cell) for cell in row[:MAX_COLUMNS]] for row in _rows(frame)]
    return {
        "rows": int(rows),
        "width": int(width),
        "index": _index(frame.index),
        "columns": columns,
        "head": head,
    }


def _rows(frame: Any) -> list[tuple[Any, ...]]:
    head = frame.iloc[:MAX_ROWS, :MAX_COLUMNS]
    return list(zip(*(list(head.iloc[:, i]) for i in range(head.shape[1])), strict=True))


def _describe_series(series: Any) -> dict[str, Any]:
    found = {"rows": int(series.size), "name": _sample(series.name), "index": _index(series.index)}
    return {**_column(series), **{key: item for key, item in found.items() if key != "name"}}


def _index(index: Any) -> dict[str, Any]:
    labels = [_sample(label) for label in list(index[:MAX_ROWS])]
    names = [_sample(name) for name in index.names]
    return {"type": values.class_name(type(index)), "names": names, "examples": labels}


def _column(column: Any) -> dict[str, Any]:
    dtype = str(column.dtype)
    found: dict[str, Any] = {"dtype": dtype[:60], "nulls": int(column.isna().sum())}
    plain = getattr(column.dtype, "kind", "O") in "biufmM" and dtype != "object"
    present = column.dropna()
    if plain and len(present):
        found["min"] = _sample(present.min())
        found["max"] = _sample(present.max())
        found["unique_in_head"] = int(present.iloc[:1000].nunique())
    elif len(present):
        texts = [item for item in list(present.iloc[:1000]) if type(item) is str]
        if texts:
            found["unique_in_head"] = len(set(texts))
    found["examples"] = [_sample(item) for item in list(present.iloc[:MAX_ROWS])]
    return found


def _sample(value: Any) -> Any:
    """A small value in JSON form; long text is cut and ends with an ellipsis."""
    if type(value) is str and len(value) > MAX_TEXT:
        return value[: MAX_TEXT - 1] + "…"
    return values.encode(value, max_nodes=30, max_text=MAX_TEXT)


# --- outside the sandbox -----------------------------------------------------------------------


def merge(first: dict[str, Any], second: dict[str, Any] | None) -> dict[str, Any]:
    """Keep what two runs agree on; what differs is left out and listed under `volatile`.

    Args:
        first: Description of one run.
        second: Of the same program in another process; None when that run failed, which makes
            every output volatile.

    Returns:
        A description; `volatile` holds paths such as `outputs.noise.head`.
    """
    volatile: list[str] = []
    agreed = dict(first)
    for part in ("inputs", "outputs"):
        others = {item.get("name"): item for item in (second or {}).get(part, ())}
        agreed[part] = [
            _agree(item, others.get(item.get("name"), {}), f"{part}.{item.get('name')}", volatile)
            for item in first.get(part, ())
        ]
    if first.get("last") is not None:
        agreed["last"] = _agree(first["last"], (second or {}).get("last") or {}, "last", volatile)
    agreed["volatile"] = volatile
    return agreed


def _agree(
    item: dict[str, Any], other: dict[str, Any], path: str, volatile: list[str]
) -> dict[str, Any]:
    kept = {}
    for key, found in item.items():
        if key == "columns" and isinstance(other.get(key), list) and len(other[key]) == len(found):
            kept[key] = [
                _agree(a, b, f"{path}.{a.get('name')}", volatile)
                for a, b in zip(found, other[key], strict=True)
            ]
        elif key in ("name", "kind") or found == other.get(key, _MISSING):
            kept[key] = found
        else:
            volatile.append(f"{path}.{key}")
    return kept


def specify(description: dict[str, Any]) -> Spec:
    """Turn a description into a specification that the program meets by construction.

    Types come from the variables, and one cell holds the concrete values that were small enough
    to be kept. The summary stays empty: prose is written by a model from the same description.

    Args:
        description: What `merge` returned.

    Returns:
        A specification with `inputs`, `outputs` and at most one cell.
    """
    from sandbox.spec import Cell, Spec, Variable

    outputs = list(description.get("outputs", ()))
    named = [_variable(item) for item in outputs]
    given = {i["name"]: i["value"] for i in description.get("inputs", ()) if "value" in i}
    complete = len(given) == len(description.get("inputs", ()))
    made = {item["name"]: item["value"] for item in outputs if "value" in item}
    return Spec(
        inputs=tuple(Variable(**_variable(item)) for item in description.get("inputs", ())),
        outputs=tuple(Variable(**item) for item in named),
        cells=(Cell(variables=given, outputs=made),) if complete and made else (),
    )


def _variable(item: dict[str, Any]) -> dict[str, Any]:
    detail = column_text(item)
    return {
        "name": item["name"],
        "type": str(item.get("type", "object"))[:500],
        "description": detail[:1000] if detail else None,
    }


def column_text(item: dict[str, Any]) -> str:
    """One line on the shape of a described value: rows, columns, dtypes, sample values."""
    if item.get("kind") == "dataframe":
        columns = [_column_words(column) for column in item.get("columns", ())]
        rows = f"{item['rows']} rows; " if "rows" in item else ""
        return f"{rows}columns {', '.join(columns)}" if columns else rows.rstrip("; ")
    if item.get("kind") == "series":
        rows = f", {item['rows']} rows" if "rows" in item else ""
        return f"{item.get('dtype', '')}{rows}".strip(", ")
    if item.get("kind") == "array" and "shape" in item:
        return f"shape {tuple(item['shape'])}, {item.get('dtype', '')}"
    if item.get("kind") == "container" and "length" in item:
        return f"{item['length']} items"
    return ""


def _column_words(column: dict[str, Any]) -> str:
    from sandbox.spec import show_value

    name = show_value(values.decode(column["name"]), MAX_TEXT)
    words = [str(column["dtype"])] if "dtype" in column else []
    if column.get("examples"):
        words.append("e.g. " + show_value(values.decode(column["examples"][0]), MAX_TEXT))
    return f"{name} ({', '.join(words)})" if words else name
