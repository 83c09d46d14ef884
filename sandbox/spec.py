"""The I/O specification: what a program is asked to take and to give, as one JSON object.

Three strengths, the three kinds of GIFT4Code (arXiv 2402.08073): *types* (names and types of
inputs and outputs), *examples* (calls, asserts, stdin programs, notebook cells over tables) and
*summary* (prose). This module parses it with precise errors, splits it into a visible and a hidden
part, renders the visible part as the text that enters live prompts and training prompts alike, and
derives one from a prompt. It runs nothing and compares nothing (`check` does).

Deviation from the paper: one object holds all three kinds, and examples can be held back.

Values inside examples are JSON, with `$`-objects for what JSON lacks (see `values`).

Comparison rules (`comparison`, per example or for the whole specification):

* `exact` (default where the expected value was written as JSON). Types are compared at every
  depth; `True` is never `1`, `9.0` is never `9`. What JSON cannot tell apart is accepted: a tuple
  for a list, an integer key for its text, a numpy scalar or array for the number or list, and an
  integer for a float that is written as one (`2.0`). Two floats are equal within a relative 1e-9
  unless `tolerance` says otherwise. NaN equals NaN. Order matters, except in sets and dicts.
* `equal` (default for asserts): what Python's `==` says between plain values: tuple and list
  differ, `1 == 1.0 == True`, floats bit for bit, NaN differs from itself.
* `tolerance: t` accepts two numbers (never a bool) when |actual - expected| <= t + 1e-9·|expected|,
  an integer for a float and a float for an integer included. `0` means bit for bit.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sandbox import syntax, values
from sandbox.errors import SpecError

Comparison = Literal["exact", "equal"]
Kind = Literal["types", "examples", "summary"]
KINDS: tuple[Kind, ...] = ("types", "examples", "summary")

VISIBLE_UNMARKED = 3
"""Unmarked examples are all visible up to this many; of a longer list a third is held back."""

MAX_ITEMS = 1000
MAX_SOURCE = 200_000
_IDENTIFIER = r"^[^\W\d]\w{0,99}$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Held(_Part):
    hidden: bool | None = None
    """Held back from prompts and messages; None leaves it to the split."""


def _check_value(value: Any) -> Any:
    values.decode(value)
    return value


class Example(_Held):
    """One call of the entry point: arguments in, optionally the expected value out."""

    input: Any
    """List of positional arguments, or object of keyword arguments."""
    output: Any = None
    """Expected value; leaving it out (not null) means that it is unknown."""
    tolerance: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=False)
    comparison: Comparison | None = None

    @field_validator("input")
    @classmethod
    def _input_is_arguments(cls, value: Any) -> Any:
        if not isinstance(value, (list, dict)):
            raise ValueError("a list of positional or an object of keyword arguments is wanted")
        if isinstance(value, dict):
            for name in value:
                if not re.fullmatch(_IDENTIFIER, name):
                    raise ValueError(f"{name[:40]!r} is not an argument's name")
            return {name: _check_value(item) for name, item in value.items()}
        return [_check_value(item) for item in value]

    @field_validator("output")
    @classmethod
    def _output_is_value(cls, value: Any) -> Any:
        return _check_value(value)

    @property
    def has_output(self) -> bool:
        """Whether an expected value is given; `null` is one."""
        return "output" in self.model_fields_set

    @property
    def args(self) -> list[Any]:
        """Positional arguments, still in JSON form."""
        return self.input if isinstance(self.input, list) else []

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments, still in JSON form."""
        return self.input if isinstance(self.input, dict) else {}


class Test(_Held):
    """Test code: assert statements, or a module with `check(candidate)` as in HumanEval.

    It runs in a sandbox of its own and reaches the program through data only.
    """

    __test__ = False

    code: str = Field(min_length=1, max_length=MAX_SOURCE)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"code": value} if isinstance(value, str) else value


class Stdio(_Held):
    """One run of the program as a script: stdin in, stdout out.

    Trailing blanks of a line and at the end of the text do not count.
    """

    input: str = Field(default="", max_length=1 << 20)
    output: str | None = Field(default=None, max_length=1 << 20)
    tolerance: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=False)
    """When given, tokens that are numbers on both sides are compared with it."""


