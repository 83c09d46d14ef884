"""The manner of answers: what is read off one, what is said of an arm."""

from __future__ import annotations

import math

import pytest

from improver.drift import LEAST_ANSWERS, Limits, Manner, Seen, exceeded, manner, traits

ONE = (
    "def total(items):\n    result = 0\n    for item in items:\n        result += item\n"
    "    return result\n"
)
OTHER = "import re\nwords = re.findall('[a-z]+', text)\nprint(sorted(set(words), key=len)[-1])\n"


def seen(program: str | None, text: str = "", tokens: int = 10, both_solved: bool = True) -> Seen:
    found = traits(text or program or "", program)
    return Seen(tokens=tokens, traits=found, both_solved=both_solved)


@pytest.mark.parametrize(
    ("text", "declines", "asks"),
    [
        ("I'm sorry, I cannot help with that.", True, False),
        ("Could you clarify what the input is?", False, True),
        ("What should it return?", False, True),
        ("Here it is: use a loop.", False, False),
        ("", False, False),
    ],
)
def test_an_answer_without_a_program_declines_or_asks(
    text: str, declines: bool, asks: bool
) -> None:
    found = traits(text, None)
    assert (found["declines"], found["asks"]) == (declines, asks)
    assert "declines" not in traits(text, "x = 1")


def test_answers_that_are_alike_are_seen_to_be() -> None:
    alike = manner([seen(ONE), seen(ONE.replace("total", "summed"))])
    apart = manner([seen(ONE), seen(OTHER)])
    assert alike.similarity == 1.0
    assert apart.similarity is not None
    assert apart.similarity < 0.2
    assert manner([seen(ONE)]).similarity is None
    assert manner([]) == Manner()


def test_entropy_counts_the_rest_as_one_token_more() -> None:
    half = {"top_logprobs": [{"logprob": math.log(0.5)}]}
    sure = {"top_logprobs": [{"logprob": 0.0}]}
    text = "So: x = 1"
    said = [{"token": "So: ", **half}, {"token": "x = ", **sure}, {"token": "1", **half}]
    # The prose before the program does not count.
    assert traits(text, "x = 1", said)["entropy"] == pytest.approx(math.log(2) / 2, abs=1e-4)
    assert "entropy" not in traits(text, "x = 1", [{"token": text, "logprob": -1.0}])
    assert "entropy" not in traits("other", "x = 1", said)


def test_prose_that_is_left_out_is_no_drift_and_prose_that_grows_is() -> None:
    long = manner([seen(ONE, tokens=200)] * 20)
    short = manner([seen(ONE, tokens=40)] * 20)
    assert exceeded(long, short, Limits()) == []
    assert len(exceeded(short, long, Limits())) == 1


def test_lengths_are_compared_where_both_arms_are_right() -> None:
    stubs = manner([seen("x = 1", both_solved=False)] * 20)
    whole = manner([seen(ONE, both_solved=False)] * 20)
    assert stubs.program_tokens is None
    # Stubs are all alike, which is the champion's fault.
    assert exceeded(stubs, whole, Limits()) == []
    assert manner([seen(ONE)] * LEAST_ANSWERS).program_tokens is not None


def test_a_few_refusals_more_are_chance() -> None:
    before = Manner(answers=20, mean_tokens=10)
    two = Manner(answers=20, mean_tokens=10, refusals=0.1)
    three = Manner(answers=20, mean_tokens=10, refusals=0.15)
    assert exceeded(before, two, Limits()) == []
    assert len(exceeded(before, three, Limits())) == 1


def test_limits_name_what_moved_and_only_that() -> None:
    before = Manner(answers=50, solved_tokens=100, program_tokens=50, similarity=0.2, entropy=0.4)
    assert exceeded(before, before, Limits()) == []
    cases = {
        "a factor of 2": Manner(answers=50, solved_tokens=210, similarity=0.2, entropy=0.4),
        "programs of 20 tokens instead of 50": Manner(
            answers=50, solved_tokens=100, program_tokens=20
        ),
        "asks back 8%": Manner(
            answers=50, mean_tokens=100, refusals=0.04, asks_back=0.04, similarity=0.2, entropy=0.4
        ),
        "alike by 0.35": Manner(answers=50, mean_tokens=100, similarity=0.35, entropy=0.4),
        "25% of the champion's entropy": Manner(
            answers=50, mean_tokens=100, similarity=0.2, entropy=0.1
        ),
    }
    for words, after in cases.items():
        [said] = exceeded(before, after, Limits())
        assert words in said
    few = Manner(answers=LEAST_ANSWERS - 1, solved_tokens=900)
    assert exceeded(before, few, Limits()) == []
