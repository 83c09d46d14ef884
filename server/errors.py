"""The error tree of `server`; each class knows its status, OpenAI type and code.

ServerError                      base; rendered by one handler (`server.app`)
├── BadRequest            400    the request is malformed (the client's fault); `param` names where
├── Unauthorized          401    no API key, or one that is not known
├── Forbidden             403    the key does not reach that far
├── NotFoundError         404    no such model, interaction, feedback, adapter
├── ConflictError         409    it is not in a state in which that can be done
├── TooLarge              413    the body is longer than the server takes
├── RateLimited           429    the key has used up its share for now
├── Unavailable           503    try again later (never the client's fault)
│   ├── EngineUnavailable        the engine is down, too slow, or still loading an adapter
│   │   ├── EngineUntold         no connection came about: it was asked nothing
│   │   ├── EngineLost           the connection broke before the answer was whole
│   │   ├── EngineTimeout        it was asked, and said nothing in time
│   │   └── EngineFault          it answered 5xx, other than that it is not ready
│   ├── SandboxUnavailable       the sandbox failed; nothing is said of the program
│   ├── RecordUnavailable        the answer could not be made durable, so it is not given
│   ├── Overloaded               too many requests are in flight
│   ├── UsersFirst               it goes behind others, and they are still about
│   └── ShuttingDown             the server is stopping
└── EngineRefusal         4xx    the engine's own answer, passed on in its own words
"""

from __future__ import annotations

import math
from typing import Any


class ServerError(Exception):
    """Base of all errors that become an HTTP answer.

    Args:
        message: What is wrong, in words for the client.
        param: Which field of the request, for instance `io_spec.examples[1].input`.
        code: Stable word for programs; the class's own when left out.
    """

    status = 500
    type = "server_error"
    code: str | None = "internal_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape, with the `type` at the top that Anthropic's has."""
        return {
            "type": "error",
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            },
        }


class BadRequest(ServerError):
    """The request is malformed: the client's fault."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Unauthorized(ServerError):
    """There is no API key, or one that is not known."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        """How to authenticate."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServerError):
    """The key does not reach that far."""

    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class RateLimited(ServerError):
    """The key has used up its share for now."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class NotFoundError(ServerError):
    """What the request names does not exist."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ConflictError(ServerError):
    """What the request names is not in a state in which that can be done."""

    status = 409
    type = "invalid_request_error"
    code = "wrong_state"


class TooLarge(ServerError):
    """The body is longer than the server takes."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class Unavailable(ServerError):
    """The server cannot answer now; trying again later may help."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"
    retry_after_s = 2


class EngineUnavailable(Unavailable):
    """The engine is down, too slow, or still loading an adapter."""

    code = "engine_unavailable"
    retry_after_s = 5


class EngineUntold(EngineUnavailable):
    """No connection to the engine came about: it was asked nothing."""


class EngineLost(EngineUnavailable):
    """The connection broke before the answer was whole; the engine may have been at work on it."""


class EngineTimeout(EngineUnavailable):
    """The engine was asked, and said nothing in time; it may still be at work on it."""


class EngineFault(EngineUnavailable):
    """The engine answered 5xx, other than 503: it was there, and this went wrong in it."""


class SandboxUnavailable(Unavailable):
    """The sandbox failed; nothing is said of the program."""

    code = "sandbox_unavailable"


class RecordUnavailable(Unavailable):
    """The answer could not be made durable, so it is not given."""

    code = "record_unavailable"
    retry_after_s = 5


class Overloaded(Unavailable):
    """Too many requests are in flight."""

    code = "overloaded"
    retry_after_s = 1


class UsersFirst(Unavailable):
    """The request goes behind those of others (`priority`), and waited long for them."""

    code = "users_first"
    retry_after_s = 1


class ShuttingDown(Unavailable):
    """The server is stopping."""

    code = "shutting_down"
    retry_after_s = 10


class EngineRefusal(ServerError):
    """The engine refused the request (4xx); its body is passed on as it is."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body.get("error", body)))
        self.status = status
        self._body = body

    def body(self) -> dict[str, Any]:
        """The engine's own words."""
        return self._body
