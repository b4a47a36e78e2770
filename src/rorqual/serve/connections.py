"""Limits on the number of connections, on the time that a client takes to send the request headers, and on the time that it
takes to read a response.

Uvicorn itself does not limit the time to send headers or the time to read a response. Uvicorn reads up to 256 KiB from a
socket at a time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
RECEIVED = 8192
"""Maximum bytes per read from a socket. If a request body arrives in one-byte chunks, one read of `RECEIVED` bytes contains
1,400 h11 events, which take about 20 ms to process."""


class ConnectionLimit:
    """A limit of `most` open connections. `idle`: connections without a running request, in order of decreasing idle
    time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.idle: OrderedDict[TimedProtocol, None] = OrderedDict()

    def add_connection(self, connection: TimedProtocol) -> None:
        """Add a connection. If more than `most` connections are then open, close the connection that has been idle
        longest, so that new clients can connect."""
        self.idle[connection] = None
        if len(connection.connections) > self.most:
            self.idle.popitem(last=False)[0].transport.abort()


class TimedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol with time limits.

    The first request's headers must be complete within `head_seconds` after the connection opened. The headers of each later
    request must be complete within `head_seconds` after the request's first byte. Further header bytes do not extend the time
    limit of the headers. `read_body` limits the time that a request body takes to arrive. Uvicorn's `timeout_keep_alive`
    limits the time between requests. A connection is aborted if the client reads nothing for `stall` seconds.
    """

    head_seconds = HEAD_SECONDS
    _header_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, lobby: ConnectionLimit, stall: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._limit, self._stall = lobby, stall

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # asyncio's default is 256 KiB
            transport.max_size = RECEIVED
        self._limit_header_time()
        self._limit.add_connection(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._limit.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._limit_header_time()

    def handle_events(self) -> None:
        super().handle_events()
        cycle: Any = self.cycle
        if self._has_running_request() and cycle.body and cycle.more_body:
            self.flow.pause_reading()  # until the application has consumed the buffered body

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._has_running_request() and not self.transport.is_closing():
            self._limit.idle[self] = None

    # ---- a client that does not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_stall_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None and not self.transport.is_closing():
            self._stall_timer.cancel()
            self._stall_timer = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._start_stall_timer()

    def _start_stall_timer(self) -> None:
        """Abort the connection if the client reads nothing for `stall` seconds.

        Without the limit `stall`, a closing transport would wait forever for the client to read the remaining data.
        """
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._stall, self.transport.abort)

    def eof_received(self) -> None:
        """Treat a client that closes its sending side as disconnected, and limit the time in which the client may read the
        buffered data."""
        self._start_stall_timer()

    # ---- the request headers

    def _has_running_request(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _limit_header_time(self) -> None:
        """If a request is running, stop the time limit of the request headers. Otherwise, start the time limit of the request
        headers."""
        if self._has_running_request():
            self._stop_header_timer()
            self._limit.idle.pop(self, None)
        elif self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(self.head_seconds, self._close_on_header_timeout)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close_on_header_timeout(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._start_stall_timer()
