#!/usr/bin/env python3
"""Hold several processes to the bits of one: small runs of all recipes over 20 steps, with 2 and 4 processes.

    python scripts/rank_laws.py [--steps 20]

The result is docs/results/rank-laws.json: for each run and number of processes, whether weights, optimizer, metrics and rollouts are the
same to the bit. A run in the file is not repeated. The command takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests"), str(ROOT / "tests" / "train")]

from little import same, sft_run  # noqa: E402
from ranked import RUNS, in_ranks, make, train  # noqa: E402
from record import made_by  # noqa: E402

from rorqual.core.records import write_json  # noqa: E402

RESULT = ROOT / "docs" / "results" / "rank-laws.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    found = json.loads(RESULT.read_text(encoding="utf-8"))["runs"] if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        train(sft_run(90, save_seconds=1e9), folder / "base")
        for name in RUNS:
            if name in found:
                continue
            (place := folder / name).mkdir()
            run = make(name, folder / "base", place, steps=steps, parts=6)
            train(run, place / "1")
            found[name] = {}
            for count in (2, 4):
                errors = [error for error in in_ranks(count, train, run, place / str(count)) if error is not None]
                same(place / "1", place / str(count)) if not errors else None
                found[name][f"{count} processes"] = "the same bits" if not errors else str(errors[0])
            print(name, found[name], flush=True)
            write_json(RESULT, {"made by": made_by({}), "steps": steps, "micro-batches": 6, "runs": found})


if __name__ == "__main__":
    main()
