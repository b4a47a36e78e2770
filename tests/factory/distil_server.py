"""A server that answers like OpenAI's and adds numbers: the same question and seed give the same answer.

    python distil_server.py PORT_FILE LOG_FILE

The log has a line of JSON for each request that was answered and so would be billed: question, seed, tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Reply = tuple[int, bytes, dict[str, str]]
Rule = Callable[[dict[str, Any], int], Reply | None]
"""What to answer to (body, number of the call); None: the usual."""
PROMPT_TOKENS, DELAY = 20, 0.01


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """A third of the answers are wrong, some are cut off; every thought differs."""
    question, seed = body["messages"][-1]["content"], body["seed"]
    dice = hashlib.sha256(f"{question} {seed}".encode()).digest()
    total = sum(map(int, re.findall(r"\d+", question))) + (dice[0] % 3 == 0)
    text = f"<think>{question} Let me see, {dice.hex()} it is.</think>\n{total}"
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "length" if dice[1] > 240 else "stop"}],
        "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 10 + dice[2] % 10},
    }  # fmt: skip


def says(text: str, *, prompt: int = PROMPT_TOKENS, tokens: int = 10, finish: Any = "stop") -> Reply:
    """An answer of this text, with the server's own count of its tokens."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens}
    return 200, json.dumps({"choices": [choice], "usage": usage}).encode(), {}


def fault(status: int, message: str = "no", **headers: str) -> Reply:
    return status, json.dumps({"error": {"message": message}}).encode(), headers


class Adder:
    """`rule` may answer otherwise. `billed` are the bodies answered with 200, `keys` the header Authorization of each request."""

    def __init__(self, log: Path | None = None, delay: float = 0.0) -> None:
        self.asked: list[dict[str, Any]] = []
        self.billed: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.rule: Rule = lambda body, number: None
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.asked)
                    server.asked.append(body)
                    server.keys.append(self.headers["Authorization"])
                time.sleep(delay)
                status, raw, headers = server.rule(body, number) or (200, json.dumps(answer(body)).encode(), {})
                with lock:
                    if status == 200:
                        server.billed.append(body)
                    if log is not None:
                        with open(log, "a", encoding="utf-8") as file:
                            line = {"question": body["messages"][-1]["content"], "seed": body["seed"], "status": status}
                            file.write(json.dumps(line) + "\n")
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def start(self) -> None:
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


if __name__ == "__main__":
    made = Adder(Path(sys.argv[2]), DELAY)
    Path(sys.argv[1]).write_text(made.url, encoding="utf-8")
    made.http.serve_forever()
