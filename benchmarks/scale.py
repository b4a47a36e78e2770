"""Measure training on two processes: tokens per second over those of one process, and over those of two independent ones.

    python benchmarks/scale.py --work runs/scale [--rounds 5] [--size small] [--steps 40] [--rows 16] [--result FILE]

A round trains, in turn: one process with --rows rows a step; two processes of one training with twice the rows, so that each has the
same work (`rorqual train nproc=2`); two independent processes at the same time; and, as the peer, torch's DistributedDataParallel on the
same model, rows and optimizer, started by torchrun. Each process has one thread. A speed is the median over the steps after the first
five, so starts do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import ROOT, made_by

from rorqual.core.records import RunDir, write_json

RESULT = ROOT / "docs" / "results" / "scale.json"
SKIPPED = 5
Row = dict[str, Any]


def train(out: Path, rows: int, parts: int, given: argparse.Namespace, **more: object) -> subprocess.Popen[bytes]:
    values = {
        "task": "families", "size": given.size, "steps": given.steps, "rows": rows, "micro_batches": parts, "threads": 1,
        "save_seconds": 1e9, "out": out, "optim.kind": "adamw", **more,
    }  # fmt: skip
    words = [sys.executable, "-m", "rorqual", "train", "sft", *(f"{key}={value}" for key, value in values.items())]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def speed(out: Path) -> float:
    """Tokens per second of a finished run."""
    lines = [json.loads(line) for line in RunDir(out).metrics_file.read_text(encoding="utf-8").splitlines()]
    return statistics.median(line["tokens_per_second"] for line in lines[SKIPPED:])


def ddp(out: Path, given: argparse.Namespace) -> float:
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        ROOT / "benchmarks" / "scale_ddp.py", out, given.size, given.steps, given.rows,
    ]  # fmt: skip
    subprocess.run([*map(str, words)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    return statistics.median(json.loads(out.read_text(encoding="utf-8"))[SKIPPED:])


def round_of(work: Path, number: int, given: argparse.Namespace) -> Row:
    folder = work / f"round {number}"
    folder.mkdir(parents=True)
    train(folder / "one", given.rows, 1, given).wait()
    train(folder / "two", 2 * given.rows, 2, given, nproc=2).wait()
    apart = [train(folder / f"apart {i}", given.rows, 1, given, seed=i) for i in range(2)]
    for process in apart:
        process.wait()
    return {
        "one process": speed(folder / "one"),
        "two ranks": speed(folder / "two"),
        "two independent processes": sum(speed(folder / f"apart {i}") for i in range(2)),
        "DistributedDataParallel": ddp(folder / "ddp.json", given),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    for name, default in (("rounds", 5), ("steps", 40), ("rows", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--size", default="small")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    rounds = []
    for number in range(given.rounds):
        rounds.append(round_of(given.work, number, given))
        print(json.dumps(rounds[-1]), flush=True)
        ratios = {
            f"two ranks / {other}": [round(one["two ranks"] / one[other], 3) for one in rounds]
            for other in rounds[0]
            if other != "two ranks"
        }
        medians = {name: statistics.median(values) for name, values in ratios.items()}
        work = {"size": given.size, "steps": given.steps, "rows of a process": given.rows}
        write_json(
            given.result,
            {
                "made by": made_by({given.work: "runs/scale"}),
                "work": work,
                "ratios": ratios,
                "median": medians,
                "rounds": rounds,
            },
        )
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
