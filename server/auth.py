"""API keys: who asks, what they may do, and how much of it.

Keys are 256 random bits, known here by their SHA-256 only, so a plain digest is enough and
comparing takes the same time whichever key is tried. They come from the settings and from the
record (`ops.keys`, followed by `server.keyring`). Where there has never been one everybody is the
local user; the server then listens on loopback only (`app.require_safe`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Forbidden, RateLimited, ServerError, Unauthorized
from server.limits import Bucket
from server.replies import Exchange

INFERENCE, FEEDBACK, ADMIN = "inference", "feedback", "admin"
SCOPES = (INFERENCE, FEEDBACK, ADMIN)
DEFAULT_TENANT = "default"
OPEN_PATHS = frozenset(("/health", "/ready"))
"""Whoever supervises the process needs no key."""
CONSOLE = "/console"
"""The pages for people have a door of their own: `server.console.door`."""
_SCOPE_OF = (
    ("/v1/chat/", INFERENCE),  # what a key has asked it may read again
    ("/v1/completions", INFERENCE),
    ("/v1/responses", INFERENCE),
    ("/v1/messages", INFERENCE),
    ("/v1/executions", INFERENCE),
    ("/v1/models", INFERENCE),
    ("/v1/feedback", FEEDBACK),
    ("/v1/events", FEEDBACK),
    ("/v1/ingest/", FEEDBACK),
    ("/docs", INFERENCE),
    ("/openapi.json", INFERENCE),
)
"""First match wins; every other path is for admins."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as the settings or the record describe it."""

    name: str
    sha256: str
    scopes: frozenset[str]
    tenant: str = DEFAULT_TENANT
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    executions_per_minute: int | None = None


class Identity:
    """Who asks, with what is left of their shares."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.name = key.name
        self.tenant = key.tenant
        self.scopes = key.scopes
        self._digest = bytes.fromhex(key.sha256) if key.sha256 else b""
        self._requests = Bucket(key.requests_per_minute) if key.requests_per_minute else None
        self._tokens = Bucket(key.tokens_per_minute) if key.tokens_per_minute else None
        quota = key.executions_per_minute
        self._may_execute = quota != 0
        self._executions = Bucket(quota) if quota else None

    def matches(self, digest: bytes) -> bool:
        """Whether this is the holder of the key of that digest; in constant time."""
        return hmac.compare_digest(self._digest, digest)

    @property
    def is_admin(self) -> bool:
        """Whether it may see everybody's data."""
        return ADMIN in self.scopes

    def may(self, scope: str) -> bool:
        """Whether the key reaches that far."""
        return scope in self.scopes or self.is_admin

    def require(self, scope: str) -> None:
        """Refuse what the key is not for.

        Raises:
            Forbidden: the scope is not among the key's.
        """
        if not self.may(scope):
            raise Forbidden(f"this key lacks the scope {scope!r}")

    def admit(self) -> None:
        """Count one request of inference.

        Raises:
            RateLimited: the requests or tokens of this minute are used up.
        """
        if self._requests is not None and (wait_s := self._requests.wait_s()) > 0:
            raise RateLimited("too many requests for this key", retry_after_s=wait_s)
        if self._tokens is not None and (wait_s := self._tokens.wait_s()) > 0:
            raise RateLimited("too many tokens for this key", retry_after_s=wait_s)
        if self._requests is not None:
            self._requests.take(1)

    def admit_execution(self) -> None:
        """Count one program of the client's own.

        Raises:
            Forbidden: the key may not run any.
            RateLimited: those of this minute are used up.
        """
        if not self._may_execute:
            raise Forbidden("this key may not run programs of its own")
        if self._executions is not None:
            if (wait_s := self._executions.wait_s()) > 0:
                raise RateLimited("too many executions for this key", retry_after_s=wait_s)
            self._executions.take(1)

    def spend(self, tokens: int) -> None:
        """Count the tokens of an answer; they are known only afterwards."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    @property
    def headers(self) -> dict[str, str]:
        """The shares left, in OpenAI's header names."""
        found = {}
        for what, bucket in self.buckets.items():
            found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
            found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level)))
            full_s = bucket.wait_s(bucket.per_minute)
            found[f"x-ratelimit-reset-{what}"] = f"{full_s:.1f}s"
        return found

    @property
    def buckets(self) -> dict[str, Bucket]:
        """What is limited, and what is left of it."""
        buckets = {
            "requests": self._requests,
            "tokens": self._tokens,
            "executions": self._executions,
        }
        return {what: bucket for what, bucket in buckets.items() if bucket is not None}


