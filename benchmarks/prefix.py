"""Measure the time to first token after a long prefix: without the prefix cache, from memory, and from disk after a restart.

    python benchmarks/prefix.py --work runs/decode smollm2 moe

A prompt is a prefix of 2,048 tokens of text and 16 tokens that differ between requests. Each prefix is measured as a miss (no reuse)
and as a hit in memory. A new process with the same cache folder then measures the hit on disk. The miss uses the best of several token budgets
per step, and with --fast a faster backend. The benchmark stops unless every hit samples the same token as the miss in the same
arithmetic and was served from the cache.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peers_decode.models import prepared
from record import ROOT, made_by

import rorqual.engine
from rorqual.core.records import write_json
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams

RESULT = ROOT / "docs" / "results" / "prefix.json"
TAIL = 16
Row = dict[str, Any]


def engine_of(run: Path, a: argparse.Namespace, **more: Any) -> Engine:
    """Return an engine on `run`. Options that this version does not have are left out."""
    known = {*inspect.signature(Engine).parameters, *getattr(rorqual.engine, "EngineConfig", Engine).__annotations__}
    given = {"dtype": a.dtype, "threads": a.threads, "slots": 4, "record_experts": False, "cache_bytes": 2 << 30} | more
    return Engine(run, **{key: value for key, value in given.items() if key in known})


def first(engine: Engine, prefix: list[int], tail: int, reuse: bool) -> tuple[list[float], int, int]:
    """Return ([wall-clock, CPU] seconds to the first token, the token, the number of prompt tokens from the cache)."""
    ids = prefix + [100 + tail * 31 + i for i in range(TAIL)]
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    wall, core = time.perf_counter(), time.process_time()
    request_id = engine.submit(Request(prompt_ids=tuple(ids), params=params, reuse=reuse))
    while True:
        mine = [delta for delta in engine.step() if delta.request_id == request_id]
        if mine:
            spent = [time.perf_counter() - wall, time.process_time() - core]
            engine.cancel(request_id)
            return spent, mine[0].token, mine[0].hit


def prefixes(run: Path, a: argparse.Namespace, length: int) -> list[list[int]]:
    """Return pieces of this project's documentation as ids."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").rglob("*.md")))
    ids = Tokenizer.load(run / "tokenizer.json").encode(text)
    return [ids[i * length : (i + 1) * length] for i in range(a.prefixes)]


def warm(run: Path, a: argparse.Namespace, folder: Path, length: int) -> Row:
    """Run the first process: misses at several token budgets, then hits in memory."""
    given = prefixes(run, a, length)
    budgets = {}
    for tokens in a.budgets:
        engine = engine_of(run, a, step_tokens=tokens, backend="torch" if a.fast else "torch-invariant")
        first(engine, given[0][:256], 0, reuse=False)
        budgets[tokens] = min(first(engine, given[0], 0, reuse=False)[0] for _ in range(2))
        engine.close()
    best = min(budgets, key=lambda tokens: budgets[tokens])
    quick = engine_of(run, a, step_tokens=best, backend="torch" if a.fast else "torch-invariant")
    engine = engine_of(run, a, step_tokens=best, backend="torch-invariant", cache_dir=folder)
    misses, hits, said = [], [], []
    for prefix in given:
        misses.append(first(quick, prefix, 1, reuse=False)[0])
        token = first(engine, prefix, 1, reuse=False)[1]
        first(engine, prefix, 0, reuse=True)  # this request fills the cache
        spent, again, served = first(engine, prefix, 1, reuse=True)
        check(token, again, served, length, "memory")
        hits.append(spent)
        said.append(token)
    engine.close()
    return {"budgets": budgets, "miss": misses, "memory": hits, "said": said, "best budget": best}


def restarted(run: Path, a: argparse.Namespace, folder: Path, length: int, said: list[int], best: int) -> Row:
    """Run the second process: hits on disk."""
    given, hits = prefixes(run, a, length), []
    engine = engine_of(run, a, step_tokens=best, backend="torch-invariant", cache_dir=folder)
    first(engine, given[0][::-1][:256], 0, reuse=False)
    for prefix, token in zip(given, said, strict=True):
        spent, again, served = first(engine, prefix, 1, reuse=True)
        check(token, again, served, length, "disk")
        hits.append(spent)
    engine.close()
    return {"disk": hits}


def check(token: int, again: int, served: int, length: int, where: str) -> None:
    if token != again:
        sys.exit(f"from {where}: token {again}, but without the cache it is {token}")
    if served < 0.9 * length:
        sys.exit(f"from {where}: only {served} of {length} tokens came from the cache")


def summary(values: list[float]) -> Row:
    return {
        "median": round(statistics.median(values), 5),
        "least": round(min(values), 5),
        "most": round(max(values), 5),
    }


def bench(name: str, given: str, a: argparse.Namespace) -> Row:
    """Run both processes for one model."""
    model = prepared(name, given, a.work, "")
    length = min(a.length, model.config.max_position_embeddings - 2 * TAIL - 64)
    folder = a.work / f"{name}-cache"
    shutil.rmtree(folder, ignore_errors=True)
    found: Row = {}
    for part in ("warm", "restarted"):
        asked = {"part": part, "run": str(model.run), "folder": str(folder), "length": length}
        words = [sys.executable, __file__, *sys.argv[1:], "--part", json.dumps(asked | found)]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True, encoding="utf-8")
        found |= json.loads(done.stdout.splitlines()[-1])
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder)
    clocks = {"seconds": 0, "core_seconds": 1}
    rows = {
        clock: {key: summary([spent[i] for spent in found[key]]) for key in ("miss", "memory", "disk")}
        for clock, i in clocks.items()
    }
    ratios = {
        f"miss / {where}, {clock}": summary([m[i] / h[i] for m, h in zip(found["miss"], found[where], strict=True)])
        for where in ("memory", "disk")
        for clock, i in clocks.items()
    }
    return {
        "prefix": length,
        "tail": TAIL,
        **rows,
        "ratios": ratios,
        "miss by step budget": found["budgets"],
        "bytes on disk": size,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME[=RUN]")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--prefixes", type=int, default=3)
    parser.add_argument("--budgets", type=int, nargs="+", default=[256, 512, 2048])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="misses with backend=torch")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--part", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    a.work = a.work.resolve()
    if a.part:
        asked, run, folder = a.part, Path(a.part["run"]), Path(a.part["folder"])
        if asked["part"] == "warm":
            print(json.dumps(warm(run, a, folder, asked["length"])))
        else:
            print(json.dumps(restarted(run, a, folder, asked["length"], asked["said"], asked["best budget"])))
        return
    document: Row = json.loads(a.result.read_bytes()) if a.result.is_file() else {}
    made = made_by({a.work: "runs/decode"})
    for word in a.models:
        name, _, given = word.partition("=")
        made["command"] = made["command"].replace(word, f"{name}=RUN" if given else name)
        document[f"{name}, {a.dtype}"] = bench(name, given, a) | {"made by": made}
        print(name, json.dumps(document[f"{name}, {a.dtype}"], indent=1), flush=True)
        write_json(a.result, document)


if __name__ == "__main__":
    main()
