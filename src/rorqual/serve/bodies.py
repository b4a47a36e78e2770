"""Reading of request bodies, with limits on size, time, and the number of large bodies in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from rorqual.serve.errors import ApiError
from rorqual.serve.exchange import Gone
from rorqual.serve.limits import SLICE

BODY_SECONDS = 60.0
DISCARDED = 2**28
"""Bodies over the limit are read and dropped up to this many bytes, so that the client finishes sending and reads the error."""
LARGE_AT_ONCE, LARGE_OF_ONE = 8, 2
"""Bodies of more than `SLICE` bytes that may be received, parsed or tokenized at once: of all tenants, and of one tenant."""
KINDS = ("application/json", "application/octet-stream", "text/plain", "")
"""Content types that are read as JSON. Some clients send no content type or a generic one."""


class Bodies:
    """Limits the large bodies in memory. A further one waits, and meanwhile its socket is not read."""

    def __init__(self, most: int = LARGE_AT_ONCE, each: int = LARGE_OF_ONE) -> None:
        self.most, self.each = most, each
        self._held: Counter[str] = Counter()
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self, tenant: str) -> None:
        """Wait until `tenant` may send another large body."""
        while self._held.total() >= self.most or self._held[tenant] >= self.each:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn

    @contextmanager
    def held(self, tenant: str) -> Iterator[None]:
        """Count one large body while it is in memory."""
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._held[tenant] -= 1
            waiting, self._waiting = self._waiting, []
            for turn in waiting:  # those that still exceed the limit wait again
                if not turn.done():
                    turn.set_result(None)


def _check_kind(request: Request) -> None:
    kind, _, parameter = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() not in KINDS or parameter.replace(" ", "").replace('"', "") not in ("", "charset=utf-8"):
        raise ApiError(415, "The body is not JSON. Send content-type: application/json in UTF-8.", code="not_json")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(415, f"content-encoding {encoding[:40]!r} is not supported. Send the body uncompressed.")


@asynccontextmanager
async def body_of(request: Request, limit: int, bodies: Bodies, tenant: str) -> AsyncIterator[list[bytes]]:
    """Read the body and yield it in parts of at most `SLICE` bytes. A large body counts in `bodies` until the context ends.

    Raises ApiError if the body is longer than `limit`, compressed, not declared as JSON, or takes longer than a minute.
    """
    _check_kind(request)
    loop, parts, size, waits = asyncio.get_running_loop(), list[bytes](), 0, False
    async with AsyncExitStack() as held:
        try:
            async with asyncio.timeout(BODY_SECONDS) as clock:
                async for part in request.stream():
                    if size <= SLICE < size + len(part):
                        waits = True
                        await bodies.wait(tenant)
                        held.enter_context(bodies.held(tenant))
                        waits = False
                        clock.reschedule(loop.time() + BODY_SECONDS)
                    size += len(part)
                    if size <= limit:
                        parts += [part[at : at + SLICE] for at in range(0, len(part), SLICE)]
                    elif size > DISCARDED:
                        break
                    else:
                        parts.clear()
        except ClientDisconnect:
            raise Gone from None
        except TimeoutError:
            if waits:
                what = f"Other bodies of more than {SLICE:,} bytes occupied the server for {BODY_SECONDS:.0f} seconds. Try again later."
                raise ApiError(429, what, code="large_bodies") from None
            raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
        if size > limit:
            what = f"The body is longer than the limit of {limit} bytes. Shorten it, or start the server with a larger max_body=."
            raise ApiError(413, what, code="body_too_large")
        yield parts
