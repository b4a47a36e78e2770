"""Measure how many problems of each family simple rules answer, compared with uniform guessing over the level's answers.

    python benchmarks/baselines.py [--result docs/results/baselines.json]

The rules see at most a prompt's surface (src/rorqual/evals/baselines.py). They are fitted on the train split of a family and level,
and evaluated on its test split. The command fails if the rules gain more than 10 points over guessing on hard problems of a family.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from record import made_by

from rorqual.core.records import write_json
from rorqual.evals.baselines import RULES, UNIFORM, baseline_accuracies
from rorqual.evals.evaluating import pick_problems
from rorqual.evals.evaluation import baseline_key
from rorqual.tasks.everyday import EverydayMixture
from rorqual.tasks.families import NAMES, Families
from rorqual.tasks.task import Task

FIT, JUDGED, MOST = 2000, 1000, 0.1


def measured(task: Task, seed: int) -> list[dict[str, Any]]:
    """Return a row for each family and level of a task, with shares of 1."""
    problems = pick_problems(task, "test", JUDGED, seed, per_family=True)
    found = baseline_accuracies(task, problems, seed, FIT)
    rows = []
    for family, level in dict.fromkeys((problem.family, problem.level) for problem in problems):
        own = [problem for problem in problems if (problem.family, problem.level) == (family, level)]
        shares = found[baseline_key(family, level)]
        best = max(RULES, key=shares.__getitem__)
        rows.append({
            "family": family,
            "version": own[0].version,
            "level": level,
            "problems": len(own),
            **shares,
            "best": best,
            "best over uniform": shares[best] - shares[UNIFORM],
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure all families, and the everyday jobs, which have no limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=Path("docs/results/baselines.json"))
    a = parser.parse_args()
    rows = [row for name in NAMES for row in measured(Families((name,), hard=0.5), a.seed)]
    chores = measured(EverydayMixture(), a.seed)
    print(f"{'':16}{'problems':>9}{UNIFORM:>9}" + "".join(f"{rule:>9}" for rule in RULES) + f"{'over':>9}")
    for row in rows + chores:
        shares = "".join(f"{100 * row[rule]:9.1f}" for rule in (UNIFORM, *RULES))
        print(f"{row['family']:10}{row['level']:6}{row['problems']:9}{shares}{100 * row['best over uniform']:+9.1f}")
    write_json(a.result, {
        "what": "cheap rules fitted on the train split, judged on the test split, of each family and level; shares of 1",
        "fitted on": FIT,
        "families": rows,
        "everyday": chores,
        "made by": made_by({}),
    })  # fmt: skip
    given = [row["family"] for row in rows if row["level"] == "hard" and row["best over uniform"] > MOST]
    if given:
        raise SystemExit(f"rules gain more than {100 * MOST:.0f} points on hard problems: {', '.join(given)}")


if __name__ == "__main__":
    main()
