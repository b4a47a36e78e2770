"""How long a connection may take to say what it wants. Uvicorn waits for ever for the rest of a request's head."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0


class Patient(H11Protocol):
    """HTTP/1.1, with a clock on the head of each request: from the connection, or from its first byte where one was kept alive.

    The clock is not set back by a byte now and then. What comes after the head has clocks of its own: `body_of` waits for a body,
    `timeout_keep_alive` for the next request.
    """

    head_seconds = HEAD_SECONDS
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        cycle: Any = self.cycle  # none before the first request
        if cycle is not None and not cycle.response_complete:
            self._stop()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
