"""The firewall: nothing learned from the examination.

Holds fingerprints of every task that is or may be used to examine a candidate, and tells whether
a training row touches one. A row is checked when it is built and again before training. It fails
closed: without fingerprints it refuses to answer, and what cannot be compared counts as touching.

A task is recognised by its id, its text (letters, digits and operators only, case aside), its
function name together with its first check, its reference program (comments, layout and names of
variables aside), or by shingles: word bigrams of the text and 5-grams of code tokens, Jaccard
similarity of 0.6 or more (computed exactly: a few hundred tasks need no MinHash to be quick).

Likeness of wholes misses a task that stands inside something longer. So everything in a row, its
earlier messages and its answer too, is searched for a task's text, for most of its word 4-grams,
and for its checks as they would be written; and of a program each function is compared by itself.
(Magicoder's script, which Inverse-Instruct uses, arXiv 2407.05700, searches for substrings only.)
"""

from __future__ import annotations

import ast
import hashlib
import io
import keyword
import re
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from improver.errors import FirewallError
from sandbox.spec import Spec, literal_calls, show_value
from sandbox.syntax import parse_bounded
from sandbox.values import decode

SIMILAR = 0.6
TEXT_GRAM = 2
CODE_GRAM = 5
LEAST_TEXT_SHINGLES = 6
LEAST_CODE_SHINGLES = 12
"""Below this many shingles likeness says nothing: every `return x + y` is like every other."""
PART_GRAM = 4
LEAST_PARTS = 6
CONTAINED = 0.7
"""Of a text's 4-grams: one word changed in twenty leaves so many. Lower, and what all tasks of a
collection begin with ("Write a function to find the …") would be most of the short ones."""
LEAST_CALL_CHARS = 12
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What the firewall knows of one examination task."""

    id: str
    benchmark: str
    text: str
    spec: Spec
    reference: str | None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Why a row touches the examination."""

    reason: str
    exam_id: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.exam_id}"


class Firewall:
    """All fingerprints of one cycle's examinations and every benchmark that is registered."""

    def __init__(self, exams: Iterable[Exam]) -> None:
        self._ids: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._checks: dict[str, str] = {}
        self._code: dict[str, str] = {}
        self._text_shingles: list[tuple[frozenset[str], str]] = []
        self._code_shingles: list[tuple[frozenset[str], str]] = []
        self._phrases: dict[str, str] = {}
        self._parts: dict[str, list[str]] = {}
        self._part_counts: dict[str, int] = {}
        self._calls: dict[str, dict[str, str]] = {}
        self.size = 0
        for exam in exams:
            self._learn(exam)

    def _learn(self, exam: Exam) -> None:
        name = f"{exam.benchmark}:{exam.id}"
        self.size += 1
        self._ids[_normal_id(exam.id)] = name
        self._texts[normal_text(exam.text)] = name
        for check in spec_checks(exam.spec):
            self._checks[check] = name
            called, bracket, _ = check.partition("(")
            if bracket and len(written := _squeezed(check)) >= LEAST_CALL_CHARS:
                self._calls.setdefault(called, {})[written] = name
        shingles = text_shingles(exam.text)
        if len(shingles) >= LEAST_TEXT_SHINGLES:
            self._text_shingles.append((shingles, name))
            self._phrases[f" {normal_text(exam.text)} "] = name
        parts = word_grams(exam.text, PART_GRAM)
        if len(parts) >= LEAST_PARTS:
            self._part_counts[name] = len(parts)
            for part in parts:
                self._parts.setdefault(part, []).append(name)
        if exam.reference is not None:
            tokens = code_tokens(exam.reference)
            if tokens is None:
                raise FirewallError(f"the reference of {name} is not Python: no fingerprint")
            self._code[_digest(tokens)] = name
            grams = code_shingles(tokens)
            if len(grams) >= LEAST_CODE_SHINGLES:
                self._code_shingles.append((grams, name))

    def check(
        self,
        *,
        text: str,
        spec: Spec,
        program: str,
        task_ids: Iterable[str] = (),
        around: Iterable[str] = (),
    ) -> Hit | None:
        """Tell whether a training row touches the examination.

        Args:
            text: the request in the user's words, without the rendered specification.
            spec: the request's specification, hidden part included.
            program: the answer that would be trained.
            task_ids: names under which the task is known elsewhere.
            around: everything else that would be trained: earlier messages, the whole answer.

        Returns:
            The first thing found, or None where the row is clean.

        Raises:
            FirewallError: there are no fingerprints to compare with.
        """
        if self.size == 0:
            raise FirewallError("no examination is registered: a row cannot be cleared")
        for task_id in task_ids:
            if name := self._ids.get(_normal_id(task_id)):
                return Hit(reason="same task id", exam_id=name)
        if name := self._texts.get(normal_text(text)):
            return Hit(reason="same text", exam_id=name)
        for check in spec_checks(spec):
            if name := self._checks.get(check):
                return Hit(reason="same check", exam_id=name)
        tokens = code_tokens(program)
        if tokens is None:
            return Hit(reason="not comparable", exam_id="the program is not Python")
        if name := self._code.get(_digest(tokens)):
            return Hit(reason="same program", exam_id=name)
        if name := _similar(text_shingles(text), LEAST_TEXT_SHINGLES, self._text_shingles):
            return Hit(reason="similar text", exam_id=name)
        if name := _similar(code_shingles(tokens), LEAST_CODE_SHINGLES, self._code_shingles):
            return Hit(reason="similar program", exam_id=name)
        return self._inside("\n".join((text, program, *around))) or self._function(program)

    def _inside(self, whole: str) -> Hit | None:
        """A task that stands somewhere in a longer text."""
        words = f" {normal_text(whole)} "
        for phrase, name in self._phrases.items():
            if phrase in words:
                return Hit(reason="contains text", exam_id=name)
        found = Counter(
            name for part in word_grams(whole, PART_GRAM) for name in self._parts.get(part, ())
        )
        for name, count in found.most_common():
            if count >= CONTAINED * self._part_counts[name]:
                return Hit(reason="contains most of a text", exam_id=name)
        squeezed = _squeezed(whole)
        for called, calls in self._calls.items():
            if f"{called}(" not in squeezed:
                continue
            for call, name in calls.items():
                if call in squeezed:
                    return Hit(reason="contains a check", exam_id=name)
        return None

    def _function(self, program: str) -> Hit | None:
        """A reference program that stands among others."""
        for source in _functions(program):
            tokens = code_tokens(source)
            if tokens is None:
                return Hit(reason="not comparable", exam_id="a function is not Python by itself")
            grams = code_shingles(tokens)
            name = self._code.get(_digest(tokens))
            if name and len(grams) >= LEAST_CODE_SHINGLES:
                return Hit(reason="contains program", exam_id=name)
            if name := _similar(grams, LEAST_CODE_SHINGLES, self._code_shingles):
                return Hit(reason="contains a similar program", exam_id=name)
        return None


