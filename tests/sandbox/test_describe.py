"""Describing an execution: what went in and out, without calling a program's own methods."""

# ruff: noqa: E501  (programs, one a line where that reads best)

from typing import Any

import pytest

from sandbox.describe import describe_value, merge, specify, type_name
from sandbox.spec import parse_spec, render
from sandbox.types import Verdict
from sandbox.values import Frame, Index
from tests.sandbox.conftest import Lab

TABLE = Frame(
    Index(("k", "v")),
    ("str", "int64"),
    Index((0, 1, 2), default=True),
    (("a", "b", "a"), (1, 2, 3)),
)


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["name"] for item in items]


@pytest.mark.isolation
def test_inputs_outputs_and_the_last_expression(lab: Lab) -> None:
    code = "total = df['v'].sum()\ntop = df.sort_values('v', ascending=False).head(n)\ntop"
    run = lab.run(code, variables={"df": TABLE, "n": 2, "unused": 1}, describe=True)
    assert run.verdict is Verdict.OK
    found = run.description
    assert found is not None
    assert names(found["inputs"]) == ["df", "n"]
    assert names(found["outputs"]) == ["total", "top"]
    assert found["last"]["kind"] == "dataframe"
    df, top = found["inputs"][0], found["outputs"][1]
    assert (df["type"], df["rows"], df["width"]) == ("pandas.DataFrame", 3, 2)
    assert [c["name"] for c in df["columns"]] == ["k", "v"]
    assert df["columns"][1]["dtype"] == "int64"
    assert df["columns"][0]["examples"] == ["a", "b", "a"]
    assert top["head"] == [["a", 3], ["b", 2]]
    assert found["volatile"] == []
    assert set(found["libraries"]) >= {"python", "numpy", "pandas"}
    assert found["tier"] == lab.pool.tier.label


@pytest.mark.isolation
def test_changing_a_variable_in_place_reads_and_writes_it(lab: Lab) -> None:
    run = lab.run("df['w'] = df['v'] * 2", variables={"df": TABLE}, describe=True)
    assert run.description is not None
    assert names(run.description["inputs"]) == names(run.description["outputs"]) == ["df"]
    assert run.description["inputs"][0]["width"] == 2
    assert run.description["outputs"][0]["width"] == 3


@pytest.mark.isolation
def test_what_differs_between_two_runs_is_volatile_and_left_out(lab: Lab) -> None:
    code = (
        "import random, time, numpy as np\n"
        "noise = np.random.rand(4)\nnow = time.time()\npick = random.random()\n"
        "order = list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})\nsteady = 5"
    )
    run = lab.run(code, describe=True)
    found = run.description
    assert found is not None
    outputs = {item["name"]: item for item in found["outputs"]}
    assert outputs["steady"]["value"] == 5
    for name in ("noise", "now", "pick", "order"):
        assert "value" not in outputs[name], name
        assert f"outputs.{name}.value" in found["volatile"]
    assert outputs["noise"]["shape"] == [4]


@pytest.mark.isolation
def test_a_programs_own_objects_are_named_and_never_asked(lab: Lab) -> None:
    code = (
        "class Trap:\n"
        "    def __getattr__(self, name):\n        raise SystemExit\n"
        "    __repr__ = __str__ = __len__ = __iter__ = __hash__ = __eq__ = "
        "lambda *a: (_ for _ in ()).throw(SystemExit)\n"
        "t = Trap()\nl = [t, 1]\nd = {'k': t}\n"
        "import pandas as pd\ndf = pd.DataFrame({'o': [t, t]})\n"
    )
    run = lab.run(code, describe=True)
    assert run.verdict is Verdict.OK, run
    assert run.description is not None
    outputs = {item["name"]: item for item in run.description["outputs"]}
    assert outputs["t"]["type"] == "Trap"
    assert outputs["l"]["type"] == "list[Trap | int]"
    assert outputs["d"]["type"] == "dict[str, Trap]"
    assert outputs["df"]["columns"][0]["examples"][0] == {"$opaque": "Trap"}


@pytest.mark.isolation
def test_descriptions_stay_small(lab: Lab) -> None:
    code = "import numpy as np, pandas as pd\nbig = pd.DataFrame(np.zeros((50_000, 100)))\ntext = 'x' * 10**6"
    run = lab.run(code, describe=True)
    assert run.description is not None
    assert len(str(run.description)) < 40_000
    big = run.description["outputs"][0]
    assert (big["rows"], big["width"], len(big["columns"])) == (50_000, 100, 60)
    assert "value" not in big


@pytest.mark.isolation
def test_a_program_that_fails_has_no_description(lab: Lab) -> None:
    run = lab.run("x = 1\n1 / 0", describe=True)
    assert run.word == "ERROR:ZeroDivisionError"
    assert run.description is None


@pytest.mark.isolation
def test_the_specification_made_from_a_run_is_met_by_its_program(lab: Lab) -> None:
    code = "out = df.groupby('k', as_index=False)['v'].sum()\nn = len(df)"
    run = lab.run(code, variables={"df": TABLE}, describe=True)
    assert run.description is not None
    spec = specify(run.description)
    assert parse_spec(spec.to_json()) == spec
    assert lab.check(code, spec.to_json()).verified
    assert not lab.check("out = df\nn = 3", spec.to_json()).verified
    text = render(spec, ("types",))
    assert "Input variable `df`: pandas.DataFrame (3 rows; columns 'k' (str, e.g. 'a')" in text
    assert "Output variable `n`: int" in text
    assert "pd.DataFrame" in render(spec, ("examples",))


def test_structural_types() -> None:
    assert type_name([1, "a", 2]) == "list[int | str]"
    assert type_name({"a": [{"b": 1.0}]}) == "dict[str, list[dict[str, float]]]"
    assert type_name((1, None)) == "tuple[int, None]"
    assert type_name([]) == "list"


def test_code_is_no_data() -> None:
    assert describe_value(len)["kind"] == "code"
    assert describe_value(pytest)["kind"] == "module"
    assert describe_value(3) == {"kind": "scalar", "type": "int", "value": 3}


def test_without_a_second_run_everything_is_volatile() -> None:
    first = {"inputs": [], "outputs": [{"name": "a", "kind": "scalar", "type": "int", "value": 1}]}
    merged = merge(first, None)
    assert merged["outputs"] == [{"name": "a", "kind": "scalar"}]
    assert merged["volatile"] == ["outputs.a.type", "outputs.a.value"]
