"""What a client is told when a request cannot be answered: OpenAI's error shape."""

from __future__ import annotations

from typing import Any

MESSAGE = 4096
"""Characters of a message, at most."""


class ApiError(Exception):
    """`status` is the HTTP status; `param` the parameter that is at fault; `code` a word for programs."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        error = {"message": self.message[:MESSAGE], "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def alone(self) -> ApiError:
        """Itself, without the frames and the errors behind it: they hold the body, which would be freed in the event loop."""
        self.__context__ = self.__cause__ = None
        return self.with_traceback(None)


def refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be meant."""
    return ApiError(400, message, param=param, code=code)
