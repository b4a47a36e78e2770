"""A body's minute: of the client's own time, on a clock that the test turns by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import Request

from rorqual.serve.bodies import BODY_SECONDS, LargeBodyLimit, read_body
from rorqual.serve.errors import ApiError
from rorqual.serve.limits import SLICE

SCOPE = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}


class ByHand(asyncio.SelectorEventLoop):
    """Its time stands until it is moved."""

    now = 0.0

    def time(self) -> float:
        return self.now

    async def pass_by(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(20):
            await asyncio.sleep(0)


async def read(loop: ByHand, waited: float, then: float) -> int:
    """Bytes of a large body that waits `waited` seconds for its place and whose last part comes `then` seconds later."""
    bodies, parts = LargeBodyLimit(most=1), asyncio.Queue[dict[str, Any]]()

    async def body() -> int:
        async with read_body(Request(SCOPE, parts.get), 2**20, bodies, "a") as found:
            return sum(map(len, found))

    async with bodies.reserve_body_slot("b"):
        reader = loop.create_task(body())
        parts.put_nowait({"type": "http.request", "body": b"x" * (SLICE + 1), "more_body": True})
        await loop.pass_by(0)
        await loop.pass_by(waited)
    await loop.pass_by(0)
    await loop.pass_by(then)
    parts.put_nowait({"type": "http.request", "body": b"y", "more_body": False})
    return await reader


def run(what: Callable[[ByHand], Awaitable[int]]) -> int:
    loop = ByHand()
    try:
        return loop.run_until_complete(what(loop))
    finally:
        loop.close()


def test_the_wait_for_a_place_is_not_the_clients_time() -> None:
    assert run(lambda loop: read(loop, BODY_SECONDS - 1, BODY_SECONDS - 1)) == SLICE + 2


@pytest.mark.parametrize(("waited", "then", "status"), [(0.0, BODY_SECONDS + 1, 408), (BODY_SECONDS + 1, 0.0, 429)])
def test_beyond_a_minute_it_is_refused_for_what_took_so_long(waited: float, then: float, status: int) -> None:
    with pytest.raises(ApiError) as refused:
        run(lambda loop: read(loop, waited, then))
    assert refused.value.status == status