class Cell(_Held):
    """One run of the program as a notebook cell: named variables in, named variables out."""

    variables: dict[str, Any] = Field(default_factory=dict)
    """Defined before the program runs; tables as `{"$dataframe": …}`."""
    setup: str | None = Field(default=None, max_length=MAX_SOURCE)
    """Code that runs before the program in the same namespace, such as imports."""
    outputs: dict[str, Any] = Field(default_factory=dict)
    """Expected variables; `{}` runs the cell without checking anything."""
    tolerance: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=False)
    comparison: Comparison | None = None
    ignore_order: bool = False
    """Compare the rows of tables without regard to their order."""
    ignore_index: bool = False
    """Compare tables without their row labels."""
    ignore_dtypes: bool = False
    """Compare tables by value only: int64 2 equals float64 2.0."""

    @field_validator("variables", "outputs")
    @classmethod
    def _named_values(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, item in value.items():
            if not re.fullmatch(_IDENTIFIER, name):
                raise ValueError(f"{name[:40]!r} is not a variable's name")
            try:
                _check_value(item)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return value


class Variable(_Part):
    """A named input or output and its type, for the `types` strength."""

    name: str = Field(pattern=_IDENTIFIER)
    type: str | None = Field(default=None, max_length=500)
    description: str | None = Field(default=None, max_length=1000)


class Spec(_Part):
    """A whole specification; every field may be left out."""

    summary: str | None = Field(default=None, max_length=20_000)
    types: str | None = Field(default=None, max_length=5_000)
    inputs: tuple[Variable, ...] = Field(default=(), max_length=200, strict=False)
    outputs: tuple[Variable, ...] = Field(default=(), max_length=200, strict=False)
    entry_point: str | None = Field(default=None, pattern=_IDENTIFIER)
    examples: tuple[Example, ...] = Field(default=(), max_length=MAX_ITEMS, strict=False)
    tests: tuple[Test, ...] = Field(default=(), max_length=MAX_ITEMS, strict=False)
    stdio: tuple[Stdio, ...] = Field(default=(), max_length=MAX_ITEMS, strict=False)
    cells: tuple[Cell, ...] = Field(default=(), max_length=MAX_ITEMS, strict=False)
    comparison: Comparison | None = None
    tolerance: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=False)

    @property
    def check_count(self) -> int:
        """How many of its examples can tell a right program from a wrong one."""
        return (
            len(self.tests)
            + sum(e.has_output for e in self.examples)
            + sum(s.output is not None for s in self.stdio)
            + sum(bool(c.outputs) for c in self.cells)
        )

    @property
    def has_checks(self) -> bool:
        """Whether anything in it can tell a right program from a wrong one."""
        return self.check_count > 0

    @property
    def called(self) -> str | None:
        """The function that the checks call: `entry_point`, else what the tests name."""
        if self.entry_point is not None:
            return self.entry_point
        for test in self.tests:
            calls = literal_calls(test.code)
            if calls:
                return calls[0].function
        return None

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing at all."""
        return self == Spec()

    def marked(self, limit: int = VISIBLE_UNMARKED) -> Spec:
        """Decide for every example whether it is hidden, and write that down.

        Marked examples stay as they are. Unmarked ones of a list are visible up to `limit`;
        of a longer list a third is held back: those with the smallest hash of their content, so
        that the choice does not depend on their order and is the same in every process.

        Args:
            limit: Longest list of unmarked examples that stays visible as a whole.
        """
        return self.model_copy(
            update={
                "examples": _mark(self.examples, limit),
                "tests": _mark(self.tests, limit),
                "stdio": _mark(self.stdio, limit),
                "cells": _mark(self.cells, limit),
            }
        )

    def visible(self, limit: int = VISIBLE_UNMARKED) -> Spec:
        """The part that may enter prompts, messages and repairs."""
        return self.marked(limit)._only(hidden=False)

    def hidden(self, limit: int = VISIBLE_UNMARKED) -> Spec:
        """The part that only decides: the held-back examples, without prose and types."""
        only = self.marked(limit)._only(hidden=True)
        return only.model_copy(update={"summary": None, "types": None, "inputs": (), "outputs": ()})

    def _only(self, *, hidden: bool) -> Spec:
        return self.model_copy(
            update={
                name: tuple(item for item in getattr(self, name) if item.hidden is hidden)
                for name in ("examples", "tests", "stdio", "cells")
            }
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object; `parse_spec` turns it back into an equal specification."""
        return self.model_dump(mode="json", exclude_unset=True)

    def merged(self, other: Spec) -> Spec:
        """This specification, with what only `other` says added to it."""
        update = {
            name: getattr(other, name)
            for name in type(self).model_fields
            if getattr(other, name) and not getattr(self, name)
        }
        return type(self).model_validate({**_shallow(self), **update})

    @model_validator(mode="after")
    def _cells_alone(self) -> Self:
        if self.cells and (self.examples or self.tests or self.stdio):
            raise ValueError("cells cannot be mixed with examples, tests or stdio")
        return self


