"""Run mixed load on `rorqual serve` for half an hour, and check that its memory is stable and its answers stay right.

    python scripts/soak.py --minutes 30

Clients send requests without pause: growing conversations (with hits in the prefix cache), streams, abandoned streams and long
prompts. They also use several samples per prompt, seeds, penalties, JSON by a grammar, and invalid requests. Every ten seconds the
script reads the resident memory of the server and of its engine. These conditions must hold:

- Memory grows by less than 3 % from the end of the first third, when the caches are full, to the end. Both values are medians over
  a fifth of the time.
- No response has status 500 or above. A fixed greedy request always gets the same answer.
- At the end no request is running or waiting, and no cache block is in use.

The exit code is 0 if all of them hold. The result, with the samples, is written to docs/results/soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rorqual.core.records import write_json

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "serve")]

import served  # noqa: E402

RESULT = ROOT / "docs" / "results" / "soak.json"
EVERY = 10.0
CLIENTS = 8
FIXED = {"messages": [{"role": "user", "content": "what is the same every time?"}], "max_tokens": 24, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
WORDS = [
    "add",
    "take",
    "two",
    "of",
    "them",
    "from",
    "the",
    "other",
    "and",
    "say",
    "what",
    "is",
    "left",
    "over",
    "when",
    "all",
    "are",
    "counted",
]


@dataclass
class Load:
    """The requests of the clients and their outcomes."""

    model: str
    until: float
    answers: Counter[str] = field(default_factory=Counter)
    fixed: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


async def client(number: int, http: httpx.AsyncClient, load: Load) -> None:
    """Send random requests until the time is over."""
    draw = random.Random(number)
    turns: list[dict[str, str]] = []
    kinds = [talk, stream, leave, long, several, json_mode, refused, fixed]
    while time.monotonic() < load.until:
        kind = draw.choice(kinds)
        try:
            status = await kind(http, load, draw, turns)
        except httpx.HTTPError as error:
            status = 0
            load.wrong.append(f"{kind.__name__}: {error!r}")
        load.answers[f"{kind.__name__} {status}"] += 1
        if status >= 500:
            load.wrong.append(f"{kind.__name__}: {status}")


def text(draw: random.Random, words: int) -> str:
    """Return random words."""
    return " ".join(draw.choice(WORDS) for _ in range(words))


async def post(http: httpx.AsyncClient, load: Load, body: dict[str, Any]) -> httpx.Response:
    """Send one request without streaming."""
    return await http.post("/v1/chat/completions", json={"model": load.model, **body})


async def talk(http: httpx.AsyncClient, load: Load, draw: random.Random, turns: list[dict[str, str]]) -> int:
    """Send the next turn of a conversation."""
    if len(turns) > 8:
        turns.clear()
    turns.append({"role": "user", "content": text(draw, 20)})
    answer = await post(http, load, {"messages": turns, "max_tokens": 24, "seed": draw.randrange(99)})
    if answer.status_code == 200:
        turns.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"] or ""})
    else:
        turns.clear()
    return answer.status_code


async def stream(http: httpx.AsyncClient, load: Load, draw: random.Random, turns: Any, pieces: int = 10**9) -> int:
    """Read a stream to its end, or up to `pieces` lines."""
    body = {
        "model": load.model,
        "messages": [{"role": "user", "content": text(draw, 8)}],
        "max_tokens": 48,
        "stream": True,
    }
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            pieces -= 1
            if pieces < 0:
                break
        return answer.status_code


async def leave(http: httpx.AsyncClient, load: Load, draw: random.Random, turns: Any) -> int:
    """Abandon a stream."""
    return await stream(http, load, draw, turns, pieces=draw.randrange(12))


async def long(http: httpx.AsyncClient, load: Load, draw: random.Random, turns: Any) -> int:
    """Send one of a few long prompts. Half of them are in the cache."""
    body = {"messages": [{"role": "user", "content": text(random.Random(draw.randrange(40)), 80)}], "max_tokens": 8}
    return (await post(http, load, body)).status_code


async def several(http: httpx.AsyncClient, load: Load, draw: random.Random, turns: Any) -> int:
    """Request four samples with penalties and log-probabilities."""
    extra = {
        "n": 4,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.1,
        "logprobs": True,
        "top_logprobs": 3,
        "top_p": 0.9,
    }
    body = {"messages": [{"role": "user", "content": text(draw, 6)}], "max_tokens": 16, **extra}
    return (await post(http, load, body)).status_code


async def json_mode(http: httpx.AsyncClient, load: Load, draw: random.Random, turns: Any) -> int:
    """Request an answer by one of many JSON schemas."""
    schema = {**SCHEMA, "title": str(draw.randrange(500))}
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    body = {"messages": [{"role": "user", "content": "a number"}], "max_tokens": 40, "response_format": form}
    return (await post(http, load, body)).status_code


async def refused(http: httpx.AsyncClient, load: Load, draw: random.Random, turns: Any) -> int:
    """Send an invalid request, which must be refused."""
    wrong: list[dict[str, Any]] = [
        {"temperature": -1}, {"max_tokens": 0}, {"stop": ["x"] * 99}, {"n": 10**9}, {"messages": []}, {"unknown": 1},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": {"not": {}}}}},
    ]  # fmt: skip
    body = {"messages": [{"role": "user", "content": "no"}], "max_tokens": 4, **draw.choice(wrong)}
    answer = await post(http, load, body)
    if answer.status_code < 400:
        load.wrong.append(f"not refused: {body}")
    return answer.status_code


async def fixed(http: httpx.AsyncClient, load: Load, draw: random.Random, turns: Any) -> int:
    """Send the fixed request, whose answer must never change."""
    answer = await post(http, load, FIXED)
    if answer.status_code == 200:
        message = answer.json()["choices"][0]["message"]
        load.fixed.add(json.dumps([message.get("reasoning_content"), message["content"]]))
    return answer.status_code


def resident(process: int) -> int:
    """Return the resident memory of a process in bytes."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {process} has no VmRSS: it has ended")


