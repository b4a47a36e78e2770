"""HTTP around a reply: bodies read within limits, streams of events, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from rorqual.serve.errors import ApiError

T = TypeVar("T")
BODY_SECONDS = 60.0
DISCARDED = 2**28
"""Bytes of a body beyond the limit that are read and dropped, so that its client can read why it was refused."""
KINDS = ("application/json", "application/octet-stream", "text/plain", "")
"""Content types that are read as JSON: some clients say nothing, or the least, of what they send."""
DONE = "data: [DONE]\n\n"
COMMENT = ": still here\n\n"
BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Where Python's `splitlines`, and so httpx's `iter_lines`, breaks a line, though no standard of events does: JSON may escape them."""
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Gone(Exception):
    """The client left."""


def event(value: Any) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':')).translate(BREAKS)}\n\n"


async def body_of(request: Request, limit: int) -> bytes:
    """The body; one that is longer than `limit`, compressed, no JSON by its own word, or slower than a minute is refused."""
    kind, _, parameter = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() not in KINDS or parameter.replace(" ", "").replace('"', "") not in ("", "charset=utf-8"):
        raise ApiError(415, "the body is to be application/json, in UTF-8", code="not_json")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(415, f"content-encoding {encoding[:40]!r} is not taken; send the body as it is")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > DISCARDED:
                    break
    except ClientDisconnect:
        raise Gone from None
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    if size > limit:
        raise ApiError(413, f"the body is longer than {limit} bytes", code="body_too_large")
    return b"".join(parts)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What `work` returns; where the client leaves first, it is cancelled and `Gone` raised."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, for a client that waits; `Gone` where it does not."""
    return await _until_gone(work, request.receive)


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, `events` is closed, and with it the request that it draws from.

    The answer begins with the first event: what goes wrong before it is an answer with a status of its own.
    """

    def __init__(self, events: AsyncGenerator[str, None], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers | HEADERS, media_type="text/event-stream")
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(Gone):  # nobody is there to be told
            await _until_gone(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        async with aclosing(self.events) as events:
            text = await anext(events, "")
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                while text:
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                    text = await anext(events, "")
            except ApiError as error:
                await send({"type": "http.response.body", "body": event(error.body()).encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def header_of(ignored: list[str]) -> dict[str, str]:
    """What was asked for and changes nothing."""
    return {"x-rorqual-ignored": ",".join(ignored)} if ignored else {}
