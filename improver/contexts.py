"""What GIFT4Code starts from: inputs that a program could work on, with the code that loads them.

A context is either *tables* (named data frames: a CSV file, or what a logged request shows) or
*calls* (the argument lists of a function, out of a logged request's visible examples). Hidden
examples are never looked at. Tables are cut in rows and columns and personal data in them is
replaced before anything else sees them, so that neither prompts nor specifications can hold it.

Source: step 1 of GIFT4Code (arXiv 2402.08073), which takes CSV files that notebooks on GitHub
read. Deviation: requests of the installation's own users are contexts too, with their calls.

Not here: asking a model (`intents`), running programs (`trace`).
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from improver.errors import ImportFileError
from ops.records import Interaction, Json
from sandbox import values
from sandbox.errors import SpecError
from sandbox.spec import Spec, derive_spec, literal_calls, parse_spec, show_value
from sandbox.syntax import literal, parse_bounded

if TYPE_CHECKING:  # loaded where tables are: the daemon does without it
    import pandas as pd

MAX_ROWS = 200
MAX_COLUMNS = 10
LEAST_ROWS = 4
HEAD_ROWS = 3
EXCERPT_ROWS = 5
CELL_CHARS = 40
MAX_CSV_BYTES = 4 << 20
MAX_CALLS = 8
DEFAULT_IMPORTS = ("import pandas as pd",)
ALIASES = {"pd": "import pandas as pd", "np": "import numpy as np"}


@dataclass(frozen=True, kw_only=True)
class Context:
    """Inputs for programs. Exactly one of `tables` and `calls` is filled.

    `title` names it for people: a file's name or an interaction. `load` is the code that a reader
    sees as already run; `calls` are decoded positional arguments.
    """

    id: str
    title: str
    load: str
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    calls: tuple[tuple[Any, ...], ...] = ()
    parameters: tuple[str, ...] = ()
    source: str
    interaction_ids: tuple[str, ...] = ()
    user: str | None = None
    tenant: str | None = None
    licence: str | None = None

    @property
    def imports(self) -> tuple[str, ...]:
        """The import lines of the loading code."""
        return tuple(
            line for line in self.load.splitlines() if line.startswith(("import ", "from "))
        )

    def shown(self) -> str:
        """The context as a request shows it: loading code, header and the first rows, or calls."""
        if self.calls:
            shown = "\n".join(f"solution({_arguments(call)})" for call in self.calls[:HEAD_ROWS])
            return f"The function is called like this:\n```python\n{shown}\n```"
        heads = [
            f"`{name}` starts like this:\n```\n{head_text(frame)}\n```"
            for name, frame in self.tables.items()
        ]
        return "\n".join((f"```python\n{self.load.strip()}\n```", *heads))

    def excerpt(self, seed: int) -> dict[str, pd.DataFrame]:
        """A few rows of each table, for an example that fits into a prompt."""
        rng = random.Random(seed)
        small = {}
        for name, frame in self.tables.items():
            rows = sorted(rng.sample(range(len(frame)), min(EXCERPT_ROWS, len(frame))))
            small[name] = frame.iloc[rows].reset_index(drop=True)
        return small

    def perturbed(self, seed: int) -> list[dict[str, pd.DataFrame]]:
        """The tables again and again with other content and the same columns and types."""
        rng = np.random.default_rng(seed)
        return [
            {name: change(frame, rng) for name, frame in self.tables.items()}
            for change in (_shuffled, _resampled, _altered)
        ]


def _arguments(call: Sequence[Any]) -> str:
    return ", ".join(show_value(argument, 200) for argument in call)


def head_text(frame: pd.DataFrame) -> str:
    """Header and first rows as CSV; long cells are cut."""
    import pandas as pd

    rows = [[str(name) for name in frame.columns]]
    rows += [
        ["" if pd.isna(cell) else str(cell)[:CELL_CHARS] for cell in row]
        for row in frame.head(HEAD_ROWS).itertuples(index=False)
    ]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    # Data must not be able to close the fence that it is shown in.
    return out.getvalue().strip().replace("```", "'''")


# --- perturbation ------------------------------------------------------------------------------


def _shuffled(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Each column in an order of its own: every row says something else."""
    import pandas as pd

    columns = {name: frame[name].iloc[rng.permutation(len(frame))].array for name in frame.columns}
    return pd.DataFrame(columns)


