"""API errors in OpenAI's format."""

from __future__ import annotations

from typing import Any

MESSAGE = 4096
"""Longer messages are cut to this many characters."""


class ApiError(Exception):
    """An error response. `status`: HTTP status. `param`: the parameter at fault. `code`: a machine-readable code."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Return the response's JSON object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        error = {"message": self.message[:MESSAGE], "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def alone(self) -> ApiError:
        """Return self without traceback and context. Their frames hold the body, which would be freed in the event loop."""
        self.__context__ = self.__cause__ = None
        return self.with_traceback(None)


def refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for an invalid request (status 400)."""
    return ApiError(400, message, param=param, code=code)
