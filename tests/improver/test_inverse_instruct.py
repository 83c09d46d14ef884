"""Inverse-Instruct on a scripted model; the tests' own programs run in this process."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from improver.corpus import Snippet
from improver.recipes.base import fenced
from improver.recipes.inverse_instruct import (
    OPENINGS,
    SELF_MADE,
    TRUSTED,
    InverseInstruct,
    Options,
    Order,
    Selection,
    arrange,
    defined_name,
    tidy,
    unfit,
    without_docstrings,
)
from improver.types import Origin, Row
from sandbox.spec import Spec, Test
from sandbox.types import Run, Tier, Verdict, Verification
from tests.improver.scripted import Json, Model, said_last, tools


class InThisProcess:
    """Runs what the tests wrote. No isolation at all."""

    workers = 2

    async def run(self, code: str, **unused: Any) -> Run:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, {"__name__": "program"})
        except Exception as error:
            return Run(Verdict.ERROR, Tier.NONE, type(error).__name__, str(error))
        return Run(Verdict.OK, Tier.NONE)

    async def check(self, code: str, spec: Spec, **unused: Any) -> Verification:
        names: Json = {}
        passed = 0
        try:
            exec(code, names)
            for test in spec.tests:
                with contextlib.suppress(Exception):
                    exec(test.code, names)
                    passed += 1
        except Exception:
            passed = 0
        total = len(spec.tests)
        verdict = Verdict.OK if passed == total else Verdict.WRONG
        return Verification(
            verified=passed == total > 0,
            verdict=verdict,
            passed=passed,
            total=total,
            passed_visible=passed,
            total_visible=total,
            passed_hidden=0,
            total_hidden=0,
            examples=(),
            duration_s=0.0,
            tier=Tier.NONE,
        )


def snippet(number: int, **more: Any) -> Snippet:
    code = (
        f'def scale{number}(items):\n    """Scale by {number}."""\n    total = []\n'
        f"    for item in items:\n        if item > {number}:\n"
        f"            total.append(item * {number} + 1)\n    return total\n"
    )
    given: Json = {
        "id": f"s{number}",
        "code": code,
        "origin": Origin.CORPUS,
        "source": f"rows:{number}",
        "licence": "MIT",
        "spec": Spec(
            tests=(Test(code=f"assert scale{number}([{number + 1}]) != []", hidden=True),)
        ),
    }
    return Snippet(**{**given, **more})


GOOD = " function that multiplies every large number of a list and adds one to it."


def first(yes: float) -> Json:
    listed = [
        {"token": "Yes", "logprob": math.log(yes), "bytes": None},
        {"token": "No", "logprob": math.log(1 - yes), "bytes": None},
    ]
    return {**listed[0], "top_logprobs": listed}


class Author:
    """Writes summaries, and judges: as well as it can, or Yes to everything."""

    def __init__(self, *, sees: bool) -> None:
        self.sees = sees
        self.right: dict[str, str] = {}

    def __call__(self, body: Json, index: int) -> str | Json:
        asked = str(body["messages"][0]["content"])
        if "Begin your answer with Yes or No" in asked:
            return {"text": "Yes", "logprobs": {"content": [first(self._judged(asked))]}}
        if body.get("continue_final_message"):
            return f"{GOOD} Variant {len(said_last(body))}{index}.\n```python\ndef leaked(): ...\n"
        name = asked.split("`")[-2]
        number = name.removeprefix("scale")
        # What is written for a longer instruction passes.
        ok = asked.count("Variant") and index == 0
        return fenced(f"def {name}(items):\n    return [{number}] if {bool(ok)} else []")

    def _judged(self, asked: str) -> float:
        if not self.sees:
            return 0.97
        wrong = (
            any(
                sign in asked
                for sign in ("<=", " - 1", "return None", "not item", ".extend", "/", "+ 2")
            )
            or "item + " in asked
        )
        return 0.2 if wrong else 0.8


async def build(
    directory: Path, snippets: list[Snippet], author: Any, **options: Any
) -> tuple[list[Row], Json, Counter[str], Model]:
    model = Model(author)
    runner = InThisProcess()
    made, journal = tools(model, runner, directory)
    given = {"summaries": 4, **options}
    recipe = InverseInstruct(Options(**given), snippets=snippets, runner=runner)
    with journal:
        async with made.policy:
            built = await recipe.build([], made)
    return built.rows, built.report, Counter(drop.reason for drop in built.drops), model


def asking(number: int) -> list[Json]:
    return [{"role": "user", "content": f"Please write scale{number}, as in the old library."}]


async def test_one_instruction_of_each_program_then_the_trusted_pairs(tmp_path: Path) -> None:
    snippets = [snippet(n) for n in range(2, 8)]
    snippets += [snippet(n, messages=asking(n)) for n in range(8, 14)]
    rows, report, drops, model = await build(tmp_path, snippets, Author(sees=True))
    made = [row for row in rows if row.provenance["phase"] == SELF_MADE]
    trusted = [row for row in rows if row.provenance["phase"] == TRUSTED]
    assert len(made) == 12
    assert len(trusted) == 6
    assert rows == made + trusted, "self-made first, trusted last"
    assert [row.provenance["epochs"] for row in (made[0], trusted[0])] == [1, 2]
    assert report["selection"] == "judge"
    assert report["judges"][0]["better_than_chance"]
    assert drops["another summary of the same code"] + drops["same summary twice"] == 12 * 3
    for row in made:
        assert "leaked" not in row.messages[0]["content"], "it stops at the fence"
        assert row.messages[0]["content"].startswith(OPENINGS)
        assert len(row.provenance["scores"]) >= 1
        assert row.provenance["licence"] == "MIT"
        assert row.answer == fenced(row.program)
        assert "assert" not in row.messages[0]["content"], "hidden checks stay hidden"
    # Both pairs of one program fall on one side of the split.
    task = {row.task for row in rows if row.provenance["snippet"] == "s9"}
    assert len(task) == 1
    assert len({row.task for row in rows}) == 12
    summary = next(b for b in model.bodies if b.get("continue_final_message"))
    assert summary["stop"] == ["```"]
    assert summary["repetition_penalty"] == 1.1
    assert summary["temperature"] == 0.8
    assert summary["messages"][-1]["role"] == "assistant"
    assert summary["messages"][-1]["content"] in OPENINGS
    assert sum(b["n"] for b in model.bodies if b.get("continue_final_message")) == 12 * 4


async def test_a_judge_that_says_yes_to_all_is_replaced_by_execution(tmp_path: Path) -> None:
    checked = [snippet(n, messages=asking(n)) for n in range(2, 12)]
    unchecked = [snippet(20, spec=Spec()), snippet(21, spec=Spec())]
    rows, report, _, _ = await build(tmp_path, [*checked, *unchecked], Author(sees=False))
    (ranking,) = report["judges"]
    assert ranking["auc"] == 0.5
    assert not ranking["better_than_chance"]
    assert report["selection"] == "execution"
    assert report["selected_by"] == {"execution": 10, "random": 2}
    made = [row for row in rows if row.provenance["selected_by"] == "execution"]
    # Two round trips, of which one passes.
    assert {score for row in made for score in row.provenance["scores"]} == {0.5}


async def test_the_papers_selection_and_the_control_can_be_asked_for(tmp_path: Path) -> None:
    snippets = [snippet(n) for n in range(2, 5)]
    author = Author(sees=False)
    _, report, _, model = await build(
        tmp_path / "a", snippets, author, selection=Selection.RANDOM, top_k=2
    )
    assert report["selected_by"] == {"random": 6}
    assert report["judges"] == []
    assert not any(b.get("top_logprobs") for b in model.bodies)
    # With the same journal: the summaries are asked for once, the judge is tried all the same.
    _, report, _, model = await build(tmp_path / "a", snippets, author, selection=Selection.JUDGE)
    assert not any(b.get("continue_final_message") for b in model.bodies)
    assert report["selected_by"] == {"judge": 3}
    assert report["judges"][0]["auc"] == 0.5, "its worth is reported all the same"


async def test_code_that_does_not_run_is_never_asked_about(tmp_path: Path) -> None:
    snippets = [
        snippet(2, code="import nothing_of_this_name\nx = 1\n", spec=Spec()),
        snippet(3, code="def scale3(items):\n    return []\n"),
        snippet(4),
        snippet(5, code="values = [1, 2, 3]\nprint(values[7])\n", spec=Spec()),
    ]
    rows, report, drops, model = await build(tmp_path, snippets, Author(sees=True))
    assert {row.provenance["snippet"] for row in rows} == {"s4"}
    assert drops["code needs what the sandbox lacks"] == 1
    assert drops["code does not run"] == 1
    assert drops["code fails its own checks"] == 1
    assert report["snippets_usable"] == 1
    asked = [b for b in model.bodies if b.get("continue_final_message")]
    assert sum(b["n"] for b in asked) == 4


async def test_the_firewall_sees_new_and_trusted_pairs(tmp_path: Path) -> None:
    def leak(body: Json, index: int) -> str | Json:
        return " function that counts the vowels of a text, case aside." if index else GOOD

    count = (
        "def count_vowels(words):\n    total = 0\n    for letter in words.lower():\n"
        "        if letter in 'aeiou':\n            total += 1\n    return total\n"
    )
    exam = snippet(2, code=count, spec=Spec(), messages=asking(2))
    rows, _, drops, _ = await build(
        tmp_path, [exam, snippet(3)], leak, selection=Selection.RANDOM, bare_share=0.0, top_k=4
    )
    assert {row.provenance["snippet"] for row in rows} == {"s3"}
    assert drops["examination: same program"] >= 2
    assert not any("vowels" in row.messages[0]["content"] for row in rows)


async def test_old_instructions_do_not_come_back(tmp_path: Path) -> None:
    old = "Write a Python" + GOOD

    def parrot(body: Json, index: int) -> str | Json:
        return GOOD

    asked = snippet(2, messages=[{"role": "user", "content": old}])
    rows, report, drops, _ = await build(
        tmp_path, [asked, snippet(3)], parrot, selection=Selection.RANDOM
    )
    assert [row.provenance["phase"] for row in rows] == [TRUSTED]
    assert drops["near an old instruction"] >= 2
    assert drops["no usable summary"] == 2
    assert report["summaries_usable"] == 0


async def test_a_killed_build_asks_nothing_twice(tmp_path: Path) -> None:
    snippets = [snippet(n, messages=asking(n)) for n in range(2, 5)]
    first_rows, first_report, _, _ = await build(tmp_path, snippets, Author(sees=True))
    rows, report, _, model = await build(tmp_path, snippets, Author(sees=True))
    assert rows == first_rows
    assert report == first_report
    assert model.bodies == []


async def test_the_controls_of_order(tmp_path: Path) -> None:
    snippets = [snippet(n, messages=asking(n)) for n in range(2, 6)]
    rows, *_ = await build(tmp_path, snippets, Author(sees=True), selection=Selection.RANDOM)
    turned = arrange(rows, Order.TRUSTED_FIRST, seed=1)
    assert [row.provenance["selected_by"] for row in turned[:4]] == [None] * 4
    assert [row.provenance["phase"] for row in turned] == [1] * 4 + [2] * 4
    assert [row.provenance["epochs"] for row in turned] == [2] * 4 + [1] * 4
    mixed = arrange(rows, Order.MIXED, seed=1)
    assert {row.provenance["phase"] for row in mixed} == {1}
    assert {row.id for row in mixed} == {row.id for row in rows}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Write a Python function that adds two numbers.", None),
        ("Write a Python function.", "summary too short"),
        (
            "Write a Python function that does what the code above does.",
            "summary speaks of the code",
        ),
        ("Write a Python function, as in the given code, for sums.", "summary speaks of the code"),
        (
            "Write a Python function that adds. However, do not include any actual code.",
            "summary speaks of the code",
        ),
        (
            "Write a Python function that adds two 数字 and returns them.",
            "summary changes its script",
        ),
        ("Write a Python function that adds two naïve numbers to 総.", None),
        ("Write a Python function like this one:\ndef add(a, b):\n    pass", "summary holds code"),
        (
            "Write a Python function so that\n  total = first_number + second_number",
            "summary holds code",
        ),
    ],
)
def test_what_is_no_instruction(text: str, why: str | None) -> None:
    code = "def add(first_number, second_number):  # 総\n    total = first_number + second_number\n"
    assert unfit(text, code, cut=False) == why
    assert unfit(text, code, cut=True) == "summary cut off"


def test_instructions_end_before_the_words_that_lead_up_to_code() -> None:
    said = " class for stacks.\n\nIt can push and pop.\n\nHere is an example:\n```python\nx"
    assert tidy("Write a Python", said) == (
        "Write a Python class for stacks.\n\nIt can push and pop."
    )
    assert tidy("I want a Python", "script that sorts.") == "I want a Python script that sorts."


@pytest.mark.parametrize(
    "after",
    [
        " Here's how you can implement it:",
        " For example:",
        "\n\n**Solution:**\n1. Sort the list.\n2. Return it.",
        "\n\nTo solve this problem, we sort.",
        "\n\nIn this solution:\n1. The list is sorted.",
        " Here is an example implementation in Python, which sorts.",
        "\n\nHere's a detailed breakdown of how you might do it: 1. Sort.",
    ],
)
def test_instructions_end_before_their_solution(after: str) -> None:
    said = " function that sorts a list. The input: a list of numbers."
    assert tidy("Write a Python", said + after) == f"Write a Python{said}"


def test_a_colon_within_an_instruction_stays() -> None:
    said = " function with these parameters:\n- items: a list\n- key: here is the name to sort by"
    assert tidy("Write a Python", said) == f"Write a Python{said}"


def test_docstrings_are_taken_out_and_nothing_else() -> None:
    code = (
        'def f(x):\n    """Say what.\n\n    At length.\n    """\n    # why\n    return x\n\n\n'
        'class A:\n    """Nothing else."""\n'
    )
    assert without_docstrings(code) == (
        "def f(x):\n    # why\n    return x\n\n\nclass A:\n    pass\n"
    )
    assert without_docstrings("x = 1\n") == "x = 1\n"
    assert defined_name(code) == "f"
