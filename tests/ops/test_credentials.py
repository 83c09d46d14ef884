"""Which credentials are found, and what only looks like one."""

from __future__ import annotations

import time

import pytest

from ops.credentials import find_credentials

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
    "digitalocean_token": "do" + "p_v1_" + "a1" * 32,
    "vault_token": "hv" + "s." + "aB3" * 10,
    "shopify_token": "shp" + "at_" + "a1" * 16,
    "databricks_token": "da" + "pi" + "a1" * 16,
    "azure_key": "Account" + "Key=" + "aB3/" * 22,
    "discord_token": "M" + "a" * 24 + ".abc123." + "b" * 27,
    "mailchimp_key": "0123456789abcdef" * 2 + "-us" + "12",
    "sendgrid_key": "SG" + "." + "a" * 22 + "." + "b" * 43,
    "square_secret": "sq0" + "csp-" + "a" * 43,
    "telegram_token": "110201543" + ":" + "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0",
    "twilio_key": "SK" + "0123456789abcdef" * 2,
    "artifactory_token": "AK" + "C" + "aB3" * 10,
}
IN_CONTEXT = {
    "aws_key": ("aws_secret_key = '", "aB3/" * 10, "'"),
    "ibm_key": ("ibm_cloud_api_key: ", "a1B2" * 11, "\n"),
    "softlayer_key": ('sl_api_key="', "a1b2" * 16, '"'),
    "cloudant_key": ("cloudant_password = '", "abcdef" * 4, "'"),
    "npm_token": ("//registry.x.org/:_auth" + "Token=", "0123abcd-" * 4, "\n"),
    "bearer_token": ("curl -H 'Authorization: Bearer ", "aB3d" * 8, "'"),
    "url_password": ("postgres://", "bob:hunter2hunter2", "@db.local:5432/x"),
    "assigned_secret": ('password = "', "Tr0ub4dor&3-and-more", '"  # why'),
}
BARE = ("export AWS_SECRET_ACCESS_" + "KEY=", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYKEYKEY", "\n")


def _found(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for start, end, kind in find_credentials(text):
        found.setdefault(text[start:end], kind)
    return found


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_wherever_it_stands(kind: str) -> None:
    secret = SECRETS[kind]
    for text in (secret, f"key = '{secret}'", f'see "{secret}", please', "x\n" * 3000 + secret):
        if kind == "artifactory_token" and "'" in text:
            continue  # its pattern wants other quotes
        assert _found(text).get(secret) == kind


@pytest.mark.parametrize("kind", IN_CONTEXT)
def test_of_what_is_known_by_its_surroundings_only_the_secret_is_found(kind: str) -> None:
    before, secret, after = IN_CONTEXT[kind]
    assert _found(f"{before}{secret}{after}") == {secret: kind}


def test_a_secret_without_quotes_is_found_where_it_is_no_expression() -> None:
    assert _found("".join(BARE)) == {BARE[1]: "assigned_secret"}
    assert _found("secret=compute_the_secret_of_it\n") == {}


@pytest.mark.parametrize(
    "text",
    [
        "def check(password):\n    return len(password) >= 16\n",
        'password = "your-password-goes-here"',
        "api_key = os.environ['API_KEY']",
        'api_key="<API_KEY_GOES_HERE>"',
        "secret = 'aaaaaaaaaaaaaaaaaaaa'",
        "https://example.org:8080/path@2x.png",
        "sk-learn is not a key, nor is sk-1234",
        "x = 'eyJ'",
        "1234567890123456789012345678901234567890",
        "d41d8cd98f00b204e9800998ecf8427e",
        "ghp_short",
        "data = 'x" + SECRETS["aws_key"] + "y'",  # a piece of something longer
        "-" * 200,
        "def test_that_a_function_with_quite_a_long_name_is_no_secret():",
    ],
)
def test_code_and_prose_hold_none(text: str) -> None:
    assert _found(text) == {}


@pytest.mark.parametrize(
    "piece", ["-----BEGIN PRIVATE KEY-----", "eyJabcdefghijkl.", "password='", "A" * 50, "://a:"]
)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    began = time.process_time()
    list(find_credentials(text))
    assert time.process_time() - began < 2
