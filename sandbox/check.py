"""Compare decoded values with expected ones, outside the sandbox, by explicit rules.

The rules are stated in `spec` (module text): `exact` for values written as JSON, `equal` for
values written in an assert, and an explicit tolerance. Opaque values equal nothing. Only plain
built-in values and the records of `values` occur here, so that no comparison runs foreign code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandbox.values import (
    Array,
    CallError,
    Frame,
    Index,
    Missing,
    Opaque,
    Scalar,
    Series,
    is_opaque,
)

FLOAT_REL = 1e-9
FLOAT_ABS = 1e-12
_NUMBERS = (int, float)


@dataclass(frozen=True, slots=True)
class Rule:
    """How two values are compared.

    Attributes:
        comparison: `exact` or `equal` (see `spec`).
        tolerance: Largest accepted distance of two numbers; None for the comparison's default.
        ignore_order: Compare the rows of tables in any order.
        ignore_index: Compare tables without their row labels.
        ignore_dtypes: Compare tables by value only.
    """

    comparison: str = "exact"
    tolerance: float | None = None
    ignore_order: bool = False
    ignore_index: bool = False
    ignore_dtypes: bool = False


def matches(actual: Any, expected: Any, rule: Rule | None = None) -> bool:
    """Whether a decoded value is the expected one.

    Args:
        actual: From a program, decoded by `values.decode`.
        expected: From a specification, decoded by `values.decode`.
        rule: How to compare; exact by default.
    """
    rule = rule or Rule()
    try:
        if rule.comparison == "equal":
            return _equal(actual, expected, rule)
        return _exact(actual, expected, rule)
    except RecursionError:
        return False


# --- exact -------------------------------------------------------------------------------------


def _exact(actual: Any, expected: Any, rule: Rule) -> bool:
    if isinstance(expected, (Array, Series, Frame, Index)):
        return _table(actual, expected, rule)
    if isinstance(expected, Scalar):
        if isinstance(actual, Scalar) and _family(actual.dtype) != _family(expected.dtype):
            return False
        return _exact(actual, expected.value, rule)
    if isinstance(actual, Scalar):
        actual = actual.value
    if expected is None or isinstance(expected, (bool, str, bytes)):
        return type(actual) is type(expected) and bool(actual == expected)
    if isinstance(expected, _NUMBERS):
        return _number(actual, expected, rule)
    if isinstance(expected, complex):
        return type(actual) is complex and _close_complex(actual, expected, rule)
    if isinstance(expected, list):
        if isinstance(actual, Array) and actual.shape:
            actual = actual.nested()
        return type(actual) in (list, tuple) and _items(actual, expected, rule)
    if isinstance(expected, tuple):
        return type(actual) is tuple and _items(actual, expected, rule)
    if isinstance(expected, dict):
        return type(actual) is dict and _mapping(actual, expected, rule)
    if isinstance(expected, (set, frozenset)):
        return type(actual) is type(expected) and _typed(actual) == _typed(expected)
    if isinstance(expected, Missing):
        return isinstance(actual, Missing) and actual == expected
    return type(actual) is type(expected) and bool(actual == expected)


def _number(actual: Any, expected: float, rule: Rule) -> bool:
    if type(actual) not in _NUMBERS:
        return False
    if rule.tolerance is not None:
        return _within(actual, expected, rule.tolerance)
    if type(expected) is int:
        return type(actual) is int and actual == expected
    if type(actual) is int:
        # JSON writers turn 2.0 into 2 and back; a float that is no whole number is no such case.
        return bool(actual == expected)
    if math.isnan(expected):
        return math.isnan(actual)
    return math.isclose(actual, expected, rel_tol=FLOAT_REL, abs_tol=FLOAT_ABS)


def _within(actual: float, expected: float, tolerance: float) -> bool:
    if actual == expected:
        return True
    try:
        if math.isnan(actual) or math.isnan(expected):
            return math.isnan(actual) and math.isnan(expected)
        if math.isinf(actual) or math.isinf(expected):
            return False
        slack = tolerance + (FLOAT_REL * abs(expected) if tolerance else 0.0)
        return abs(actual - expected) <= slack
    except OverflowError:
        return False


def _close_complex(actual: complex, expected: complex, rule: Rule) -> bool:
    return _number(actual.real, expected.real, rule) and _number(actual.imag, expected.imag, rule)


def _items(actual: Sequence[Any], expected: Sequence[Any], rule: Rule) -> bool:
    return len(actual) == len(expected) and all(
        _exact(a, e, rule) for a, e in zip(actual, expected, strict=True)
    )


def _mapping(actual: dict[Any, Any], expected: dict[Any, Any], rule: Rule) -> bool:
    if len(actual) != len(expected):
        return False
    actual, expected = _plain_keys(actual), _plain_keys(expected)
    if all(type(key) is str for key in expected):
        named = {str(key) if type(key) is int else key: item for key, item in actual.items()}
    else:
        named = actual
        if _typed(actual) != _typed(expected):
            return False
    return len(named) == len(expected) and all(
        key in named and _exact(named[key], item, rule) for key, item in expected.items()
    )


def _plain_keys(mapping: dict[Any, Any]) -> dict[Any, Any]:
    return {key.value if isinstance(key, Scalar) else key: v for key, v in mapping.items()}


def _typed(items: Iterable[Any]) -> set[tuple[type, Any]]:
    """Items beside their types, because in a Python set True and 1 are the same."""
    return {(type(item), item) for item in items}


# --- equal -------------------------------------------------------------------------------------


def _equal(actual: Any, expected: Any, rule: Rule) -> bool:
    if isinstance(expected, (Array, Series, Frame, Index)) or isinstance(actual, CallError):
        return _table(actual, expected, rule)
    actual = actual.value if isinstance(actual, Scalar) else actual
    expected = expected.value if isinstance(expected, Scalar) else expected
    if isinstance(actual, (int, float, complex)) and isinstance(expected, (int, float, complex)):
        plain = not isinstance(actual, (bool, complex)) and not isinstance(
            expected, (bool, complex)
        )
        if rule.tolerance is not None and plain:
            return _within(actual, expected, rule.tolerance)  # type: ignore[arg-type]
        return bool(actual == expected)
    if isinstance(expected, (set, frozenset)) and isinstance(actual, (set, frozenset)):
        return bool(actual == expected)
    if type(actual) is not type(expected):
        return False
    if isinstance(expected, (list, tuple)):
        return len(actual) == len(expected) and all(
            _equal(a, e, rule) for a, e in zip(actual, expected, strict=True)
        )
    if isinstance(expected, dict):
        actual, expected = _plain_keys(actual), _plain_keys(expected)
        return len(actual) == len(expected) and all(
            key in actual and _equal(actual[key], item, rule) for key, item in expected.items()
        )
    return bool(actual == expected)


# --- tables ------------------------------------------------------------------------------------


def _table(actual: Any, expected: Any, rule: Rule) -> bool:
    if is_opaque(actual) or type(actual) is not type(expected):
        return False
    if isinstance(expected, Array):
        return (
            actual.shape == expected.shape
            and _dtypes_match(actual.dtype, expected.dtype, rule)
            and _cells(actual.items, expected.items, rule, expected.dtype)
        )
    if isinstance(expected, Index):
        return _labels(actual, expected, rule)
    if isinstance(expected, Series):
        if not _dtypes_match(actual.dtype, expected.dtype, rule):
            return False
        if expected.name is not None and not _exact(actual.name, expected.name, _strict(rule)):
            return False
        return _rows_match(
            actual.index,
            (actual.items,),
            expected.index,
            (expected.items,),
            (expected.dtype,),
            rule,
        )
    if not isinstance(expected, Frame) or not _labels(actual.columns, expected.columns, rule):
        return False
    pairs = zip(actual.dtypes, expected.dtypes, strict=True)
    if not all(_dtypes_match(a, e, rule) for a, e in pairs):
        return False
    return _rows_match(
        actual.index, actual.data, expected.index, expected.data, expected.dtypes, rule
    )


def _strict(rule: Rule) -> Rule:
    return replace(rule, comparison="exact", tolerance=None)


def _labels(actual: Index, expected: Index, rule: Rule) -> bool:
    if expected.names != (None,) and actual.names != expected.names:
        return False
    return _cells(actual.labels, expected.labels, _strict(rule), None)


def _rows_match(
    actual_index: Index,
    actual: Sequence[Sequence[Any]],
    expected_index: Index,
    expected: Sequence[Sequence[Any]],
    dtypes: Sequence[str | None],
    rule: Rule,
) -> bool:
    rows = len(expected_index.labels)
    if len(actual_index.labels) != rows or len(actual) != len(expected):
        return False
    if rule.ignore_order:
        order_a = _sorted_rows(actual_index, actual, rule)
        order_e = _sorted_rows(expected_index, expected, rule)
        actual = [[column[i] for i in order_a] for column in actual]
        expected = [[column[i] for i in order_e] for column in expected]
        actual_index = _reordered(actual_index, order_a)
        expected_index = _reordered(expected_index, order_e)
    if not rule.ignore_index and not _labels(actual_index, expected_index, rule):
        return False
    return all(
        _cells(a, e, rule, dtype) for a, e, dtype in zip(actual, expected, dtypes, strict=True)
    )


def _reordered(index: Index, order: Sequence[int]) -> Index:
    return replace(index, labels=tuple(index.labels[i] for i in order))


def _sorted_rows(index: Index, columns: Sequence[Sequence[Any]], rule: Rule) -> list[int]:
    """Row numbers in an order that depends on the content alone."""

    def key(row: int) -> tuple[str, ...]:
        cells = [_canonical(column[row]) for column in columns]
        return (*cells, "" if rule.ignore_index else _canonical(index.labels[row]))

    return sorted(range(len(index.labels)), key=key)


def _cells(actual: Sequence[Any], expected: Sequence[Any], rule: Rule, dtype: str | None) -> bool:
    if len(actual) != len(expected):
        return False
    # Where the specification does not say a dtype, a column of whole numbers may be float.
    loose = rule.ignore_dtypes or dtype is None
    return all(_cell(a, e, rule, loose) for a, e in zip(actual, expected, strict=True))


def _cell(actual: Any, expected: Any, rule: Rule, loose: bool) -> bool:
    if _absent(expected):
        return _absent(actual)
    actual = actual.value if isinstance(actual, Scalar) else actual
    expected = expected.value if isinstance(expected, Scalar) else expected
    if type(actual) in _NUMBERS and type(expected) in _NUMBERS and (loose or rule.tolerance):
        if rule.tolerance is not None:
            return _within(actual, expected, rule.tolerance)
        return actual == expected or math.isclose(
            actual, expected, rel_tol=FLOAT_REL, abs_tol=FLOAT_ABS
        )
    return _exact(actual, expected, replace(rule, comparison="exact"))


def _absent(value: Any) -> bool:
    """NaN, None, NA and NaT in a table all say that there is no value."""
    if isinstance(value, Scalar):
        value = value.value
    return (
        value is None
        or isinstance(value, Missing)
        or value == "NaT"
        or (type(value) is float and math.isnan(value))
    )


def _dtypes_match(actual: str | None, expected: str | None, rule: Rule) -> bool:
    if expected is None or rule.ignore_dtypes or actual == expected:
        return True
    return _family(actual) == _family(expected)


def _family(dtype: str | None) -> str:
    """What kind of values a dtype holds, whatever their width: `int`, `float`, `text`."""
    name = (dtype or "object").lower().lstrip("<>|=")
    for prefix, family in (
        ("datetime64[", name if "," in name else "time"),
        ("timedelta", "span"),
        ("int", "int"),
        ("uint", "int"),
        ("float", "float"),
        ("bool", "bool"),
        ("complex", "complex"),
        ("str", "text"),
        ("object", "text"),
        ("category", "category"),
    ):
        if name.startswith(prefix):
            return family
    codes = {"i": "int", "u": "int", "f": "float", "b": "bool", "c": "complex", "m": "span"}
    return {**codes, "o": "text", "u4": "int"}.get(name[:1], name)


# --- text, agreement ---------------------------------------------------------------------------


def same_text(actual: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether a program's stdout is the expected text.

    Trailing blanks of each line and blank lines at the end do not count; with a tolerance, tokens
    that are numbers on both sides are compared as numbers and runs of blanks do not count.
    """
    actual_lines, expected_lines = _lines(actual), _lines(expected)
    if actual_lines == expected_lines:
        return True
    if tolerance is None or len(actual_lines) != len(expected_lines):
        return False
    return all(
        _same_tokens(a.split(), e.split(), tolerance)
        for a, e in zip(actual_lines, expected_lines, strict=True)
    )


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_tokens(actual: list[str], expected: list[str], tolerance: float) -> bool:
    if len(actual) != len(expected):
        return False
    for a, e in zip(actual, expected, strict=True):
        if a == e:
            continue
        try:
            if len(a) > 60 or len(e) > 60 or not _within(float(a), float(e), tolerance):
                return False
        except ValueError:
            return False
    return True


