"""The firewall: what touches the examination does not pass, what does not does."""

from __future__ import annotations

import pytest

from improver.errors import FirewallError
from improver.firewall import Exam, Firewall
from sandbox.spec import Example, Spec, Test

TEXT = "Write a function that returns the largest rise from one reading to the next one."
REFERENCE = """
def steepest(readings):
    best = 0
    for a, b in zip(readings, readings[1:]):
        best = max(best, b - a)
    return best
"""
EXAM = Exam(
    id="rises/1",
    benchmark="own",
    text=TEXT,
    spec=Spec(entry_point="steepest", examples=(Example(input=[[1, 5, 2]], output=4),)),
    reference=REFERENCE,
)
OTHER_TEXT = "Count how many vowels there are in a sentence that somebody typed."
OTHER_CODE = "def vowels(text):\n    return sum(c in 'aeiou' for c in text)\n"
OTHER_SPEC = Spec(entry_point="vowels", examples=(Example(input=["abc"], output=1),))


def check(
    text: str = OTHER_TEXT,
    spec: Spec = OTHER_SPEC,
    program: str = OTHER_CODE,
    *ids: str,
    around: tuple[str, ...] = (),
) -> str | None:
    hit = Firewall([EXAM]).check(text=text, spec=spec, program=program, task_ids=ids, around=around)
    return hit and hit.reason


def test_a_row_of_its_own_passes() -> None:
    assert check() is None


def test_the_task_itself_is_found_in_every_dress() -> None:
    assert check(OTHER_TEXT, OTHER_SPEC, OTHER_CODE, "RISES/1 ") == "same task id"
    assert check(TEXT.upper().replace(" ", "\n  ")) == "same text"
    assert check("Please: " + TEXT.replace("largest", "biggest")) == "similar text"
    assert check(spec=EXAM.spec) == "same check"
    as_assert = Spec(tests=(Test(code="assert steepest([1, 5, 2]) == 4"),))
    assert check(spec=as_assert) == "same check"


def test_the_reference_is_found_with_other_names_comments_and_layout() -> None:
    renamed = REFERENCE.replace("readings", "xs").replace("best", "top").replace("steepest", "f")
    assert check(program='"""Doc."""\n# mine\n' + renamed) == "same program"
    longer = renamed.replace("return top", "top = top + 0\n    return top")
    assert check(program=longer) == "similar program"


LONGER = (
    "I have a service with many sensors, and each writes a file. First open every file and check "
    "its header; skip broken ones and log their names. {} Then send the result to the console, "
    "together with the name of the file, and go on with the next one until there are none left."
)


def test_a_task_inside_something_longer_is_found() -> None:
    assert check(LONGER.format("")) is None
    assert check(LONGER.format(TEXT.lower())) == "contains text"
    reworded = TEXT.replace("Write", "Please also add")
    assert check(LONGER.format(reworded)) == "contains most of a text"
    told = (OTHER_TEXT, OTHER_SPEC, OTHER_CODE)
    assert check(*told, around=("A question before.", LONGER.format(TEXT))) == "contains text"
    docstring = f'def f(xs):\n    """{LONGER.format(TEXT)}"""\n    return xs\n'
    assert check(program=docstring) == "contains text"


def test_a_check_in_the_words_of_a_request_is_found() -> None:
    asked = "Is this right?\n>>> steepest( [1, 5,\n 2] )\n"
    assert check(asked) == "contains a check"
    assert check(asked.replace("5", "6")) is None


def test_a_reference_among_other_functions_is_found() -> None:
    renamed = REFERENCE.replace("readings", "xs").replace("best", "top").replace("steepest", "f")
    others = "\n".join(OTHER_CODE.replace("vowels", f"vowels{n}") for n in range(12))
    assert check(program=others) is None
    assert check(program=f"{others}{renamed}\n{others}") == "contains program"
    method = "class Box:\n" + "\n".join(f"    {line}" for line in renamed.splitlines())
    assert check(program=f"{others}\n{method}\n") == "contains program"
    longer = renamed.replace("return top", "top = top + 0\n    return top")
    assert check(program=f"{others}{longer}") == "contains a similar program"


def test_small_functions_among_others_are_not_alike_by_accident() -> None:
    exam = Exam(
        id="1",
        benchmark="own",
        text="Shortest.",
        spec=Spec(entry_point="shortest"),
        reference="def shortest(lists):\n    return min(lists, key=len)\n",
    )
    program = f"{OTHER_CODE}\ndef by_last(rows):\n    return sorted(rows, key=last)\n"
    hit = Firewall([exam]).check(text=OTHER_TEXT, spec=OTHER_SPEC, program=program)
    assert hit is None


def test_short_programs_are_not_alike_by_accident() -> None:
    exam = Exam(
        id="1",
        benchmark="own",
        text="Add.",
        spec=Spec(entry_point="add"),
        reference="def add(a, b):\n    return a + b\n",
    )
    hit = Firewall([exam]).check(
        text="Subtract two numbers.",
        spec=Spec(entry_point="minus"),
        program="def minus(a, b):\n    return a - b\n",
    )
    assert hit is None


def test_it_fails_closed() -> None:
    with pytest.raises(FirewallError, match="no examination"):
        Firewall([]).check(text="x", spec=Spec(), program="x = 1")
    assert check(program="def broken(:\n") == "not comparable"
    unreadable = Exam(id="1", benchmark="own", text="x", spec=Spec(), reference="def (")
    with pytest.raises(FirewallError, match="not Python"):
        Firewall([unreadable])
