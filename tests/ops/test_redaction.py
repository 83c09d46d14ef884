"""How what was found is taken out of texts, values and rows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ops import metrics
from ops.records import PersonalKind
from ops.redaction import Scrubber, scrub_secrets, secrets_in
from ops.store import Recording
from tests.ops import records

# Put together at run time, so that no scanner takes this file for a leak.
AWS = "AKIA" + "IOSFODNN7ABCDEFG"
GITHUB = "gh" + "p_" + "a1B2" * 9
MAIL, OTHER = "ann@gmail.com", "bob@gmail.com"


def test_kinds_are_named_in_their_order() -> None:
    assert secrets_in(f"a = '{GITHUB}'\nb = '{AWS}'") == ["github_token", "aws_key"]
    assert secrets_in('password = "Tr0ub4dor&3-and-more"') == ["assigned_secret"]


@pytest.mark.parametrize(
    "text",
    ["", "def f(key):\n    return key", "password = 'your-password-here'", "sk-learn", MAIL],
)
def test_code_and_prose_hold_none(text: str) -> None:
    assert secrets_in(text) == []
    assert scrub_secrets(text) == text


def test_what_was_taken_out_before_is_seen_and_left() -> None:
    clean = Scrubber().text(f"key = '{AWS}' of {MAIL}")
    assert secrets_in(clean) == ["redacted", "redacted"]
    assert Scrubber().text(clean) == clean


def test_a_secret_is_always_the_same_mark_and_a_person_has_a_number_in_the_row() -> None:
    scrub = Scrubber()
    assert scrub.text(AWS) == scrub.text(f" {AWS}").strip()
    value = scrub.value([MAIL, {OTHER: f"{MAIL}, {OTHER}"}])
    first, second = "[redacted:email:1]", "[redacted:email:2]"
    assert value == [first, {second: f"{first}, {second}"}]
    assert scrub.text(OTHER) == first


def test_many_pieces_among_many_marks_take_no_long() -> None:
    text = f"[redacted:x:1] {MAIL} " * 5000
    began = time.process_time()
    assert Scrubber().text(text).count("[redacted:email:1]") == 5000
    assert time.process_time() - began < 2


def test_of_two_pieces_in_one_place_one_is_taken_out() -> None:
    clean = Scrubber().text(f"postgres://bob:{AWS}@mail.firm.com/x")
    assert clean.startswith("postgres://[redacted:url_password:")
    assert clean.endswith("]@mail.firm.com/x")


def test_values_are_scrubbed_at_every_depth_and_not_copied_when_clean() -> None:
    value: Any = {"a": [1, None, {"b": f"x {AWS}", AWS: True}]}
    assert AWS not in json.dumps(Scrubber().value(value))
    clean = {"a": [1, None, {"b": "x"}]}
    assert Scrubber().value(clean) is clean


def test_what_no_database_keeps_is_replaced() -> None:
    assert Scrubber().text("a\0b\ud800") == "a\ufffdb?"


def test_kinds_of_personal_data_stay_where_they_are_wanted() -> None:
    text = f"{MAIL} from 91.198.174.192 with {AWS}"
    clean = Scrubber(personal=[PersonalKind.IP_ADDRESS]).text(text)
    assert MAIL in clean
    assert "[redacted:ip_address:1]" in clean
    assert AWS not in clean
    assert Scrubber(personal=[]).text("91.198.174.192") == "91.198.174.192"


def test_the_name_of_a_user_stays_so_that_it_can_be_erased() -> None:
    asked = records.interaction(user=MAIL, messages=[{"role": "user", "content": MAIL}])
    row = Scrubber().recording(Recording(interaction=asked)).interaction
    assert row.user == MAIL
    assert MAIL not in json.dumps(row.messages)


def test_what_is_taken_out_is_counted_by_kind() -> None:
    def count(kind: str) -> float:
        return metrics.scrubbed_total.labels(kind)._value.get()

    before = count("email"), count("aws_key")
    Scrubber().text(f"{MAIL} {OTHER} {AWS}")
    assert (count("email"), count("aws_key")) == (before[0] + 2, before[1] + 1)


def test_the_examples_of_the_product_are_left_alone() -> None:
    for path in (Path(__file__).parents[2] / "ops" / "examples").glob("*"):
        text = path.read_text(encoding="utf-8")
        assert Scrubber().text(text) == text
