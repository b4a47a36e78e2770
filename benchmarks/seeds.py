"""The quickstart's claims over several seeds, each seed a whole quickstart of its own.

    rorqual quickstart --seed 0 --out runs/seed-0      (and 1, 2, ...)
    python benchmarks/seeds.py runs/seed-0 runs/seed-1 runs/seed-2 --out docs/results/quickstart-seeds.json

Intervals resample seeds first, then problems within each; 99 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rorqual.core.records import write_json
from rorqual.evals.compare import compare_seeds, did_think, is_right
from rorqual.evals.evaluation import Evaluation, Grain, Sample

QUESTIONS: dict[str, tuple[str, str, Callable[[Sample], float | None]]] = {
    "right, own choice: before GRPO against after": ("before-auto", "after-auto", is_right),
    "right, after GRPO: at once against made to think": ("after-off", "after-on", is_right),
    "right, before GRPO: at once against made to think": ("before-off", "before-on", is_right),
    "right when made to think: before GRPO against after": ("before-on", "after-on", is_right),
    "thinks, own choice: before GRPO against after": ("before-auto", "after-auto", did_think),
}


def ask(folders: Sequence[Path], old: str, new: str, measure: Any, grain: Grain) -> list[dict[str, Any]]:
    """One question of every family, or of every family and level."""

    def load(name: str) -> list[Evaluation]:
        return [Evaluation.load(folder / "evals" / f"{name}.json") for folder in folders]

    before, after = load(old), load(new)
    rows = compare_seeds(before, after, grain=grain, measure=measure, side="greater", confidence=0.99, samples=20_000)
    by_seed = [
        {(r.family, r.level): r for r in compare_seeds([b], [a], grain=grain, measure=measure, confidence=0.99)}
        for b, a in zip(before, after, strict=True)
    ]
    return [
        {
            "family": row.family,
            "level": row.level,
            "before": round(row.before, 4),
            "after": round(row.after, 4),
            "difference": round(row.difference.mean, 4),
            "interval_99": [round(row.difference.interval.low, 4), round(row.difference.interval.high, 4)],
            "p_value": row.p_value,
            "by_seed": [
                [round(s[row.family, row.level].before, 4), round(s[row.family, row.level].after, 4)] for s in by_seed
            ],
        }
        for row in rows
    ]


def lengths(folders: Sequence[Path], name: str) -> dict[str, float]:
    """Mean thinking length, in tokens, of answers that thought, seed by seed."""
    found = {}
    for folder in folders:
        row = Evaluation.load(folder / "evals" / f"{name}.json").rows("all")[0]
        found[folder.name] = round(row.thinking_length, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/quickstart-seeds.json"))
    arguments = parser.parse_args()
    folders: list[Path] = arguments.folders
    seeds = [json.loads((folder / "summary.json").read_text(encoding="utf-8"))["seed"] for folder in folders]
    result: dict[str, Any] = {
        "command": "python benchmarks/seeds.py " + " ".join(f"runs/seed-{seed}" for seed in seeds),
        "seeds": seeds,
        "versions": Evaluation.load(folders[0] / "evals" / "after-auto.json").versions,
        "best_baselines": {
            folder.name: {
                row.family: row.best for row in Evaluation.load(folder / "evals" / "after-auto.json").rows("family")
            }
            for folder in folders
        },
        "questions": {
            title: {grain: ask(folders, old, new, measure, grain) for grain in ("all", "family", "level")}
            for title, (old, new, measure) in QUESTIONS.items()
        },
        "thinking_length": {name: lengths(folders, name) for name in ("before-auto", "after-auto")},
        "seconds": {
            folder.name: {
                stage["name"]: [round(stage["seconds"], 1), round(stage["core_seconds"], 1)]
                for stage in json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"]
            }
            for folder in folders
        },
    }
    write_json(arguments.out, result)
    for title, grains in result["questions"].items():
        print(f"\n{title}")
        for row in [*grains["all"], *grains["family"]]:
            low, high = row["interval_99"]
            print(
                f"  {row['family']:6} {100 * row['before']:5.1f} -> {100 * row['after']:5.1f}   {100 * row['difference']:+6.1f} "
                f"[{100 * low:+.1f}, {100 * high:+.1f}]  p {row['p_value']:.1e}"
            )


if __name__ == "__main__":
    main()
