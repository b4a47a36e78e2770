"""Measure what one tenant notices of another tenant's hostile requests: the times between tokens, `/livez`, and the server's memory.

    python benchmarks/isolation.py --rounds 5

A server serves an untrained model of a size of the recipes. The tenant `calm` streams replies and asks `/livez` twenty times a
second, in a process of its own. In each round, it first has the server alone, and then beside each attack of the tenant `hostile`.
A row reports, over the rounds: the 99th percentile of the times between tokens, its ratio to the same round without an attack, the
slowest `/livez`, and how much the memory of the server, its engine and its helper processes grew. `cache` reports whether the time of
a request tells that another tenant used its schema before: the area under the curve (AUC) with its 99 % interval; 0.5 tells nothing.
The benchmark fails if a request of an attack gets another answer than expected, because such an attack tests nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import httpx
from record import ROOT, made_by
from two_tenants import ATTACKS, CHAT, MODEL, post, user

from rorqual.core.records import write_json
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.model import build
from rorqual.recipes.models import Size, v3_like
from rorqual.serve.keys import ApiKeys

sys.path.insert(0, str(ROOT / "tests"))
import served

RESULT = ROOT / "docs" / "results" / "isolation.json"
CONTEXT = 16_384
TENANTS = ROOT / "benchmarks" / "two_tenants.py"


def memory_of(pid: int) -> float:
    """Return the resident memory of a process and its descendants in MiB."""
    found = 0.0
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        found = int(match.group(1)) / 1024 if (match := re.search(r"VmRSS:\s+(\d+) kB", status)) else 0.0
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        found += sum(memory_of(int(child)) for child in children)
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def one_attack(server: served.Server, keys: dict[str, str], name: str, seconds: float, tokens: int) -> dict[str, float]:
    before = memory_of(server.process.pid)
    words = [sys.executable, str(TENANTS), "attack", name, server.url, keys["hostile"]]
    attacker = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert attacker.stdout is not None and attacker.stdout.readline(), f"{name}: the attack did not begin"
        time.sleep(1)
        words = [sys.executable, str(TENANTS), "watch", server.url, keys["calm"], str(seconds), str(tokens)]
        found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
        found["gaps"] = found["gaps"] or [seconds]  # no second token in all the time
        peak = memory_of(server.process.pid)
        assert attacker.poll() is None, f"{name}: the attack failed, as its traceback says"
    finally:
        attacker.kill()  # which closes its connections, so the server cancels its requests
        attacker.wait()
    time.sleep(1)
    return {
        "p99_ms": 1000 * percentile(found["gaps"], 0.99),
        "median_ms": 1000 * statistics.median(found["gaps"]),
        "tokens": len(found["gaps"]),
        "livez_p99_ms": 1000 * percentile(found["lives"], 0.99),
        "livez_most_ms": 1000 * max(found["lives"]),
        "memory_mib": peak - before,
    }


def cache_auc(server: served.Server, keys: dict[str, str], pairs: int) -> dict[str, float]:
    """Return how well the time of `calm`'s request tells whether `hostile` has used its schema: AUC with its 99 % interval
    (Hanley and McNeil 1982)."""
    times: dict[bool, list[float]] = {True: [], False: []}

    def seconds(tenant: str, schema: dict[str, Any]) -> float:
        headers = {"authorization": f"Bearer {keys[tenant]}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=600, trust_env=False) as client:
            began = time.monotonic()
            post(client, CHAT, {"messages": user("a"), "max_tokens": 1, "guided_json": schema})
            return time.monotonic() - began

    for number in range(2 * pairs):
        used = number % 2 == 0
        names = {f"field{number}x{n}": {"type": "string", "maxLength": 40 + n} for n in range(60)}
        schema = {"type": "object", "properties": names, "required": [*names]}
        if used:
            seconds("hostile", schema)
        times[used].append(seconds("calm", schema))
    wins = [(a < b) + 0.5 * (a == b) for a in times[True] for b in times[False]]
    auc = statistics.fmean(wins)
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    spread = math.sqrt(max(0.0, auc * (1 - auc) + (pairs - 1) * (q1 - auc**2) + (pairs - 1) * (q2 - auc**2)) / pairs**2)
    return {"auc": auc, "low": auc - 2.576 * spread, "high": auc + 2.576 * spread, "requests": 2 * pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=get_args(Size), help="size of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of each attack, at most")
    parser.add_argument(
        "--tokens", type=int, default=sys.maxsize, help="times between tokens after which an attack ends"
    )
    parser.add_argument("--pairs", type=int, default=50, help="pairs of requests for the AUC")
    parser.add_argument("--only", help="attacks beside `alone`, separated by semicolons; default: all")
    parser.add_argument("--result", type=Path, default=RESULT)
    a = parser.parse_args()
    chosen = [name for name in ATTACKS if not a.only or name in ("alone", *a.only.split(";"))]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = build(v3_like(a.size, vocab_size=BASE_VOCAB, context=CONTEXT), seed=0)
        run = served.save_run(place / MODEL, model, Tokenizer.byte_level())
        store = ApiKeys.load(place / "keys.json")
        keys = {tenant: store.ensure_key(tenant) or "" for tenant in ("calm", "hostile")}
        server = served.start(run, place / "keys.json", place / "log", "port=0", "slots=16")
        try:
            for number in range(a.rounds):
                rounds.append({})
                for name in chosen:
                    row = rounds[-1][name] = one_attack(server, keys, name, a.seconds, a.tokens)
                    ratio = row["p99_ms"] / rounds[-1]["alone"]["p99_ms"]
                    print(
                        f"round {number + 1}: {name}: p99 {row['p99_ms']:.0f} ms ({ratio:.2f}), /livez at most "
                        f"{row['livez_most_ms']:.0f} ms, memory +{row['memory_mib']:.0f} MiB",
                        flush=True,
                    )
            cache = cache_auc(server, keys, a.pairs)
        finally:
            served.stop(server)
    rows = {
        name: {
            "p99_ratio": statistics.median(r[name]["p99_ms"] / r["alone"]["p99_ms"] for r in rounds),
            "livez_most_ms": statistics.median(r[name]["livez_most_ms"] for r in rounds),
            "memory_mib": max(r[name]["memory_mib"] for r in rounds),
        }
        for name in chosen
    }
    print(json.dumps({"rows": rows, "cache": cache}, indent=1))
    write_json(a.result, {**made_by({}), "rows": rows, "cache": cache, "rounds": rounds})


if __name__ == "__main__":
    main()
