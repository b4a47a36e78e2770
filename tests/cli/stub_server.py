"""A server that answers what it is told to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

Reply = Callable[[int, dict[str, Any]], tuple[int, dict[str, Any]] | None]
"""(status, JSON) of a reply to the request of that number (from 0) with that body, or None for no reply ever."""


def spoken(content: str, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """The JSON of a chat reply."""
    said = {"role": "assistant", "content": content, **message}
    return {
        "choices": [{"message": said, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    }


def numbers_in(body: dict[str, Any]) -> list[int]:
    """The numbers in the last message of a request."""
    text = body["messages"][-1]["content"].replace("+", " ").replace(",", " ")
    return [int(word) for word in text.split() if word.isdigit()]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization", ""))
            server.now += 1
            server.most = max(server.most, server.now)
        answer = server.reply(number, body)
        with server.lock:
            server.now -= 1
        if answer is None:
            server.held.wait(60)
            return
        raw = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


class StubServer(ThreadingHTTPServer):
    """`bodies` and `keys` of all requests so far; `most`: the largest number of requests at once."""

    daemon_threads = True

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.lock, self.held = reply, threading.Lock(), threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.now = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


S = TypeVar("S", bound=StubServer)


@contextmanager
def running(server: S) -> Iterator[S]:
    """Run the server until the block ends."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.held.set()
    server.shutdown()
    server.server_close()
