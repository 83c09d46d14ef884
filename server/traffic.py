"""Traffic: which arm of a trial answers a request for `code`.

Who asks decides, by a stable hash: the same one gets the same arm as long as the trial lasts, on
every server, and another draw in the next trial. Here is arithmetic alone; which trial there is and
what its share is come from the registry (`ops.trials`), through `server.adapters`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.protocol import Envelope

Json = dict[str, Any]

BEGINNING_CHARS = 2000


class Sticky(StrEnum):
    """What stays with one arm. What a request lacks gives way to the next."""

    KEY = "key"
    """All that one API key asks."""
    USER = "user"
    """All that one `user` of a tenant asks."""
    CONVERSATION = "conversation"
    """One conversation: its `episode_id`, else how it begins."""


class Role(StrEnum):
    """What answers a request for `code`."""

    CHAMPION = "champion"
    """What `code` means."""
    CANARY = "canary"
    """A version on trial that may become the champion."""
    CONTROL = "control"
    """What was champion before one that is being watched."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A share of the requests for `code` that another version answers; 0 is the base model."""

    version: int
    share: float
    role: Role
    draw: str
    """Names the trial, so that each draws anew."""

    def takes(self, who: str) -> bool:
        """Whether the requests of this one belong to the share."""
        digest = hashlib.sha256(f"{self.draw}\0{who}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


def who(envelope: Envelope, *, key: str | None, tenant: str, sticky: Sticky) -> str:
    """Return what decides over the arm of a request.

    Args:
        envelope: the request.
        key: name of the API key; None where nobody needs one.
        tenant: whose request it is.
        sticky: what shall stay with one arm.
    """
    if sticky is Sticky.KEY and key is not None:
        return f"key\0{key}"
    if sticky is not Sticky.CONVERSATION and envelope.user is not None:
        return f"user\0{tenant}\0{envelope.user}"
    return f"conversation\0{tenant}\0{envelope.episode_id or beginning(envelope.body)}"


def beginning(body: Json) -> str:
    """Return how a conversation begins: what every later request of it repeats."""
    messages = body.get("messages")
    if isinstance(messages, list) and messages:
        people = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
        begun: Any = people[:1] or messages[:1]
    else:
        given = body.get("input", body.get("prompt"))
        begun = given[:1] if isinstance(given, list) else given
    return json.dumps(begun, default=str)[:BEGINNING_CHARS]
