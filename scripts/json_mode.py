"""Thousands of random JSON schemas asked of a real `rorqual serve`: each answer matches its schema, or the schema is refused by name.

    python scripts/json_mode.py --schemas 2000
    python scripts/json_mode.py RUN --schemas 300 --max-tokens 96

The schemas are those of tests/serve/drawn.py: three of four such as people write them, one a mixture of keywords. Each is asked once,
strict, at temperature 1 with a seed of its own. What comes back:

- 200 and `stop`: the content is one JSON text that jsonschema finds valid (how many have a free name twice is counted apart);
- 200 and `length`: at most 5 % of those accepted that set an end to what they allow; apart are those without one (a text without
  maxLength, a list without maxItems, any properties), where a model of random weights writes on as long as it may;
- 422: the answer ended, was checked, and did not match; the message names a keyword that stands in the schema;
- 400: the message names a keyword that stands in the schema (or says that no reply matches it), and is counted by that keyword;
- anything else is wrong.

At the end the engine must be the one that began, and its memory where it was after the first quarter. What is done is written down
after each block of schemas; the same command goes on from there. Exit code 0 where all holds. The result goes to
docs/results/json-mode.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from rorqual.core.records import write_json

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "serve"))

import asked  # noqa: E402
import drawn  # noqa: E402
import served  # noqa: E402

RESULT = ROOT / "docs" / "results" / "json-mode.json"
BLOCK, AT_ONCE = 40, 8
MOST_CUT, MOST_GROWN = 0.05, 0.1


def resident(process: int) -> float:
    """MiB of memory that a process has."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"process {process} has no memory")


def fresh(chosen: argparse.Namespace) -> dict[str, Any]:
    """A result with nothing in it, of what is asked."""
    git = ["git", "rev-parse", "HEAD"]
    commit = chosen.commit or subprocess.run(git, cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    packages = {name: version(name) for name in ("llguidance", "jsonschema", "hypothesis", "hypothesis-jsonschema")}
    return {
        "command": "python scripts/json_mode.py " + " ".join([*([chosen.run.name] if chosen.run else []), *words(chosen)]),
        "commit": commit.strip(), "packages": packages, "done": 0, "seconds": 0.0,
        "outcomes": {}, "refused": {}, "unmatched": {}, "a_name_twice": 0, "wrong": [], "memory": [],
    }  # fmt: skip


def words(chosen: argparse.Namespace) -> list[str]:
    """What decides the result, as it was asked."""
    return [
        f"--schemas {chosen.schemas}",
        f"--seed {chosen.seed}",
        f"--max-tokens {chosen.max_tokens}",
        *([f"--dtype {chosen.dtype}"] if chosen.dtype != "float32" else []),
    ]


def note(result: dict[str, Any], source: str, schema: Any, outcome: asked.Outcome, number: int) -> None:
    """Add one outcome."""
    kind = outcome.kind if outcome.kind != "length" or not drawn.endless(schema) else "length, endless"
    if kind == "stop":
        kind = "valid, endless" if drawn.endless(schema) else "valid"
        result["a_name_twice"] += drawn.twice(outcome.said)
    counts = result["outcomes"].setdefault(source, {})
    counts[kind] = counts.get(kind, 0) + 1
    if outcome.kind in ("refused", "unmatched"):
        result[outcome.kind][outcome.said] = result[outcome.kind].get(outcome.said, 0) + 1
    if outcome.kind == "wrong":
        result["wrong"].append({"number": number, "schema": schema, "said": outcome.said})
        print(f"{number}: {outcome.said[:300]}\n    {json.dumps(schema, ensure_ascii=False)[:600]}", flush=True)


def ask_all(server: served.Server, chosen: argparse.Namespace, result: dict[str, Any]) -> None:
    """From where the result ends to the last schema."""
    schemas = drawn.schemas(chosen.schemas, chosen.seed)
    engine, began, first = server.engine(), time.monotonic(), result["done"]
    spent = result["seconds"]
    timeout = httpx.Timeout(600)
    headers = {"authorization": f"Bearer {server.key}"}
    with (
        httpx.Client(base_url=server.url, headers=headers, timeout=timeout, trust_env=False) as http,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        while result["done"] < chosen.schemas:
            start = result["done"]
            block = schemas[start : start + BLOCK]
            numbers = range(start, start + len(block))
            waiting = [
                pool.submit(asked.ask, http, chosen.model, schema, number, chosen.max_tokens)
                for number, (_, schema) in zip(numbers, block, strict=True)
            ]
            for number, (source, schema), outcome in zip(numbers, block, waiting, strict=True):
                note(result, source, schema, outcome.result(), number)
            result["done"] += len(block)
            result["seconds"] = round(spent + time.monotonic() - began, 1)
            result["memory"].append([result["done"], resident(server.process.pid), resident(engine)])
            write_json(chosen.out, result)
            rate = (time.monotonic() - began) / (result["done"] - first)
            left = rate * (chosen.schemas - result["done"]) / 60
            print(
                f"{result['done']} of {chosen.schemas}, {len(result['wrong'])} wrong, {left:.1f} min left", flush=True
            )
    if server.engine() != engine:
        result["wrong"].append({"said": "the engine that began is not the one at the end"})


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What the counts say, and whether it holds."""
    total: dict[str, int] = {}
    for counts in result["outcomes"].values():
        for kind, count in counts.items():
            total[kind] = total.get(kind, 0) + count
    cut, cut_endless = total.get("length", 0), total.get("length, endless", 0)
    valid, valid_endless = total.get("valid", 0), total.get("valid, endless", 0)
    share = cut / max(cut + valid, 1)
    engine = [row[2] for row in result["memory"]]
    n = len(engine)
    late, early = engine[-max(n // 5, 1) :], engine[n // 4 : n // 4 + max(n // 5, 1)]
    grown = statistics.median(late) / statistics.median(early) - 1
    return {
        "holds": not result["wrong"] and share <= MOST_CUT and grown <= MOST_GROWN,
        "total": total,
        "cut_short": round(share, 4),
        "cut_short_endless": round(cut_endless / max(cut_endless + valid_endless, 1), 4),
        "cut_short_all": round((cut + cut_endless) / max(cut + valid + cut_endless + valid_endless, 1), 4),
        "engine_grown": round(grown, 3),
    }


def main() -> int:
    """Ask, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="default: a small model of random weights")
    parser.add_argument("--schemas", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--commit", default="", help="of a tree without git")
    chosen = parser.parse_args()
    result = fresh(chosen)
    if chosen.out.is_file() and (kept := json.loads(chosen.out.read_text(encoding="utf-8")))["done"] < chosen.schemas:
        result = kept if kept["command"] == result["command"] else result
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run = chosen.run or served.write_run(place / "small")
        chosen.model = run.resolve().name
        # Blocks of the cache are memory only once they are used: few of them, so that what grows is something else.
        options = ("port=0", "slots=8", f"dtype={chosen.dtype}", "cache_bytes=67108864")
        server = served.start(run, place / "keys.json", place / "log", *options)
        try:
            ask_all(server, chosen, result)
        finally:
            served.stop(server)
    said = summary(result)
    write_json(chosen.out, {**result, **said})
    print(json.dumps({**said, "refused": result["refused"], "unmatched": result["unmatched"]}, indent=1))
    return 0 if said["holds"] else 1


if __name__ == "__main__":
    # A reply may nest as deep as it is long, and json and jsonschema descend with it: in threads whose stacks hold that.
    sys.setrecursionlimit(50_000)
    threading.stack_size(1 << 30)
    with ThreadPoolExecutor(1) as one:
        code = one.submit(main).result()
    sys.exit(code)
