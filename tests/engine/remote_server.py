"""An HTTP server on loopback that answers as a test says, and an engine that asks it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rorqual.core.records import Message
from rorqual.engine import Request, SamplingParams
from rorqual.engine.remote.engine import RemoteEngine

Answer = Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]]


class Server:
    """Answers each POST with what `answer(body, number of the call)` says: status, JSON or bytes, headers."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = self._now = 0
        self.answer: Answer = lambda body, _: reply(f"echo {body['messages'][-1]['content']}")
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                status, data, headers = server.answer(body, number)
                with lock:
                    server._now -= 1
                raw = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # the client did not wait
                    self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"


def reply(content: str | None, *, finish: Any = "stop", **message: Any) -> tuple[int, Any, dict[str, str]]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}, "cost": None}
    return 200, {"choices": [choice], "usage": usage}, {}


def fault(status: int, message: str = "busy", **headers: str) -> tuple[int, Any, dict[str, str]]:
    return status, {"error": {"message": message, "code": status}}, headers


def ask(text: str = "hi", thinking: Any = "auto", **params: Any) -> Request:
    return Request((Message("system", "be brief"), Message("user", text)), SamplingParams(**params), thinking)


def remote(server: Server, **options: Any) -> RemoteEngine:
    return RemoteEngine(server.url, "m", **{"backoff": 0.01, "timeout": 60.0, **options})