def _resampled(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Fewer rows, drawn with replacement: counts and sums change."""
    rows = rng.integers(0, len(frame), size=max(2, round(len(frame) * 0.7)))
    return frame.iloc[rows].reset_index(drop=True)


def _altered(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Other numbers, and texts exchanged for one another."""
    import pandas as pd

    changed = {}
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_bool_dtype(column.dtype):
            changed[name] = column.iloc[rng.permutation(len(frame))].array
        elif pd.api.types.is_integer_dtype(column.dtype):
            changed[name] = (column + rng.integers(1, 9, size=len(frame))).array
        elif pd.api.types.is_float_dtype(column.dtype):
            changed[name] = (column * rng.uniform(1.1, 1.9, size=len(frame))).array
        else:
            changed[name] = column.iloc[rng.permutation(len(frame))].array
    return pd.DataFrame(changed)


# --- CSV files ---------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Found:
    """Contexts, and what was left out with its reason."""

    contexts: list[Context] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def report(self) -> Json:
        """The numbers as plain data."""
        return {"contexts": len(self.contexts), "skipped": dict(self.skipped)}


def read_tables(directory: Path, *, licence: str | None = None) -> Found:
    """Read every CSV file of a directory as a context of its own, in the order of their names.

    A file that has no header, no rows or several tables in it is counted and left out.

    Args:
        directory: Where the files are; folders below are not looked into.
        licence: What the rows made of them will carry as licence.

    Raises:
        ImportFileError: there is no such directory, or a file of it cannot be read.
    """
    if not directory.is_dir():
        raise ImportFileError(f"there is no directory of tables at {directory}")
    found = Found()
    for path in sorted(directory.glob("*.csv")):
        if path.stat().st_size > MAX_CSV_BYTES:
            found.skipped["table too big"] += 1
            continue
        try:
            read = read_csv(path.read_bytes().decode("utf-8-sig", "replace"))
        except OSError as error:
            raise ImportFileError(f"{path} cannot be read: {error}") from error
        if isinstance(read, str):
            found.skipped[read] += 1
            continue
        frame, separator = read
        option = "" if separator == "," else f", sep={separator!r}"
        load = f'import pandas as pd\n\ndf = pd.read_csv("{path.name}"{option})'
        found.contexts.append(
            _of_tables({"df": frame}, load, path.name, source="tables", licence=licence)
        )
    return found


def read_csv(text: str) -> tuple[pd.DataFrame, str] | str:
    """Read a table and its separator, or say why it is none."""
    import pandas as pd

    lines = [line for line in text.splitlines()[:20] if line.strip()]
    if len(lines) <= LEAST_ROWS:
        return "too few rows"
    separator = _separator(lines)
    if separator is None:
        return "no table"
    quote = "'" if lines[0].startswith("'") else '"'
    try:
        frame = pd.read_csv(
            io.StringIO(text), sep=separator, skipinitialspace=True, quotechar=quote
        )
    except (ValueError, pd.errors.ParserError):
        return "no table"
    table = tidy(frame)
    return "no header" if table is None else (table, separator)


def _separator(lines: Sequence[str]) -> str | None:
    """The character that cuts all lines into the same number of columns, two or more."""
    for separator in (",", ";", "\t", "|", " "):
        widths = {len(row) for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)}
        if len(widths) == 1 and widths.pop() > 1:
            return separator
    return None


