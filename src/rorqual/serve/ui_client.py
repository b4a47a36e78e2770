"""The page's way to the API: the routes' own application, called in this process, with the tenant of whoever is logged in.

The page is one more client. What it asks goes through the same limits, the same queue and the same reader as everybody's requests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message

from rorqual.serve.errors import ApiError

CHAT = "/v1/chat/completions"
MESSAGES = 64
"""Parts of an answer that may wait for a page that reads slowly; the route waits with the next."""
_DATA = "data: "
_DONE = "[DONE]"


class _Call:
    """One request to an ASGI application: the body is sent at once, the answer comes as messages, and `leave` is a client that leaves."""

    def __init__(self, body: bytes) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue(MESSAGES)
        self._body: bytes | None = body
        self._left = asyncio.Event()

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def run(self, api: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await api(scope, self.receive, self.messages.put)
        finally:
            await self.messages.put(None)


def _scope(tenant: str, length: int) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(length).encode())],
        "client": ("page", 0),
        "server": ("page", 0),
        "state": {"tenant": tenant},
    }


async def chunks(api: ASGIApp, tenant: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The chunks of a streamed chat completion, and None for each comment that only says that the server is still there.

    A refusal, or an error in the middle, is an `ApiError`. Closed early, it is a client that left: the request is cancelled.
    """
    # A conversation may be long, and the event loop is everybody's.
    sent = await asyncio.to_thread(_written, body)
    call = _Call(sent)
    task = asyncio.create_task(call.run(api, _scope(tenant, len(sent))))
    status, held = 0, b""
    try:
        while (message := await call.messages.get()) is not None:
            if message["type"] == "http.response.start":
                status = message["status"]
                continue
            held += message.get("body", b"")
            if status != 200:
                continue
            *whole, held = held.split(b"\n\n")
            for text in whole:
                if (found := _read(text.decode())) is not _DONE:
                    yield found
        if status != 200:
            raise _refusal(status, held)
    finally:
        call.leave()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _written(body: Mapping[str, Any]) -> bytes:
    return json.dumps({**body, "stream": True}, ensure_ascii=False).encode("utf-8", "replace")


def _read(text: str) -> Any:
    """One event of a stream: a chunk, None for a comment, `_DONE` at its end."""
    if not text.startswith(_DATA):
        return None
    data = text.removeprefix(_DATA)
    if data == _DONE:
        return _DONE
    found = json.loads(data)
    if "error" in found:
        raise _error(503, found["error"])
    return found


def _refusal(status: int, body: bytes) -> ApiError:
    try:
        return _error(status, json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return ApiError(status or 500, "the server has a bug; its log says more")


def _error(status: int, error: Mapping[str, Any]) -> ApiError:
    return ApiError(status, str(error.get("message", "")), param=error.get("param"), code=error.get("code"))
