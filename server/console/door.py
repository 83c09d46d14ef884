"""Who may come in: sign-in with an admin key, sessions, and whether a form was sent from here.

A browser keeps no API key. A key is taken once and a session begins: 256 random bits in an HttpOnly
cookie, known here by their SHA-256 only, good for `SESSION_S` as long as the key is good. A session
is a file in the data directory, with the SHA-256 of its key: it holds across restarts and for every
server on that directory, and signing out ends it for all of them. A server on another machine asks
for the key once more. Files, and no table of the record: they are in no backup and no export.

Where no key is asked for, everybody on this machine is the local user, as in the API. A foreign
page that is open in the same browser must not be: forms are taken from pages of this host alone
(Origin or Sec-Fetch-Site, and a token), and only under a name of this machine, because any name
may be made to resolve to it (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request

from server.auth import ADMIN, LOCAL, Identity, Keys
from server.errors import Forbidden, RecordUnavailable, Unauthorized

COOKIE = "journeyman_console"
SESSION_S = 12 * 3600
MAX_SESSIONS = 1000
"""The oldest one ends when there are more."""
SECRET = "secret"
"""The file beside the sessions that makes the forms of those who have none."""


class SignInNeeded(Exception):
    """Nobody is signed in."""


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who looks at a page. `token` stands in the page's forms."""

    identity: Identity
    token: str
    signed_in: bool


class Door:
    """The sessions of an installation.

    Args:
        keys: who may sign in.
        directory: where sessions are kept; made when the first begins, for this account alone.
    """

    def __init__(self, keys: Keys, directory: Path) -> None:
        self._keys = keys
        self._sessions = _Sessions(directory)

    def visitor(self, request: Request) -> Visitor:
        """Return who asks for a page.

        Raises:
            SignInNeeded: there is no session, or it has ended, or its key is good no more.
            Forbidden: the page is asked for under a name that is not this machine's.
        """
        if not self._keys.asked:
            require_local_name(request)
            return Visitor(identity=LOCAL, token=self._token(b"local"), signed_in=False)
        cookie = request.cookies.get(COOKIE, "")
        key_digest = self._sessions.key_of(cookie)
        if key_digest is None:
            raise SignInNeeded
        identity = self._keys.holder(key_digest)
        if identity is None or not identity.may(ADMIN):
            self._sessions.end(cookie)
            raise SignInNeeded
        return Visitor(identity=identity, token=_form_token(cookie), signed_in=True)

    def stranger(self) -> Visitor:
        """Who looks at the sign-in page."""
        return Visitor(identity=LOCAL, token=self._token(b"sign-in"), signed_in=False)

    def sign_in(self, key: str) -> str:
        """Begin a session and return what the cookie holds.

        Raises:
            Unauthorized: the key is not known.
            Forbidden: it is no admin's.
            RecordUnavailable: the session cannot be kept.
        """
        digest = hashlib.sha256(_bytes(key.strip())).digest()
        identity = self._keys.holder(digest)
        if identity is None:
            raise Unauthorized("this API key is not known")
        identity.require(ADMIN)
        try:
            return self._sessions.begin(digest)
        except OSError as error:
            raise RecordUnavailable(f"the session cannot be kept: {error}") from error

    def sign_out(self, request: Request) -> None:
        """End a session; nothing happens where there is none."""
        self._sessions.end(request.cookies.get(COOKIE, ""))

    def require_own_form(self, request: Request, visitor: Visitor, token: str) -> None:
        """Refuse a form that was not sent from one of our pages.

        Raises:
            Forbidden: it was not, or its page is from before a restart.
        """
        require_same_origin(request)
        if not hmac.compare_digest(token.encode(), visitor.token.encode()):
            raise Forbidden("the form is out of date: load its page again", code="stale_form")

    def _token(self, who: bytes) -> str:
        """What stands in the forms of those who have no session."""
        return hmac.new(self._sessions.secret(), who, hashlib.sha256).hexdigest()


class _Sessions:
    """A file for each session: named by the SHA-256 of its cookie, with that of its key."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._secret = b""

    def secret(self) -> bytes:
        """What only the servers on this directory know; made when it is first asked for.

        Raises:
            RecordUnavailable: it cannot be kept.
        """
        file = self._directory / SECRET
        try:
            if not self._secret and not file.exists():
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                draft = self._draft(secrets.token_hex(32))
                with suppress(FileExistsError):  # another server was faster
                    os.link(draft, file)
                draft.unlink()
            self._secret = self._secret or file.read_bytes()
        except OSError as error:
            raise RecordUnavailable(f"the console's secret cannot be kept: {error}") from error
        return self._secret

    def begin(self, key_digest: bytes) -> str:
        """Keep a new session and return its cookie.

        Raises:
            OSError: it cannot be kept.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        cookie = secrets.token_urlsafe(32)
        kept = {"key": key_digest.hex(), "ends_at": time.time() + SESSION_S}
        self._draft(json.dumps(kept)).replace(self._file(cookie))
        return cookie

    def _draft(self, text: str) -> Path:
        handle, name = tempfile.mkstemp(dir=self._directory, prefix=".")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        return Path(name)

    def key_of(self, cookie: str) -> bytes | None:
        """Return the digest of the key that a session began with; None where there is none."""
        try:
            kept = json.loads(self._file(cookie).read_text())
            key, ends_at = bytes.fromhex(kept["key"]), float(kept["ends_at"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if ends_at < time.time():
            self.end(cookie)
            return None
        return key

    def end(self, cookie: str) -> None:
        """Forget a session."""
        with suppress(OSError):
            self._file(cookie).unlink()

    def _sweep(self) -> None:
        """Forget what has ended, and the oldest where there are too many."""
        aged = []
        for file in self._directory.iterdir():
            if file.name == SECRET:
                continue
            with suppress(OSError):
                aged.append((file.stat().st_mtime, file))
        aged.sort(reverse=True)
        for place, (began_at, file) in enumerate(aged, 1):
            if place >= MAX_SESSIONS or began_at + SESSION_S < time.time():
                with suppress(OSError):
                    file.unlink()

    def _file(self, cookie: str) -> Path:
        return self._directory / hashlib.sha256(_bytes(cookie)).hexdigest()


def _form_token(cookie: str) -> str:
    """What stands in the forms of a session's pages: only who has its cookie can make it."""
    return hmac.new(_bytes(cookie), b"form", hashlib.sha256).hexdigest()


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


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
