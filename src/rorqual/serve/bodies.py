"""Bodies of requests, read within limits: of their size, of their time, and of how many large ones are in memory at once."""

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
"""Bytes of a body beyond the limit that are read and dropped, so that its client can read why it was refused."""
LARGE_AT_ONCE, LARGE_OF_ONE = 8, 2
"""Bodies of more than `SLICE` bytes that are received, parsed or tokenised at once: of all tenants, and of one."""
KINDS = ("application/json", "application/octet-stream", "text/plain", "")
"""Content types that are read as JSON: some clients say nothing, or the least, of what they send."""


class Bodies:
    """The large bodies in memory. One more waits, and its client's socket is not read."""

    def __init__(self, most: int = LARGE_AT_ONCE, each: int = LARGE_OF_ONE) -> None:
        self.most, self.each = most, each
        self._held: Counter[str] = Counter()
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self, tenant: str) -> None:
        """Until one more of `tenant` may come in."""
        while self._held.total() >= self.most or self._held[tenant] >= self.each:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn

    @contextmanager
    def held(self, tenant: str) -> Iterator[None]:
        """One large body, for as long as it is in memory."""
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._held[tenant] -= 1
            waiting, self._waiting = self._waiting, []
            for turn in waiting:  # whoever still has none waits again
                if not turn.done():
                    turn.set_result(None)


def _check_kind(request: Request) -> None:
    kind, _, parameter = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() not in KINDS or parameter.replace(" ", "").replace('"', "") not in ("", "charset=utf-8"):
        raise ApiError(415, "the body is to be application/json, in UTF-8", code="not_json")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(415, f"content-encoding {encoding[:40]!r} is not taken; send the body as it is")


@asynccontextmanager
async def body_of(request: Request, limit: int, bodies: Bodies, tenant: str) -> AsyncIterator[list[bytes]]:
    """The parts of the body, each of `SLICE` bytes at most; a large body has its place among `bodies` until this ends.

    One that is longer than `limit`, compressed, no JSON by its own word, or slower than a minute is refused.
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
                what = f"other bodies of more than {SLICE:,} bytes were read for {BODY_SECONDS:.0f} seconds; try later"
                raise ApiError(429, what, code="large_bodies") from None
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
        if size > limit:
            what = f"the body is longer than {limit} bytes, the limit. Shorten it, or start the server with a larger max_body="
            raise ApiError(413, what, code="body_too_large")
        yield parts