def tidy(frame: pd.DataFrame) -> pd.DataFrame | None:
    """Cut a table to size and replace personal data; None where it has no proper header."""
    names = [str(name).strip() for name in frame.columns]
    bad = sum(name.startswith("Unnamed") or _is_number(name) for name in names)
    # Years are proper names of columns, but not of the first: that is a row, or a preamble.
    if len(set(names)) < len(names) or bad * 2 >= len(names) or _is_number(names[0]):
        return None
    if len(frame) < LEAST_ROWS or len(names) < 2:
        return None
    frame = frame.set_axis(names, axis=1).iloc[:, :MAX_COLUMNS]
    if len(frame) > MAX_ROWS:
        # Evenly over the table: the head of a sorted one holds a single group.
        frame = frame.iloc[np.linspace(0, len(frame) - 1, MAX_ROWS).astype(int)]
    return redacted(frame.reset_index(drop=True))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_PERSONAL = re.compile(
    r"(?:^|[ _])(?:(?:first|last|full|user|sur|nick)[ _]?name|e?mail|phone|mobile|address|street"
    r"|passw\w*|secret|token|api[ _]?key|ssn|passport|iban|card[ _]?number|birth\w*)(?:$|[ _])",
    re.I,
)
_TELLING = re.compile(
    r"[\w.+-]+@[\w-]+\.[\w.]+|\b(?:\d[ -]?){13,19}\b|(?:\+|\b00)\d[\d ()/-]{7,}\d"
    r"|\b(?:sk|pk|ghp|gho|xox[bp]|AKIA|eyJ)[-_A-Za-z0-9]{12,}",
)


