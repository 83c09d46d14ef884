from __future__ import annotations

import pandas as pd

from improver.contexts import Context
from improver.intents import TABLE_TASKS, intent_messages, is_like, read_tasks, unfit, write_intents
from tests.improver.scripted import Model

CONTEXT = Context(
    id="c", title="c", load="", calls=(([1], 2), ([3], 4)), parameters=("a", "b"), source="request"
)


def test_numbered_lines_are_read_in_the_forms_models_use() -> None:
    answer = (
        "Sure!\nTask 1: Count the rows.\n2. Sort the rows by year.\n"
        "**Task 3:** Drop the empty ones.\n- Task 4) Rank them.\nbye"
    )
    assert read_tasks(answer) == [
        "Count the rows.",
        "Sort the rows by year.",
        "Drop the empty ones.",
        "Rank them.",
    ]


YEARS = Context(
    id="t",
    title="years.csv",
    load='df = pd.read_csv("years.csv")',
    tables={"df": pd.DataFrame({"year": [1990, 1991], "unit_price": [5.5, 6.1]})},
    source="tables",
)


def test_what_is_no_task_is_told_apart() -> None:
    for text, why in (
        ("Which year had the highest unemployment?", None),
        ("Sort it.", "intent too short or too long"),
        ("Compute the mean of all columns with df.mean()", "intent is code"),
        (TABLE_TASKS[0], "intent copies the exemplar"),
        ("In which year were the fewest deliveries late?", "intent is about the exemplar's data"),
        ("In which year was the price above its mean?", None),
    ):
        assert unfit(text, YEARS) == why, text
    # Calls have an exemplar of their own.
    assert unfit("How many deliveries are later than the given day?", CONTEXT) is None


def test_the_prompt_names_the_columns_of_exemplar_and_table() -> None:
    exemplar, _, asked = (m["content"] for m in intent_messages(YEARS, 6))
    assert "these columns and nothing else: `day`, `supplier`, " in exemplar
    assert asked.endswith("these columns and nothing else: `year`, `unit_price`.")
    assert "columns" not in intent_messages(CONTEXT, 6)[2]["content"]


def test_near_duplicates_differ_in_a_word_or_two() -> None:
    old = ["Which three years had the highest unemployment rate in the table?"]
    assert is_like("Which five years had the highest unemployment rate in the table?", old)
    assert not is_like("How does inflation move with unemployment over the decades?", old)


def test_the_prompt_shows_an_answered_exemplar_and_the_inputs() -> None:
    messages = intent_messages(CONTEXT, 6)
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"].count("Task ") == 10
    assert "solution([1], 2)" in messages[2]["content"]


async def test_intents_are_asked_again_until_there_are_enough() -> None:
    lists = [
        "Task 1: Count the values above the threshold.\nTask 2: Count the values above the limit.\n"
        "Task 3: ok\nTask 4: half a li",
        "Task 1: Return the list sorted from large to small.\n"
        "Task 2: Is any value equal to the key?",
    ]
    model = Model(
        lambda body, index: {
            "text": lists[len(model.bodies) - 1],
            "finish_reason": "length" if len(model.bodies) == 1 else "stop",
        }
    )
    async with model.policy() as policy:
        found = await write_intents(policy, CONTEXT, count=3, temperature=0.8, seed=1)
    assert found.texts == [
        "Count the values above the threshold.",
        "Return the list sorted from large to small.",
        "Is any value equal to the key?",
    ]
    assert found.left_out == ["near-duplicate intent", "intent too short or too long"]
    assert found.adapter_version == 3
    assert len(model.bodies) == 2
