"""A server in a process of its own that misbehaves and bills: it writes down what each request cost, which its client cannot see.

    python billing_server.py PORT_FILE BILL_FILE

The path says how it behaves, and for which client: `http://127.0.0.1:PORT/KIND/CLIENT/v1`. The bill has a line of JSON for each
request: kind, prompt and completion tokens, 0 where nothing is billed. A kind in `EVERY_OTHER` misbehaves at a client's first try of a
question and seed and answers at the second; the others always do. A token is a word here.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROMPT, REPLY, SYSTEM, LONG = 20, 15, 700, 180
"""Tokens of an honest bill, of a prompt that the server adds, and of a reply that ignores `max_tokens`."""
HANG = 30.0
EVERY_OTHER = (
    "504 after generating", "500 before", "resets midway", "hangs", "HTML with status 200", "empty choices", "broken JSON",
)  # fmt: skip
ALWAYS = (
    "honest", "ignores max_tokens", "adds a system prompt", "no usage", "usage too low", "negative usage", "another model",
    "usage in floats", "usage in texts", "usage beyond 31 bits",
    "400 for some", "always 504",
)  # fmt: skip
KINDS = (*ALWAYS, *EVERY_OTHER)


def tokens_of(kind: str) -> tuple[int, int]:
    """What a request really costs: tokens of prompt and reply."""
    return PROMPT + SYSTEM * (kind == "adds a system prompt"), LONG if kind == "ignores max_tokens" else REPLY


def usage_of(kind: str) -> dict[str, Any]:
    """What the server says of it."""
    prompt, reply = tokens_of(kind)
    odd = {"usage too low": 1, "negative usage": -50, "usage in floats": float(reply), "usage in texts": str(reply)}
    said = (odd | {"usage beyond 31 bits": 2**31}).get(kind, reply)
    return {} if kind == "no usage" else {"usage": {"prompt_tokens": prompt, "completion_tokens": said}}


def answer(body: dict[str, Any], kind: str) -> dict[str, Any]:
    total = sum(map(int, re.findall(r"\d+", body["messages"][-1]["content"])))
    thought = " ".join(["so"] * (tokens_of(kind)[1] - 1))
    message = {"role": "assistant", "content": str(total), "reasoning_content": thought}
    model = "a-small-one" if kind == "another model" else body["model"] + "-2024-08-06"
    return {"model": model, "choices": [{"message": message, "finish_reason": "stop"}], **usage_of(kind)}


class Handler(BaseHTTPRequestHandler):
    bill: Path
    lock = threading.Lock()
    tries: Counter[tuple[str, str, int]] = Counter()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, kind, client, *_ = self.path.replace("%20", " ").split("/")
        question, seed = body["messages"][-1]["content"], body["seed"]
        with self.lock:
            self.tries[client, question, seed] += 1
            bad = kind in ALWAYS or self.tries[client, question, seed] % 2
            free = bad and (kind == "500 before" or (kind == "400 for some" and "3" in question))
            line = dict(zip(("prompt", "completion"), (0, 0) if free else tokens_of(kind))) | {"kind": kind}
            with open(self.bill, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        raw = json.dumps(answer(body, kind)).encode()
        with contextlib.suppress(OSError):
            if not bad:
                self.say(200, raw)
            elif kind == "hangs":
                time.sleep(HANG)
            elif kind == "resets midway":
                self.say(200, raw[: len(raw) // 2], len(raw))
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            elif free:
                self.say(500 if kind == "500 before" else 400, b"{}")
            elif kind in ("504 after generating", "always 504"):
                self.say(504, b"<html>upstream timed out</html>")
            elif kind == "HTML with status 200":
                self.say(200, b"<html>Please wait</html>")
            elif kind == "broken JSON":
                self.say(200, raw[: len(raw) // 2])
            elif kind == "empty choices":
                self.say(200, json.dumps({"choices": [], **usage_of(kind)}).encode())
            else:
                self.say(200, raw)

    def say(self, status: int, raw: bytes, length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


def main(port_file: str, bill_file: str) -> None:
    Handler.bill = Path(bill_file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    part = Path(port_file + ".part")
    part.write_text(str(server.server_port), encoding="utf-8")
    part.rename(port_file)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
