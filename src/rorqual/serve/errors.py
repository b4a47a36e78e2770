"""API errors in OpenAI's format."""

from __future__ import annotations

import math
from typing import Any

MESSAGE = 4096
"""Maximum length of an error message in characters. Longer messages are truncated."""


class ApiError(Exception):
    """An error response. `status`: HTTP status. `param`: name of the invalid parameter. `code`: a machine-readable code.
    `wait`: seconds after which the client may try again, if known."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, wait: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.wait = status, message, param, code, wait

    @property
    def headers(self) -> dict[str, str]:
        """The header `Retry-After` of an error that may pass, in whole seconds."""
        return {"retry-after": str(max(1, math.ceil(self.wait)))} if self.status in (429, 503) else {}

    def body(self) -> dict[str, Any]:
        """Return the JSON object of the error response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        error = {"message": self.message[:MESSAGE], "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def loading_error() -> ApiError:
    """Return the ApiError for a request that needs the engine while the engine loads (status 503)."""
    return ApiError(503, "The engine is loading. Try again in a moment.", code="loading")


def stopping_error() -> ApiError:
    """Return the ApiError for a request that a stopping server does not finish (status 503)."""
    return ApiError(503, "The server is stopping.", code="stopping")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the ApiError for an invalid request (status 400)."""
    return ApiError(400, message, param=param, code=code)
