"""Secrets never reach the record; code and prose stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.scrub import scrub_text, scrub_value
from tests.server.conftest import Running

# Put together at run time, so that no scanner takes this file for a leak.
SECRETS = {
    "aws_key": "AKIA" + "IOSFODNN7ABCDEFG",
    "github_token": "gh" + "p_" + "a1B2" * 9,
    "gitlab_token": "glpat" + "-abcdefghij0123456789",
    "openai_key": "sk" + "-proj-" + "Ab1_" * 12,
    "journeyman_key": "jm" + "-" + "a" * 43,
    "huggingface_token": "hf" + "_" + "aB3" * 12,
    "google_key": "AI" + "za" + "b" * 35,
    "slack_token": "xox" + "b-123456789012-abcdef",
    "stripe_key": "sk" + "_live_" + "a1" * 12,
    "npm_token": "np" + "m_" + "a" * 36,
    "pypi_token": "py" + "pi-" + "A" * 60,
    "jwt": "ey" + "J" + "a" * 20 + ".eyJ" + "b" * 20 + "." + "c" * 20,
    "private_key": "-----BEGIN RSA PRIVATE "
    + "KEY-----\n"
    + "QUJD\n" * 9
    + "-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_taken_out_wherever_it_stands(kind: str) -> None:
    secret = SECRETS[kind]
    for text in (secret, f"key = '{secret}'", f"see {secret}, please", f"({secret})"):
        clean = scrub_text(text)
        assert secret not in clean
        assert f"[redacted:{kind}:" in clean
        assert scrub_text(clean) == clean
        assert scrub_text(text) == clean


def test_only_the_secret_is_taken_out() -> None:
    clean = scrub_text("postgres://bob:hunter2hunter2@db.local:5432/x")
    assert clean.startswith("postgres://[redacted:url_password:")
    assert clean.endswith("@db.local:5432/x")
    clean = scrub_text('password = "Tr0ub4dor&3-and-more"  # why')
    assert clean.startswith('password = "[redacted:assigned_secret:')
    assert clean.endswith('"  # why')


@pytest.mark.parametrize(
    "text",
    [
        "def check(password):\n    return len(password) >= 16\n",
        'password = "your-password-goes-here"',
        "api_key = os.environ['API_KEY']",
        'api_key="<API_KEY_GOES_HERE>"',
        "secret = 'aaaaaaaaaaaaaaaaaaaa'",
        "assert is_valid('ankit@gmail.com')",
        "https://example.org:8080/path@2x.png",
        "sk-learn is not a key, nor is sk-1234",
        "x = 'eyJ'",
        "1234567890123456789012345678901234567890",
        "d41d8cd98f00b204e9800998ecf8427e",
        "ghp_short",
    ],
)
def test_code_and_prose_stay_as_they_are(text: str) -> None:
    assert scrub_text(text) == text


def test_values_are_scrubbed_at_every_depth_and_not_copied_when_clean() -> None:
    secret = SECRETS["aws_key"]
    value: Any = {"a": [1, None, {"b": f"x {secret}", secret: True}]}
    assert secret not in json.dumps(scrub_value(value))
    clean = {"a": [1, None, {"b": "x"}]}
    assert scrub_value(clean) is clean


def test_what_mbpp_holds_is_left_alone() -> None:
    files = list((Path(__file__).parents[2] / "ops" / "examples").glob("*"))
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert scrub_text(text) == text


def test_the_record_holds_no_secret_of_prompt_answer_spec_or_feedback(server: Running) -> None:
    key, token = SECRETS["aws_key"], SECRETS["github_token"]
    server.engine.script = lambda body, index: (
        f"```python\nKEY = '{key}'\ndef f():\n    return KEY\n```"
    )
    spec = {"entry_point": "f", "examples": [{"input": [], "output": key}]}
    messages = [{"role": "user", "content": f"use {key}"}]
    answer = server.chat(messages=messages, io_spec=spec, metadata={"k": token}).json()
    assert key in answer["choices"][0]["message"]["content"]  # the client's own
    assert answer["choices"][0]["verification"]["verified"] is True
    server.http.post(
        "/v1/feedback",
        json={"inference_id": answer["id"], "metric_name": "comment", "value": f"no {token}"},
    )
    whole = server.http.get(f"/v1/interactions/{answer['id']}").text
    assert "redacted:aws_key" in whole
    assert "redacted:github_token" in whole
    server.http.close()
    data = b"".join(p.read_bytes() for p in server.settings.data_dir.glob("journeyman.db*"))
    assert key.encode() not in data
    assert token.encode() not in data
