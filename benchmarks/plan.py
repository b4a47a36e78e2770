"""Compare the forecast of `rorqual plan quickstart`, from a probe, with the ledger of a quickstart on this machine.

    python benchmarks/plan.py runs/quickstart docs/results/plan-quickstart.json

The benchmark compares core-seconds, because other work on the machine affects them less than wall-clock time. The probe runs --times
times, and the median of each stage counts. The file keeps every forecast. Run it on the machine of the quickstart.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from rorqual.core.ledger import read_ledger
from rorqual.recipes.quickstart import SCALES, QuickstartPaths
from rorqual.recipes.quickstart.forecast import forecast

WITHIN = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", default="full", choices=sorted(SCALES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    chosen = parser.parse_args()
    measured = {entry.stage: entry for entry in read_ledger(QuickstartPaths(chosen.run).ledger)}
    probes = [forecast(SCALES[chosen.size], seed=seed, threads=chosen.threads) for seed in range(chosen.times)]
    rows = []
    for stage in zip(*probes, strict=True):
        said, was = statistics.median(one.core_seconds for one in stage), measured[stage[0].name]
        rows.append({
            "stage": stage[0].name,
            "forecast_core_seconds": round(said, 2),
            "forecasts": [round(one.core_seconds, 2) for one in stage],
            "measured_core_seconds": round(was.core_seconds, 2),
            "difference": round(said / was.core_seconds - 1, 4),
            "forecast_tokens": round(statistics.median(one.tokens for one in stage)),
            "measured_tokens": was.tokens,
            "within": abs(said / was.core_seconds - 1) <= WITHIN,
        })  # fmt: skip
        print(
            f"{stage[0].name:24s} {said:8.1f} {was.core_seconds:8.1f} {said / was.core_seconds - 1:+7.1%} core-seconds"
        )
    total = [sum(row[key] for row in rows) for key in ("forecast_core_seconds", "measured_core_seconds")]
    print(f"{'all of these':24s} {total[0]:8.1f} {total[1]:8.1f} {total[0] / total[1] - 1:+7.1%}")
    left_out = {
        name: round(entry.core_seconds, 2)
        for name, entry in measured.items()
        if name not in {row["stage"] for row in rows}
    }
    found = {"command": "python benchmarks/plan.py runs/quickstart docs/results/plan-quickstart.json", "within": WITHIN, "stages": rows,
             "all": {"forecast": total[0], "measured": total[1], "difference": round(total[0] / total[1] - 1, 4)},
             "not_forecast_core_seconds": left_out}  # fmt: skip
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
