"""API keys of the record: made here, checked by the server (`server.auth`).

A key is 256 random bits, so a plain SHA-256 of it is enough to know it by; nothing else is kept.
Servers look at the record every `server.poll_s`: a new key is good, and a revoked one useless,
without a restart. Keys may also stand in the settings (`server.keys`), by the same digest.

The improver and the command line ask the server with a key of the installation's own, a file in the
data directory that only its account reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.errors import SettingsError
from ops.records import ApiKey, new_id, now

SCOPES = ("inference", "feedback", "admin")
DEFAULT_SCOPES = ("inference", "feedback")
PREFIX = "jm-"
OWN = "journeyman"
"""The name of the installation's own key."""


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key and its secret, which is nowhere else."""

    key: ApiKey
    secret: str


def make(
    name: str,
    *,
    created_by: str,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    tenant: str = "default",
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    executions_per_minute: int | None = None,
) -> NewKey:
    """Return a new key; it is good once it stands in the record or in the settings.

    Args:
        name: who holds it.
        created_by: who made it.
        scopes: what it is for, of `SCOPES`; `admin` reaches everything.
        tenant: whose answers it sees.
        requests_per_minute: its share; None: no limit. The others likewise.
        tokens_per_minute: of prompts and answers.
        executions_per_minute: programs of its own; 0: none.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id=new_id(),
        created_at=now(),
        created_by=created_by,
        name=name,
        sha256=digest(secret),
        scopes=[scope for scope in SCOPES if scope in scopes],
        tenant=tenant,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        executions_per_minute=executions_per_minute,
    )
    return NewKey(key=key, secret=secret)


def digest(secret: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def own(data_dir: Path) -> str:
    """Return the installation's own key, which is made when there is none.

    Raises:
        SettingsError: the file cannot be read or made.
    """
    file = data_dir / "own.key"
    draft = file.with_name(f"own.key.{secrets.token_hex(8)}")
    try:
        if not file.exists():
            data_dir.mkdir(parents=True, exist_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
                new.write(PREFIX + secrets.token_urlsafe(32))
            try:
                os.link(draft, file)  # unlike a rename, never over that of another process
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return file.read_text().strip()
    except OSError as error:
        raise SettingsError(f"the installation's own key cannot be kept: {error}") from error


def as_settings(key: ApiKey) -> str:
    """Return the table of the settings file that admits a key."""
    lines = [
        "[[server.keys]]",
        f"name = {json.dumps(key.name)}",
        f'sha256 = "{key.sha256}"',
        f"scopes = {json.dumps(key.scopes)}",
        f'tenant = "{key.tenant}"',
    ]
    for share in ("requests_per_minute", "tokens_per_minute", "executions_per_minute"):
        if (number := getattr(key, share)) is not None:
            lines.append(f"{share} = {number}")
    return "\n".join(lines)
