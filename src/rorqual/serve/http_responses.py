"""Send HTTP responses as event streams or as slices of JSON, and detect clients that disconnect."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, TypeVar

from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from rorqual.core.journal import ESCAPED
from rorqual.serve.errors import ApiError
from rorqual.serve.limits import SLICE

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
COMMENT = b": still here\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
TURNS = 3
"""Turns of the event loop until the end of a connection that was closed right after a request is noticed."""
GROUP = 64
"""Number of items of a long list that are serialized at a time."""
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(scope: Scope) -> str:
    """Return the request id for responses and logs: the client's header `x-request-id` if its value is valid, else a new
    id."""
    state: dict[str, Any] = scope.setdefault("state", {})
    if "request_id" not in state:
        client_ids = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"]
        valid = len(client_ids) == 1 and SANE_ID.fullmatch(client_ids[0])
        state["request_id"] = client_ids[0] if valid else f"req-{secrets.token_hex(12)}"
    id_: str = state["request_id"]
    return id_


def compact_json(value: Any) -> bytes:
    """Serialize a value as compact JSON. Long lists are serialized in groups, so that other threads can run in between."""
    return "".join(_json_parts(value)).encode()


_dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def _json_parts(value: Any) -> Iterator[str]:
    """Yield the JSON text of a value in parts. `json.dumps` blocks all other threads until it returns."""
    if isinstance(value, dict) and value:
        for number, (name, part) in enumerate(value.items()):
            yield f"{',' if number else '{'}{_dumps(name)}:"
            yield from _json_parts(part)
        yield "}"
    elif isinstance(value, list) and value:
        step = GROUP if len(value) > GROUP else 1
        for start in range(0, len(value), step):
            yield "," if start else "["
            yield from _json_parts(value[start]) if step == 1 else [_dumps(value[start : start + step])[1:-1]]
        yield "]"
    else:
        yield _dumps(value)


def sse_event(value: Any) -> bytes:
    """Serialize a value as a server-sent event.

    By the standard, the characters in `ESCAPED` do not end a line, but httpx's `iter_lines` treats them as line ends.
    """
    text = _dumps(value)
    return f"data: {text if text.isascii() else text.translate(ESCAPED)}\n\n".encode()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` and return its result. If the client disconnects first, cancel `work` and raise ClientDisconnect. The work of a
    client that closed its connection right after its request does not start."""
    leaving = asyncio.ensure_future(_wait_for_disconnect(receive))
    tasks: list[asyncio.Future[Any]] = [leaving]
    try:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if not leaving.done():
            working = asyncio.ensure_future(work)
            tasks.append(working)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        work.close()


def _slices(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), SLICE):
        yield data[start : start + SLICE]


class SlicedJsonResponse(Response):
    """A JSON response that is sent in slices, as fast as the client reads."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in _slices(bytes(self.body)):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class EventStream(StreamingResponse):
    """A response of server-sent events. When the response ends, `events` is closed, which cancels an unfinished engine
    request.

    The HTTP status is sent with the first event. An error before the first event becomes an error response with the
    status of the error.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers={**headers, **HEADERS}, media_type="text/event-stream")
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):  # the client disconnected, so no response is possible
            await run_unless_disconnected(receive, self._send(send, request_id(scope)))

    async def _send(self, send: Send, name: str) -> None:
        async with aclosing(self.events) as events:
            data = await anext(events, b"")
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                while data:
                    for part in _slices(data):
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                    data = await anext(events, b"")
            except ApiError as error:
                await send(
                    {
                        "type": "http.response.body",
                        "body": sse_event({**error.body(), "request_id": name}),
                        "more_body": True,
                    }
                )
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def ignored_fields_header(ignored: list[str]) -> dict[str, str]:
    """Return the response header that lists ignored request fields. If no field is ignored, return no header."""
    return {"x-rorqual-ignored": ",".join(ignored)} if ignored else {}