def _shallow(spec: Spec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.model_fields_set}


_H = TypeVar("_H", bound=_Held)


def _mark(items: tuple[_H, ...], limit: int) -> tuple[_H, ...]:
    unmarked = [item for item in items if item.hidden is None]
    held: set[int] = set()
    if len(unmarked) > limit:
        ranked = sorted(unmarked, key=_digest)
        held = {id(item) for item in ranked[: max(1, len(unmarked) // 3)]}
    return tuple(
        item if item.hidden is not None else item.model_copy(update={"hidden": id(item) in held})
        for item in items
    )


def _digest(item: BaseModel) -> str:
    text = item.model_dump_json(exclude_unset=True, exclude={"hidden"})
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def parse_spec(obj: object, *, location: str = "io_spec") -> Spec:
    """Read a specification from decoded JSON.

    Args:
        obj: What `json.loads` returned, from anybody.
        location: Name of the place in the request, for the error's `param`.

    Returns:
        The specification.

    Raises:
        SpecError: when it is malformed; the first error, with its exact place. The caller's fault.
    """
    if not isinstance(obj, dict):
        raise SpecError("a JSON object is wanted", location)
    try:
        json.dumps(obj, ensure_ascii=False).encode("utf-8")
        return Spec.model_validate(obj)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SpecError(message, _param(location, first["loc"])) from None
    except UnicodeEncodeError:
        raise SpecError("text must not hold lone surrogates", location) from None
    except (RecursionError, TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"not plain JSON ({type(error).__name__})", location) from None


def _param(location: str, loc: Iterable[int | str]) -> str:
    path = location
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path


# --- assert statements -------------------------------------------------------------------------


class LiteralCall(_Part):
    """A call with literal arguments and the literal that it must equal."""

    function: str
    example: Example


def literal_calls(code: str) -> list[LiteralCall] | None:
    """Read test code that is nothing but asserts over literals, such as MBPP's.

    Understood are `assert f(…) == literal`, the same mirrored, and `is None/True/False`, with
    literal arguments.

    Args:
        code: Test code from anybody; it is never run here.

    Returns:
        One call per assert, in order; None when anything else occurs in it.
    """
    tree = syntax.parse_bounded(code, max_chars=20_000)
    if tree is None or not tree.body:
        return None
    calls = []
    for statement in tree.body:
        call = _literal_call(statement)
        if call is None:
            return None
        calls.append(call)
    return calls


def _literal_call(statement: ast.stmt) -> LiteralCall | None:
    if not isinstance(statement, ast.Assert) or not isinstance(statement.test, ast.Compare):
        return None
    compare = statement.test
    if len(compare.ops) != 1:
        return None
    left, right = compare.left, compare.comparators[0]
    if _call_name(left) is None:
        left, right = right, left
    name = _call_name(left)
    if name is None or not isinstance(left, ast.Call):
        return None
    try:
        expected = syntax.literal(right)
        args = [syntax.literal(arg) for arg in left.args]
        kwargs = {kw.arg: syntax.literal(kw.value) for kw in left.keywords if kw.arg}
    except ValueError:
        return None
    if len(kwargs) != len(left.keywords) or (args and kwargs):
        return None
    identity = isinstance(compare.ops[0], ast.Is)
    if identity and not (expected is None or isinstance(expected, bool)):
        return None
    if not identity and not isinstance(compare.ops[0], ast.Eq):
        return None
    try:
        example = Example(
            input=_forms(args) if not kwargs else {k: _form(v) for k, v in kwargs.items()},
            output=_form(expected),
            comparison="exact" if identity else "equal",
        )
    except ValueError:
        return None
    return LiteralCall(function=name, example=example)


def _call_name(node: ast.expr) -> str | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    return None if node.func.id in ("set", "frozenset", "float") else node.func.id


def _form(value: object) -> Any:
    return values.encode(value, strict=True)


def _forms(items: Iterable[object]) -> list[Any]:
    return [_form(item) for item in items]


# --- deriving a specification from a prompt ----------------------------------------------------

_ASSERT = re.compile(r"^[ \t]{0,40}(?:\d+\.[ \t]+|[-*][ \t]+)?`?(assert[ (].{1,2000}?)`?[ \t]*$")
_DOCTEST = re.compile(r"^[ \t]{0,80}>>>[ \t]?(.{1,2000})$")
_SIGNATURE = re.compile(
    r"^[ \t]{0,40}(?:async )?def ([^\W\d]\w{0,99})\((.{0,500}?)\)"
    r"[ \t]*(?:->[ \t]*([^:\n]{1,200}))?:",
    re.M,
)
MAX_PROMPT = 200_000
MAX_DERIVED = 50


def derive_spec(prompt: str) -> Spec | None:
    """Find the checks that a prompt already holds: doctests and asserts over literals.

    Nothing is run, and nothing that is not literally there is invented. Whatever is found was
    seen by the model, so all of it is marked visible.

    Args:
        prompt: A user's message or a function with its docstring; the first 200,000 characters
            are read.

    Returns:
        A specification, or None when nothing was found.
    """
    lines = prompt[:MAX_PROMPT].splitlines()
    tests = list(dict.fromkeys(_asserts(lines)))[:MAX_DERIVED]
    doctests = list(_doctests(lines))[:MAX_DERIVED]
    if not tests and not doctests:
        return None
    names: Counter[str] = Counter(call.function for call in doctests)
    for code in tests:
        names.update({call.function for call in literal_calls(code) or ()} or _called(code))
    entry_point = names.most_common(1)[0][0] if names else None
    fields: dict[str, Any] = {
        "tests": tuple(Test(code=code, hidden=False) for code in tests),
        "examples": tuple(
            call.example.model_copy(update={"hidden": False})
            for call in doctests
            if call.function == entry_point
        ),
    }
    if entry_point is not None:
        fields["entry_point"] = entry_point
        types = _signature(prompt[:MAX_PROMPT], entry_point)
        if types:
            fields["types"] = types
    spec = Spec(**{name: value for name, value in fields.items() if value})
    return spec if spec.has_checks else None


def _asserts(lines: Sequence[str]) -> Iterable[str]:
    for line in lines:
        match = _ASSERT.match(line)
        if (
            match
            and syntax.parse_bounded(match[1], max_chars=4000) is not None
            and _called(match[1])
        ):
            yield match[1].strip()


def _called(code: str) -> set[str]:
    tree = syntax.parse_bounded(code, max_chars=4000)
    if tree is None:
        return set()
    calls = {
        name for node in ast.walk(tree) if isinstance(node, ast.Call) if (name := _call_name(node))
    }
    return calls - _COMMON_CALLS


_COMMON_CALLS = frozenset(dir(builtins))


def _doctests(lines: Sequence[str]) -> Iterable[LiteralCall]:
    for number, line in enumerate(lines[:-1]):
        match = _DOCTEST.match(line)
        raw = lines[number + 1].strip()
        if not match or not raw or raw.startswith((">>>", "...", '"""', "'''")):
            continue
        tree = syntax.parse_bounded(f"assert ({match[1].strip()}) == ({raw})", max_chars=4000)
        call = _literal_call(tree.body[0]) if tree is not None and len(tree.body) == 1 else None
        if call is not None and call.function not in _COMMON_CALLS:
            yield call


def _signature(text: str, name: str) -> str | None:
    for match in _SIGNATURE.finditer(text):
        if match[1] == name and (":" in match[2] or match[3]):
            return f"({' '.join(match[2].split())}) -> {(match[3] or 'object').strip()}"
    return None


# --- rendering ---------------------------------------------------------------------------------

MAX_SHOWN = 10
MAX_VALUE_CHARS = 600
MAX_TEXT_CHARS = 4_000
MAX_ROWS_SHOWN = 5


def render(spec: Spec, kinds: Sequence[Kind] = KINDS, *, limit: int = VISIBLE_UNMARKED) -> str:
    """Write the visible part of a specification as text for a model.

    The same text enters live and training prompts. Every piece of text inside values is quoted
    as a Python literal, capped, and freed of control characters; hidden examples never appear.

    Args:
        spec: The specification; its hidden part is dropped here, whatever it holds.
        kinds: Which strengths to write, always in the order types, examples, summary.
        limit: As in `Spec.marked`.

    Returns:
        Lines of text; empty when there is nothing to say.
    """
    shown = spec.visible(limit)
    parts = []
    if "types" in kinds:
        parts += _render_types(shown)
    if "examples" in kinds:
        parts += _render_examples(shown)
    if "summary" in kinds and shown.summary:
        parts.append("Summary: " + plain_text(shown.summary, MAX_TEXT_CHARS))
    return "\n".join(parts)


def extend_prompt(prompt: str, spec: Spec) -> str:
    """Write a request and its specification as one message.

    The server sends this text and the improver trains on it: it is the only place where the two
    are joined.

    Args:
        prompt: What the user asks, in prose.
        spec: The specification; only its visible part is written.

    Returns:
        The message; the prompt as it is when the specification has nothing to show.
    """
    text = render(spec)
    return f"{prompt.rstrip()}\n\nSpecification:\n{text}" if text else prompt


def _render_types(spec: Spec) -> list[str]:
    lines = []
    if spec.entry_point and spec.types and spec.types.lstrip().startswith("("):
        lines.append(f"Signature: {spec.entry_point}{plain_text(spec.types.strip(), 1000)}")
    else:
        if spec.entry_point:
            lines.append(f"Function name: {spec.entry_point}")
        if spec.types:
            lines.append(f"Types: {plain_text(spec.types, 2000)}")
    for title, variables in (("Input", spec.inputs), ("Output", spec.outputs)):
        for variable in variables:
            line = f"{title} variable `{variable.name}`"
            if variable.type:
                line += f": {plain_text(variable.type, 500)}"
            if variable.description:
                line += f" ({plain_text(variable.description, 500)})"
            lines.append(line)
    return lines


def _render_examples(spec: Spec) -> list[str]:
    name = spec.called or "solution"
    lines = []
    for example in spec.examples[:MAX_SHOWN]:
        parts = [_show(arg) for arg in example.args]
        parts += [f"{key}={_show(arg)}" for key, arg in example.kwargs.items()]
        line = f"{name}({', '.join(parts)})"
        lines.append(line + (f" == {_show(example.output)}" if example.has_output else ""))
    for test in spec.tests[:MAX_SHOWN]:
        lines.append(plain_text(test.code.strip(), 1500, keep_lines=True))
    for pair in spec.stdio[:MAX_SHOWN]:
        lines.append(f"stdin:  {literal_text(pair.input, MAX_VALUE_CHARS)}")
        if pair.output is not None:
            lines.append(f"stdout: {literal_text(pair.output, MAX_VALUE_CHARS)}")
    for cell in spec.cells[:MAX_SHOWN]:
        lines += _render_cell(cell)
    return (["Examples:", *lines]) if lines else []


def _render_cell(cell: Cell) -> list[str]:
    lines = []
    if cell.setup:
        lines += ["Given:", plain_text(cell.setup.strip(), 1500, keep_lines=True)]
    for title, items in (("Input", cell.variables), ("Output", cell.outputs)):
        for name, form in items.items():
            lines.append(f"{title} variable `{name}` = {_show(form)}")
    return lines


def _show(form: Any) -> str:
    return show_value(values.decode(form))


def show_value(value: Any, limit_chars: int = MAX_VALUE_CHARS) -> str:
    """Write a decoded value as a Python expression for a reader, capped and printable.

    Tables are written as `pd.DataFrame({...})` with their first five rows.
    """
    text = _expression(value, [limit_chars * 2])
    text = _printable(text)
    return text if len(text) <= limit_chars else text[: limit_chars - 1] + "…"


def _expression(value: Any, budget: list[int]) -> str:
    """Like `repr`, but stops once the budget of characters is used up."""
    if budget[0] <= 0:
        return "…"
    if isinstance(value, str):
        return _spend(literal_text(value, MAX_VALUE_CHARS), budget)
    if isinstance(value, values.Frame):
        return _frame_text(value, budget)
    if isinstance(value, values.Series):
        items = _sequence(value.items[: MAX_ROWS_SHOWN * 2], budget, len(value.items))
        name = f", name={_expression(value.name, budget)}" if value.name is not None else ""
        return f"pd.Series([{items}]{_index_text(value.index, budget)}{name})"
    if isinstance(value, values.Array):
        return f"np.array({_expression(value.nested(), budget)})"
    if isinstance(value, values.Scalar):
        return _expression(value.value, budget)
    if isinstance(value, (list, tuple, set, frozenset)):
        body = _sequence(value, budget, len(value))
        if isinstance(value, list):
            return f"[{body}]"
        if isinstance(value, tuple):
            return f"({body},)" if len(value) == 1 else f"({body})"
        text = f"{{{body}}}" if value else "set()"
        return text if isinstance(value, set) else f"frozenset({text if value else ''})"
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            if budget[0] <= 0:
                pairs.append("…")
                break
            pairs.append(f"{_expression(key, budget)}: {_expression(item, budget)}")
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 2000:
        return _spend(f"{hex(value)[:80]}…", budget)
    if isinstance(value, values.CallError):
        return f"{plain_text(value.error_type, 100)}({literal_text(value.message, 200)})"
    return _spend(repr(value)[: MAX_VALUE_CHARS * 2], budget)


def _spend(text: str, budget: list[int]) -> str:
    budget[0] -= len(text)
    return text


def _sequence(items: Iterable[Any], budget: list[int], total: int) -> str:
    parts = []
    for item in items:
        if budget[0] <= 0:
            break
        parts.append(_expression(item, budget))
    return ", ".join(parts) + (", …" if len(parts) < total else "")


def _frame_text(frame: values.Frame, budget: list[int]) -> str:
    rows = len(frame.index.labels)
    parts = []
    for label, column in zip(frame.columns.labels, frame.data, strict=True):
        if budget[0] <= 0:
            parts.append("…")
            break
        items = _sequence(column[:MAX_ROWS_SHOWN], budget, len(column))
        parts.append(f"{_expression(label, budget)}: [{items}]")
    index = _index_text(frame.index, budget)
    note = f"  # {rows} rows" if rows > MAX_ROWS_SHOWN else ""
    return f"pd.DataFrame({{{', '.join(parts)}}}{index}){note}"


def _index_text(index: values.Index, budget: list[int]) -> str:
    if index.default:
        return ""
    labels = _sequence(index.labels[:MAX_ROWS_SHOWN], budget, len(index.labels))
    return f", index=[{labels}]"


def literal_text(text: str, limit_chars: int) -> str:
    """Quote text as a Python literal, capped, without control or direction characters."""
    cut = text[:limit_chars]
    quoted = repr(cut)
    return _printable(quoted) + (f" … ({len(text)} characters)" if len(text) > limit_chars else "")


def plain_text(text: str, limit_chars: int, *, keep_lines: bool = False) -> str:
    """Free text for a prompt: control characters out, capped; one line unless `keep_lines`."""
    cut = text[:limit_chars] + ("…" if len(text) > limit_chars else "")
    if keep_lines:
        return "\n".join(_printable(line) for line in cut.expandtabs(4).splitlines())
    return _printable(" ".join(cut.split()))


def _printable(text: str) -> str:
    # `<|` opens the control tokens of most chat templates (`<|im_end|>`), which tokenizers
    # recognise inside ordinary text: data must not be able to end a message.
    return "".join(char if char.isprintable() else " " for char in text).replace("<|", "< |")
