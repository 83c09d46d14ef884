"""What is found in a text; how it is taken out is tested where rows are recorded (`test_scrub`)."""

from __future__ import annotations

import pytest

from ops.redaction import scrub_text, secrets_in

# Put together at run time, so that no scanner takes this file for a leak.
AWS = "AKIA" + "IOSFODNN7ABCDEFG"
GITHUB = "gh" + "p_" + "a1B2" * 9


def test_kinds_are_named_in_their_order() -> None:
    assert secrets_in(f"a = '{GITHUB}'\nb = '{AWS}'") == ["github_token", "aws_key"]
    assert secrets_in('password = "Tr0ub4dor&3-and-more"') == ["assigned_secret"]


@pytest.mark.parametrize(
    "text", ["", "def f(key):\n    return key", "password = 'your-password-here'", "sk-learn"]
)
def test_code_and_prose_hold_none(text: str) -> None:
    assert secrets_in(text) == []


def test_what_was_taken_out_before_is_seen() -> None:
    assert secrets_in(scrub_text(f"key = '{AWS}'")) == ["redacted"]
