"""The chat page's API client, which calls the ASGI application in this process for the logged-in tenant.

The page's requests are parsed, limited and queued like the requests of other clients.
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
"""Maximum number of response parts that are buffered while the page reads slowly. When the buffer is full, the route waits."""
_DATA = "data: "
_DONE = "[DONE]"


class _Call:
    """A request to an ASGI application. The response arrives in `messages`; `leave` simulates a disconnect of the client."""

    def __init__(self, body: bytes) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue(MESSAGES)
        self._body: bytes | None = body
        self._disconnected = asyncio.Event()

    def leave(self) -> None:
        self._disconnected.set()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._disconnected.wait()
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
    """Yield the chunks of a streamed chat completion, and None for each keep-alive comment.

    Raises ApiError if the request is refused or fails during the stream. Closing the generator early cancels the request.
    """
    # A conversation may be long, and serializing it would block the event loop.
    request_body = await asyncio.to_thread(_serialize, body)
    call = _Call(request_body)
    task = asyncio.create_task(call.run(api, _scope(tenant, len(request_body))))
    status, buffer = 0, b""
    try:
        while (message := await call.messages.get()) is not None:
            if message["type"] == "http.response.start":
                status = message["status"]
                continue
            buffer += message.get("body", b"")
            if status != 200:
                continue
            *events, buffer = buffer.split(b"\n\n")
            for event in events:
                if (chunk := _parse_event(event.decode())) is not _DONE:
                    yield chunk
        if status != 200:
            raise _refusal(status, buffer)
    finally:
        call.leave()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _serialize(body: Mapping[str, Any]) -> bytes:
    return json.dumps({**body, "stream": True}, ensure_ascii=False).encode("utf-8", "replace")


def _parse_event(text: str) -> Any:
    """Parse a server-sent event. Return the event's chunk, None for a comment, or `_DONE` for the last event."""
    if not text.startswith(_DATA):
        return None
    data = text.removeprefix(_DATA)
    if data == _DONE:
        return _DONE
    chunk = json.loads(data)
    if "error" in chunk:
        raise _error(503, chunk["error"])
    return chunk


def _refusal(status: int, body: bytes) -> ApiError:
    try:
        return _error(status, json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return ApiError(status or 500, "The server raised an unexpected error. Its log has the traceback.")


def _error(status: int, error: Mapping[str, Any]) -> ApiError:
    return ApiError(status, str(error.get("message", "")), param=error.get("param"), code=error.get("code"))
