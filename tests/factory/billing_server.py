"""A server in a process of its own that misbehaves and bills: it writes down what each request cost, which its client cannot see.

    python billing_server.py PORT_FILE BILL_FILE

The path says how it behaves, and for which client: `http://127.0.0.1:PORT/KIND/CLIENT/v1`. The bill has a line of JSON for each
request: kind, prompt and completion tokens, 0 where nothing is billed, and the requests that were in flight with it. A kind in
`EVERY_OTHER` misbehaves at a client's first try of a question and seed and answers at the second; the others always do. A token is a
word here.
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
from urllib.parse import unquote

PROMPT, REPLY, SYSTEM, LONG, TENFOLD = 20, 15, 700, 180, 1340
"""Tokens of an honest bill, of a prompt that the server adds, of a reply that ignores `max_tokens`, and of a prompt that costs ten times
what is reserved."""
HANG, WORK = 30.0, 0.01
FREE = {"500 before": 500, "429": 429, "429 with Retry-After": 429}
"""Kinds that refuse a request and bill nothing, and their status."""
EVERY_OTHER = (
    "504 after generating", "500 before", "resets midway", "hangs", "HTML with status 200", "empty choices", "broken JSON",
    "429", "429 with Retry-After",
)  # fmt: skip
NEVER = ("always 504", "usage in the last stream chunk")
"""Kinds that never give an answer."""
ALWAYS = (
    "honest", "ignores max_tokens", "adds a system prompt", "no usage", "usage too low", "negative usage", "another model",
    "usage in floats", "usage in texts", "usage beyond 31 bits",
    "usage null", "usage of nulls", "usage twice", "no model name", "models in turn", "two choices", "reasoning alone",
    "tenfold", "tenfold from the second", "tenfold, usage from the second",
    "400 for some", *NEVER,
)  # fmt: skip
KINDS = (*ALWAYS, *EVERY_OTHER)


def tokens_of(kind: str, number: int = 2) -> tuple[int, int]:
    """What a client's request really costs, of which it is the first, second, ...: tokens of prompt and reply."""
    dear = kind == "tenfold" or (kind.startswith("tenfold") and number > 1)
    prompt = PROMPT + SYSTEM * (kind == "adds a system prompt") + TENFOLD * dear
    return prompt, LONG if kind == "ignores max_tokens" else 2 * REPLY if kind == "two choices" else REPLY


def usage_of(kind: str, number: int) -> dict[str, Any]:
    """What the server says of it."""
    prompt, reply = tokens_of(kind, number)
    odd = {"usage too low": 1, "negative usage": -50, "usage in floats": float(reply), "usage in texts": str(reply)}
    said = (odd | {"usage beyond 31 bits": 2**31}).get(kind, reply)
    if kind == "no usage" or (kind == "tenfold, usage from the second" and number == 1):
        return {}
    usage = {"prompt_tokens": prompt, "completion_tokens": said}
    return {"usage": {"usage null": None, "usage of nulls": dict.fromkeys(usage)}.get(kind, usage)}


def answer(body: dict[str, Any], kind: str, number: int) -> dict[str, Any]:
    total = sum(map(int, re.findall(r"\d+", body["messages"][-1]["content"])))
    thought = " ".join(["so"] * (tokens_of("honest" if kind == "two choices" else kind)[1] - 1))
    message = {"role": "assistant", "content": str(total), "reasoning_content": thought}
    choices = [{"message": message, "finish_reason": "stop"}]
    if kind == "two choices":
        choices.append({"message": message | {"content": "another"}, "finish_reason": "stop"})
    if kind == "reasoning alone":
        message["content"] = None
    model = "a-small-one" if kind == "another model" else body["model"] + "-2024-08-06"
    if kind == "models in turn" and number % 2:
        model = body["model"] + "-2024-05-13"
    name = {} if kind == "no model name" else {"model": model}
    return {**name, "choices": choices, **usage_of(kind, number)}


def written(said: dict[str, Any], kind: str) -> bytes:
    """An answer as bytes."""
    raw = json.dumps(said)
    if kind == "usage twice":
        raw = raw.replace('"usage"', '"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "usage"')
    if kind == "usage in the last stream chunk":
        chunks = {key: said[key] for key in ("model", "choices")}, {"choices": [], "usage": said["usage"]}
        raw = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return raw.encode()


class Handler(BaseHTTPRequestHandler):
    bill: Path
    lock = threading.Lock()
    tries: Counter[tuple[str, str, int]] = Counter()
    requests: Counter[str] = Counter()
    in_flight: Counter[str] = Counter()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, kind, client, *_ = unquote(self.path).split("/")
        question, seed = body["messages"][-1]["content"], body["seed"]
        with self.lock:
            self.tries[client, question, seed] += 1
            self.requests[client] += 1
            self.in_flight[client] += 1
            number = self.requests[client]
            bad = kind in ALWAYS or self.tries[client, question, seed] % 2
            free = bad and (kind in FREE or (kind == "400 for some" and "3" in question))
            line = dict(zip(("prompt", "completion"), (0, 0) if free else tokens_of(kind, number))) | {"kind": kind}
            line["in_flight"] = self.in_flight[client]
            with open(self.bill, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        raw = written(answer(body, kind, number), kind)
        time.sleep(WORK)
        with self.lock:
            self.in_flight[client] -= 1
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
                self.say(FREE.get(kind, 400), b"{}", headers={"Retry-After": "0.3"} if "Retry-After" in kind else {})
            elif kind in ("504 after generating", "always 504"):
                self.say(504, b"<html>upstream timed out</html>")
            elif kind == "HTML with status 200":
                self.say(200, b"<html>Please wait</html>")
            elif kind == "broken JSON":
                self.say(200, raw[: len(raw) // 2])
            elif kind == "empty choices":
                self.say(200, json.dumps({"choices": [], **usage_of(kind, number)}).encode())
            else:
                self.say(200, raw)

    def say(self, status: int, raw: bytes, length: int = 0, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
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
