"""Who may come in: sign-in with an admin key, sessions, and whether a form was sent from here.

A browser keeps no API key. A key is taken once and a session begins: 256 random bits in an HttpOnly
cookie, known here by their SHA-256 only, good for `SESSION_S` as long as the key is good. Sessions
live in this process; after a restart one signs in again.

Where no key is asked for, everybody on this machine is the local user, as in the API. A foreign
page that is open in the same browser must not be: forms are taken from pages of this host alone
(Origin or Sec-Fetch-Site, and a token), and only under a name of this machine, because any name
may be made to resolve to it (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from server.auth import ADMIN, LOCAL, Identity, Keys
from server.errors import Forbidden, Unauthorized

COOKIE = "journeyman_console"
SESSION_S = 12 * 3600
MAX_SESSIONS = 1000
"""The oldest one ends when there are more."""


class SignInNeeded(Exception):
    """Nobody is signed in."""


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who looks at a page. `token` stands in the page's forms."""

    identity: Identity
    token: str
    signed_in: bool


@dataclass(frozen=True, kw_only=True)
class _Session:
    key_digest: bytes
    ends_at: float


class Door:
    """The sessions of one process."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._secret = secrets.token_bytes(32)
        self._sessions: dict[bytes, _Session] = {}

    def visitor(self, request: Request) -> Visitor:
        """Return who asks for a page.

        Raises:
            SignInNeeded: there is no session, or it has ended, or its key is good no more.
            Forbidden: the page is asked for under a name that is not this machine's.
        """
        if not self._keys.asked:
            require_local_name(request)
            return Visitor(identity=LOCAL, token=self._token(b"local"), signed_in=False)
        digest = _digest(request.cookies.get(COOKIE, ""))
        session = self._sessions.get(digest)
        if session is None or session.ends_at < time.monotonic():
            self._sessions.pop(digest, None)
            raise SignInNeeded
        identity = self._keys.holder(session.key_digest)
        if identity is None or not identity.may(ADMIN):
            del self._sessions[digest]
            raise SignInNeeded
        return Visitor(identity=identity, token=self._token(digest), signed_in=True)

    def stranger(self) -> Visitor:
        """Who looks at the sign-in page."""
        return Visitor(identity=LOCAL, token=self._token(b"sign-in"), signed_in=False)

    def sign_in(self, key: str) -> str:
        """Begin a session and return what the cookie holds.

        Raises:
            Unauthorized: the key is not known.
            Forbidden: it is no admin's.
        """
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        identity = self._keys.holder(digest)
        if identity is None:
            raise Unauthorized("this API key is not known")
        identity.require(ADMIN)
        now = time.monotonic()
        self._sessions = {k: s for k, s in self._sessions.items() if s.ends_at > now}
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        cookie = secrets.token_urlsafe(32)
        self._sessions[_digest(cookie)] = _Session(key_digest=digest, ends_at=now + SESSION_S)
        return cookie

    def sign_out(self, request: Request) -> None:
        """End a session; nothing happens where there is none."""
        self._sessions.pop(_digest(request.cookies.get(COOKIE, "")), None)

    def require_own_form(self, request: Request, visitor: Visitor, token: str) -> None:
        """Refuse a form that was not sent from one of our pages.

        Raises:
            Forbidden: it was not, or its page is from before a restart.
        """
        require_same_origin(request)
        if not hmac.compare_digest(token.encode(), visitor.token.encode()):
            raise Forbidden("the form is out of date: load its page again", code="stale_form")

    def _token(self, session: bytes) -> str:
        return hmac.new(self._secret, session, hashlib.sha256).hexdigest()


def require_local_name(request: Request) -> None:
    """Refuse a request under a name that is not this machine's own.

    Raises:
        Forbidden: the Host is neither `localhost` nor a loopback address.
    """
    if not _is_local(request.headers.get("host", "")):
        raise Forbidden(
            "without API keys the console answers under localhost or a loopback address only"
        )


def require_same_origin(request: Request) -> None:
    """Refuse what a browser says was sent by another site.

    Raises:
        Forbidden: it was.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site != "same-origin":
            raise Forbidden("the form was sent from another site", code="cross_site")
        return
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Forbidden("the form was sent from another site", code="cross_site")


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine to itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()
