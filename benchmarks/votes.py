"""Measure what 16 votes on one prompt cost, against 16 separate requests without the prefix cache.

    python benchmarks/votes.py RUN [--prompt 512] [--new 64] [--pairs 7]

T16 is the time of 16 requests whose prompts differ in their first token, 16 at once. P is the time of one prefill. Votes are one request
with n=16. Votes should take about T16 - 15 P, because 15 of 16 prefills are saved; the result is the ratio of both. Both sides generate
16 times --new tokens. The order of the two sides alternates between pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from record import ROOT, made_by

from rorqual.core.records import write_json
from rorqual.engine import Engine, Request, SamplingParams

RESULT = ROOT / "docs" / "results" / "votes-speed.json"
VOTES = 16


def seconds(engine: Engine, requests: list[Request]) -> list[float]:
    """Return [wall-clock, CPU] seconds to answer the requests."""
    wall, core = time.perf_counter(), time.process_time()
    engine.generate(requests)
    return [time.perf_counter() - wall, time.process_time() - core]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="torch-invariant")
    parser.add_argument("--result", type=Path, default=RESULT)
    a = parser.parse_args()
    engine = Engine(
        a.run,
        dtype=a.dtype,
        threads=a.threads,
        slots=VOTES,
        record_experts=False,
        backend=a.backend,
        cache_bytes=2 << 30,
    )
    params = SamplingParams(max_tokens=a.new, temperature=1.0, ignore_eos=True)
    rows: list[dict[str, Any]] = []
    for pair in range(-1, a.pairs):  # the first pair only warms up
        ids = [[20 + (7 * i + 13 * pair + 31 * n) % 200 for i in range(a.prompt)] for n in range(VOTES)]
        sides = {
            "apart": [Request(params=params, prompt_ids=tuple(prompt), reuse=False) for prompt in ids],
            "votes": [
                Request(params=SamplingParams(**vars(params) | {"n": VOTES}), prompt_ids=tuple(ids[0]), reuse=False)
            ],
            "prefill": [
                Request(params=SamplingParams(max_tokens=1, ignore_eos=True), prompt_ids=tuple(ids[0]), reuse=False)
            ],
        }
        order = list(sides) if pair % 2 else list(sides)[::-1]
        found = {name: seconds(engine, sides[name]) for name in order}
        if pair >= 0:
            rows.append(found)
            expected = [found["apart"][i] - (VOTES - 1) * found["prefill"][i] for i in range(2)]
            print(f"pair {pair}: votes {found['votes'][1]:.2f} core-s, T16 - 15 P {expected[1]:.2f} core-s", flush=True)
    ratios = {
        what: [row["votes"][i] / (row["apart"][i] - (VOTES - 1) * row["prefill"][i]) for row in rows]
        for i, what in enumerate(("wall", "core"))
    }
    result = made_by({a.run: "RUN"}) | {
        "model": {"hidden": engine.model.config.hidden_size, "layers": len(engine.model.layers)},
        "rows": rows,
        "ratio": {
            what: {"median": statistics.median(values), "low": min(values), "high": max(values)}
            for what, values in ratios.items()
        },
    }
    write_json(a.result, result)
    for what, found in result["ratio"].items():
        print(f"{what}: {found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f}); goal: at most 1.3")


if __name__ == "__main__":
    main()