def digest(outputs: Iterable[Any]) -> str | None:
    """A stable hash of decoded outputs, for agreement among candidates.

    Floats count to nine significant digits. None when a value is opaque or there are none.
    """
    parts = []
    for value in outputs:
        if is_opaque(value):
            return None
        parts.append(_canonical(value))
    if not parts:
        return None
    text = "\n".join(parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(value: Any) -> str:
    if isinstance(value, float):
        return f"f{value:.9g}"
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"i{value:x}"
    if isinstance(value, str):
        return f"s{len(value)}:{value}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({','.join(map(_canonical, value))})"
    if isinstance(value, (set, frozenset)):
        return f"set({','.join(sorted(map(_canonical, value)))})"
    if isinstance(value, dict):
        pairs = sorted(f"{_canonical(k)}={_canonical(v)}" for k, v in value.items())
        return f"dict({','.join(pairs)})"
    if isinstance(value, CallError):
        return f"raised {value.error_type}"
    if isinstance(value, Scalar):
        return _canonical(value.value)
    if isinstance(value, Array):
        return f"array{value.shape}({','.join(map(_canonical, value.items))})"
    if isinstance(value, Index):
        return f"index({','.join(map(_canonical, value.labels))})"
    if isinstance(value, Series):
        return f"series({_canonical(value.index)};{','.join(map(_canonical, value.items))})"
    if isinstance(value, Frame):
        columns = ";".join(",".join(map(_canonical, column)) for column in value.data)
        return f"frame({_canonical(value.columns)};{_canonical(value.index)};{columns})"
    if isinstance(value, Opaque):
        return "opaque"
    return repr(value)
