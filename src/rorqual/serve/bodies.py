"""Reading of request bodies, with limits on the size of a body, on the time that a body takes to arrive, and on the number of
large bodies in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import Request

from rorqual.serve.errors import ApiError
from rorqual.serve.limits import SLICE

BODY_SECONDS = 60.0
"""Maximum seconds that a request body may take to arrive."""
DISCARDED = 2**28
"""If a request body exceeds the size limit, up to `DISCARDED` bytes are read and discarded, so that the client finishes
sending and reads the error."""
LARGE_AT_ONCE, LARGE_OF_ONE = 8, 2
"""Maximum number of request bodies above `SLICE` bytes that are received, parsed or tokenized at the same time: of all
tenants together, and of one tenant."""


class LargeBodyLimit:
    """A limit on the number of large request bodies in memory. Requests beyond the limit wait, and the server does not read
    from the sockets of waiting requests."""

    def __init__(self, most: int = LARGE_AT_ONCE, each: int = LARGE_OF_ONE) -> None:
        self._all = asyncio.Semaphore(most)
        self._of_tenant = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(each))

    @asynccontextmanager
    async def reserve_body_slot(self, tenant: str) -> AsyncIterator[None]:
        """Wait until the limits allow another large body of `tenant`, and count the body until the `async with` block
        ends."""
        async with self._of_tenant[tenant], self._all:
            yield


@asynccontextmanager
async def read_body(request: Request, limit: int, bodies: LargeBodyLimit, tenant: str) -> AsyncIterator[list[bytes]]:
    """Read a request body and yield the body as a list of byte strings, each of at most `SLICE` bytes.

    A large body counts toward the limits of `bodies` until the `async with` block ends. Raises ApiError if the body is longer
    than `limit` bytes, or takes more than `BODY_SECONDS` seconds to arrive.
    """
    loop, parts, size, is_waiting = asyncio.get_running_loop(), list[bytes](), 0, False
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(BODY_SECONDS) as clock:
                async for part in request.stream():
                    if size <= SLICE < size + len(part):
                        is_waiting = True
                        await stack.enter_async_context(bodies.reserve_body_slot(tenant))
                        is_waiting = False
                        clock.reschedule(loop.time() + BODY_SECONDS)
                    size += len(part)
                    if size <= limit:
                        parts += [part[start : start + SLICE] for start in range(0, len(part), SLICE)]
                    elif size > DISCARDED:
                        break
                    else:
                        parts.clear()
        except TimeoutError:
            if is_waiting:
                problem = f"Other bodies of more than {SLICE:,} bytes occupied the server for {BODY_SECONDS:.0f} seconds. Try again later."
                raise ApiError(429, problem, code="large_bodies") from None
            raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
        if size > limit:
            problem = (
                f"The body is longer than the limit of {limit} bytes. "
                "Shorten the body, or start the server with a larger max_body=."
            )
            raise ApiError(413, problem, code="body_too_large")
        yield parts
