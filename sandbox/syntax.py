"""Read Python source within bounds, so that hostile text cannot hurt the service.

`ast.parse` on unbounded text can exhaust memory or the C stack. Here the text is measured
first (length, nesting, long operator chains) and every failure becomes None. Nothing is run.
"""

from __future__ import annotations

import ast
import re
import warnings

MAX_CHARS = 100_000
MAX_NESTING = 60
MAX_CHAIN = 2_000
MAX_INDENT = 60

_CHAIN = re.compile(r"[-+~*/%@&|^.]|\b(?:not|if|else|and|or|lambda|await|elif)\b")
_STATEMENT_END = re.compile(r"[\n;]")


def parse_bounded(source: str, max_chars: int = MAX_CHARS) -> ast.Module | None:
    """Parse `source`, or return None when it is not Python or too odd to be parsed safely.

    Args:
        source: Program text from anybody.
        max_chars: Longest text that is looked at.

    Returns:
        The syntax tree, at most a few thousand levels deep; None for everything else.
    """
    if len(source) > max_chars or "\0" in source or not _shallow(source):
        return None
    try:
        with warnings.catch_warnings():
            # An invalid escape in somebody's program is not a warning of this service.
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        return None


def literal(node: ast.expr) -> object:
    """Evaluate a literal expression: numbers, text, containers, `set()`, signs.

    Returns:
        The value, with Python's own types.

    Raises:
        ValueError: when the expression is anything else.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id in ("set", "frozenset") and len(node.args) <= 1:
            items = literal(node.args[0]) if node.args else ()
            if not isinstance(items, (list, tuple, set)):
                raise ValueError("not a literal")
            kind = set if node.func.id == "set" else frozenset
            try:
                return kind(items)
            except TypeError as error:
                raise ValueError("not a literal") from error
        if node.func.id == "float" and len(node.args) == 1:
            text = literal(node.args[0])
            if isinstance(text, str) and len(text) <= 40:
                return float(text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("not a literal") from error


def _shallow(source: str) -> bool:
    """Whether brackets, indentation and operator chains stay within bounds.

    Counts inside strings and comments too: it may refuse odd but harmless text, never the
    other way round.
    """
    depth = deepest = 0
    for char in re.findall(r"[()\[\]{}]", source):
        depth = depth + 1 if char in "([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return False
    indent = max((len(m) for m in re.findall(r"^[ \t]*", source, re.M)), default=0)
    if indent > MAX_INDENT * 8:
        return False
    longest = max((len(_CHAIN.findall(s)) for s in _STATEMENT_END.split(source)), default=0)
    return longest <= MAX_CHAIN
