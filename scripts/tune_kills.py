#!/usr/bin/env python3
"""Soak test of the fine-tuning API: kill the server at random moments while jobs of three tenants and of every method run.

    python scripts/tune_kills.py FOLDER [--jobs 20] [--kills 10] [--seed 0] [--fill]

FOLDER must not exist. With --fill, the disk is filled once, so FOLDER must be on a small disk of its own, such as

    mount -t tmpfs -o size=2g tmpfs /mnt

The result is docs/results/tune-kills.json: how many jobs succeeded, how many have the weights or answers, the trained tokens and the
steps of the same jobs while nobody killed the server, and how many were trained by two processes at once. The command takes about 15
minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests"), str(ROOT / "tests" / "fine_tuning")]

from record import made_by  # noqa: E402
from tune_kills import torment  # noqa: E402

from rorqual.core.records import write_json  # noqa: E402

RESULT = ROOT / "docs" / "results" / "tune-kills.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda text: Path(text).absolute())
    for name, default in (("jobs", 20), ("kills", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--fill", action="store_true")
    given = parser.parse_args()
    found = torment(given.folder, jobs=given.jobs, kills=given.kills, seed=given.seed, fill=given.fill)
    write_json(RESULT, {"made by": made_by({given.folder: "FOLDER"}), **found})
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
