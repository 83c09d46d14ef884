"""Checking programs: every kind of example, hidden ones held back, no pass without proof."""

# ruff: noqa: E501  (programs, one a line where that reads best)

import math
from typing import Any

import pytest

from sandbox.types import Limits, Verdict
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.isolation
SQUARE = "def f(x):\n    return x * x\n"
SPEC = {
    "entry_point": "f",
    "examples": [
        {"input": [2], "output": 4, "hidden": False},
        {"input": [3], "output": 9, "hidden": True},
        {"input": [5]},
    ],
}
TABLE = {"$dataframe": {"columns": ["k", "v"], "data": [["a", 1], ["b", 2], ["a", 3]]}}
SUMS = {"$dataframe": {"columns": ["k", "v"], "data": [["a", 4], ["b", 2]]}}


def test_a_right_program(lab: Lab) -> None:
    found = lab.check(SQUARE, SPEC)
    assert found.verified
    assert found.verdict is Verdict.OK
    assert (found.passed, found.total) == (2, 2)
    assert (found.passed_visible, found.total_visible) == (1, 1)
    assert (found.passed_hidden, found.total_hidden) == (1, 1)
    assert [e.index for e in found.examples] == [0, 1, 2]
    assert [e.checked for e in found.examples] == [True, True, False]
    assert found.feedback() == ""
    assert found.tier is lab.pool.tier


def test_special_casing_the_visible_inputs_does_not_verify(lab: Lab) -> None:
    found = lab.check("def f(x):\n    return 4", SPEC)
    assert not found.verified
    assert (found.passed_visible, found.passed_hidden) == (1, 0)
    assert found.feedback() == "1 further check failed."


def test_hidden_inputs_are_not_in_the_process_while_visible_ones_are_answered(lab: Lab) -> None:
    spy = (
        "import os, gc, select\n"
        "def f(x):\n"
        "    ready, _, _ = select.select([3], [], [], 0.2)\n"
        "    return [x, os.read(3, 65536).decode('latin1') if ready else 'nothing']\n"
    )
    found = lab.check(spy, {"entry_point": "f", "examples": [
        {"input": ["seen"], "output": 0, "hidden": False},
        {"input": ["held-back"], "output": "secret", "hidden": True},
    ]})  # fmt: skip
    assert "nothing" in str(found.examples[0].message)
    assert "held-back" not in str(found.examples[0].message)
    assert "secret" not in found.feedback()
    assert "held-back" not in found.feedback()


def test_nothing_to_check_is_never_verified(lab: Lab) -> None:
    found = lab.check("x = 1", {})
    assert (found.verified, found.verdict, found.total) == (False, Verdict.OK, 0)
    found = lab.check(SQUARE, {"entry_point": "f", "examples": [{"input": [2]}]})
    assert (found.verified, found.verdict, found.total) == (False, Verdict.OK, 0)
    assert found.outputs_digest is not None
    found = lab.check("1 / 0", {})
    assert found.verdict is Verdict.ERROR
    assert found.error_type == "ZeroDivisionError"


