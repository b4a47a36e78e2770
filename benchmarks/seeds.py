"""Compute the quickstart's differences over several seeds. Each seed is a complete quickstart.

    rorqual quickstart --seed 0 --out runs/seed-0      (and four more)
    python benchmarks/seeds.py runs/seed-0 runs/seed-1 ... --out docs/results/quickstart-seeds.json
    python benchmarks/seeds.py --table docs/results/quickstart-seeds.json

`--table` prints README's table from the result. Both 99 % intervals are given: a bootstrap that resamples seeds and then problems,
and Student's over the seeds' differences. A verdict needs both intervals and five seeds (`rorqual.evals.verdict`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from verdicts import compact_verdicts

from rorqual.core.records import write_json
from rorqual.evals.compare import Comparison, compare_seeds, did_think, is_right
from rorqual.evals.evaluation import Evaluation, GradedSample, Grain
from rorqual.evals.verdict import CONFIDENCE

TEACHER = ("before-auto", "after-auto", "before-on", "after-on", "before-off", "after-off")
COMPARED = ("teacher", "student-base", "distilled", "reinforced")
STUDENTS = tuple(f"student-{name}-{mode}" for name in COMPARED for mode in ("auto", "on"))
OWN, MADE = "right, own choice: before GRPO against after", "right when made to think: before GRPO against after"
QUESTIONS: dict[str, tuple[str, str, Callable[[GradedSample], float]]] = {
    OWN: ("before-auto", "after-auto", is_right),
    "right, after GRPO: at once against made to think": ("after-off", "after-on", is_right),
    "right, before GRPO: at once against made to think": ("before-off", "before-on", is_right),
    MADE: ("before-on", "after-on", is_right),
    "thinks, own choice: before GRPO against after": ("before-auto", "after-auto", did_think),
    "right, students, own choice: teacher against distilled": (
        "student-teacher-auto",
        "student-distilled-auto",
        is_right,
    ),
    "right, students made to think: teacher against distilled": (
        "student-teacher-on",
        "student-distilled-on",
        is_right,
    ),
    "right, students, own choice: base against reinforced": (
        "student-student-base-auto",
        "student-reinforced-auto",
        is_right,
    ),
    "right, students made to think: base against reinforced": (
        "student-student-base-on",
        "student-reinforced-on",
        is_right,
    ),
}
"""The student learns from a teacher that was forced to think. So both are compared in both modes: free choice and forced thinking."""
NAMES = {"kk": "knights and knaves"}
HEADS = (
    "family", "own choice, before GRPO", "after", "difference: bootstrap, Student's t", "verdict",
    "made to think, before", "after", "at once, after",
)  # fmt: skip


def load(folders: Sequence[Path], name: str) -> list[Evaluation]:
    """Load one evaluation of every seed."""
    return [Evaluation.load(folder / "evals" / f"{name}.json") for folder in folders]


def ask(folders: Sequence[Path], old: str, new: str, measure: Any, grain: Grain) -> list[dict[str, Any]]:
    """Compare two evaluations over all seeds, for each family, or for each family and level."""
    rows = compare_seeds(load(folders, old), load(folders, new), grain=grain, measure=measure, confidence=CONFIDENCE)
    return [stored(row) for row in rows]


def stored(row: Comparison) -> dict[str, Any]:
    """Return a row as it is stored: both intervals, the values of each seed, and the verdict on "after is higher"."""
    found, student = row.difference.interval, row.student
    return {
        "family": row.family,
        "level": row.level,
        "before": round(row.before, 4),
        "after": round(row.after, 4),
        "difference": round(row.difference.mean, 4),
        "interval_99": [round(found.low, 4), round(found.high, 4)],
        "t_interval_99": [round(student.low, 4), round(student.high, 4)] if student else None,
        "verdict": row.verdict,
        "by_seed": [[round(before, 4), round(after, 4)] for before, after in row.by_seed],
    }


def lengths(folders: Sequence[Path], name: str) -> dict[str, float]:
    """Return each seed's mean thinking length in tokens, over answers with thinking."""
    found = {}
    for folder, one in zip(folders, load(folders, name), strict=True):
        found[folder.name] = round(one.rows("all")[0].thinking_length, 2)
    return found


def result(folders: Sequence[Path]) -> dict[str, Any]:
    """Return all stored results of these quickstarts, including the verdict of every problem."""
    summaries = {folder: json.loads((folder / "summary.json").read_bytes()) for folder in folders}
    seeds = [summaries[folder]["seed"] for folder in folders]
    grains: tuple[Grain, ...] = ("all", "family", "level")
    return {
        "command": "python benchmarks/seeds.py " + " ".join(f"runs/seed-{seed}" for seed in seeds),
        "seeds": seeds,
        "versions": Evaluation.load(folders[0] / "evals" / "after-auto.json").versions,
        "best_baselines": {
            folder.name: {
                row.family: row.best_baseline
                for row in Evaluation.load(folder / "evals" / "after-auto.json").rows("family")
            }
            for folder in folders
        },
        "questions": {
            title: {grain: ask(folders, old, new, measure, grain) for grain in grains}
            for title, (old, new, measure) in QUESTIONS.items()
        },
        "thinking_length": {name: lengths(folders, name) for name in ("before-auto", "after-auto")},
        "seconds": {
            folder.name: {s["name"]: [round(s["seconds"], 1), round(s["core_seconds"], 1)] for s in told["stages"]}
            for folder, told in summaries.items()
        },
        "verdicts": [
            one.model_dump(mode="json")
            for one in compact_verdicts({name: load(folders, name) for name in (*TEACHER, *STUDENTS)}, seeds)
        ],
    }


def table(found: dict[str, Any], heads: Sequence[str] = HEADS, names: dict[str, str] = NAMES) -> str:
    """Return README's table in Markdown: percentages, and points with both intervals."""
    rows = {
        title: {row["family"]: row for row in found["questions"][title]["family"]}
        for title in (OWN, MADE, "right, after GRPO: at once against made to think")
    }
    own, made, once = rows.values()
    order = sorted(own, key=lambda family: -own[family]["difference"])
    lines = [" | ".join(heads), "|".join(["---"] * len(heads))]
    for family in order:
        row = own[family]
        both = " ".join(
            f"[{', '.join(f'{100 * end:.1f}' for end in row[name])}]" for name in ("interval_99", "t_interval_99")
        )
        cells = [names.get(family, family), percent(row["before"]), percent(row["after"])]
        cells += [f"{100 * row['difference']:+.1f} {both}", row["verdict"]]
        cells += [percent(made[family]["before"]), percent(made[family]["after"]), percent(once[family]["before"])]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def percent(share: float) -> str:
    """Format a share as a percentage with one decimal."""
    return f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/quickstart-seeds.json"))
    parser.add_argument("--table", type=Path, help="print README's table of this result")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_bytes())))
    elif arguments.folders:
        write_json(arguments.out, result(arguments.folders))
        print(table(json.loads(arguments.out.read_bytes())))
    else:
        parser.error("give the quickstart folders or --table")


if __name__ == "__main__":
    main()
