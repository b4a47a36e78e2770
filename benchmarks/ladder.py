"""Run `rorqual teach` on the data sets of `ten_sets.py`, and keep what it chose and how often that is right.

    python benchmarks/ladder.py DATA PACKAGES --keep FOLDER [--sets banking77,dates] [--seeds 1,2,3,4,5] [--base none] [--minutes 20]

A set has 500 training rows, drawn with the seed, and 200 test rows, the same for all seeds. Each run has one core. With `--base BASE`, a
language model is trained, too, for `--minutes`. The result is docs/results/ladder.json: for each set and seed the chosen rung, its answers
to the test rows, the best other rung, the held-out accuracy, milliseconds, seconds and bytes of every rung, and the promise of 95 %. The
command resumes: finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from record import ROOT, made_by
from ten_sets import data_sets

from rorqual.core.ledger import read_ledger
from rorqual.core.records import write_json
from rorqual.evals.evaluation import Evaluation
from rorqual.teach.paths import TeachPaths
from teach import bits, draw

RESULT = ROOT / "docs" / "results" / "ladder.json"
SPARE = "spam"


def run(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Teach one task, and return its results."""
    folder = given.keep / f"{name}-{seed}"
    sets = {key: one.case for key, one in data_sets(given.packages).items()}
    keys = [f"{key}" for key in draw(name, seed, given.data, folder, sets)]
    words = [f"base={given.base}", f"minutes={given.minutes:g}", "threads=1", f"seed={seed}", "promise=0.95"]
    command = [sys.executable, "-m", "rorqual", "teach", "train.jsonl", "test=test.jsonl", "out=run", *words, *keys]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with open(folder / "output.txt", "ab") as output:
        subprocess.run(command, cwd=folder, check=True, env=environment, stdout=output)
    paths = TeachPaths(folder / "run")
    results = json.loads(paths.results.read_bytes())
    right = {side: bits(Evaluation.load(paths.evaluation_file(results[side]))) for side in ("chosen", "other")}
    kept = ("chosen", "other", "rungs", "skipped", "promise")
    return {
        "set": name,
        "seed": seed,
        "base": "none" if given.base == "none" else "SmolLM2-135M-Instruct",
        "minutes": given.minutes,
        "right": right["chosen"],
        "right_of_other": right["other"],
        **{key: results[key] for key in kept},
        "core_seconds": round(sum(entry.core_seconds for entry in read_ledger(paths.ledger))),
        "peak_bytes": json.loads(paths.memory.read_bytes())["peak_bytes"],
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return for each set the chosen rungs, the accuracy on the test rows, and what was promised and kept."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(one["set"] for one in runs):
        own = [one for one in runs if one["set"] == name]
        by_seed = {str(one["seed"]): one["right"].count("1") / len(one["right"]) for one in own}
        promised = [one["promise"] for one in own if one["promise"]]
        answered = sum(one["test_answered"] for one in promised)
        found[name] = {
            "chosen": {str(one["seed"]): one["chosen"] for one in own},
            "right": fmean(by_seed.values()),
            "right_by_seed": by_seed,
            "core_seconds": median(one["core_seconds"] for one in own),
            "promised": len(promised),
            "coverage": fmean([one["answered"] / one["of"] for one in promised] or [0.0]),
            "test_answered": answered,
            "test_right": sum(one["test_right"] for one in promised) / max(1, answered),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "packages"):
        parser.add_argument(name, type=lambda text: Path(text).absolute())
    parser.add_argument("--keep", type=lambda text: Path(text).absolute(), required=True, help="folder of the runs")
    parser.add_argument("--sets", default="", help="default: all but spam")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--base", default="none")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    names = given.sets.split(",") if given.sets else [name for name in data_sets(given.packages) if name != SPARE]
    runs = json.loads(given.result.read_bytes())["runs"] if given.result.exists() else []
    made = made_by({given.data: "DATA", given.packages: "PACKAGES", given.keep: "FOLDER"})
    for seed in map(int, given.seeds.split(",")):
        for name in names:
            if any((one["set"], one["seed"]) == (name, seed) for one in runs):
                continue
            runs.append(run(name, seed, given))
            write_json(given.result, {"made by": made, "summary": summary(runs), "runs": runs})
            print(name, seed, runs[-1]["chosen"], runs[-1]["right"].count("1") / len(runs[-1]["right"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