def test_agreement_among_candidates(lab: Lab) -> None:
    spec = {"entry_point": "f", "examples": [{"input": [n]} for n in range(3)]}
    digests = [
        lab.check(code, spec).outputs_digest
        for code in (
            SQUARE,
            "f = lambda x: x ** 2",
            "f = lambda x: x + x",
            "f = lambda x: object()",
        )
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert digests[3] is None


@pytest.mark.parametrize(
    ("code", "verdict", "words"),
    [
        ("def f(x): return x + x", Verdict.WRONG, "f(3) returned 6, expected 9"),
        ("def f(x): 1 / 0", Verdict.ERROR, "f(2) raised ZeroDivisionError: division by zero"),
        ("def f(", Verdict.ERROR, "SyntaxError"),
        ("def g(x): pass", Verdict.ERROR, "NameError"),
        ("import sys; sys.exit()", Verdict.ERROR, "SystemExit"),
        ("import os; os._exit(0)", Verdict.EARLY_EXIT, "EARLY_EXIT"),
        ("def f(x):\n  while x > 2: pass\n  return 4", Verdict.TIMEOUT, "f(3): TIMEOUT"),
        ("def f(x): return [x] * 10**10", Verdict.MEMORY, "MemoryError"),
        ("", Verdict.ERROR, "NameError"),
    ],
)
def test_wrong_programs_and_what_is_said(lab: Lab, code: str, verdict: Verdict, words: str) -> None:
    spec = {
        "entry_point": "f",
        "examples": [{"input": [2], "output": 4}, {"input": [3], "output": 9}],
    }
    found = lab.check(code, spec, limits=Limits(wall_s=1))
    assert not found.verified
    assert found.verdict is verdict
    assert words in found.feedback()


def test_what_was_answered_before_a_timeout_counts_but_does_not_verify(lab: Lab) -> None:
    code = "def f(x):\n  if x > 2:\n    while True: pass\n  return x * x"
    found = lab.check(code, SPEC, limits=Limits(wall_s=0.5))
    assert (found.passed, found.verified) == (1, False)


def test_answers_followed_by_a_crash_do_not_verify(lab: Lab) -> None:
    code = (
        "import os, json, struct\n"
        "def f(x):\n"
        "    if x == 3:\n"
        "        body = json.dumps({'value': 9, 'i': 2}).encode()\n"
        "        os.write(4, struct.pack('>I', len(body)) + body)\n"
        "        os._exit(0)\n"
        "    return x * x"
    )
    found = lab.check(code, SPEC)
    assert found.passed == found.total
    assert (found.verified, found.verdict) == (False, Verdict.EARLY_EXIT)


def test_asserts(lab: Lab) -> None:
    tests = [
        "assert f(2) == 4",
        "import math\nassert math.isclose(f(1.5), 2.25)",
        "assert f(3) == 9 and not f(0)",
        "def check(candidate):\n    assert candidate(2) == 4\n    for n in range(20):\n        assert candidate(n) == n * n\n",
    ]
    assert lab.check(SQUARE, {"entry_point": "f", "tests": tests}).verified
    found = lab.check("def f(x): return x + x", {"entry_point": "f", "tests": tests})
    assert [e.verdict for e in found.examples] == [
        Verdict.OK,
        Verdict.WRONG,
        Verdict.WRONG,
        Verdict.WRONG,
    ]


def test_an_assert_means_what_it_says(lab: Lab) -> None:
    assert lab.check("def f(): return 4.0", {"tests": ["assert f() == 4"]}).verified
    assert not lab.check("def f(): return [1]", {"tests": ["assert f() == (1,)"]}).verified
    exact = {"entry_point": "f", "examples": [{"input": [], "output": 4}]}
    assert not lab.check("def f(): return 4.0", exact).verified


def test_tests_use_helpers_constants_and_imports_of_the_program(lab: Lab) -> None:
    code = "import math\nLIMIT = [1, 2]\ndef helper(x): return x + 1\ndef f(x): return helper(x)"
    test = "assert helper(f(1)) == 3 and LIMIT == [1, 2] and math.floor(2.5) == 2"
    assert lab.check(code, {"entry_point": "f", "tests": [test]}).verified


def test_exceptions_cross_to_the_test(lab: Lab) -> None:
    test = "try:\n    f(-1)\nexcept ValueError as e:\n    assert 'neg' in str(e)\nelse:\n    assert False"
    code = "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x"
    assert lab.check(code, {"tests": [test], "entry_point": "f"}).verified
    assert not lab.check("def f(x): return x", {"tests": [test], "entry_point": "f"}).verified


FRAUDS = [
    "class Yes:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\ndef f(x): return Yes()",
    "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\ndef f(x): return I(0)",
    "import sys, os\nos._exit(0)",
    "import builtins\nbuiltins.AssertionError = ValueError\ndef f(x): return None",
    "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 0",
    "def check(c): pass\ndef f(x): return None",
    "import os, struct, json\ndef f(x):\n    b = json.dumps({'done': True}).encode()\n    os.write(4, struct.pack('>I', len(b)) + b)\n    os._exit(0)",
    "def f(x): raise SystemExit(0)",
    "def f(x): raise AssertionError",
    "def f(x): return float('nan')",
]


@pytest.mark.parametrize("code", FRAUDS)
def test_no_fraud_passes_a_test_module(lab: Lab, code: str) -> None:
    for test in (
        "import math\nassert math.isclose(f(3), 9)",
        "def check(candidate):\n    assert candidate(3) == 9",
        "def check(candidate):\n    assert not candidate(3) != 9",
    ):
        found = lab.check(code, {"entry_point": "f", "tests": [test]})
        assert not found.verified, found
        assert found.verdict is not Verdict.OK


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        ("assert f(", Verdict.BAD_TEST),
        ("assert True", Verdict.BAD_TEST),
        ("def check(candidate):\n    pass", Verdict.BAD_TEST),
        ("assert f(lambda: 1) == 1", Verdict.UNSUPPORTED),
        ("assert f(3).real == 9j", Verdict.WRONG),
        ("while f(1): pass", Verdict.TIMEOUT),
        ("import os\nf(1)\nos._exit(0)", Verdict.EARLY_EXIT),
        ("import os\nos.fork()\nassert f(2) == 4", Verdict.ERROR),
    ],
)
def test_tests_that_prove_nothing(lab: Lab, test: str, verdict: Verdict) -> None:
    found = lab.check(SQUARE, {"entry_point": "f", "tests": [test]}, limits=Limits(wall_s=1))
    assert not found.verified
    assert found.verdict is verdict


def test_an_instance_cannot_cross(lab: Lab) -> None:
    code = "class P:\n    def v(self): return 1\ndef f(): return P()"
    found = lab.check(code, {"entry_point": "f", "tests": ["assert f().v() == 1"]})
    assert found.verdict is Verdict.UNSUPPORTED


