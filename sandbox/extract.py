"""Take the program out of a chat answer.

Answers come with fences or without, with several blocks, with prose around, cut off in the
middle of a block. This module picks text; it neither runs nor repairs it, never raises, and its
time is linear in the length of the answer (of which the first 400,000 characters are read).
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass

from sandbox.spec import Spec
from sandbox.syntax import parse_bounded

MAX_CHARS = 400_000
MAX_BLOCKS = 200

_FENCE = re.compile(r"^[ \t]{0,12}(?:[-*>][ \t]{1,3})?(`{3,}|~{3,})[ \t]*([^`\n]{0,80})$")
_PYTHON = frozenset(("python", "py", "python3", "py3", "ipython", "ipython3"))
_SESSION = frozenset(("pycon", "python-repl", "doctest"))
_START = re.compile(
    r"^(?:import\s|from\s+[\w.]+\s+import\b|def\s+\w+\s*\(|async\s+def\s|class\s+\w+\s*[(:]|@\w"
    r"|if\s.{1,200}:\s*$|for\s.{1,200}:\s*$|while\s.{1,200}:\s*$|with\s.{1,200}:\s*$|try\s*:"
    r"|\w[\w.,\[\]'\" ]{0,80}\s*(?:[-+*/|&]?=)\s*[^=\s]|print\s*\(|assert\s|return\b|#!?)"
)
_DEFINITION = "(?:^|\n)[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+{}\\b|(?:^|\n){}[ \t]*[:=]"


@dataclass(frozen=True, slots=True)
class _Block:
    language: str
    code: str
    closed: bool


def extract_program(
    text: str, *, entry_point: str | None = None, language: str = "python"
) -> str | None:
    """Pick the program out of a model's answer.

    Of several fenced blocks the last one that defines `entry_point` wins (a model that corrects
    itself does so below); without an entry point the longest Python block, then the longest
    untagged one. A block that was never closed counts. Without any fence, the lines that look like
    code are taken.

    Args:
        text: The answer.
        entry_point: Name of the function that is wanted.
        language: Fence tag that counts as a program, beside its known spellings.

    Returns:
        Source text that ends with a newline, or None when there is nothing like a program.
    """
    text = text[:MAX_CHARS].replace("\r\n", "\n").replace("\r", "\n")
    blocks = _blocks(text)
    wanted = _PYTHON if language == "python" else frozenset((language.lower(),))
    tagged = [block for block in blocks if block.language in wanted]
    untagged = [block for block in blocks if not block.language]
    for candidates in (tagged, untagged):
        found = _choose(candidates, entry_point, must_define=True)
        if found is not None:
            return found
    for candidates in (tagged, untagged):
        found = _choose(candidates, None, must_define=False)
        if found is not None:
            return found
    if blocks:
        # A fence in another language is an answer in another language.
        return None
    return _unfenced(text)


def program_for(text: str, spec: Spec) -> str | None:
    """Pick the program out of an answer to a request with a specification.

    Where the checks call a function, what the model wrote below it to try it out (asserts with its
    own expectations, prints, a main block) is left away: it is not what was asked for, and small
    models get their own expectations wrong about as often as the function. Scripts and notebook
    cells are taken whole.

    Args:
        text: The answer.
        spec: The request's specification.

    Returns:
        As `extract_program`.
    """
    source = extract_program(text, entry_point=spec.called)
    if source is None or spec.stdio or spec.cells or not (spec.examples or spec.tests):
        return source
    return without_trials(source)


def program_sha256(program: str) -> str:
    """The identity of a program: the digest of its lines, trailing blanks and empty ends aside.

    Server and improver name programs by it, so that what was run can be told from what was learned.
    """
    text = "\n".join(line.rstrip() for line in program.split("\n")).strip("\n")
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def without_trials(source: str) -> str:
    """Leave away top-level asserts, prints and the main block of a module that defines something.

    Every other line stays as it is. Source that cannot be parsed, or would be left without a
    definition, is returned unchanged.
    """
    tree = parse_bounded(source)
    if tree is None:
        return source
    kept = [node for node in tree.body if not _is_trial(node)]
    if not any(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for n in kept):
        return source
    needed = {line for node in kept for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    away = {
        line
        for node in tree.body
        if _is_trial(node)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    } - needed
    if not away:
        return source
    lines = source.split("\n")
    left = [line for number, line in enumerate(lines, 1) if number not in away]
    # "# Test cases" at the end announces what is not there any more.
    while left and (not left[-1].strip() or left[-1].startswith("#")):
        left.pop()
    return _tidy(left)


def _is_trial(node: ast.stmt) -> bool:
    try:
        return _tries(node)
    except RecursionError:
        # Writing a tree as text goes deeper than reading it.
        return False


def _tries(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):
        test = node.test
        return isinstance(test, ast.Compare) and ast.unparse(test.left) == "__name__"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func) in ("print", "doctest.testmod", "unittest.main")
    return isinstance(node, ast.Assert)


def _blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    fence: str | None = None
    tag = ""
    lines: list[str] = []
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if fence is None:
            if match:
                fence, tag, lines = match[1], _tag(match[2]), []
        elif match and match[1][0] == fence[0] and len(match[1]) >= len(fence) and not match[2]:
            blocks.append(_block(tag, lines, closed=True))
            fence = None
        else:
            lines.append(line)
        if len(blocks) >= MAX_BLOCKS:
            return blocks
    if fence is not None and lines:
        blocks.append(_block(tag, lines, closed=False))
    return blocks


def _tag(info: str) -> str:
    words = info.strip().strip("{}").lstrip(".").split()
    return words[0].split(",")[0].split(":")[0].lower() if words else ""


def _block(tag: str, lines: list[str], *, closed: bool) -> _Block:
    body = [line for line in lines if line.strip()]
    if tag in _SESSION or (body and body[0].lstrip().startswith(">>> ")):
        return _Block("session", "", closed)
    return _Block(tag, _dedent(lines), closed)


def _dedent(lines: list[str]) -> str:
    """Remove the indentation that all lines share, as in a list item's block."""
    indents = [len(line) - len(line.lstrip(" ")) for line in lines if line.strip()]
    cut = min(indents, default=0)
    return _tidy([line[cut:] if line.strip() else "" for line in lines])


