"""What goes wrong in the gateway, each with its status, in OpenAI's error shape.

A message never holds a text of a query, a key or an address of the upstream: it ends up in logs.
"""

from __future__ import annotations

from typing import Any

from slm_guardian.errors import GuardianError


class ServeError(GuardianError):
    """A request that cannot be answered as asked."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.retry_after = message, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer: `{"error": {"message", "type", "param", "code"}}`."""
        return error_body(self.message, self.type, self.param, self.code)


def error_body(message: str, type: str, param: str | None, code: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


class BadRequest(ServeError):
    """The request is wrong."""

    status, type, code = 400, "invalid_request_error", "bad_request"


class Unauthorized(ServeError):
    """No key, or one that nobody has."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(ServeError):
    """The key may not do this."""

    status, type, code = 403, "invalid_request_error", "forbidden"


class TooLarge(ServeError):
    """More than one request may bring."""

    status, type, code = 413, "invalid_request_error", "too_large"


class RateLimited(ServeError):
    """The key has used up its share."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class Overloaded(ServeError):
    """The queue is full."""

    status, type, code = 429, "rate_limit_error", "overloaded"


class JudgeTimeout(ServeError):
    """The guardian did not judge in time."""

    status, type, code = 503, "server_error", "judge_timeout"


class Broken(ServeError):
    """The guardian cannot judge: its model or its policy is broken."""

    status, type, code = 503, "server_error", "guardian_broken"


class NotConfigured(ServeError):
    """The gateway has no upstream."""

    status, type, code = 503, "server_error", "not_configured"


class UpstreamDown(ServeError):
    """The upstream cannot be reached, or broke off."""

    status, type, code = 502, "server_error", "upstream_down"


class UpstreamTimeout(ServeError):
    """The upstream took too long."""

    status, type, code = 504, "server_error", "upstream_timeout"


class Draining(ServeError):
    """The server is stopping."""

    status, type, code = 503, "server_error", "draining"
