"""Make wrong programs out of right ones, one small change each.

Used to find out whether a judge can tell the two apart (`judge`). Both sides of a comparison are
written out by the same printer (`plain`), so that layout and comments give nothing away.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable

from sandbox.syntax import parse_bounded

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
_CALLS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "append": "extend",
    "upper": "lower",
    "lower": "upper",
    "startswith": "endswith",
    "endswith": "startswith",
    "sum": "len",
    "mean": "median",
    "head": "tail",
}


def plain(code: str) -> str | None:
    """The program as the printer of `ast` writes it; None where it is no Python, or too deep."""
    tree = parse_bounded(code)
    try:
        return None if tree is None else ast.unparse(tree) + "\n"
    except RecursionError:  # writing a tree goes deeper than reading it
        return None


def mutants(code: str, *, count: int, seed: int) -> list[str]:
    """Return up to `count` different programs that differ from `code` in one place.

    That they behave differently is likely and not certain: where a program has checks, run them.
    """
    tree = parse_bounded(code)
    if tree is None:
        return []
    changes = [
        (place, change) for place, node in enumerate(ast.walk(tree)) for change in _changes(node)
    ]
    random.Random(seed).shuffle(changes)
    original = ast.unparse(tree) + "\n"
    found: dict[str, None] = {}
    for place, change in changes:
        if len(found) >= count:
            break
        changed = copy.deepcopy(tree)
        node = list(ast.walk(changed))[place]
        change(node)
        text = ast.unparse(ast.fix_missing_locations(changed)) + "\n"
        if text != original and parse_bounded(text) is not None:
            found[text] = None
    return list(found)


def _changes(node: ast.AST) -> list[Callable[[ast.AST], None]]:
    """What can be done to one node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
        return [_compare]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        # `"%s" % x` and joined texts would only crash.
        texts = (node.left, node.right)
        if not any(isinstance(t, ast.Constant) and isinstance(t.value, str) for t in texts):
            return [_binary]
    if isinstance(node, ast.BoolOp):
        return [_bool]
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        return [_negate]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return [_number]
    if isinstance(node, ast.Return) and node.value is not None:
        return [_drop_return]
    if isinstance(node, ast.Call):
        name = node.func
        if isinstance(name, ast.Name) and name.id in _CALLS:
            return [_call]
        if isinstance(name, ast.Attribute) and name.attr in _CALLS:
            return [_call]
    return []


def _compare(node: ast.AST) -> None:
    if isinstance(node, ast.Compare):
        node.ops[0] = _COMPARE[type(node.ops[0])]()


def _binary(node: ast.AST) -> None:
    if isinstance(node, ast.BinOp):
        node.op = _BINARY[type(node.op)]()


def _bool(node: ast.AST) -> None:
    if isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()


def _negate(node: ast.AST) -> None:
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        node.test = ast.UnaryOp(op=ast.Not(), operand=node.test)


def _number(node: ast.AST) -> None:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1


def _drop_return(node: ast.AST) -> None:
    if isinstance(node, ast.Return):
        node.value = ast.Constant(None)


def _call(node: ast.AST) -> None:
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Name):
        node.func.id = _CALLS[node.func.id]
    elif isinstance(node.func, ast.Attribute):
        node.func.attr = _CALLS[node.func.attr]
