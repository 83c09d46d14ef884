"""The three specifications of GIFT4Code, made from a trace: TypeDesc, I/O Examples, I/O Summary.

Each ends as a `sandbox.spec.Spec`, which `extend_prompt` writes into prompts: the text that a
user's own specification becomes. TypeDesc and Examples are true by construction. A summary is a
model's prose about the trace, and is thrown away when it says something that the trace contradicts,
or names an API of the solution: it would paraphrase the code and not describe the result.

Source: step 6 of GIFT4Code (arXiv 2402.08073). Deviations: the example is a run on a few rows, so
that it can be checked, where the paper shows an excerpt of the whole run's variables; the summary
is written by the served model, which sees neither the code nor any value (the paper's saw both
while training, and no values in its evaluation).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from improver.contexts import Context
from improver.trace import ENTRY, Traced
from ops.records import Json
from sandbox import values
from sandbox.describe import type_name
from sandbox.spec import Cell, Example, Spec, Variable

MAX_COLUMNS_TOLD = 12
LEAST_SUMMARY_WORDS = 6
MOST_SUMMARY_WORDS = 90


class SpecKind(StrEnum):
    """What a training row's prompt says of inputs and outputs."""

    NONE = "none"
    """Nothing: the user with an intent alone must not fare worse (spec dropout)."""
    TYPES = "types"
    """TypeDesc: the name and type of the output variable."""
    EXAMPLES = "examples"
    """I/O Examples: concrete inputs and outputs."""
    SUMMARY = "summary"
    """I/O Summary: prose about the output."""


def type_desc(traced: Traced, context: Context) -> Spec:
    """TypeDesc: names and types, no values."""
    if context.calls:
        given = [_type(column) for column in zip(*context.calls, strict=True)]
        made = _type(traced.returned)
        pairs = ", ".join(f"{n}: {t}" for n, t in zip(context.parameters, given, strict=True))
        return Spec(entry_point=ENTRY, types=f"({pairs}) -> {made}")
    return Spec(
        inputs=tuple(Variable(name=item["name"], type=item["type"]) for item in traced.inputs),
        outputs=(Variable(name=traced.output, type=str(traced.described["type"])[:500]),),
    )


def examples(traced: Traced, context: Context) -> Spec | None:
    """I/O Examples: a small case with its outcome, visible; None where the program fails on it."""
    if context.calls:
        shown = tuple(
            Example(
                input=[values.encode(argument) for argument in call],
                output=values.encode(value),
                hidden=False,
            )
            for call, value in list(zip(context.calls, traced.returned, strict=True))[:3]
        )
        return Spec(entry_point=ENTRY, examples=shown)
    if traced.example_output is None:
        return None
    cell = Cell(
        variables={name: values.encode(frame) for name, frame in traced.example_inputs.items()},
        outputs={traced.output: values.encode(traced.example_output)},
        hidden=False,
    )
    return Spec(cells=(cell,))


def _type(found: Sequence[Any]) -> str:
    """The type of all values of one place."""
    return " | ".join(dict.fromkeys(type_name(values.revive(value)) for value in found))


# --- summary -----------------------------------------------------------------------------------

SUMMARY_EXEMPLAR = (
    "The program made this variable:\n"
    "`delays`: pandas.DataFrame with 6 rows and the columns airline (str), flights (int64), "
    "late_minutes (float64)\n\n"
    "In one or two sentences, say what the result looks like and what one row or entry of it "
    "stands for. Do not say how it is computed and do not name functions."
)
SUMMARY_ANSWER = (
    "`delays` is a table with one row for each of the 6 airlines. The column `flights` tells how "
    "many flights the airline had, `late_minutes` how late they were in a typical case."
)


def summary_messages(intent: str, traced: Traced, context: Context) -> list[Json]:
    """The request for a summary: the intent and the trace, no code and no values."""
    if context.calls:
        spec = type_desc(traced, context)
        told = f"The program is a function with this signature: {ENTRY}{spec.types}"
    else:
        told = f"The program made this variable:\n{described_text(traced)}"
    ask = SUMMARY_EXEMPLAR.split("\n\n")[1]
    return [
        {"role": "user", "content": SUMMARY_EXEMPLAR},
        {"role": "assistant", "content": SUMMARY_ANSWER},
        {
            "role": "user",
            "content": f"A program was written for this task: {intent}\n{told}\n\n{ask}",
        },
    ]


