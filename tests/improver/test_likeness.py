"""Groups of tasks that are alike stay on one side of a split."""

from __future__ import annotations

from dataclasses import replace

from improver.dataset import split
from improver.likeness import groups
from improver.types import Row
from tests.improver.test_screen import row

SORT = "Write a function that sorts a list of words by their length, the longest one first."
SORT_TWIN = "Write a function that sorts a list of words by their length, the shortest one first."
PROGRAM = """def f(words):
    found = []
    for word in words:
        if len(word) > 3:
            found.append(word.upper())
    return sorted(found, key=len)
"""


def alike() -> list[Row]:
    return [
        row(1, text=SORT),
        row(2, text=SORT_TWIN),
        row(3, PROGRAM, text="Long words, in capitals."),
        row(4, PROGRAM.replace("word", "item"), text="Shout what is longer than three letters."),
        row(5, text="Tell whether a year is a leap year in the Gregorian calendar, please."),
    ]


def test_twins_by_text_and_by_program_are_one_group() -> None:
    rows = alike()
    found = groups(rows)
    assert found[rows[0].id] == found[rows[1].id]
    assert found[rows[2].id] == found[rows[3].id]
    assert len(set(found.values())) == 3


def test_one_task_is_one_group_and_chains_join() -> None:
    rows = alike()
    bridge = replace(rows[2], id="bridge", task=rows[0].task)
    found = groups([*rows, bridge])
    assert found["bridge"] == found[rows[1].id] == found[rows[3].id]
    assert groups([]) == {}


def test_no_twin_of_a_held_out_row_is_trained_on() -> None:
    rows = [
        row(n, text=f"{SORT_TWIN if n % 2 else SORT} Call it number{n // 2} of room{n // 2}.")
        for n in range(6)
    ]
    others = [row(n) for n in range(100, 160)]
    for seed in range(5):
        made = split([*rows, *others], held_out_share=0.2, seed=seed)
        sides = [{r.id in {h.id for h in made.held_out} for r in rows}]
        assert all(len(side) == 1 for side in sides)
        assert 4 < len(made.held_out) < 30


def test_one_big_group_is_never_most_of_what_is_held_out() -> None:
    rows = [row(n, text=f"{SORT} Case {n}.") for n in range(40)]
    others = [row(n) for n in range(100, 110)]
    for seed in range(20):
        assert len(split([*rows, *others], held_out_share=0.1, seed=seed).held_out) <= 10


def test_preferences_have_files_of_their_own() -> None:
    rows = [row(n) for n in range(60)]
    liked = [
        replace(r, id=f"p{r.id}", recipe="preferences", rejected="no", answer="") for r in rows
    ]
    made = split([*rows, *liked], held_out_share=0.2, seed=7)
    assert {r.recipe for r in made.train} == {r.recipe for r in made.held_out} == {"ilf"}
    assert {f"p{r.id}" for r in made.held_out} == {r.id for r in made.preferences_held_out}
    assert made.report["preferences"] + made.report["preferences_held_out"] == 60
