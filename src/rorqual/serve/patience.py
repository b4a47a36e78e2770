"""How long a connection may take to say what it wants and to read what it gets, and how many there may be. Uvicorn waits for ever, closes
on a client that only closed its own side, and takes as much at once as comes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rorqual.serve.exchange import PROBE

HEAD_SECONDS = 20.0
RECEIVED = 8192
"""Bytes that are taken from a socket at once. In chunks of one byte each they are 1,400 events, some 20 ms of work."""


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
    `timeout_keep_alive` for the next request, `stall` seconds for a client that does not read: then the connection is cut.

    A client that closes its own side after a request gets its answer, unless an application set `leaves_at_eof` in the scope's state. It may
    have left, too: so it is written to, again and again, until it answers with a reset.
    """

    head_seconds = HEAD_SECONDS
    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _probe: asyncio.TimerHandle | None = None
    _ended = False

    def __init__(self, *args: Any, lobby: Lobby, stall: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._lobby, self._stall = lobby, stall

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # asyncio's own takes up to 256 KiB
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
            self.flow.pause_reading()  # until the application has taken it

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
        """Cut the connection where what was written is not read. A transport that is closed waits for that, too, and would for ever."""
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._stall, self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        self._wait_for_reader()

    # ---- a client that sends no more

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays: a request that came whole is answered first."""
        cycle: Any = self.cycle
        if not self._busy() or cycle.more_body or self.scope["state"].get("leaves_at_eof"):
            return False
        self.scope["state"]["half_closed"] = True
        if not self._ended:
            self._ended = True
            self._ask_whether_there()
        return True

    def _ask_whether_there(self) -> None:
        """Write what changes nothing. Within a stream of events the application does, which knows where one ends."""
        cycle: Any = self.cycle
        if self.transport.is_closing():
            return
        if self._busy() and not cycle.response_started and self.scope["http_version"] == "1.1":
            informs = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(informs) or b"")
        self._probe = self.loop.call_later(PROBE, self._ask_whether_there)

    # ---- a request's head

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
            self._close()