def redacted(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace what looks personal: columns by their name, cells by their look.

    Equal values stay equal, so that grouping and joining still mean something. It finds the
    usual forms, not every form.
    """
    import pandas as pd

    columns = {}
    for name in frame.columns:
        column = frame[name]
        texts = not pd.api.types.is_numeric_dtype(column.dtype)
        if _PERSONAL.search(str(name)):
            codes, _ = pd.factorize(column)
            column = pd.Series([None if c < 0 else f"{name}_{c + 1}" for c in codes])
        elif texts:
            column = column.map(_redacted_cell)
        columns[name] = column
    return pd.DataFrame(columns)


def _redacted_cell(cell: Any) -> Any:
    """A value without what looks personal, in containers too."""
    if isinstance(cell, str):
        return _TELLING.sub("[redacted]", cell)
    if type(cell) in (list, tuple):
        return type(cell)(_redacted_cell(item) for item in cell)
    if type(cell) is dict:
        return {key: _redacted_cell(item) for key, item in cell.items()}
    return cell


def _of_tables(
    tables: dict[str, pd.DataFrame],
    load: str,
    title: str,
    *,
    source: str,
    interaction: Interaction | None = None,
    licence: str | None = None,
) -> Context:
    content = {name: frame.to_csv(index=False) for name, frame in tables.items()}
    return Context(
        id=_digest([load, content]),
        title=title,
        load=load,
        tables=tables,
        source=source,
        interaction_ids=(interaction.id,) if interaction else (),
        user=interaction.user if interaction else None,
        tenant=interaction.tenant if interaction else None,
        licence=licence,
    )


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


# --- logged requests ---------------------------------------------------------------------------


def of_requests(interactions: Iterable[Interaction]) -> Found:
    """Find contexts in logged requests: their tables first, else the calls of their function.

    Only what the request shows is read: its messages and the visible part of its specification.
    """
    found = Found()
    seen: set[str] = set()
    for interaction in interactions:
        context = of_request(interaction)
        if context is None:
            found.skipped["request holds neither a table nor calls"] += 1
        elif context.id in seen:
            found.skipped["same context again"] += 1
        else:
            seen.add(context.id)
            found.contexts.append(context)
    return found


def of_request(interaction: Interaction) -> Context | None:
    """The context of one request, or None where it shows no input."""
    text = _last_words(interaction.messages)
    try:
        spec = parse_spec(interaction.spec or {}).visible()
    except SpecError:
        spec = Spec()
    imports = _imports(text)
    tables = _spec_tables(spec) or dict(_text_tables(text))
    if tables:
        load = "\n".join(dict.fromkeys((*DEFAULT_IMPORTS, *imports)))
        names = ", ".join(f"`{name}`" for name in tables)
        load += f"\n\n# {names}: already loaded"
        return _of_tables(tables, load, interaction.id, source="request", interaction=interaction)
    calls = _calls(spec.merged(derive_spec(text) or Spec()) if not spec.cells else spec)
    if len(calls) < 2:
        return None
    return Context(
        id=_digest([show_value(list(call)) for call in calls]),
        title=interaction.id,
        load="\n".join(imports),
        calls=tuple(calls),
        parameters=_parameters(text, spec.entry_point, len(calls[0])),
        source="request",
        interaction_ids=(interaction.id,),
        user=interaction.user,
        tenant=interaction.tenant,
    )


def _last_words(messages: Sequence[Json]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return "\n".join(p.get("text", "") for p in content or () if p.get("type") == "text")
    return ""


def _spec_tables(spec: Spec) -> dict[str, pd.DataFrame]:
    import pandas as pd

    for cell in spec.cells:
        tables = {}
        for name, form in cell.variables.items():
            value = values.revive(values.decode(form))
            frame = tidy(value) if isinstance(value, pd.DataFrame) else None
            if frame is not None:
                tables[name] = frame
        # A program that needs the other variables too could not run on the tables alone.
        if tables and len(tables) == len(cell.variables):
            return tables
    return {}


_FENCED = re.compile(r"^```[ \t]*(\w*)[ \t]*\n(.*?)^```", re.M | re.S)


def _text_tables(text: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Tables in a message: literal data frames in code, fenced CSV, Markdown tables."""
    blocks = [(match[1].lower(), match[2]) for match in _FENCED.finditer(text)]
    for language, block in blocks:
        if language in ("", "python", "py"):
            named = list(_literal_tables(block))
            if named:
                yield from named
                return
    plain = [block for language, block in blocks if language in ("", "csv", "tsv", "text")]
    for block in (*plain, _markdown_table(text)):
        read = read_csv(block)
        if not isinstance(read, str):
            yield "df", read[0]
            return


def _literal_tables(code: str) -> Iterator[tuple[str, pd.DataFrame]]:
    import pandas as pd

    tree = parse_bounded(code)
    for node in tree.body if tree is not None else ():
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        call = node.value
        if not isinstance(call, ast.Call) or not call.args:
            continue
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "DataFrame":
            continue
        try:
            frame = tidy(pd.DataFrame(literal(call.args[0])))
        except (ValueError, TypeError):
            continue
        if frame is not None:
            yield node.targets[0].id, frame


def _markdown_table(text: str) -> str:
    rows = [line.strip().strip("|") for line in text.splitlines() if line.strip().startswith("|")]
    kept = [row for row in rows if not re.fullmatch(r"[\s|:+-]*", row)]
    return "\n".join("|".join(cell.strip() for cell in row.split("|")) for row in kept)


def _imports(text: str) -> list[str]:
    lines = (line.strip() for line in text[:100_000].splitlines())
    pattern = re.compile(r"(?:import [\w., ]+|from [\w.]+ import [\w., ]+)")
    return [line for line in lines if pattern.fullmatch(line) and parse_bounded(line)]


def _calls(spec: Spec) -> list[tuple[Any, ...]]:
    """Positional arguments of the visible examples and literal asserts, without repeats."""
    forms = [example.args for example in spec.examples if not example.kwargs]
    for test in spec.tests:
        forms += [c.example.args for c in literal_calls(test.code) or () if not c.example.kwargs]
    calls: dict[str, tuple[Any, ...]] = {}
    for form in forms:
        call = tuple(_redacted_cell(values.decode(item)) for item in form)
        calls.setdefault(show_value(list(call)), call)
    found = list(calls.values())
    width = len(found[0]) if found else 0
    return [call for call in found if len(call) == width and width > 0][:MAX_CALLS]


def _parameters(text: str, name: str | None, count: int) -> tuple[str, ...]:
    """Names of the parameters, out of a signature in the message where there is one."""
    for match in re.finditer(r"def (\w+)\(([^()]{0,300})\)", text):
        names = [part.split(":")[0].split("=")[0].strip(" *") for part in match[2].split(",")]
        fits = len(names) == count and all(part.isidentifier() for part in names)
        if fits and name in (None, match[1]):
            return tuple(names)
    return tuple("abcdefgh"[:count]) if count <= 8 else tuple(f"a{i}" for i in range(count))
