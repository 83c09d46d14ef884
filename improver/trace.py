"""Run a program of GIFT4Code on its context and see what it makes: the facts a spec states.

A program becomes a `Traced` only when it runs, gives the same twice, makes something that is not
trivial, and gives something else when its input is something else: a program that prints a literal
table would otherwise look right (spec echo). Everything is run in the sandbox; expected values are
never in the process that runs it.

Source: steps 4 and 5 of GIFT4Code (arXiv 2402.08073). Deviations: perturbed inputs; two runs
instead of a fixed seed, so that what nobody can repeat is left out; and answers are made
self-contained (`settle`), where the paper runs them after the context's own cell.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from improver.contexts import ALIASES, Context
from ops.records import Json
from sandbox import values
from sandbox.check import matches
from sandbox.spec import Spec
from sandbox.syntax import parse_bounded
from sandbox.types import INFRASTRUCTURE, Run, Verdict, Verification

ENTRY = "solution"
"""The name of the function where a context is made of calls."""
RESULT = "result"
"""The name that the value of a last bare expression is given."""


class Runner(Protocol):
    """What is needed of `sandbox.pool.Pool`; its failures are `SandboxError`."""

    workers: int
    """How many programs run at once."""

    async def run(
        self,
        code: str,
        *,
        entry: str | None = None,
        calls: Sequence[Sequence[Any] | Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        describe: bool = False,
    ) -> Run:
        """Run one program as a cell, or as a module whose function is called."""

    async def check(self, code: str, spec: Spec) -> Verification:
        """Check one program against a specification."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A program that works, and what it made.

    `output` names its main variable, the last one it assigned (a table context); `described` is
    that variable's description without its value. `example_inputs` and `example_output` are a
    small case of tables; `returned` is what came of the context's calls.
    """

    program: str
    output: str
    described: Json = field(default_factory=dict)
    inputs: tuple[Json, ...] = ()
    example_inputs: dict[str, Any] = field(default_factory=dict)
    example_output: Any = None
    returned: tuple[Any, ...] = ()
    libraries: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Why a program teaches nothing."""

    reason: str
    detail: str = ""


SANDBOX = "sandbox error"


async def trace(runner: Runner, program: str, context: Context, *, seed: int) -> Traced | Rejected:
    """Run a program on its context and on other inputs.

    Args:
        runner: the sandbox.
        program: what `settle` returned.
        context: what it was written for.
        seed: of the excerpt and the perturbations.

    Raises:
        SandboxError: the sandbox failed.
    """
    if context.calls:
        return await _trace_calls(runner, program, context)
    return await _trace_tables(runner, program, context, seed)


async def _trace_tables(
    runner: Runner, program: str, context: Context, seed: int
) -> Traced | Rejected:
    first = await runner.run(program, variables=context.tables, describe=True)
    if failure := _failure(first):
        return failure
    description = first.description or {}
    made = [item for item in description.get("outputs", ()) if item.get("kind") != "object"]
    if not made:
        return Rejected(reason="trivial output", detail="defines no variable")
    name = main_name(program, [str(item["name"]) for item in made])
    described = next(item for item in made if item["name"] == name)
    if any(path.startswith(f"outputs.{name}.") for path in description.get("volatile", ())):
        return Rejected(reason="not repeatable", detail=name)
    if "value" in described:
        value = values.decode(described["value"])
    else:
        # Too big for a description.
        again = await runner.run(program, variables=context.tables, outputs=[name])
        if failure := _failure(again):
            return failure
        value = (again.outputs or {}).get(name)
    if why := trivial(value, context.tables.values()):
        return Rejected(reason="trivial output", detail=why)
    if why := await _ignores(runner, program, context, name, value, seed):
        return Rejected(reason=why, detail=name)
    excerpt = context.excerpt(seed)
    small = await runner.run(program, variables=excerpt, outputs=[name])
    if small.verdict in INFRASTRUCTURE:
        return Rejected(reason=SANDBOX, detail=small.word)
    example = (small.outputs or {}).get(name) if small.verdict is Verdict.OK else None
    if example is not None and trivial(example, ()) is not None:
        example = None
    return Traced(
        program=program,
        output=name,
        described={key: item for key, item in described.items() if key != "value"},
        inputs=tuple(
            {"name": item["name"], "type": item.get("type", "object")}
            for item in description.get("inputs", ())
        ),
        example_inputs=dict(excerpt),
        example_output=example,
        libraries=dict(description.get("libraries", {})),
    )


