"""What a client is told when a request cannot be answered: OpenAI's error shape."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """`status` is the HTTP status; `param` the parameter that is at fault; `code` a word for programs."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be meant."""
    return ApiError(400, message, param=param, code=code)
