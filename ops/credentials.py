"""Credentials in text, found by their shape: detect-secrets' detectors, and what they lack.

Nearly all keys hold a long run of letters and digits, and little else in a text does: the patterns
of detect-secrets' format plugins are run around such runs. Its own `scan_line`, a line and a plugin
at a time, is far too slow for the way to the record. Its entropy and keyword plugins are left out,
since most of what they find in code is none. Ours are the services that it does not know, or knows
by older shapes of their keys.

Not found: keys shorter than 20 characters; secrets without a shape (a password in prose).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from detect_secrets.plugins.artifactory import ArtifactoryDetector
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.cloudant import CloudantDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.ibm_cloud_iam import IbmCloudIamDetector
from detect_secrets.plugins.ibm_cos_hmac import IbmCosHmacDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.softlayer import SoftlayerDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from ops.spans import Span, windows


@dataclass(frozen=True)
class _Shape:
    """One kind of credential: what some match of it holds, and the patterns to run then."""

    kind: str
    hints: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]


def _ours(kind: str, hint: str, *patterns: str) -> _Shape:
    return _Shape(kind, (hint,), tuple(map(re.compile, patterns)))


def _plugin(kind: str, plugin: type[RegexBasedDetector], *hints: str) -> _Shape:
    return _Shape(kind, hints, tuple(plugin.denylist))  # type: ignore[arg-type]


_SHAPES = (
    _plugin("aws_key", AWSKeyDetector, "A3T", "ABIA", "ACCA", "AKIA", "ASIA", "aws", "AWS"),
    _plugin("github_token", GitHubTokenDetector, "gh"),
    _ours("github_token", "github_pat_", r"github_pat_[A-Za-z0-9_]{50,255}"),
    _plugin("gitlab_token", GitLabTokenDetector, "gl", "GR1348941"),
    _ours(
        "openai_key",
        "sk-",
        r"sk-(?:proj-|svcacct-|admin-|ant-[a-z0-9]+-)?[A-Za-z0-9_\-]{32,220}",
    ),
    _plugin("openai_key", OpenAIDetector, "sk-"),
    _ours("journeyman_key", "jm-", r"jm-[A-Za-z0-9_\-]{43}"),
    _ours("huggingface_token", "hf_", r"hf_[A-Za-z0-9]{30,64}"),
    _ours("google_key", "AIza", r"AIza[A-Za-z0-9_\-]{35}"),
    _ours("google_token", "ya29.", r"ya29\.[A-Za-z0-9_\-]{20,500}"),
    _ours("slack_token", "xox", r"xox[abeoprs]-[A-Za-z0-9\-]{10,250}"),
    _plugin("slack_token", SlackDetector, "xox", "hooks.slack.com"),
    _ours("stripe_key", "k_live_", r"[rs]k_live_[A-Za-z0-9]{20,250}"),
    _plugin("stripe_key", StripeDetector, "k_live_"),
    _ours("npm_token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _plugin("npm_token", NpmDetector, "_authToken"),
    _ours("pypi_token", "pypi-", r"pypi-[A-Za-z0-9_\-]{50,250}"),
    _plugin("pypi_token", PypiTokenDetector, "pypi-"),
    # detect-secrets' own pattern leaves the signature standing.
    _ours(
        "jwt",
        "eyJ",
        r"eyJ[A-Za-z0-9_\-]{10,2000}\.eyJ[A-Za-z0-9_\-]{10,4000}\.[A-Za-z0-9_\-]{10,1000}",
    ),
    _ours("digitalocean_token", "_v1_", r"do[opr]_v1_[a-f0-9]{64}"),
    _ours("vault_token", "hvs.", r"hvs\.[A-Za-z0-9_\-]{24,200}"),
    _ours("shopify_token", "shp", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    _ours("databricks_token", "dapi", r"dapi[a-f0-9]{32}(?:-\d)?"),
    _ours("bearer_token", "earer ", r"[Bb]earer (?P<secret>[A-Za-z0-9._~+/\-]{20,2000}=*)"),
    _plugin("artifactory_token", ArtifactoryDetector, "AKC", "AP"),
    _plugin("azure_key", AzureStorageKeyDetector, "AccountKey="),
    _plugin("cloudant_key", CloudantDetector, "cl", "CL"),
    _plugin("discord_token", DiscordBotTokenDetector, "."),
    _plugin("ibm_key", IbmCloudIamDetector, "ibm", "IBM", "iam", "IAM", "cloud", "CLOUD"),
    _plugin("ibm_key", IbmCosHmacDetector, "secret", "SECRET"),
    _plugin("mailchimp_key", MailchimpDetector, "-us"),
    _plugin("sendgrid_key", SendGridDetector, "SG."),
    _plugin("softlayer_key", SoftlayerDetector, "sl", "SL", "softlayer"),
    _plugin("square_secret", SquareOAuthDetector, "sq0csp-"),
    _plugin("telegram_token", TelegramBotTokenDetector, ":"),
    _plugin("twilio_key", TwilioKeyDetector, "AC", "SK"),
)
_RUN = re.compile(r"[A-Za-z0-9_+/\-]{20,}")
_BEFORE, _AFTER = 80, 80
"""Characters around a run that belong to some pattern: the name that a key is assigned to."""

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----)){20,8000}"
    r"(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)"
    r"|PuTTY-User-Key-File-\d[\s\S]{20,8000}?(?:Private-MAC: [0-9a-f]+|\Z)"
)
_URL_PASSWORD = re.compile(r"://(?P<secret>[^\s:/@'\"]{1,64}:[^\s:/@'\"]{3,128})(?=@[\w.\-]+)")
_NAMES = (
    *("passw", "secret", "api_key", "apikey", "api-key", "access_key", "accesskey"),
    *("access_token", "accesstoken", "auth_token", "authtoken", "private_token"),
)
_GIVEN = re.compile(
    r"\w{0,30}[\"']?\s{0,8}(?:[:=]\s{0,8}[\"'](?P<quoted>[^\s\"']{16,200})(?=[\"'])"
    r"|=(?P<bare>[^\s\"'()\[\]{},;.]{16,200})(?=\s|\Z))"
)
_PLACEHOLDER = re.compile(
    r"^(?:<.*>|\$\{?.*|x{4,}|\*{4,}|\.{3,}|your.*|.*example.*|\[redacted.*)$", re.I
)


def find_credentials(text: str) -> Iterator[Span]:
    """Yield the credentials in a text; they may overlap."""
    for start, end in windows(text, _RUN, _BEFORE, _AFTER):
        yield from _around(text, start, end)
    if "PRIVATE KEY" in text or "PuTTY-User-Key" in text:
        yield from ((*match.span(), "private_key") for match in _PRIVATE_KEY.finditer(text))
    if "://" in text and "@" in text:
        yield from ((*m.span("secret"), "url_password") for m in _URL_PASSWORD.finditer(text))
    yield from _assigned(text)


def _around(text: str, start: int, end: int) -> Iterator[Span]:
    window = text[start:end]
    for shape in _SHAPES:
        if not any(hint in window for hint in shape.hints):
            continue
        for pattern in shape.patterns:
            for match in pattern.finditer(text, start, end):
                # What a pattern captures is the secret itself, the rest its surroundings.
                group = next((n for n in range(1, pattern.groups + 1) if match[n]), 0)
                group = 0 if shape.kind in _WHOLE else group
                start_, end_ = _bare(text, *match.span(group))
                if _stands_alone(text, start_, end_):
                    yield start_, end_, shape.kind


_WHOLE = frozenset(("github_token", "gitlab_token", "slack_token"))
"""Kinds whose patterns capture a part of the secret."""


def _bare(text: str, start: int, end: int) -> tuple[int, int]:
    """The place of a match without the quotes and signs around it."""
    found = text[start:end]
    return end - len(found.lstrip(" \t\r\n\"'=:")), start + len(found.rstrip(" \t\r\n\"'"))


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether a match is no piece of a longer word, such as encoded data."""
    before = text[start - 1 : start].isalnum() and text[start].isalnum()
    after = text[end : end + 1].isalnum() and text[end - 1].isalnum()
    return not before and not after


def _assigned(text: str) -> Iterator[Span]:
    """Long literals given to names like `password`, unless they are words or placeholders."""
    lowered = text.lower()
    if len(lowered) != len(text):  # letters whose small form is longer: places would not agree
        lowered = text
    for name in _NAMES:
        place = lowered.find(name)
        while place >= 0:
            match = _GIVEN.match(text, place + len(name))
            if match is not None and _is_secret(match):
                yield (*match.span(match.lastgroup or 0), "assigned_secret")
            place = lowered.find(name, place + len(name))


def _is_secret(match: re.Match[str]) -> bool:
    secret = match[match.lastgroup or 0]
    if _PLACEHOLDER.match(secret):
        return False
    kinds = sum(bool(re.search(p, secret)) for p in (r"[a-z]", r"[A-Z]", r"\d", r"[^\w]"))
    # One kind of character is a word or a number. Without quotes it may be an expression.
    if match.lastgroup == "bare":
        return kinds >= 3 and re.search(r"\d", secret) is not None
    return kinds >= 2
