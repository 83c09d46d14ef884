from __future__ import annotations

import pandas as pd
import pytest

from improver.contexts import Context
from improver.specs import clean_summary, examples, fault, summary_messages, type_desc
from improver.trace import Traced, api_names
from sandbox import values
from sandbox.spec import extend_prompt

FRAME = pd.DataFrame({"team": ["a", "b", "a", "c", "b"], "count": [1, 2, 3, 4, 5]})
TABLES = Context(
    id="t", title="t.csv", load="import pandas as pd", tables={"df": FRAME}, source="tables"
)
CALLS = Context(
    id="c",
    title="c",
    load="",
    calls=(([3, 1], 1), ([2.5], 0)),
    parameters=("xs", "k"),
    source="request",
)
PROGRAM = 'totals = df.groupby("team")["count"].sum().reset_index()\n'
TRACED = Traced(
    program=PROGRAM,
    output="totals",
    described={
        "name": "totals",
        "kind": "dataframe",
        "type": "pandas.DataFrame",
        "rows": 3,
        "width": 2,
        "columns": [
            {"name": "team", "dtype": "str", "examples": ["SECRET"]},
            {"name": "count", "dtype": "int64", "examples": [4]},
        ],
        "head": [["SECRET", 4]],
    },
    inputs=({"name": "df", "type": "pandas.DataFrame"},),
    example_inputs={"df": FRAME},
    example_output=values.decode(values.encode(FRAME.groupby("team")["count"].sum().reset_index())),
)
CALLED = Traced(program="def solution(xs, k): ...", output="solution", returned=(4, 2.5))


def test_type_desc_names_and_types_and_holds_no_value() -> None:
    text = extend_prompt("Sum it.", type_desc(TRACED, TABLES))
    assert text == (
        "Sum it.\n\nSpecification:\nInput variable `df`: pandas.DataFrame\n"
        "Output variable `totals`: pandas.DataFrame"
    )


def test_types_of_calls_are_the_union_over_all_of_them() -> None:
    spec = type_desc(CALLED, CALLS)
    assert spec.types == "(xs: list[int] | list[float], k: int) -> int | float"
    assert "Signature: solution(xs: list[int]" in extend_prompt("Do it.", spec)


def test_examples_show_input_and_output_through_the_one_renderer() -> None:
    spec = examples(TRACED, TABLES)
    assert spec is not None
    text = extend_prompt("Sum it.", spec)
    assert "Input variable `df` = pd.DataFrame({'team': ['a', 'b', 'a', 'c', 'b']" in text
    assert (
        "Output variable `totals` = pd.DataFrame({'team': ['a', 'b', 'c'], 'count': [4, 7, 4]})"
        in text
    )
    assert spec.has_checks


def test_examples_of_calls() -> None:
    spec = examples(CALLED, CALLS)
    assert spec is not None
    assert "solution([3, 1], 1) == 4" in extend_prompt("Do it.", spec)


def test_the_summariser_sees_neither_values_nor_code() -> None:
    asked = summary_messages("Sum it.", TRACED, TABLES)[-1]["content"]
    assert "totals" in asked
    assert "3 rows" in asked
    assert "SECRET" not in asked
    assert "groupby" not in asked


GOOD = "`totals` has one row for each team; the column `count` tells how many points it has."


@pytest.mark.parametrize(
    ("summary", "why"),
    [
        (GOOD, None),
        ("A table.", "summary too short or too long"),
        (
            "The data is put through groupby by team and the points are added.",
            "names an API: groupby",
        ),
        ("A table with the sum of points for every team, and its name.", "names an API: sum"),
        (
            "The table `totals` has one row per team and the column `points` for it.",
            "what is not there",
        ),
        ("The table `totals` has 7 rows, one for each team that there is.", "wrong size"),
        ("The table `totals` has 3 rows, one for each team that there is.", None),
    ],
)
def test_summaries_that_paraphrase_the_code_or_lie_are_refused(
    summary: str, why: str | None
) -> None:
    found = fault(summary, TRACED, TABLES, api_names(PROGRAM))
    assert (found is None) if why is None else (found is not None and why in found)


@pytest.mark.parametrize(
    ("summary", "wrong"),
    [
        ("`late` has one row for each of the 5 workers, with their team and their hours.", True),
        ("`late` has one row per worker, with the team of the worker and the hours.", True),
        ("`late` has one row for each `id`, with worker and team and the hours.", False),
        ("`late` has one row for each of the 4 ids, with worker and team and the hours.", True),
        ("`late` has one row for each worker and day, with the team and the hours.", False),
        ("`late` has one row for each worker, team and day, together with the hours.", False),
        ("`late` has one row for each shift that began late, with worker and hours.", False),
    ],
)
def test_a_row_stands_for_what_there_are_as_many_of(summary: str, wrong: bool) -> None:
    columns = [
        {"name": "id", "dtype": "int64", "unique_in_head": 5},
        {"name": "worker", "dtype": "object", "unique_in_head": 3},
        {"name": "team", "dtype": "object"},
        {"name": "hours", "dtype": "float64", "unique_in_head": 5},
    ]
    described = {"kind": "dataframe", "type": "pandas.DataFrame", "rows": 5, "columns": columns}
    late = Traced(program="late = df[df.hours > 8]\n", output="late", described=described)
    found = fault(summary, late, TABLES, ())
    assert found == ("summary gives a wrong grain" if wrong else None)
    told = summary_messages("Who was late?", late, TABLES)[-1]["content"]
    assert "worker (object, 3 different)" in told
    assert "team (object)" in told


def test_a_column_may_bear_the_name_of_an_api() -> None:
    counted = 'totals = df.groupby("team").count()\n'
    assert "count" in api_names(counted)
    assert fault(GOOD, TRACED, TABLES, api_names(counted)) is None


def test_clean_summary_leaves_prose() -> None:
    assert clean_summary("## Result\n\n- One row\n  per team.\n```python\nx\n```") == (
        "Result One row per team."
    )
