"""More connections than a process may hold, and a terminal that goes away."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from rorqual.serve.descriptors import MOST_FILES
from served import Server, running, start, stop


def connect(server: Server, data: bytes = b"") -> socket.socket:
    parts = urlsplit(server.url)
    wire = socket.create_connection((parts.hostname, parts.port), timeout=60)
    wire.sendall(data)
    return wire


def closed(wire: socket.socket) -> bool:
    wire.setblocking(False)
    try:
        return not wire.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def health(server: Server) -> int:
    """The status, or 0 where there is no answer."""
    with suppress(httpx.TransportError), server.client as client:
        return client.get("/health").status_code
    return 0


def test_connections_that_say_nothing_keep_nobody_out(run: Path, tmp_path: Path) -> None:
    """Of 128 descriptors half are for connections. The one that was idle longest goes, and none that is being answered."""
    content = json.dumps(
        {"model": "tiny", "prompt": "a", "max_tokens": 3000, "stream": True, "ignore_eos": True}
    ).encode()
    with running(run, tmp_path, "ui=false", ulimit="-n 128") as server:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\nContent-Length: {len(content)}\r\n\r\n"
        with ExitStack() as open_:
            answered = open_.enter_context(connect(server, head.encode() + content))
            assert answered.recv(15) == b"HTTP/1.1 200 OK"
            idle = [open_.enter_context(connect(server, b"GET /" * (number % 2))) for number in range(150)]
            assert health(server) == 200
            assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 128
            found = [closed(wire) for wire in idle]
            assert found == sorted(found, reverse=True), "the first to come are the first to go"
            assert 0 < found.count(False) < 64
            assert not closed(answered)
        assert len(server.log.read_text(encoding="utf-8")) < 1000


def test_a_server_may_open_as_many_files_as_the_system_lets_it(run: Path, tmp_path: Path) -> None:
    with running(run, tmp_path, "ui=false", ulimit="-S -n 100") as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text(encoding="ascii").splitlines()
        [soft, hard] = next(line for line in limits if line.startswith("Max open files")).split()[3:5]
        assert int(soft) == min(MOST_FILES, MOST_FILES if hard == "unlimited" else int(hard))


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away_ends_the_server_with_grace_unless_nohup_keeps_it(
    run: Path, tmp_path: Path, ignored: bool
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        server = start(run, tmp_path / "keys.json", tmp_path / "log", "port=0", "ui=false")
    finally:
        signal.signal(signal.SIGHUP, before)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 200, "stream": True, "ignore_eos": True}
    with server.client as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert any("text" in line for line in lines)
        server.process.send_signal(signal.SIGHUP)
        assert "data: [DONE]" in list(lines)
    if ignored:
        assert health(server) == 200
        assert stop(server) == 0
    assert server.process.wait(60) == 0
