"""Grade gold answers and mismatched answers on all of GSM8K, MATH-500, FOLIO and knights and knaves.

    python benchmarks/gold.py --data FOLDER      # with gsm8k/, math500/, folio/, kk/ in it

Every gold answer must be graded right. Every mismatched answer, the different gold answer of a later problem, must be graded wrong.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from record import made_by

from rorqual.core.records import write_json
from rorqual.evals.baselines import baseline_accuracies
from rorqual.evals.evaluation import ALL
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Problem, Split, Task, Verdict

SETS: tuple[tuple[str, str, Split], ...] = (
    ("gsm8k", "gsm8k", "test"),
    ("gsm8k", "gsm8k", "train"),
    ("math500", "math500", "test"),
    ("folio", "folio", "test"),
    ("folio", "folio", "train"),
    ("knights", "kk", "test"),
    ("knights", "kk", "train"),
)
"""(task, folder, split). `train` and `dev` together are the training file."""


def mismatched(problems: list[Problem], place: int) -> Problem:
    """Return the next problem in file order, cyclically, with a different answer."""
    for step in range(1, len(problems)):
        other = problems[(place + step) % len(problems)]
        if other.answer != problems[place].answer:
            return other
    raise SystemExit("all answers are equal, so no mismatched answer exists")


def worked(task: Task, problem: Problem) -> str | None:
    """Return the file's worked solution as a reply, or None if the file has none that ends with the answer."""
    if problem.steps is None or task.name not in ("gsm8k", "math500"):
        return None
    return problem.steps if task.name == "math500" else f"{problem.steps}\n{problem.answer}"


def other_solution(problem: Problem) -> str:
    """Return a knights-and-knaves answer with the first person's role flipped, the smallest possible error."""
    first, dot, rest = problem.answer.partition(".")
    swapped = first.replace("knight", "KNAVE").replace("knave", "knight").replace("KNAVE", "knave")
    return swapped + dot + rest


def grade(name: str, folder: Path, split: Split) -> dict[str, Any]:
    """Return the counts of verdicts and the problems with an unexpected one."""
    # math-verify's timeout is wall-clock time, and five seconds are too few on a busy machine.
    task = load_task(name, data=folder, options={"timeout": 60} if name == "math500" else {})
    problems = list(task.problems(split, 0)) + (list(task.problems("dev", 0)) if split == "train" else [])
    gold: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    solved: Counter[str] = Counter()
    odd: list[dict[str, str]] = []
    for place, problem in enumerate(problems):
        if (solution := worked(task, problem)) is not None:
            solved[task.grade(problem, solution).value] += 1
        other = other_solution(problem) if name == "knights" else mismatched(problems, place).answer
        for counts, answer, must in ((gold, problem.answer, Verdict.RIGHT), (wrong, other, Verdict.WRONG)):
            verdict = task.grade(problem, answer)
            counts[verdict.value] += 1
            if verdict is not must:
                at = Path(str(problem.meta.get("where", ""))).name
                odd.append({"at": at, "gold": problem.answer, "said": answer, "verdict": verdict.value})
    return {
        "task": name,
        "file": "training" if split == "train" else "held out",
        "problems": len(problems),
        "gold answers": dict(gold),
        "mismatched answers": dict(wrong),
        "worked solutions": dict(solved),
        "baselines": baseline_accuracies(task, problems, 0).get(ALL, {}),
        "not as it must be": odd,
    }


def main() -> None:
    """Grade all files and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--result", type=Path, default=Path("docs/results/gold.json"))
    a = parser.parse_args()
    found = []
    for name, folder, split in SETS:
        found.append(grade(name, a.data / folder, split))
        print({k: v for k, v in found[-1].items() if k != "not as it must be"}, found[-1]["not as it must be"][:20])
    write_json(
        a.result,
        {
            "what": "every gold answer right, every mismatched one wrong",
            "made by": made_by({a.data: "DATA"}),
            "sets": found,
        },
    )


if __name__ == "__main__":
    main()
