"""Send thousands of random JSON schemas to a real `rorqual serve`. Each answer must match its schema, or the error must name the problem.

    python scripts/json_mode.py --schemas 2000
    python scripts/json_mode.py RUN --schemas 300 --max-tokens 96

The schemas come from scripts/json_schemas.py: three of four look like schemas that people write, the fourth mixes keywords at random.
Each is requested once, in strict mode, at temperature 1 with its own seed. The allowed responses are:

- 200 with `stop`: the content is one JSON document that jsonschema accepts. Duplicate free names are counted separately.
- 200 with `length`: for at most 5 % of the accepted schemas with bounded values. Unbounded schemas (a string without maxLength,
  a list without maxItems, any properties) are counted separately, since a random model may never end such an answer.
- 422: the answer ended, was checked, and did not match. The message names a keyword of the schema.
- 400: the message names a keyword of the schema, or says that no reply matches it. It is counted by that keyword.

Any other response is wrong. At the end, the engine process must be the same as at the start, and its memory must not exceed that after
the first quarter. Progress is saved after each block of schemas, and the same command resumes. The exit code is 0 if all holds.
The result is written to docs/results/json-mode.json.
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
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "serve")]

import json_outcome as asked  # noqa: E402
import json_schemas as drawn  # noqa: E402

import served  # noqa: E402

RESULT = ROOT / "docs" / "results" / "json-mode.json"
BLOCK, AT_ONCE = 40, 8
MOST_CUT, MOST_GROWN = 0.05, 0.1


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"process {process} has no VmRSS: it has ended")


def fresh(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return an empty result for the given options."""
    git = ["git", "rev-parse", "HEAD"]
    commit = chosen.commit or subprocess.run(git, cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    packages = {name: version(name) for name in ("llguidance", "jsonschema", "hypothesis", "hypothesis-jsonschema")}
    return {
        "command": "python scripts/json_mode.py " + " ".join([*([chosen.run.name] if chosen.run else []), *words(chosen)]),
        "commit": commit.strip(), "packages": packages, "done": 0, "seconds": 0.0,
        "outcomes": {}, "refused": {}, "unmatched": {}, "a_name_twice": 0, "wrong": [], "memory": [],
    }  # fmt: skip


def words(chosen: argparse.Namespace) -> list[str]:
    """Return the options that determine the result."""
    return [
        f"--schemas {chosen.schemas}",
        f"--seed {chosen.seed}",
        f"--max-tokens {chosen.max_tokens}",
        *([f"--dtype {chosen.dtype}"] if chosen.dtype != "float32" else []),
    ]


def note(result: dict[str, Any], source: str, schema: Any, outcome: asked.Outcome, number: int) -> None:
    """Add one outcome to the result."""
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
    """Request the remaining schemas and save the result after each block."""
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
        result["wrong"].append({"said": "the engine process was replaced"})


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return the totals and whether all conditions hold."""
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
    """Request the schemas, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="default: a small model with random weights")
    parser.add_argument("--schemas", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--commit", default="", help="the commit, for a source tree without git")
    chosen = parser.parse_args()
    result = fresh(chosen)
    if chosen.out.is_file() and (kept := json.loads(chosen.out.read_text(encoding="utf-8")))["done"] < chosen.schemas:
        result = kept if kept["command"] == result["command"] else result
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run = chosen.run or served.write_run(place / "small")
        chosen.model = run.resolve().name
        # Cache blocks take memory only once they are used. With few of them, any growth has another cause.
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
    # A reply may nest as deep as its length, and json and jsonschema recurse into it, so threads need large stacks.
    sys.setrecursionlimit(50_000)
    threading.stack_size(1 << 30)
    with ThreadPoolExecutor(1) as one:
        code = one.submit(main).result()
    sys.exit(code)