def _tidy(lines: list[str]) -> str:
    while lines and not lines[0].strip():
        lines = lines[1:]
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return "\n".join(line.rstrip() for line in lines) + "\n" if lines else ""


def _choose(blocks: list[_Block], entry_point: str | None, *, must_define: bool) -> str | None:
    usable = [block for block in blocks if block.code]
    if must_define:
        if entry_point is None:
            return None
        name = re.escape(entry_point)
        defines = re.compile(_DEFINITION.replace("{}", name))
        usable = [block for block in usable if defines.search(block.code)]
        return usable[-1].code if usable else None
    return max(usable, key=lambda block: len(block.code)).code if usable else None


def _unfenced(text: str) -> str | None:
    whole = text.strip("\n")
    if whole.strip() and _parses(whole) and _looks_like_code(whole):
        return _tidy(whole.split("\n"))
    lines = whole.split("\n")
    first = next((i for i, line in enumerate(lines) if _START.match(line)), None)
    if first is None:
        return None
    last = first
    depth = 0
    for number in range(first, len(lines)):
        line = lines[number]
        continues = not line.strip() or line[0] in " \t)]}" or depth > 0 or _START.match(line)
        if not continues:
            break
        depth = max(0, depth + sum(map(line.count, "([{")) - sum(map(line.count, ")]}")))
        if line.strip():
            last = number
    code = _tidy(lines[first : last + 1])
    return code if _looks_like_code(code) else None


def _parses(source: str) -> bool:
    return parse_bounded(source) is not None


def _looks_like_code(source: str) -> bool:
    """Whether it holds a statement; a bare word or number also parses, and is prose."""
    return any(_START.match(line.lstrip()) and line.strip() != "#" for line in source.split("\n"))