async def _ignores(
    runner: Runner, program: str, context: Context, name: str, value: Any, seed: int
) -> str | None:
    """Why the output is not known to depend on the input; None where it changes with it."""
    ran = False
    for tables in context.perturbed(seed):
        run = await runner.run(program, variables=tables, outputs=[name])
        if run.verdict in INFRASTRUCTURE:
            return SANDBOX
        other = (run.outputs or {}).get(name) if run.verdict is Verdict.OK else None
        if other is None or values.is_opaque(other):
            continue
        if not matches(other, value):
            return None
        ran = True
    # A crash on other data proves nothing about echoing, but such a program is of no use either.
    return "output ignores the input" if ran else "fails on other input"


async def _trace_calls(runner: Runner, program: str, context: Context) -> Traced | Rejected:
    calls = [list(call) for call in context.calls]
    first = await runner.run(program, entry=ENTRY, calls=calls)
    if failure := _failure(first):
        return failure
    again = await runner.run(program, entry=ENTRY, calls=calls)
    if failure := _failure(again):
        return failure
    returned = list(first.values)
    if len(returned) < len(calls) or len(again.values) < len(calls):
        return Rejected(reason="does not execute", detail="not all calls returned")
    for value, repeated in zip(returned, again.values, strict=True):
        if isinstance(value, values.CallError):
            return Rejected(reason="does not execute", detail=value.error_type)
        if values.is_opaque(value):
            return Rejected(reason="trivial output", detail="a value that cannot be compared")
        if not matches(repeated, value):
            return Rejected(reason="not repeatable", detail=ENTRY)
    if all(value is None for value in returned):
        return Rejected(reason="trivial output", detail="None")
    # The calls differ from one another, so they are each other's perturbation.
    if all(matches(value, returned[0]) for value in returned):
        return Rejected(reason="output ignores the input", detail=ENTRY)
    if all(matches(v, c[0]) for v, c in zip(returned, calls, strict=True)):
        return Rejected(reason="trivial output", detail="the unchanged input")
    return Traced(program=program, output=ENTRY, returned=tuple(returned))


def _failure(run: Run) -> Rejected | None:
    if run.verdict in INFRASTRUCTURE:
        return Rejected(reason=SANDBOX, detail=run.word)
    if run.verdict is not Verdict.OK:
        return Rejected(reason="does not execute", detail=run.word)
    return None


def trivial(value: Any, inputs: Any) -> str | None:
    """Say why an output is worth nothing; None where it is worth something.

    Args:
        value: decoded output.
        inputs: the data frames that went in.
    """
    if values.is_opaque(value):
        return "a value that cannot be compared"
    plain = value.value if isinstance(value, values.Scalar) else value
    if plain is None or isinstance(plain, values.Missing) or plain != plain:
        return "nothing"
    if isinstance(plain, (str, list, tuple, dict, set, frozenset)) and not plain:
        return "empty"
    cells: Sequence[Any] | None = None
    if isinstance(plain, values.Frame):
        cells = [cell for column in plain.data for cell in column]
    elif isinstance(plain, (values.Series, values.Array)):
        cells = plain.items
    if cells is not None:
        if not cells:
            return "empty"
        if all(_absent(cell) for cell in cells):
            return "nothing but missing values"
    for frame in inputs:
        if matches(plain, values.decode(values.encode(frame))):
            return "the unchanged input"
    return None


def _absent(cell: Any) -> bool:
    return cell is None or isinstance(cell, values.Missing) or cell != cell or cell == "NaT"


# --- reading programs --------------------------------------------------------------------------


