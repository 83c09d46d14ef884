from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from improver import contexts
from ops.records import Interaction, Source, new_id, now
from sandbox import values

TABLE = "city,people,area\n" + "\n".join(f"Town{i},{i * 100},{i}.5" for i in range(1, 9)) + "\n"


def interaction(text: str, spec: dict[str, Any] | None = None) -> Interaction:
    return Interaction(
        id=new_id(),
        created_at=now(),
        source=Source.SERVED,
        endpoint="chat",
        model="code",
        base_model="base",
        adapter_name="",
        adapter_version=0,
        adapter_sha256="",
        messages=[{"role": "user", "content": text}],
        params={},
        choices=[],
        usage={},
        spec=spec,
        user="ada",
    )


def test_csv_files_become_contexts_and_the_rest_is_counted(tmp_path: Path) -> None:
    (tmp_path / "towns.csv").write_text(TABLE)
    (tmp_path / "semicolon.csv").write_text(TABLE.replace(",", ";"))
    (tmp_path / "headless.csv").write_text("150,4,setosa\n" + "1.5,2,0\n" * 8)
    (tmp_path / "prose.csv").write_text("Series Id: 7\n\nSeasonally\nadjusted, mostly\na\nb\nc\n")
    (tmp_path / "short.csv").write_text("a,b\n1,2\n")
    found = contexts.read_tables(tmp_path, licence="CC0")
    assert [c.title for c in found.contexts] == ["semicolon.csv", "towns.csv"]
    assert found.skipped == {"no header": 1, "no table": 1, "too few rows": 1}
    semicolon, towns = found.contexts
    assert "sep=';'" in semicolon.load
    assert semicolon.tables["df"].equals(towns.tables["df"])
    assert towns.licence == "CC0"
    assert towns.imports == ("import pandas as pd",)


def test_a_request_sees_the_header_and_three_rows_only(tmp_path: Path) -> None:
    (tmp_path / "towns.csv").write_text(TABLE)
    (context,) = contexts.read_tables(tmp_path).contexts
    shown = context.shown()
    assert 'pd.read_csv("towns.csv")' in shown
    assert "city,people,area" in shown
    assert "Town3" in shown
    assert "Town4" not in shown


def test_personal_data_is_gone_before_anybody_sees_it() -> None:
    frame = pd.DataFrame(
        {
            "first_name": ["Ann", "Bob", "Ann", "Eve"],
            "note": ["call +49 170 1234567", "x@example.org", "fine", "sk-abcdefghijklmnop"],
            "amount": [1, 2, 3, 4],
        }
    )
    clean = contexts.redacted(frame)
    assert list(clean["first_name"]) == [
        "first_name_1",
        "first_name_2",
        "first_name_1",
        "first_name_3",
    ]
    assert list(clean["note"]) == ["call [redacted]", "[redacted]", "fine", "[redacted]"]
    assert list(clean["amount"]) == [1, 2, 3, 4]


def test_perturbed_tables_keep_columns_and_types_and_change_content(tmp_path: Path) -> None:
    (tmp_path / "towns.csv").write_text(TABLE)
    (context,) = contexts.read_tables(tmp_path).contexts
    before = context.tables["df"]
    changed = [tables["df"] for tables in context.perturbed(3)]
    assert len(changed) == 3
    for frame in changed:
        assert list(frame.columns) == list(before.columns)
        assert list(frame.dtypes) == list(before.dtypes)
        assert not frame.equals(before)
    again = [tables["df"] for tables in context.perturbed(3)]
    assert all(a.equals(b) for a, b in zip(changed, again, strict=True))
    assert len(context.excerpt(1)["df"]) == contexts.EXCERPT_ROWS


def test_hidden_cells_of_a_request_are_never_a_context() -> None:
    frame = {"$dataframe": {"columns": ["a", "b"], "data": [[i, i * i] for i in range(6)]}}
    secret = {"$dataframe": {"columns": ["a", "b"], "data": [[99, 99]] * 6}}
    spec = {
        "cells": [
            {"variables": {"secret": secret}, "outputs": {"x": 1}, "hidden": True},
            {"variables": {"sales": frame}, "outputs": {"x": 1}, "hidden": False},
        ]
    }
    context = contexts.of_request(interaction("import numpy as np\nsum it up", spec))
    assert context is not None
    assert list(context.tables) == ["sales"]
    assert "import numpy as np" in context.load
    assert context.user == "ada"


MARKDOWN = "Sum it:\n\n| a | b |\n|---|---|\n" + "".join(f"| {i} | x{i} |\n" for i in range(6))
LITERAL = (
    "Given\n```python\nsales = pd.DataFrame({'a': [1, 2, 3, 4], 'b': [5, 6, 7, 8]})\n```\nsum it"
)
FENCED = f"Here:\n```csv\n{TABLE}```\nWhich town is largest?"


@pytest.mark.parametrize(
    ("text", "name", "columns"),
    [
        (MARKDOWN, "df", ["a", "b"]),
        (LITERAL, "sales", ["a", "b"]),
        (FENCED, "df", ["city", "people", "area"]),
    ],
)
def test_tables_in_the_words_of_a_request(text: str, name: str, columns: list[str]) -> None:
    context = contexts.of_request(interaction(text))
    assert context is not None
    assert list(context.tables[name].columns) == columns


def test_calls_of_visible_examples_are_a_context_and_hidden_ones_are_not() -> None:
    spec = {
        "entry_point": "rotate",
        "examples": [
            {"input": [[1, 2, 3], 1], "output": [3, 1, 2], "hidden": False},
            {"input": [["x@example.org", 5], 2], "output": [4, 5], "hidden": False},
            {"input": [[777], 0], "output": [777], "hidden": True},
        ],
    }
    context = contexts.of_request(interaction("def rotate(items, places): ...", spec))
    assert context is not None
    assert context.calls == (([1, 2, 3], 1), (["[redacted]", 5], 2))
    assert context.parameters == ("items", "places")
    assert "777" not in context.shown()


def test_requests_without_inputs_are_counted() -> None:
    found = contexts.of_requests([interaction("hello"), interaction(FENCED), interaction(FENCED)])
    assert len(found.contexts) == 1
    assert found.skipped == {
        "request holds neither a table nor calls": 1,
        "same context again": 1,
    }


def test_tables_cross_into_the_sandbox_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "towns.csv").write_text(TABLE)
    (context,) = contexts.read_tables(tmp_path).contexts
    frame = context.tables["df"]
    assert values.revive(values.decode(values.encode(frame, strict=True))).equals(frame)
