from __future__ import annotations

import math
import random
from typing import Any

import pytest

from improver.judge import (
    Likelihood,
    Score,
    YesNo,
    answer_logprob,
    auc,
    judge_messages,
    rank,
    word_of,
    yes_no,
)
from improver.mutants import mutants, plain
from tests.improver.scripted import Model

Json = dict[str, Any]


def first(**probabilities: float) -> Json:
    listed = [
        {"token": token.replace("_", " "), "logprob": math.log(p), "bytes": None}
        for token, p in probabilities.items()
    ]
    return {**listed[0], "top_logprobs": listed}


@pytest.mark.parametrize(
    ("token", "word"),
    [
        ("Yes", "yes"),
        (" Yes", "yes"),
        ("\u0120yes", "yes"),
        ("\u2581No", "no"),
        ("YES,", "yes"),
        ("As", "as"),
        ("Not", "not"),
        ("None", "none"),
        ("Y", "y"),
        ("", ""),
    ],
)
def test_words_are_known_in_every_spelling_and_only_whole(token: str, word: str) -> None:
    assert word_of(token) == word


def test_all_spellings_are_added_up_and_the_sampled_token_counts_once() -> None:
    score = yes_no(first(Yes=0.4, _Yes=0.1, yes=0.1, No=0.15, _no=0.05, As=0.2))
    assert score is not None
    assert score.value == pytest.approx(0.6 / 0.8)
    assert not score.bounded


def test_a_word_outside_the_list_is_bounded_by_its_least_entry() -> None:
    score = yes_no(first(Yes=0.9, Maybe=0.05, The=0.01))
    assert score is not None
    assert score.value == pytest.approx(0.9 / 0.91)
    assert score.bounded


def test_neither_word_means_no_score_and_not_one_half() -> None:
    assert yes_no(first(The=0.9, As=0.1)) is None


async def test_the_judge_asks_greedily_for_one_token_with_its_alternatives() -> None:
    model = Model(
        lambda body, index: {"text": "Yes", "logprobs": {"content": [first(Yes=0.8, No=0.2)]}}
    )
    async with model.policy() as policy:
        score = await YesNo(policy).score("Add.", "def add(a, b): return a + b")
    assert score == Score(value=pytest.approx(0.8))  # type: ignore[arg-type]
    (body,) = model.bodies
    assert body["temperature"] == 0
    assert body["max_tokens"] == 1
    assert body["top_logprobs"] == 20
    assert body["messages"] == judge_messages("Add.", "def add(a, b): return a + b")
    assert body["messages"][0]["content"].endswith("Begin your answer with Yes or No.")


def test_the_answer_is_counted_off_from_the_end_of_the_prompt() -> None:
    def token(text: str, logprob: float) -> Json:
        return {"7": {"logprob": logprob, "decoded_token": text}}

    prompt = [None, token("Add.", -9.0), token("\n", -9.0), token("a d", -1.0), token("bc", -0.5)]
    assert answer_logprob(prompt, "a dbc") == pytest.approx(-1.5)
    assert answer_logprob(prompt[-1:], "a dbc") is None
    assert answer_logprob(prompt, "a \u00e9bc") is None


async def test_likelihood_is_read_without_a_tokenizer() -> None:
    answer = "```python\nx = 1\n```"
    prompt = [None, {"1": {"logprob": -3.0, "decoded_token": "Set x."}}]
    prompt.append({"2": {"logprob": -1.9, "decoded_token": answer}})
    model = Model(lambda body, index: {"text": "", "prompt_logprobs": prompt})
    async with model.policy() as policy:
        score = await Likelihood(policy).score("Set x.", "x = 1")
    assert score is not None
    assert score.value == pytest.approx(-1.9 / len(answer))
    assert model.bodies[0]["continue_final_message"] is True


def test_auc_counts_ties_half_and_agrees_with_counting_pairs() -> None:
    assert auc([2, 3], [0, 1]) == 1.0
    assert auc([1, 1], [1, 1]) == 0.5
    assert auc([], [1]) is None
    rng = random.Random(1)
    right = [round(rng.random(), 1) for _ in range(30)]
    wrong = [round(rng.random(), 1) for _ in range(20)]
    pairs = [(r > w) + 0.5 * (r == w) for r in right for w in wrong]
    assert auc(right, wrong) == pytest.approx(sum(pairs) / len(pairs))


def scores(
    rng: random.Random, shift: float, count: int
) -> tuple[dict[str, Score], dict[str, list[Score]]]:
    right = {str(i): Score(value=rng.gauss(shift, 1)) for i in range(count)}
    wrong = {str(i): [Score(value=rng.gauss(0, 1)) for _ in range(2)] for i in range(count)}
    return right, wrong


def test_a_judge_is_believed_when_the_whole_interval_is_above_one_half() -> None:
    good = rank("good", *scores(random.Random(1), 2.0, 30), seed=7)
    assert good.better_than_chance
    assert good.low is not None
    assert good.auc is not None
    assert good.low <= good.auc
    chance = rank("coin", *scores(random.Random(2), 0.0, 30), seed=7)
    assert not chance.better_than_chance
    few = rank("few", *scores(random.Random(1), 9.0, 4), seed=7)
    assert few.auc is not None
    assert not few.better_than_chance, "four programs prove nothing"
    yes_to_all = {str(i): Score(value=0.99) for i in range(30)}
    collapsed = rank("yes", yes_to_all, {k: [v] for k, v in yes_to_all.items()}, seed=7)
    assert collapsed.auc == 0.5
    assert not collapsed.better_than_chance


def test_intervals_are_repeatable() -> None:
    given = scores(random.Random(3), 0.5, 20)
    assert rank("a", *given, seed=1) == rank("a", *given, seed=1)


CODE = '''
def best(items, limit):
    """Docstring."""
    found = []
    for item in items:
        if item > limit and item % 2 == 0:
            found.append(item + 1)
    return max(found)
'''


def test_mutants_differ_in_one_place_and_are_printed_alike() -> None:
    right = plain(CODE)
    assert right is not None
    found = mutants(CODE, count=50, seed=1)
    assert len(found) == len(set(found)) >= 6
    for code in found:
        assert code != right
        changed = [a for a, b in zip(code.splitlines(), right.splitlines(), strict=True) if a != b]
        assert len(changed) == 1
    assert mutants(CODE, count=3, seed=1) == mutants(CODE, count=3, seed=1)
    assert mutants("not python (", count=3, seed=1) == []
    assert mutants("x = 'a %s' % y", count=3, seed=1) == []
