"""The comparison rules, one by one; nothing that is wrong may match."""

import math
from typing import Any

import pytest
from hypothesis import given

from sandbox.check import Rule, digest, matches, same_text
from sandbox.values import Array, CallError, Frame, Index, Missing, Opaque, Scalar, Series, decode
from tests.sandbox.test_values import plain

EQUAL = Rule("equal")


@pytest.mark.parametrize(
    ("actual", "expected", "exact", "equal"),
    [
        (3, 3, True, True),
        (True, 1, False, True),
        (1, True, False, True),
        (9.0, 9, False, True),
        (2, 2.0, True, True),
        (2, 2.5, False, False),
        ((1, 2), [1, 2], True, False),
        ([1, 2], (1, 2), False, False),
        ([True], [1], False, True),
        ([[True]], [[1]], False, True),
        ({"a": [1.0]}, {"a": [1]}, False, True),
        ({1: "a"}, {"1": "a"}, True, False),
        ({True: "a"}, {"1": "a"}, False, False),
        ({1: "a", "1": "a"}, {"1": "a"}, False, False),
        ({1}, {True}, False, True),
        ({1}, frozenset({1}), False, True),
        (0.1 + 0.2, 0.3, True, False),
        (math.nan, math.nan, True, False),
        (-0.0, 0.0, True, True),
        (None, None, True, True),
        (0, None, False, False),
        ("1", 1, False, False),
        (b"a", "a", False, False),
        (Scalar("int64", 3), 3, True, True),
        (Scalar("float64", 3.0), 3, False, True),
        (Scalar("bool", True), 1, False, True),
        (Array("<i8", (2,), (1, 2)), [1, 2], True, False),
        (Array("<f8", (2,), (1.0, 2.0)), [1, 2], False, False),
        (Array("|b1", (1,), (True,)), [1], False, False),
        (CallError("E", "x"), "x", False, False),
        (Opaque("Yes"), 9, False, False),
        ([Opaque("Yes")], [9], False, False),
        (1 + 2j, 1 + 2j, True, True),
        ({Scalar("int64", 1): Scalar("int64", 2)}, {1: 2}, True, True),
        ({Scalar("int64", 1): "a"}, {"1": "a"}, True, False),
    ],
)
def test_rules(actual: Any, expected: Any, exact: bool, equal: bool) -> None:
    assert matches(actual, expected) is exact
    assert matches(actual, expected, EQUAL) is equal


def test_tolerance_is_explicit_and_excludes_booleans() -> None:
    near = Rule(tolerance=0.01)
    assert matches(9.0, 9, near)
    assert matches(3.149, 3.14, near)
    assert not matches(3.16, 3.14, near)
    assert not matches(True, 1, near)
    assert not matches(math.inf, 1.0, near)
    assert matches(math.inf, math.inf, near)
    assert not matches(0.1 + 0.2, 0.3, Rule(tolerance=0))
    assert not matches(10**400, 1.5, near)
    assert matches([1.001, {"a": 2}], [1.0, {"a": 2.0}], near)


@given(plain)
def test_a_value_matches_itself_exactly(value: Any) -> None:
    assert matches(value, value)


@given(plain)
def test_opaque_matches_nothing(value: Any) -> None:
    assert not matches(Opaque("x"), value)
    assert not matches([Opaque("x"), value], [value, value])


def frame(rows: list[list[Any]], columns: list[str], **fields: Any) -> Any:
    return decode({"$dataframe": {"columns": columns, "data": rows, **fields}})


def test_frames() -> None:
    expected = frame([["a", 1], ["b", 2]], ["k", "v"])
    typed = frame([["a", 1.0], ["b", 2.0]], ["k", "v"], dtypes=["object", "float64"])
    assert matches(expected, expected)
    assert matches(typed, expected)
    assert not matches(typed, frame([["a", 1], ["b", 2]], ["k", "v"], dtypes=["str", "int64"]))
    assert matches(
        typed,
        frame([["a", 1], ["b", 2]], ["k", "v"], dtypes=["str", "int64"]),
        Rule(ignore_dtypes=True),
    )
    swapped = frame([["b", 2], ["a", 1]], ["k", "v"])
    assert not matches(swapped, expected)
    assert matches(swapped, expected, Rule(ignore_order=True, ignore_index=True))
    assert not matches(swapped, expected, Rule(ignore_order=True))
    shifted = frame([["a", 1], ["b", 2]], ["k", "v"], index=[5, 6])
    assert not matches(shifted, expected)
    assert matches(shifted, expected, Rule(ignore_index=True))
    assert not matches(frame([["a", 1]], ["k", "v"]), expected)
    assert not matches(frame([[1, "a"], [2, "b"]], ["v", "k"]), expected)
    assert not matches(frame([["a", 1], ["b", True]], ["k", "v"]), expected)


def test_a_wrong_tail_is_wrong() -> None:
    good = Array("<i8", (20_000,), tuple(range(20_000)))
    bad = Array("<i8", (20_000,), (*range(19_999), -1))
    assert matches(good, good)
    assert not matches(bad, good)


def test_series_and_missing_values() -> None:
    def series(*items: Any, dtype: str | None = None, name: Any = None) -> Series:
        index = Index(tuple(range(len(items))), (None,), "int64", default=True)
        return Series(name, dtype, index, items)

    assert matches(series(1.0, math.nan), series(1.0, None))
    assert matches(series("a", Missing("NA")), series("a", None))
    assert not matches(series(1.0, 0.0), series(1.0, None))
    assert not matches(series(1.0, None), series(1.0, 0.0))
    assert not matches(series(1, name="a"), series(1, name="b"))
    assert matches(series(1, name="a"), series(1))
    assert matches(series("x", dtype="str"), series("x", dtype="object"))
    assert not matches(series(1, dtype="int64"), series(True, dtype="bool"))
    assert not matches([1, 2], series(1, 2))
    assert not matches(series(1, 2), Frame(Index(("a",)), (None,), Index((0, 1)), ((1, 2),)))


def test_text_forgives_trailing_blanks_only() -> None:
    assert same_text("a \nb\n\n", "a\nb")
    assert same_text("a\r\nb", "a\nb\n")
    assert not same_text("a  b", "a b")
    assert not same_text(" a", "a")
    assert not same_text("a", "a\nb")
    assert same_text("x 0.3333", "x 0.33333", 0.001)
    assert not same_text("x 0.33", "x 0.33333")
    assert not same_text("y 0.3333", "x 0.33333", 0.001)
    assert not same_text("0.3 0.3", "0.3", 0.1)


def test_digest_is_stable_and_tells_values_apart() -> None:
    assert digest([{2, 1}, {"b": 1, "a": 2}]) == digest([{1, 2}, {"a": 2, "b": 1}])
    assert digest([0.1 + 0.2]) == digest([0.3])
    found = {
        digest([v]) for v in (1, 1.0, True, "1", [1], (1,), None, [[1]], [1, 1], CallError("E", ""))
    }
    assert len(found) == 10
    assert digest([]) is None
    assert digest([[Opaque("x")]]) is None
    assert digest(["a", "b"]) != digest(["ab"])