def described_text(traced: Traced) -> str:
    """One line on the output variable: its type, its shape and its columns; never a value."""
    item = traced.described
    text = f"`{traced.output}`: {item.get('type', 'object')}"
    if item.get("kind") == "dataframe":
        columns = item.get("columns", ())
        named = [
            f"{str(values.decode(c['name']))[:60]} ({c.get('dtype', 'object')}{_different(c)})"
            for c in columns[:MAX_COLUMNS_TOLD]
        ]
        more = " …" if len(columns) > MAX_COLUMNS_TOLD else ""
        rows = f"{item['rows']} rows and " if "rows" in item else ""
        return f"{text} with {rows}the columns {', '.join(named)}{more}"
    if item.get("kind") == "series" and "rows" in item:
        return f"{text} with {item['rows']} entries of {item.get('dtype', 'object')}"
    if item.get("kind") == "array" and "shape" in item:
        return f"{text} of shape {tuple(item['shape'])}"
    if item.get("kind") == "container" and "length" in item:
        return f"{text} with {item['length']} items"
    return text


def _different(column: Json) -> str:
    """How many different values a column has: what tells a reader what a row stands for."""
    count = column.get("unique_in_head")
    return "" if count is None else f", {count} different"


def clean_summary(text: str) -> str:
    """The prose of an answer, without headings, fences and layout."""
    text = text.split("```")[0]
    lines = [line.strip(" \t#>*-") for line in text.splitlines()]
    return re.sub(r"\s+", " ", " ".join(line for line in lines if line)).strip()


def fault(summary: str, traced: Traced, context: Context, banned: tuple[str, ...]) -> str | None:
    """Why a summary cannot be used; None where it can.

    Args:
        summary: cleaned prose.
        traced: what it is about.
        context: where names may come from.
        banned: names of the APIs that the solution calls.
    """
    count = len(summary.split())
    if not LEAST_SUMMARY_WORDS <= count <= MOST_SUMMARY_WORDS:
        return "summary too short or too long"
    names = known_names(traced, context)
    bare = summary
    for name in sorted(names, key=len, reverse=True):
        # A column may be called `count`, and must be nameable.
        bare = re.sub(rf"`{re.escape(name)}`|['\"]{re.escape(name)}['\"]", " ", bare)
    words = {word.lower() for word in re.findall(r"[A-Za-z_]\w*", bare)}
    named = {name for name in banned if len(name) > 2 and name.lower() not in _names_lower(names)}
    if hit := sorted(name for name in named if name.lower() in words):
        return f"summary names an API: {hit[0]}"
    return _untrue(summary, traced, names)


def known_names(traced: Traced, context: Context) -> set[str]:
    """Names of variables and columns that a summary may use."""
    names = {traced.output, *context.parameters}
    for table, frame in context.tables.items():
        names |= {table, *(str(column) for column in frame.columns)}
    for column in traced.described.get("columns", ()):
        names.add(str(values.decode(column["name"])))
    return names


def _names_lower(names: set[str]) -> set[str]:
    return {name.lower() for name in names}


def _untrue(summary: str, traced: Traced, names: set[str]) -> str | None:
    known = _names_lower(names)
    if not traced.described:
        return None
    for quoted in re.findall(r"`([^`\n]{1,60})`", summary):
        if quoted.lower() not in known:
            return "summary names what is not there"
    item = traced.described
    rows = item.get("rows", item.get("length"))
    width = item.get("width")
    for number, thing in re.findall(r"\b(\d+) (rows?|entries|columns?)\b", summary):
        actual = width if thing.startswith("column") else rows
        if actual is not None and int(number) != actual:
            return "summary gives a wrong size"
    return _wrong_grain(summary, item)


_GRAIN = re.compile(
    r"\b(?:row|entry|line)s? (?:for|per) (?:(?:each|every)(?: one)?(?: of the)? )?(?:(\d+) )?"
    r"`?([A-Za-z_]\w*)\b`?(?! and\b|, \w+(?:,| and\b))"
)
COUNTED_ROWS = 1000
"""In so many rows a description counts what is different."""


def _wrong_grain(summary: str, item: Json) -> str | None:
    """Whether a summary says "one row for each team" where rows and teams are not as many."""
    rows = item.get("rows")
    if rows is None or rows > COUNTED_ROWS:
        return None
    counts = {
        str(values.decode(column["name"])).lower(): column["unique_in_head"]
        for column in item.get("columns", ())
        if "unique_in_head" in column
    }
    for number, word in _GRAIN.findall(summary):
        names = (word.lower(), word.lower().removesuffix("s"))
        count = next((counts[name] for name in names if name in counts), None)
        if count is not None and (count != rows or (number and int(number) != count)):
            return "summary gives a wrong grain"
    return None
