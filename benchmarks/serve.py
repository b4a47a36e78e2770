"""Compare `rorqual serve` with llama.cpp's server under 1, 4 and 16 concurrent clients: same weights, prompts and lengths.

    python benchmarks/serve.py --work runs/decode smollm2
    python benchmarks/serve.py --work runs/decode teacher=RUN --prompt 32

The other server is the OpenAI server in xllamacpp (AVX2; node-llama-cpp, built for AVX-512, has no server). All servers run, but only
one gets load at a time. Each round measures every server with every number of clients, and every second round in reverse order.
Each client sends streamed requests to /v1/completions one after another. Prompts are ids of a text, different in each request, so
no prompt is in the prefix cache. Decoding is greedy and ignores the end of turn. Throughput is given per second, and per CPU second
of the server's processes, including prefill, which other load affects less. Time to first token is the time to the first piece
of text. Gaps are the times between pieces.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from peers_decode.models import HERE, prepared
from record import ROOT, made_by

from rorqual.core.records import write_json
from rorqual.data.tokenizer import Tokenizer

RESULT = ROOT / "docs" / "results" / "serve.json"
Row = dict[str, Any]


@dataclass
class Server:
    """A running server."""

    name: str
    address: str
    model: str
    pid: int
    headers: dict[str, str] = field(default_factory=dict)
    system: str = ""


@dataclass
class Times:
    """One reply: the seconds to its first piece, the seconds between pieces, and its number of tokens."""

    first: float
    gaps: list[float]
    tokens: int


@contextmanager
def rorqual(run: Path, work: Path, dtype: str, a: argparse.Namespace, more: Sequence[str]) -> Iterator[Server]:
    """Run `rorqual serve` with its own API key."""
    keys = work / f"keys-{os.getpid()}-{dtype}"
    keys.unlink(missing_ok=True)
    words = [sys.executable, "-m", "rorqual", "serve", str(run), "port=0", f"keys={keys}", f"slots={max(a.clients)}"]
    words += [f"dtype={dtype}", f"threads={a.threads}", f"max_len={a.length}", *more]
    env = os.environ | {"OMP_NUM_THREADS": str(a.threads)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=env) as process:
        try:
            assert process.stdout is not None
            key = address = ""
            while not address and (line := process.stdout.readline()):
                key = found.group(1) if (found := re.search(r"shown only once: (\S+)", line)) else key
                address = found.group(1) if (found := re.search(r" at (http\S+)/v1", line)) else ""
            if not address:
                raise SystemExit("rorqual serve does not start")
            name = f"rorqual {dtype}{''.join(' ' + word for word in more)}"
            yield Server(name, address, run.resolve().name, process.pid, {"Authorization": f"Bearer {key}"})
        finally:
            process.terminate()
            keys.unlink(missing_ok=True)


@contextmanager
def llama(file: Path, dtype: str, a: argparse.Namespace) -> Iterator[Server]:
    """Run llama.cpp's server."""
    words = [sys.executable, str(HERE / "llama_server.py"), str(file), "--threads", str(a.threads)]
    words += ["--slots", str(max(a.clients)), "--length", str(-(-a.length // 256) * 256)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, text=True, encoding="utf-8", **pipes) as process:
        try:
            assert process.stdout is not None
            address, _, system = process.stdout.readline().partition(" ")
            if not address:
                raise SystemExit(f"llama.cpp cannot load {file}")
            yield Server(f"llama.cpp AVX2 {dtype}", address, "default", process.pid, system=system.strip())
        finally:
            process.kill()


def core_seconds(root: int) -> float:
    """Return the CPU seconds of a process and its living descendants (on Linux; 0 elsewhere)."""
    used: dict[int, tuple[int, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        used[int(folder.name)] = int(words[1]), (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    tree, grown = {root}, True
    while grown:
        more = {pid for pid, (parent, _) in used.items() if parent in tree} - tree
        tree, grown = tree | more, bool(more)
    return sum(used[pid][1] for pid in tree if pid in used)


async def one(client: httpx.AsyncClient, server: Server, prompt: list[int], new: int) -> Times:
    """Request one streamed reply and time it."""
    body = {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, came, tokens = time.perf_counter(), [], 0
    async with client.stream("POST", server.address + "/v1/completions", json=body, headers=server.headers) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{server.name}: {answer.status_code} {(await answer.aread())[:300]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            part = json.loads(line[6:])
            tokens = (part.get("usage") or {}).get("completion_tokens", tokens)
            if part.get("choices") and part["choices"][0].get("text"):
                came.append(time.perf_counter())
    if not came:
        raise SystemExit(f"{server.name}: a reply has no text")
    return Times(came[0] - began, [b - a for a, b in itertools.pairwise(came)], tokens or len(came))


async def load(server: Server, prompts: list[list[int]], clients: int, new: int) -> Row:
    """Send the prompts with `clients` concurrent clients, and return throughput and latencies."""
    waiting, times = iter(prompts), []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)  # a server may close an idle connection
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def work() -> None:
            for prompt in waiting:
                times.append(await one(client, server, prompt, new))

        await one(client, server, prompts[0][::-1], 2)
        before, cores, began = os.getloadavg()[0], core_seconds(server.pid), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        spent, cores = time.perf_counter() - began, core_seconds(server.pid) - cores
    gaps = [gap for row in times for gap in row.gaps]
    return {
        "tokens_per_s": sum(row.tokens for row in times) / spent,
        "tokens_per_core_s": sum(row.tokens for row in times) / max(cores, 0.01),
        "first_p50": quantile([row.first for row in times], 0.5),
        "first_p95": quantile([row.first for row in times], 0.95),
        "gap_p50": quantile(gaps, 0.5),
        "gap_p95": quantile(gaps, 0.95),
        "requests": len(times),
        "load": before,
    }


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def text_ids(run: Path) -> list[int]:
    """Return this project's documentation as the model's ids, a text that every checkout has."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").rglob("*.md")))
    return Tokenizer.load(run / "tokenizer.json").encode(text)


def rounds(servers: list[Server], ids: list[int], a: argparse.Namespace) -> dict[str, dict[str, list[Row]]]:
    """Return all measurements by number of clients and server."""
    found: dict[str, dict[str, list[Row]]] = {str(c): {s.name: [] for s in servers} for c in a.clients}
    at = 0
    for number in range(a.rounds):
        for clients in a.clients:
            count = max(a.requests, clients)
            starts = [(at + i * a.prompt) % (len(ids) - a.prompt) for i in range(count)]
            prompts, at = [ids[s : s + a.prompt] for s in starts], at + count * a.prompt + 1
            for server in servers if number % 2 == 0 else servers[::-1]:
                row = asyncio.run(load(server, prompts, clients, a.new))
                found[str(clients)][server.name].append(row)
                print(f"{clients:3} {server.name:28} " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    return found


def told(found: dict[str, dict[str, list[Row]]]) -> Row:
    """Return medians with spread, and the ratio of each of our servers to each other one, round by round."""
    out: Row = {}
    for clients, by in found.items():
        rows: Row = {"servers": {}}
        for name, list_ in by.items():
            rows["servers"][name] = {key: spread([row[key] for row in list_]) for key in list_[0]}
        for ours in (name for name in by if name.startswith("rorqual")):
            for theirs in (name for name in by if not name.startswith("rorqual")):
                for key in ("tokens_per_s", "tokens_per_core_s"):
                    values = [x[key] / y[key] for x, y in zip(by[ours], by[theirs])]
                    rows.setdefault(f"ratios of {key}", {})[f"{ours} / {theirs}"] = spread(values)
        out[clients] = rows
    return out


def spread(values: Sequence[float]) -> Row:
    return {
        name: float(f"{f(values):.4g}") for name, f in (("median", statistics.median), ("least", min), ("most", max))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="NAME[=RUN]")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=8, help="total of all clients, at least one per client")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ours", nargs="+", default=["bfloat16", "float32"], metavar="DTYPE[,KEY=VALUE...]")
    parser.add_argument("--theirs", nargs="*", default=["float16", "bfloat16"])
    parser.add_argument("--result", type=Path, default=RESULT)
    a = parser.parse_args()
    a.work, a.length = a.work.resolve(), a.prompt + a.new
    name, _, run = a.model.partition("=")
    model = prepared(name, run, a.work, "")
    with ExitStack() as stack:
        servers = []
        for word in a.ours:
            dtype, *more = word.split(",")
            servers.append(stack.enter_context(rorqual(model.run, a.work, dtype, a, more)))
        servers += [stack.enter_context(llama(model.gguf[kind], kind, a)) for kind in a.theirs]
        found = told(rounds(servers, text_ids(model.run), a))
        systems = {server.name: server.system for server in servers if server.system}
    document: Row = json.loads(a.result.read_bytes()) if a.result.is_file() else {}
    made = made_by({a.work: "runs/decode"})
    made["command"] = made["command"].replace(a.model, f"{name}=RUN" if run else name)
    shape = {"prompt": a.prompt, "new": a.new, "threads": a.threads, "rounds": a.rounds}
    document[name] = {"made by": made, "shape": shape, "systems": systems, "clients": found}
    write_json(a.result, document)


if __name__ == "__main__":
    main()