async def soak(server: served.Server, load: Load, minutes: float) -> list[dict[str, float]]:
    """Run the load and sample the memory."""
    engine, began, samples = server.engine(), time.monotonic(), []
    async with httpx.AsyncClient(
        base_url=server.url, headers={"authorization": f"Bearer {server.key}"}, timeout=300, trust_env=False
    ) as http:
        clients = [asyncio.create_task(client(number, http, load)) for number in range(CLIENTS)]
        while time.monotonic() < load.until:
            await asyncio.sleep(EVERY)
            now = {
                "seconds": round(time.monotonic() - began, 1),
                "server": resident(server.process.pid),
                "engine": resident(engine),
                "answers": sum(load.answers.values()),
            }
            samples.append(now)
            left = minutes - now["seconds"] / 60
            print(
                f"{now['answers']} answers, engine {now['engine'] >> 20} MiB, server {now['server'] >> 20} MiB, {left:.1f} min left"
            )
        await asyncio.gather(*clients)
    return samples


def growth(samples: list[dict[str, float]], name: str) -> float:
    """Return the relative growth from the median of the fifth after the first third to the median of the last fifth."""
    n = len(samples)
    early, late = samples[n // 3 : n // 3 + max(n // 5, 1)], samples[-max(n // 5, 1) :]
    return statistics.median(s[name] for s in late) / statistics.median(s[name] for s in early) - 1


def main() -> None:
    """Run the load, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="default: a small model with random weights")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run = chosen.run or served.write_run(place / "small")
        words = ("port=0", f"cache_dir={place / 'cache'}", f"cache_bytes={64 << 20}", "ui=false")
        server = served.start(run, place / "keys.json", place / "log", *words)
        load = Load(run.resolve().name, time.monotonic() + 60 * chosen.minutes)
        samples = asyncio.run(soak(server, load, chosen.minutes))
        time.sleep(2)
        with server.client as http:
            left = {
                line.split()[0]: float(line.split()[1])
                for line in http.get("/metrics").text.splitlines()
                if line and line[0] != "#"
            }
        served.stop(server)
    busy = {name: value for name, value in left.items() if ("running" in name or "waiting" in name) and value}
    grown = {name: growth(samples, name) for name in ("server", "engine")}
    holds = not load.wrong and len(load.fixed) == 1 and not busy and all(value < 0.03 for value in grown.values())
    write_json(chosen.out, {
        "command": f"python scripts/soak.py {run.name} --minutes {chosen.minutes:g}",
        "holds": holds, "growth": grown, "answers": dict(sorted(load.answers.items())), "fixed_answers": len(load.fixed),
        "wrong": load.wrong[:20], "busy_at_the_end": busy, "metrics": left, "samples": samples,
    })  # fmt: skip
    print(json.dumps({"holds": holds, "growth": grown, "wrong": load.wrong[:5], "busy": busy}, indent=1))
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
