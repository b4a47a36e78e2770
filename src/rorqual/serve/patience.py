"""How long a connection may take to say what it wants, and how many there may be. Uvicorn waits for ever for the rest of a request's
head, and for as many as connect."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0


class Lobby:
    """A server's connections, `most` at a time. `idle`: those without a request under way, the longest first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.idle: OrderedDict[Patient, None] = OrderedDict()

    def enter(self, connection: Patient) -> None:
        """Where it is one too many, the one that was idle longest is closed: of many that say nothing, none keeps out who asks."""
        self.idle[connection] = None
        if len(connection.connections) > self.most:
            self.idle.popitem(last=False)[0].transport.abort()


class Patient(H11Protocol):
    """HTTP/1.1, with a clock on the head of each request: from the connection, or from its first byte where one was kept alive.

    The clock is not set back by a byte now and then. What comes after the head has clocks of its own: `body_of` waits for a body,
    `timeout_keep_alive` for the next request.
    """

    head_seconds = HEAD_SECONDS
    _late: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, lobby: Lobby, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._lobby = lobby

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        self._lobby.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._lobby.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._busy() and not self.transport.is_closing():
            self._lobby.idle[self] = None

    def _busy(self) -> bool:
        cycle: Any = self.cycle  # none before the first request
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        if self._busy():
            self._stop()
            self._lobby.idle.pop(self, None)
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