def test_stdin_programs(lab: Lab) -> None:
    spec: dict[str, Any] = {
        "stdio": [{"input": "3\n", "output": "6\n"}, {"input": "5", "output": "10"}]
    }
    assert lab.check("print(int(input()) * 2)", spec).verified
    found = lab.check("n = int(input())\nprint(n + 3)", spec)
    assert (found.passed, found.total) == (1, 2)
    assert "stdin '5' printed '8\\n', expected '10'" in found.feedback()
    assert not lab.check("print('6\\n')\nimport os\nos._exit(0)", spec).verified
    loud = {"stdio": [{"input": "", "output": "x" * 70_000}]}
    assert lab.check("print('x' * 70000)", loud).verdict is Verdict.OUTPUT_LIMIT


def test_cells_over_tables(lab: Lab) -> None:
    spec: dict[str, Any] = {
        "cells": [
            {
                "variables": {"df": TABLE},
                "setup": "import pandas as pd",
                "outputs": {"out": SUMS, "n": 3},
            }
        ]
    }
    good = "out = df.groupby('k', as_index=False)['v'].sum()\nn = len(df)"
    assert lab.check(good, spec).verified
    assert "`n` is not defined" in lab.check(good.split("\n")[0], spec).feedback()
    found = lab.check("out = df.groupby('k')['v'].sum()\nn = 3", spec)
    assert found.verdict is Verdict.WRONG
    assert "pd.Series([4, 2]" in found.feedback()
    echo = "out = pd.DataFrame({'k': ['a', 'b'], 'v': [4, 2]})\nn = 3"
    assert lab.check(echo, spec).verified, "one table cannot tell an echo; several can"
    other = {"$dataframe": {"columns": ["k", "v"], "data": [["z", 7]]}}
    spec["cells"].append({"variables": {"df": other}, "outputs": {"out": other}, "hidden": True})
    assert not lab.check(echo, spec).verified
    assert lab.check(good, spec).verified


def test_cell_options(lab: Lab) -> None:
    cell: dict[str, Any] = {"variables": {"df": TABLE}, "outputs": {"out": TABLE}}
    shuffled = "out = df.iloc[::-1]"
    assert not lab.check(shuffled, {"cells": [cell]}).verified
    loose = {**cell, "ignore_order": True, "ignore_index": True}
    assert lab.check(shuffled, {"cells": [loose]}).verified
    floats = "out = df.assign(v=df['v'] + 0.001)"
    assert not lab.check(floats, {"cells": [cell]}).verified
    assert lab.check(floats, {"cells": [{**cell, "tolerance": 0.01}]}).verified


def test_results_as_arrays_and_tables(lab: Lab) -> None:
    array = {"$array": {"data": [[1, 2], [3, 4]], "dtype": "int64"}}
    spec = {"entry_point": "f", "examples": [{"input": [TABLE], "output": array}]}
    code = "import numpy as np\ndef f(df):\n    assert df['v'].sum() == 6\n    return np.array([[1, 2], [3, 4]]){}"
    assert lab.check(code.format(""), spec).verified
    assert not lab.check(code.format(".astype(float)"), spec).verified
    assert not lab.check(code.format(".T"), spec).verified


def test_special_numbers(lab: Lab) -> None:
    nan = {"$float": "nan"}
    spec = {"entry_point": "f", "examples": [{"input": [nan], "output": nan}]}
    assert lab.check("def f(x): return x", spec).verified
    assert math.isnan(lab.run("def f(x): return x", entry="f", calls=[[math.nan]]).values[0])  # type: ignore[arg-type]


def test_stopping_early_counts_everything_and_runs_less(lab: Lab) -> None:
    spec = {"stdio": [{"input": str(n), "output": str(n)} for n in range(3)]}
    found = lab.check("print(1)", spec, stop_early=True)
    assert (found.total, len(found.examples)) == (3, 1)
    found = lab.check("def f(x): return 0", SPEC, stop_early=True)
    assert (found.total, found.passed, found.verified) == (2, 0, False)
    assert lab.check(SQUARE, SPEC, stop_early=True).verified


def test_programs_that_change_their_arguments_see_fresh_ones_each_call(lab: Lab) -> None:
    spec = {"entry_point": "f", "examples": [{"input": [[1]], "output": [1, 2]}] * 3}
    assert lab.check("def f(xs):\n    xs.append(2)\n    return xs", spec).verified


def test_too_long_a_source_is_not_cut_and_run(lab: Lab) -> None:
    found = lab.check(SQUARE + "#" * (33 << 20), SPEC)
    assert (found.verified, found.verdict) == (False, Verdict.ERROR)
    assert found.error_type == "SyntaxError"


def test_many_checks_with_tests_at_once_do_not_wait_for_each_other_for_ever(lab: Lab) -> None:
    import asyncio

    from sandbox.spec import parse_spec

    spec = parse_spec({"entry_point": "f", "tests": ["import math\nassert math.isclose(f(2), 4)"]})

    async def many() -> list[bool]:
        found = await asyncio.gather(*(lab.pool.check(SQUARE, spec) for _ in range(12)))
        return [v.verified for v in found]

    assert lab.do(many(), timeout_s=60) == [True] * 12
