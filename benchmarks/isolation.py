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
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import httpx
from record import ROOT, made_by

from rorqual.core.records import write_json
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.model import build
from rorqual.recipes.models import Size, v3_like
from rorqual.serve.keys import ApiKeys

sys.path.insert(0, str(ROOT / "tests" / "serve"))
import served

RESULT = ROOT / "docs" / "results" / "isolation.json"
CONTEXT = 16_384
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MODEL = "model"
Attack = Callable[[httpx.Client, threading.Event], None]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(client: httpx.Client, path: str, body: dict[str, Any], status: int = 200, words: str = "") -> None:
    """Send a request. Raises AssertionError unless the answer has `status` and contains `words`."""
    answer = client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == status and words in answer.text, (answer.status_code, answer.text[:400])


def beside_one_another(number: int, work: Callable[[], None], over: threading.Event) -> None:
    """Repeat `work` in `number` threads until `over`. An error ends the process at once."""

    def repeat() -> None:
        try:
            while not over.is_set():
                work()
        except Exception:
            traceback.print_exc()
            os._exit(1)

    with ThreadPoolExecutor(number) as pool:
        list(pool.map(lambda _: repeat(), range(number)))


def no_attack(client: httpx.Client, over: threading.Event) -> None:
    over.wait()


def endless_schemas(client: httpx.Client, over: threading.Event) -> None:
    schemas = [{"type": "integer", "multipleOf": round(12345.678 + n, 3)} for n in range(1000)]
    bodies = ({"messages": user("a"), "max_tokens": 4, "guided_json": schema} for schema in schemas * 1000)
    beside_one_another(4, lambda: post(client, CHAT, next(bodies), 400, "takes more than"), over)


def look_ahead_patterns(client: httpx.Client, over: threading.Event) -> None:
    rounds = iter(range(10**9))

    def ask() -> None:
        seed = next(rounds)
        properties = {
            f"p{n}": {"type": "string", "pattern": f"^(?=.*[a-c]{{{n % 7 + 1}}})(?!.*x{seed}y)[a-z]{{1,40}}$"}
            for n in range(150)
        }
        schema = {"type": "object", "properties": properties, "required": [*properties]}
        body = {"messages": user("a"), "max_tokens": 4, "guided_json": schema}
        post(client, CHAT, body, 400, "look-around")

    beside_one_another(2, ask, over)


def leave_at_once(client: httpx.Client, over: threading.Event) -> None:
    post(client, CHAT, {"messages": user("hello"), "max_tokens": 1})
    body = json.dumps({"model": MODEL, "messages": user("hello"), "max_tokens": 400}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"authorization: {client.headers['authorization']}\r\n\r\n"
    ).encode()

    def ask() -> None:
        with suppress(OSError), socket.create_connection((client.base_url.host, client.base_url.port or 80)) as one:
            one.sendall(head + body)
        time.sleep(0.01)

    beside_one_another(4, ask, over)


def stops_that_do_not_count(client: httpx.Client, over: threading.Event) -> None:
    body = {
        "prompt": "a",
        "max_tokens": 15_000,
        "min_tokens": 15_000,
        "ignore_eos": True,
        "stop": [chr(n) for n in range(97, 101)],
    }
    beside_one_another(4, lambda: post(client, TEXT, body), over)


def scored_prompts(client: httpx.Client, over: threading.Event) -> None:
    rounds = iter(range(10**9))

    def ask() -> None:
        seed = next(rounds)
        prompts = [
            [(seed + 7 * n + place) % 250 for place in range(1500)] for n in range(8)
        ]  # 252,000 scores: at the limit
        post(client, TEXT, {"prompt": prompts, "max_tokens": 1, "prompt_logprobs": 20})

    beside_one_another(1, ask, over)


