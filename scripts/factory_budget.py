"""Sample misbehaving servers within a budget, and compare what they bill with what the distillation run counts.

    python scripts/factory_budget.py

The server (tests/factory/billing_server.py) is a process of its own that records the cost of each request. Each kind of server gets
requests for 40 samples, 1 and 16 at a time, with a budget for ten and a half requests at their maximum cost. Two guarantees are tested.
The bill is at most the budget plus the cost of one request beyond its reserve. The run counts at least the billed amount.
The exit code is 0 if both hold for every kind. The result is written to docs/results/factory-budget.json.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rorqual.core.records import write_json

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "factory"))

from billed import RESERVE, ask, billing_server  # noqa: E402
from billing_server import KINDS  # noqa: E402

RESULT = ROOT / "docs" / "results" / "factory-budget.json"
BUDGET, PROBLEMS = round(10.5 * RESERVE, 6), 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as place, billing_server(Path(place)) as (address, bill):
        for number, kind in enumerate(KINDS):
            for at_once in (1, 16):
                out = Path(place) / f"{number}-{at_once}"
                one = ask(address, bill, out, kind, budget=BUDGET, concurrency=at_once, problems=PROBLEMS)
                found.append(one)
                print(f"{kind:29} {at_once:2}  budget {BUDGET:.6f}  billed {one.billed:.6f}  counted {one.counted:.6f}"
                      f"  kept {one.kept}  {'holds' if one.holds else 'FAILS'}", flush=True)  # fmt: skip
    write_json(options.out, {
        "command": "python scripts/factory_budget.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "reserve_of_a_request": RESERVE,
        "holds": all(one.holds for one in found),
        "servers": [
            {name: round(value, 9) if isinstance(value, float) else value for name, value in asdict(one).items()}
            | {"holds": one.holds}
            for one in found
        ],
    })  # fmt: skip
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
