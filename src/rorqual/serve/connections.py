"""Limits on connections: their number, the time to send a request's head, and the time to read a response.

Uvicorn alone waits forever, drops a client that closed only its sending side, and reads as much at once as arrives.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rorqual.serve.exchange import PROBE

HEAD_SECONDS = 20.0
RECEIVED = 8192
"""Bytes that are read from a socket at once. If a body comes in one-byte chunks, they are 1,400 events, about 20 ms of work."""


class ConnectionLimit:
    """A server's connections, at most `most`. `idle`: connections without a running request, the longest idle first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.idle: OrderedDict[TimedProtocol, None] = OrderedDict()

    def enter(self, connection: TimedProtocol) -> None:
        """Add a connection. If that exceeds the limit, close the longest idle one, so that idle clients do not block others."""
        self.idle[connection] = None
        if len(connection.connections) > self.most:
            self.idle.popitem(last=False)[0].transport.abort()


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with time limits.

    A request's head must be complete `head_seconds` after the connection opened, or after its first byte on a kept-alive
    connection. Single bytes now and then do not extend this. Other limits follow: `body_of` for the body,
    `timeout_keep_alive` for the next request, and `stall` seconds for a client that does not read.

    A client that closes its sending side after a request still gets its response, unless an application set
    `leaves_at_eof` in the scope's state. Because it may have left, it is written to repeatedly until a reset arrives.
    """

    head_seconds = HEAD_SECONDS
    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _probe: asyncio.TimerHandle | None = None
    _ended = False

    def __init__(self, *args: Any, lobby: ConnectionLimit, stall: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._lobby, self._stall = lobby, stall

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # asyncio's default is 256 KiB
            transport.max_size = RECEIVED
        self._watch()
        self._lobby.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        for timer in (self._stalled, self._probe):
            if timer is not None:
                timer.cancel()
        self._lobby.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        cycle: Any = self.cycle
        if self._busy() and cycle.body and cycle.more_body:
            self.flow.pause_reading()  # until the application has consumed it

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._busy() or self.transport.is_closing():
            return
        if self._ended:
            self._close()
        else:
            self._lobby.idle[self] = None

    # ---- a client that does not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None and not self.transport.is_closing():
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        """Abort the connection if the client reads nothing for `stall` seconds. A closing transport would else wait forever."""
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._stall, self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        self._wait_for_reader()

    # ---- a client that closed its sending side

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open. A completely received request is answered first."""
        cycle: Any = self.cycle
        if not self._busy() or cycle.more_body or self.scope["state"].get("leaves_at_eof"):
            return False
        self.scope["state"]["half_closed"] = True
        if not self._ended:
            self._ended = True
            self._ask_whether_there()
        return True

    def _ask_whether_there(self) -> None:
        """Probe the client with an interim response (100 Continue). In an event stream, the application sends comments."""
        cycle: Any = self.cycle
        if self.transport.is_closing():
            return
        if self._busy() and not cycle.response_started and self.scope["http_version"] == "1.1":
            informs = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(informs) or b"")
        self._probe = self.loop.call_later(PROBE, self._ask_whether_there)

    # ---- a request's head

    def _busy(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
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
            self._close()
