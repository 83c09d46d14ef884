"""Secrets in text: found by their shape, and taken out.

Each kind of credential is known by its own unmistakable shape, so that code, tests and prose stay
as they are; a secret becomes `[redacted:<kind>:<8 hex digits>]`, the same secret always the same
text, so that equal values stay equal.

Covered: keys and tokens of well-known services, private keys, JSON web tokens, passwords in
URLs, long literals assigned to names like `password` or `api_key`. Not covered: secrets without a
shape (a password in prose), and personal data such as names and addresses.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from ops import metrics

_SHAPES: dict[str, str] = {
    "private_key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----)){20,8000}"
    r"-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "aws_key": r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",
    "github_token": r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_[A-Za-z0-9_]{50,255}\b",
    "gitlab_token": r"\bglpat-[A-Za-z0-9_\-]{20,64}\b",
    "openai_key": r"\bsk-(?:proj-|svcacct-|admin-|ant-[a-z0-9]+-)?[A-Za-z0-9_\-]{32,220}\b",
    "journeyman_key": r"\bjm-[A-Za-z0-9_\-]{43}\b",
    "huggingface_token": r"\bhf_[A-Za-z0-9]{30,64}\b",
    "google_key": r"\bAIza[A-Za-z0-9_\-]{35}\b",
    "slack_token": r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,250}\b",
    "stripe_key": r"\b[rs]k_live_[A-Za-z0-9]{20,250}\b",
    "npm_token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "pypi_token": r"\bpypi-[A-Za-z0-9_\-]{50,250}\b",
    "jwt": r"\beyJ[A-Za-z0-9_\-]{10,2000}\.eyJ[A-Za-z0-9_\-]{10,4000}\.[A-Za-z0-9_\-]{10,1000}",
    "url_password": r"(?<=://)[^\s:/@'\"]{1,64}:[^\s:/@'\"]{3,128}(?=@[\w.\-]+)",
    "assigned_secret": r"(?i:(?<![A-Za-z])(?:password|passwd|secret|api_?key|access_?token"
    r"|auth_?token|client_?secret)[\"']?\s*[:=]\s*[\"'])(?P<assigned>[^\s\"']{16,200})(?=[\"'])",
}
_ANY = re.compile("|".join(f"(?P<{kind}>{shape})" for kind, shape in _SHAPES.items()))
_MARK = re.compile(r"\[redacted:\w+:[0-9a-f]{8}\]")
_PLACEHOLDER = re.compile(
    r"^(?:<.*>|\$\{?.*|x{4,}|\*{4,}|\.{3,}|your.*|.*example.*|\[redacted.*)$", re.I
)

_HINTS = (
    *("-----BEGIN", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    *("glpat-", "sk-", "jm-", "hf_", "AIza", "xox", "k_live_", "npm_", "pypi-", "eyJ", "://"),
)
_WORDS = ("passw", "secret", "key", "token")


def scrub_text(text: str) -> str:
    """Return the text without secrets; each one taken out is counted.

    What no database keeps (NUL, halves of surrogate pairs, as a model may write them) is replaced.
    """
    if not text.isascii() or "\0" in text:
        text = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    # Searching for plain substrings is much faster than the shapes, and nearly always enough.
    if not any(hint in text for hint in _HINTS):
        lowered = text.lower()
        if not any(word in lowered for word in _WORDS):
            return text
    return _ANY.sub(_redacted, text)


def secrets_in(text: str) -> list[str]:
    """Return the kinds of secrets that a text holds, in their order.

    The mark of one that was taken out before counts as `redacted`.
    """
    kinds = [kind for match in _ANY.finditer(text) if (kind := _secret(match)[0])]
    return kinds + ["redacted"] * len(_MARK.findall(text))


def _secret(match: re.Match[str]) -> tuple[str, str]:
    """The kind and text of a secret; nothing where it only looks like one."""
    if match["assigned"] is None:
        return match.lastgroup or "", match[0]
    secret = match["assigned"]
    # A literal of one kind of character is a word or a number more likely than a secret.
    kinds = sum(bool(re.search(p, secret)) for p in (r"[a-z]", r"[A-Z]", r"\d", r"[^\w]"))
    if kinds < 2 or _PLACEHOLDER.match(secret):
        return "", ""
    return "assigned_secret", secret


def _redacted(match: re.Match[str]) -> str:
    kind, secret = _secret(match)
    return match[0].removesuffix(secret) + _mark(kind, secret) if kind else match[0]


def _mark(kind: str, secret: str) -> str:
    metrics.scrubbed_total.labels(kind).inc()
    digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
    return f"[redacted:{kind}:{digest[:8]}]"


def scrub_value(value: Any) -> Any:
    """Return a JSON value whose texts hold no secrets; what is clean is not copied."""
    if isinstance(value, str):
        return scrub_text(value)
    if isinstance(value, list):
        items = [scrub_value(item) for item in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        pairs = {scrub_text(str(key)): scrub_value(item) for key, item in value.items()}
        same = len(pairs) == len(value) and all(pairs.get(k) is v for k, v in value.items())
        return value if same else pairs
    return value
