"""Measure `rorqual check` on 100,000 rows of 200 characters: core-seconds to find faults of the format, and to find all faults.

    python benchmarks/check.py [--rows 100000] [--pairs 5]

Half of the rows are random words; the other half are orders made from one template, whose rows are similar to each other. Each pair
runs both measurements in a process of its own. The memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import ROOT, made_by

from rorqual.core.records import write_json
from rorqual.teach.check import check_file
from rorqual.teach.example_table import read_table

RESULT = ROOT / "docs" / "results" / "check.json"
LENGTH = 200


def write_rows(path: Path, rows: int) -> None:
    """Write rows of `LENGTH` characters with 50 labels."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            if number % 2:
                items = ", ".join(
                    f"{rng.randint(2, 99)} {rng.choice(words)} at ${rng.randint(2, 99)} each" for _ in range(9)
                )
                text = f"I order {items}. How much is it in all?"
            else:
                text = " ".join(rng.choices(words, k=60))
            file.write(json.dumps({"text": text[:LENGTH], "label": f"label {number % 50}"}) + "\n")


def measure(path: Path, what: str) -> dict[str, float]:
    """Return wall-clock seconds, core-seconds and gigabytes of one measurement."""
    wall, core = time.perf_counter(), time.process_time()
    if what == "format":
        read_table(path)
    else:
        check_file(path, len)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": time.perf_counter() - wall, "core_seconds": time.process_time() - core, "gigabytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("FILE", "WHAT"))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(Path(given.one[0]), given.one[1])))
        return
    found: dict[str, list[dict[str, float]]] = {"format": [], "all": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, given.rows)
        for pair in range(given.pairs):
            for what in list(found)[:: 1 if pair % 2 else -1]:
                words = [sys.executable, __file__, "--one", str(file), what]
                found[what].append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    result: dict[str, Any] = made_by({}) | {"rows": given.rows, "length": LENGTH, "runs": found}
    for what, runs in found.items():
        result[what] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(what, result[what])
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