def settle(program: str, context: Context) -> str | None:
    """Make an answer of the model a program that stands by itself; None where it is no Python.

    Loading the context again is taken out (the tables are there), imports of the context that are
    used are written in, and where nothing else is named a last bare expression gets a name, as a
    notebook would show it.
    """
    tree = parse_bounded(program)
    if tree is None or not tree.body:
        return None

    def again(node: ast.stmt) -> bool:
        return _loads_again(node, context)

    lines = program.split("\n")
    final = tree.body[-1]
    names_something = any(isinstance(n, ast.Assign) for n in tree.body if not again(n))
    value = _shown(final.value) if isinstance(final, ast.Expr) else None
    if isinstance(final, ast.Expr) and value and not context.calls and not names_something:
        if value is final.value:
            lines[final.lineno - 1] = f"{RESULT} = {lines[final.lineno - 1]}"
        else:
            text = ast.get_source_segment(program, value) or ast.unparse(value)
            lines[final.lineno - 1 : final.end_lineno] = f"{RESULT} = {text}".split("\n")
            lines.append(f"print({RESULT})")
    drop: set[int] = set()
    for node in tree.body[:-1]:
        if again(node) and node.end_lineno is not None:
            drop.update(range(node.lineno, node.end_lineno + 1))
    # The last statement may have grown: what is dropped lies before it.
    kept = [line for number, line in enumerate(lines, 1) if number not in drop]
    settled = "\n".join(kept).strip("\n")
    tree = parse_bounded(settled)
    if tree is None or not tree.body:
        return None
    needed = _missing_imports(tree, context)
    return "\n".join((*needed, settled)) + "\n"


def _shown(value: ast.expr) -> ast.expr | None:
    """What a last expression shows: itself, or the only argument of `print`."""
    if isinstance(value, ast.Constant):
        return None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        if value.func.id == "print":
            return value.args[0] if len(value.args) == 1 and not value.keywords else None
        if value.func.id == "display":
            return None
    return value


def _loads_again(node: ast.stmt, context: Context) -> bool:
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return False
    target, call = node.targets[0], node.value
    return (
        isinstance(target, ast.Name)
        and target.id in context.tables
        and isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr.startswith("read_")
    )


def _missing_imports(tree: ast.Module, context: Context) -> list[str]:
    bound: set[str] = set()
    read: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                read[node.id] = None
            else:
                bound.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
    known = dict(ALIASES)
    for line in context.imports:
        parsed = parse_bounded(line)
        for statement in parsed.body if parsed is not None else ():
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                for alias in statement.names:
                    known[(alias.asname or alias.name).split(".")[0]] = line
    return list(dict.fromkeys(known[n] for n in read if n in known and n not in bound))


def main_name(program: str, made: Sequence[str]) -> str:
    """The variable that a program is about: the last it assigns outside loops and branches.

    Loop variables and helpers inside a loop are written later, and are not what it is about.
    """
    tree = parse_bounded(program)
    assigned: dict[str, None] = {}
    for node in tree.body if tree is not None else ():
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        for owner in targets:
            while isinstance(owner, (ast.Subscript, ast.Attribute)):
                owner = owner.value
            for one in ast.walk(owner):
                if isinstance(one, ast.Name):
                    assigned.pop(one.id, None)
                    assigned[one.id] = None
    known = [name for name in assigned if name in made]
    return known[-1] if known else made[-1]


_BUILTINS = frozenset(dir(builtins))
_PLAIN = frozenset(("print", "range", "str", "int", "float", "list", "dict", "set", "tuple"))


def api_names(program: str) -> tuple[str, ...]:
    """Names of everything from outside that a program calls, sorted, its own functions aside."""
    tree = parse_bounded(program)
    if tree is None:
        return ()
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute):
            found.add(node.func.attr)
        elif isinstance(node.func, ast.Name) and node.func.id in _BUILTINS - _PLAIN:
            found.add(node.func.id)
    # `agg("mean")` names an API too, by text.
    for node in ast.walk(tree):
        method = node.func if isinstance(node, ast.Call) else None
        if isinstance(method, ast.Attribute) and method.attr in _BY_NAME:
            found.update(_texts(node))
    return tuple(sorted(found - own))


_BY_NAME = frozenset(("agg", "aggregate", "transform", "apply", "pivot_table"))


def _texts(call: ast.AST) -> set[str]:
    return {
        node.value
        for node in ast.walk(call)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value in _AGGREGATES
    }


_AGGREGATES = frozenset(
    ("mean", "sum", "count", "min", "max", "median", "std", "var", "first", "last", "nunique")
)