LOCAL = Identity(Key(name="local", sha256="", scopes=frozenset(SCOPES)))
"""Everybody, where no key is configured."""


class Keys:
    """The keys of an installation, which may change while it runs.

    Once a key has been asked for, one is asked for until the process ends: that the last key is
    taken away opens nothing.

    Args:
        configured: those of the settings.
    """

    def __init__(self, configured: Sequence[Key]) -> None:
        self._configured, self._recorded = tuple(configured), tuple[Key, ...]()
        self._own = tuple[Key, ...]()
        self._holders: list[Identity] = []
        self._asked = False
        self._settle()

    def configure(self, keys: Sequence[Key]) -> None:
        """Take these as the keys of the settings."""
        self._configured = tuple(keys)
        self._settle()

    def record(self, keys: Sequence[Key], *, ever: bool) -> None:
        """Take these as the keys of the record; `ever`: it has had one, perhaps revoked since."""
        self._recorded = tuple(keys)
        self._asked |= ever
        self._settle()

    def let_in(self, own: Key) -> None:
        """Take this as the installation's own key, for which nobody else has to bring one."""
        self._own = (own,)
        self._settle()

    def _settle(self) -> None:
        # Who stays keeps what is left of their shares.
        known = {holder.key: holder for holder in self._holders}
        keys = dict.fromkeys((*self._configured, *self._recorded))
        self._holders = [known.get(key) or Identity(key) for key in (*keys, *self._own)]
        self._asked |= bool(keys)

    @property
    def asked(self) -> bool:
        """Whether a key is asked for."""
        return self._asked

    @property
    def holders(self) -> list[Identity]:
        """Who holds a key that is good."""
        return list(self._holders)

    def holder(self, digest: bytes) -> Identity | None:
        """Return who holds the key of a SHA-256 digest; None where it is not known, or no more."""
        found = [holder for holder in self._holders if holder.matches(digest)]
        return found[0] if found else None

    def identify(self, headers: Headers) -> Identity:
        """Return who asks.

        Raises:
            Unauthorized: there is no key, or none that is known.
        """
        if not self._asked:
            return LOCAL
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not scheme and "x-api-key" in headers:  # Anthropic's clients
            scheme, given = "bearer", headers["x-api-key"]
        if scheme.lower() != "bearer" or not given.strip():
            raise Unauthorized("an API key is needed: Authorization: Bearer …")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        # All of them are compared, so that the time says nothing about which one is near.
        found = [holder for holder in self._holders if holder.matches(digest)]
        if not found:
            raise Unauthorized("this API key is not known")
        return found[0]


def scope_of(path: str) -> str:
    """Return the scope that a path needs."""
    for prefix, scope in _SCOPE_OF:
        if path.startswith(prefix):
            return scope
    return ADMIN


def is_open(path: str) -> bool:
    """Whether no key is asked for here. `/` leads to the console."""
    return path in OPEN_PATHS or path in ("/", CONSOLE) or path.startswith(f"{CONSOLE}/")


class Guarded:
    """Lets a request in when its key reaches that far, and puts the identity into its state."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            identity = self._keys.identify(Headers(scope=scope))
            wanted = scope_of(scope["path"])
            identity.require(wanted)
            if wanted == INFERENCE and scope["method"] == "POST":  # costs something
                identity.admit()
        except ServerError as error:
            await Exchange(send).error(error)
            return
        scope.setdefault("state", {})["identity"] = identity

        async def with_shares(message: Message) -> None:
            if message["type"] == "http.response.start" and (shares := identity.headers):
                pairs = [(k.encode(), v.encode()) for k, v in shares.items()]
                message = {**message, "headers": [*message.get("headers", ()), *pairs]}
            await send(message)

        await self._app(scope, receive, with_shares)