def long_answers_with_logprobs(client: httpx.Client, over: threading.Event) -> None:
    body = {
        "messages": user("a"), "max_tokens": 2000, "n": 4, "ignore_eos": True, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    beside_one_another(1, lambda: post(client, CHAT, body), over)


def long_prompts(client: httpx.Client, over: threading.Event) -> None:
    rounds = iter(range(10**9))
    beside_one_another(
        4,
        lambda: post(client, TEXT, {"prompt": [next(rounds) % 250, *range(200)] * 60, "max_tokens": 1}),
        over,
    )


def schema_attack(schema: dict[str, Any], status: int, words: str) -> Attack:
    """Send requests with a schema, four at a time. Each has a title of its own, so that it is compiled anew."""
    body, titles = {"prompt": "a", "max_tokens": 400, "n": 4}, iter(range(10**9))

    def ask(client: httpx.Client) -> None:
        post(client, TEXT, {**body, "guided_json": {**schema, "title": str(next(titles))}}, status, words)

    return lambda client, over: beside_one_another(4, lambda: ask(client), over)


def doubling_references(number: int) -> dict[str, Any]:
    defs = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(number)}
    return {"enum": [1], "not": {"not": {"$ref": "#/$defs/a0"}}, "$defs": {**defs, f"a{number}": {}}}


def equal_arrays(number: int) -> dict[str, Any]:
    return {
        "$defs": {"e": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/e"}}] * number}},
        "$ref": "#/$defs/e",
    }


ATTACKS: dict[str, Attack] = {
    "alone": no_attack,
    "schemas that compile for ever": endless_schemas,
    "150 look-ahead patterns": look_ahead_patterns,
    "connect, ask, close": leave_at_once,
    "stops that do not count": stops_that_do_not_count,
    "eight scored prompts": scored_prompts,
    "long answers with log-probabilities": long_answers_with_logprobs,
    "long prompts": long_prompts,
    "answers that are checked for ever": schema_attack(doubling_references(60), 422, "to check it takes"),
    "masks that take long": schema_attack(equal_arrays(100), 400, "generation"),
}


def watch(url: str, key: str, seconds: float) -> dict[str, list[float]]:
    """Stream replies and ask `/livez` for `seconds`. Return the seconds between tokens and the seconds of each `/livez`."""
    end = time.monotonic() + seconds
    gaps, lives = list[float](), list[float]()

    def ask_livez() -> None:
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
            while time.monotonic() < end:
                began = time.monotonic()
                client.get("/livez")
                lives.append(time.monotonic() - began)
                time.sleep(0.05)

    helper = threading.Thread(target=ask_livez)
    helper.start()
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": MODEL, "prompt": "b", "max_tokens": 1000, "ignore_eos": True, "stream": True, "logprobs": 1}
    with httpx.Client(base_url=url, headers=headers, timeout=600, trust_env=False) as client:
        while time.monotonic() < end:
            last = 0.0
            with client.stream("POST", TEXT, json=body) as reply:
                assert reply.status_code == 200, reply.read()
                for line in reply.iter_lines():
                    now = time.monotonic()
                    if now > end:
                        break
                    if line.startswith("data: {"):
                        gaps += [now - last] if last else []
                        last = now
    helper.join()
    return {"gaps": gaps, "lives": lives}


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


def one_attack(server: served.Server, keys: dict[str, str], name: str, seconds: float) -> dict[str, float]:
    before = memory_of(server.process.pid)
    attacker = subprocess.Popen([sys.executable, __file__, "--attack", name, server.url, keys["hostile"]])
    try:
        time.sleep(2)
        words = [sys.executable, __file__, "--watch", server.url, keys["calm"], str(seconds)]
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
    parser.add_argument("--watch", nargs=3, metavar=("URL", "KEY", "SECONDS"), help=argparse.SUPPRESS)
    parser.add_argument("--attack", nargs=3, metavar=("NAME", "URL", "KEY"), help=argparse.SUPPRESS)
    parser.add_argument("--size", default="small", choices=get_args(Size), help="size of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of each attack")
    parser.add_argument("--pairs", type=int, default=50, help="pairs of requests for the AUC")
    parser.add_argument("--only", help="attacks beside `alone`, separated by semicolons; default: all")
    parser.add_argument("--result", type=Path, default=RESULT)
    a = parser.parse_args()
    if a.attack:
        headers = {"authorization": f"Bearer {a.attack[2]}"}
        with httpx.Client(base_url=a.attack[1], headers=headers, timeout=600, trust_env=False) as client:
            ATTACKS[a.attack[0]](client, threading.Event())
        return
    if a.watch:
        print(json.dumps(watch(a.watch[0], a.watch[1], float(a.watch[2]))))
        return
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
                    row = rounds[-1][name] = one_attack(server, keys, name, a.seconds)
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
