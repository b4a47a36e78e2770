"""Measure how long one request blocks the event loop: the longest callback for request bodies of many kinds at their limits.

    python benchmarks/event_loop.py

A server with a tiny model and a context of 131,072 tokens gets each body in turn. Each row reports:

- the status, or 0 if the client left after `--patience` seconds
- the CPU time of the loop's longest callback, including garbage collection
- the greatest delay of a timer in the loop, to which other programs contribute
- `loop_held_ms`, the part of that delay that the server may have caused: its process used no more CPU time in all its threads
- the longest garbage collection, and the growth of the server's memory
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from record import ROOT, made_by

from rorqual.core.records import write_json
from rorqual.data.tokenizer import Tokenizer

sys.path.insert(0, str(ROOT / "tests"))
import served

RESULT = ROOT / "docs" / "results" / "event-loop.json"
CONTEXT, GOAL = 131_072, 0.05
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORDS = "the quick brown fox jumps over a lazy dog, "
MIB = 2**20


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2} | fields


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def calls(number: int, arguments: str) -> list[dict[str, Any]]:
    made = [
        {"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": arguments}} for n in range(number)
    ]
    answers = [{"role": "tool", "content": "b", "tool_call_id": f"c{n}"} for n in range(number)]
    return [user("a"), {"role": "assistant", "content": "", "tool_calls": made}, *answers]


def tool(number: int, properties: int) -> dict[str, Any]:
    schema = {"type": "object", "properties": {f"x{n}": {"type": "integer"} for n in range(properties)}}
    return {"type": "function", "function": {"name": f"f{number}", "description": "d", "parameters": schema}}


def bodies() -> Iterator[tuple[str, str, Any]]:
    """Yield (name, path, body). A body is a dictionary, or the bytes to send."""
    yield "one word", CHAT, chat()
    yield "8 MB of words", CHAT, chat(messages=[user(WORDS * (7_900_000 // len(WORDS)))])
    yield "8 MB of one letter", TEXT, {"model": "tiny", "prompt": "x" * 7_900_000}
    yield "8 MB of whales", CHAT, chat(messages=[user("\N{WHALE}" * 1_950_000)])
    yield (
        "8 MB of escapes",
        CHAT,
        b'{"model":"tiny","messages":[{"role":"user","content":"' + b"\\u00e9" * 1_300_000 + b'"}]}',
    )
    yield (
        "8 MB of reasoning",
        CHAT,
        chat(
            messages=[user("a"), {"role": "assistant", "content": "b", "reasoning_content": WORDS * 180_000}, user("c")]
        ),
    )
    yield "a text that fits", TEXT, {"model": "tiny", "prompt": WORDS * 9000, "max_tokens": 2}
    yield "131,000 ids", TEXT, {"model": "tiny", "prompt": [100] * 131_000, "max_tokens": 2}
    yield "262,000 ids", TEXT, {"model": "tiny", "prompt": [100] * 262_000}
    yield "128 prompts of 2,000 ids", TEXT, {"model": "tiny", "prompt": [[100] * 2000] * 128, "max_tokens": 1}
    yield "4,096 messages", CHAT, chat(messages=[user("a" * 25)] * 4096)
    yield "4,096 parts", CHAT, chat(messages=[user([{"type": "text", "text": "a"}] * 256)] * 16)
    yield "128 tools of 4 KB", CHAT, chat(tools=[tool(n, 60) for n in range(128)])
    yield "tools of 8 MB", CHAT, chat(tools=[tool(n, 2000) for n in range(100)])
    yield "forced calls of 60 KB of schemas", CHAT, chat(tools=[tool(n, 50) for n in range(20)], tool_choice="required")
    yield "256 KB of arguments", CHAT, chat(messages=calls(1, json.dumps({"a": list(range(30_000))})))
    yield "8 MB of arguments", CHAT, chat(messages=calls(30, json.dumps({"a": "b" * 250_000})))
    yield "4,000 calls", CHAT, chat(messages=calls(4000, "{}"))
    yield "a schema of 60 KB", CHAT, chat(guided_json=tool(0, 2000)["function"]["parameters"])
    yield "a million stops", CHAT, chat(stop=["a"] * 10**6)
    yield "262,000 values", CHAT, chat(temprature=[{"a": []}] * 87_000)
    yield "8 MB of brackets", CHAT, b'{"model":' + b"[" * 7_900_000
    yield "8 MB of objects", CHAT, b'{"model":[' + b'{"a":1},' * 980_000 + b"1]}"
    yield "8 MB that is ignored", CHAT, chat(metadata={"a": "b" * 7_900_000})
    yield "a body in chunks of one byte", CHAT, b"chunked"
    yield (
        "a whole reply of 4 times 100 tokens",
        CHAT,
        chat(max_tokens=100, n=4, ignore_eos=True, logprobs=True, top_logprobs=20),
    )
    yield (
        "a stream of 4 times 100 tokens",
        CHAT,
        chat(max_tokens=100, n=4, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20),
    )
    yield (
        "an echo of 400 KB",
        TEXT,
        {"model": "tiny", "prompt": WORDS * 9000, "max_tokens": 1, "echo": True, "stream": True},
    )


def ask(client: httpx.Client, path: str, body: Any, patience: float) -> int:
    content: Any = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    if content == b"chunked":
        whole = json.dumps(chat(messages=[user("a" * 100_000)])).encode()
        content = (whole[at : at + 1] for at in range(len(whole)))
    with suppress(httpx.ReadTimeout):
        return client.post(path, content=content, timeout=httpx.Timeout(600, read=patience)).status_code
    return 0


def memory(pid: int, name: str) -> float:
    """Return a memory figure of a process in MiB: `VmRSS` is the current value, `VmHWM` the peak since `clear_refs`."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found.group(1)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds that a client waits for the response")
    parser.add_argument("--result", type=Path, default=RESULT)
    a = parser.parse_args()
    served.CONTEXT = CONTEXT
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = served.write_run(folder / "tiny", tokenizer=Tokenizer.byte_level([WORDS] * 50, 330))
        report = folder / "report.json"
        program = (str(ROOT / "tests" / "serve" / "watched.py"), str(report))
        server = served.start(run, folder / "keys", folder / "log", "port=0", "ui=false", program=program)
        pid = server.process.pid
        with server.client as client:
            for kind, path, body in bodies():
                Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
                before, began = memory(pid, "VmRSS"), time.monotonic()
                server.process.send_signal(signal.SIGUSR1)
                status = ask(client, path, body, a.patience)
                row = {"body": kind, "status": status, "wall_seconds": round(time.monotonic() - began, 2)}
                rows.append({**row, "memory_rose_mb": round(max(0.0, memory(pid, "VmHWM") - before), 1)})
                print(rows[-1], flush=True)
        served.stop(server)
        phases = json.loads(report.read_text(encoding="utf-8"))[1:]
    for row, phase in zip(rows, phases, strict=True):
        row |= {
            "longest_callback_cpu_ms": round(1000 * phase["seconds"], 1),
            "loop_late_ms": round(1000 * phase["late"], 1),
            "loop_held_ms": round(1000 * phase["held"], 1),
            "longest_collection_ms": round(1000 * phase["collected"], 1),
        }
    longest = max(row["longest_callback_cpu_ms"] for row in rows)
    held = max(row["loop_held_ms"] for row in rows)
    write_json(
        a.result,
        {
            **made_by({}),
            "goal_ms": 1000 * GOAL,
            "longest_callback_cpu_ms": longest,
            "loop_held_ms": held,
            "bodies": rows,
        },
    )
    print(f"longest callback: {longest} ms of CPU time; loop blocked for at most {held} ms; {a.result.name}")


if __name__ == "__main__":
    main()
