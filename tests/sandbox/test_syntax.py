"""Bounded parsing: hostile text becomes None, quickly, and never an exception."""

import ast
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.syntax import literal, parse_bounded


@pytest.mark.parametrize(
    "source",
    [
        "(" * 5000 + ")" * 5000,
        "-" * 100_000 + "1",
        "x" + ".y" * 50_000,
        "1" + "+1" * 50_000,
        "a = '\0'",
        "x = '\ud800'",
        "9" * 90_000,
        "if 1:\n" * 90 + "pass",
        "x" * 200_000,
        "def f(:",
        "\n".join(" " * n + "if x:" for n in range(1, 600)),
        "not " * 20_000 + "1",
        "lambda: " * 9_000 + "1",
        "x if " * 9_000 + "1",
    ],
)
def test_hostile_source_becomes_none_in_bounded_time(source: str) -> None:
    began = time.process_time()
    assert parse_bounded(source) is None
    assert time.process_time() - began < 2


def test_ordinary_source_is_parsed_without_warnings() -> None:
    tree = parse_bounded("import re\nx = re.compile('\\d')\nassert (1, 2)\n")
    assert tree is not None
    assert len(tree.body) == 3


@given(st.text(max_size=300))
def test_any_text_parses_or_is_none(text: str) -> None:
    assert parse_bounded(text) is None or isinstance(parse_bounded(text), ast.Module)


def evaluate(text: str) -> object:
    tree = parse_bounded(text)
    assert tree is not None
    statement = tree.body[0]
    assert isinstance(statement, ast.Expr)
    return literal(statement.value)


def test_literals() -> None:
    assert evaluate("[1, (2.5,), {'a': {3}}, set(), -1j, None]") == [
        1,
        (2.5,),
        {"a": {3}},
        set(),
        -1j,
        None,
    ]
    assert evaluate("frozenset([1, 2])") == frozenset((1, 2))
    assert evaluate("float('inf')") == float("inf")


@pytest.mark.parametrize(
    "text", ["f(1)", "x", "[].pop()", "set(x)", "set([[1]])", "__import__('os')"]
)
def test_anything_else_is_no_literal(text: str) -> None:
    with pytest.raises(ValueError, match="not a literal"):
        evaluate(text)