def normal_text(text: str) -> str:
    """Lower case words, digits and operators, layout aside."""
    return " ".join(_words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+|[-+*/%=<>]", text.lower())


def text_shingles(text: str) -> frozenset[str]:
    """Bigrams of words."""
    return word_grams(text, TEXT_GRAM)


def word_grams(text: str, count: int) -> frozenset[str]:
    """All runs of so many words."""
    words = _words(text)
    return frozenset(" ".join(words[i : i + count]) for i in range(len(words) - count + 1))


def _squeezed(text: str) -> str:
    """Text without layout and case; both kinds of quotes are one."""
    return "".join(text.split()).lower().replace('"', "'")


def _functions(program: str) -> Iterator[str]:
    """The functions of a module as programs of their own; nothing where it is only one function."""
    tree = parse_bounded(program)
    nodes = [node for node in ast.walk(tree) if isinstance(node, DEFINITIONS)] if tree else []
    if tree is None or len(tree.body) == len(nodes) == 1:
        return
    for node in nodes:
        source = ast.get_source_segment(program, node, padded=True)
        if source is not None:
            yield textwrap.dedent(source)


def code_tokens(program: str) -> list[str] | None:
    """The tokens of a program with names of variables numbered in order of appearance.

    Comments, layout and docstrings are left out. None where it is not Python.
    """
    tree = parse_bounded(program)
    if tree is None:
        return None
    docstrings = _docstring_lines(tree)
    names: dict[str, str] = {}
    tokens = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(program).readline):
            if token.start[0] in docstrings and token.type == tokenize.STRING:
                continue
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                tokens.append(names.setdefault(token.string, f"n{len(names)}"))
            elif token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
                tokens.append(token.string)
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return None
    return tokens


def _docstring_lines(tree: ast.Module) -> set[int]:
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines.add(first.value.lineno)
    return lines


def code_shingles(tokens: list[str]) -> frozenset[str]:
    """5-grams of code tokens."""
    return frozenset(
        " ".join(tokens[i : i + CODE_GRAM]) for i in range(len(tokens) - CODE_GRAM + 1)
    )


def spec_checks(spec: Spec) -> set[str]:
    """The function's name with each of its checks, as text that does not depend on their form.

    Short checks of common names collide by chance (`add(1, 2)`), which costs a row and no more.
    """
    found = set()
    for test in spec.tests:
        calls = literal_calls(test.code)
        if calls is None:
            found.add(f"{spec.entry_point}|{normal_text(test.code)}")
        for call in calls or ():
            found.add(_check_text(call.function, call.example.args, call.example.kwargs))
    if spec.entry_point is not None:
        for example in spec.examples:
            found.add(_check_text(spec.entry_point, example.args, example.kwargs))
    return found


def _check_text(name: str, args: list[object], kwargs: dict[str, object]) -> str:
    shown = [show_value(decode(value)) for value in args]
    shown += [f"{key}={show_value(decode(value))}" for key, value in sorted(kwargs.items())]
    return f"{name.lower()}({', '.join(shown)})"


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Size of the intersection over size of the union; 0 where one is empty."""
    if not a or not b:
        return 0.0
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def _similar(
    shingles: frozenset[str], least: int, known: list[tuple[frozenset[str], str]]
) -> str | None:
    if len(shingles) < least:
        return None
    return next((name for other, name in known if jaccard(shingles, other) >= SIMILAR), None)


def _normal_id(task_id: str) -> str:
    return task_id.strip().lower()


def _digest(tokens: list[str]) -> str:
    return hashlib.sha256("\0".join(tokens).encode("utf-8", "surrogatepass")).hexdigest()
