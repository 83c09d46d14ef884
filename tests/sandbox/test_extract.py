"""Programs out of answers: fences, prose, truncation, hostile text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.extract import extract_program, program_for, program_sha256, without_trials
from sandbox.spec import Spec

F = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (f"Here:\n```python\n{F}```\nDone.", F),
        (f"```py\n{F}```", F),
        (f"```Python3\r\n{F}```".replace("\n", "\r\n"), F),
        (f"~~~python\n{F}~~~", F),
        (f"```\n{F}```", F),
        (f"```python title=x.py\n{F}```", F),
        ("- step\n  ```python\n  def f(x):\n      return x\n  ```", F),
        (f"````python\n{F}x = '''\n```\n'''\n````", F + "x = '''\n```\n'''\n"),
        (f"```python\n{F}", F),
        (f"Sure.\n\n{F}\nThis returns x.", F),
        (F, F),
        ("x = 1\nprint(x)", "x = 1\nprint(x)\n"),
        ("Sorry, I cannot do that.", None),
        ("", None),
        ("```\n```", None),
        ("```javascript\nfunction f() {}\n```", None),
        ("Hello", None),
    ],
)
def test_one_program(answer: str, program: str | None) -> None:
    assert extract_program(answer) == program


def test_the_last_block_that_defines_the_entry_point_wins() -> None:
    better = "def f(x):\n    return x + 1\n"
    answer = f"```python\n{F}```\nWait:\n```python\n{better}```\nUse:\n```python\nprint(f(1))\n```"
    assert extract_program(answer, entry_point="f") == better


def test_without_an_entry_point_the_longest_python_block_wins() -> None:
    first = "```\npip install a-rather-long-package-name-indeed-it-is\n```\n"
    answer = f"{first}```python\n{F}```\n```python\nf(1)\n```"
    assert extract_program(answer) == F


def test_sessions_and_shells_are_no_programs() -> None:
    answer = f"```python\n>>> f(1)\n1\n```\n```bash\npip install x\n```\n```python\n{F}```"
    assert extract_program(answer) == F


def test_an_entry_point_defined_by_assignment_counts() -> None:
    first = "```python\nprint('a long first block that defines nothing')\n```\n"
    answer = f"{first}```python\nf = lambda x: x\n```"
    assert extract_program(answer, entry_point="f") == "f = lambda x: x\n"


def test_a_hostile_entry_point_is_only_text() -> None:
    assert extract_program(f"```python\n{F}```", entry_point="(f") == F


@given(st.text(alphabet="`~pythondef f(x):\n =1#>", max_size=200), st.none() | st.text(max_size=5))
def test_never_raises(answer: str, entry: str | None) -> None:
    program = extract_program(answer, entry_point=entry)
    assert program is None or program.endswith("\n")


@pytest.mark.parametrize(
    "answer",
    [
        "`" * 300_000,
        "```\n" * 100_000,
        "if " * 100_000,
        "x = (" * 60_000,
        "\n" * 300_000,
        "a=" * 150_000,
    ],
)
def test_hostile_answers_take_bounded_time(answer: str) -> None:
    began = time.process_time()
    extract_program(answer, entry_point="f")
    assert time.process_time() - began < 3


SOLVED = "def f(x):\n    # keep\n    return x\n"


@pytest.mark.parametrize(
    "tail",
    [
        "\nassert f(1) == 2\n",
        "\n# Test cases\nprint(f(1))\nassert f(2) == 3, 'no'\n",
        "\nif __name__ == '__main__':\n    assert f(1) == 2\n",
        "\n\nassert (\n    f(1)\n    == 2\n)\n",
    ],
)
def test_the_models_own_trials_are_not_part_of_its_function(tail: str) -> None:
    spec = Spec(tests=({"code": "assert f(1) == 1"},))
    assert program_for(f"```python\n{SOLVED}{tail}```", spec) == SOLVED


def test_a_script_or_cell_is_taken_whole() -> None:
    code = "def f(x):\n    return x\n\nprint(f(int(input())))\n"
    spec = Spec(stdio=({"input": "1\n", "output": "1\n"},))
    assert program_for(f"```python\n{code}```", spec) == code


@pytest.mark.parametrize(
    "source",
    ["print(1)\n", "assert True\n", "def f(:\n", "def f(x): return x; assert 0\n", "x = 1\n"],
)
def test_what_defines_nothing_or_cannot_be_told_apart_stays(source: str) -> None:
    assert without_trials(source) == source


def test_the_function_that_tests_name_is_the_one_looked_for() -> None:
    text = (
        "```python\ndef f(x):\n    return x\n```\nUse it:\n```python\n" + "y = f(1)\n" * 9 + "```"
    )
    spec = Spec(tests=({"code": "assert f(1) == 1"},))
    assert program_for(text, spec) == "def f(x):\n    return x\n"


@pytest.mark.parametrize("same", [F.strip(), f"\n\n{F}\n  \n", F.replace("\n", " \t\r\n")])
def test_a_program_has_one_name_whatever_its_blank_ends(same: str) -> None:
    assert program_sha256(same) == program_sha256(F)


@pytest.mark.parametrize("other", [F.replace("x", "y"), F.replace("\n    ", "\n  "), "", "\ud800"])
def test_other_programs_have_other_names(other: str) -> None:
    assert program_sha256(other) != program_sha256(F)
    assert program_sha256("x = 'a\u2028b'") != program_sha256("x = 'a\nb'")
