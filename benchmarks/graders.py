"""Grade labelled pairs of gold answer and reply: by marks, by the last answer, and with math-verify alone.

python benchmarks/graders.py                 # all pairs of tests/tasks/pairs
python benchmarks/graders.py --pairs FILE    # other pairs in the same format
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from record import ROOT, made_by

from rorqual.core.records import write_json
from rorqual.tasks.examples import ExamplesTask, write_examples
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Problem, Task

Pair = dict[str, Any]
PAIRS = ROOT / "tests" / "tasks" / "pairs"
PATIENCE = 60
"""Seconds for a comparison. Five, as in an evaluation, are too few on a busy machine."""


def read_pairs(file: Path) -> list[Pair]:
    """Return the pairs of a file: task, gold (knights: names and solution), reply and verdict."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def task_of(name: str, folder: Path) -> Task:
    """Return the task of a pair: a name of a task, or `examples:KIND`."""
    kind = name.partition(":")[2]
    if kind:
        write_examples(folder, {}, {"kind": kind})
        return ExamplesTask(folder)
    if name == "messages":
        return load_task(name, data=folder)
    return load_task(name, options={"timeout": PATIENCE} if name == "math500" else {})


def problem_of(task: Task, pair: Pair) -> Problem:
    """Return a problem with the gold answer of a pair, and a question that says nothing."""
    if task.name != "knights":
        return Problem("k", "?", task.mark.mark_answer(pair["gold"]), task.name)
    names, solution = pair["names"], pair["solution"]
    roles = [f"{name} is a {'knight' if truth else 'knave'}." for name, truth in zip(names, solution, strict=True)]
    return Problem(
        "k", "?", task.mark.mark_answer(" ".join(roles)), task.name, meta={"names": names, "solution": solution}
    )


def judged(pairs: Sequence[Pair], read: Literal["marked", "last"] = "marked") -> list[str]:
    """Return the verdict on each pair: right, wrong, ungraded, or unmarked for a wrong reply without a marked answer."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = {name: task_of(name, Path(folder)) for name in {pair["task"] for pair in pairs}}
        for pair in pairs:
            task = tasks[pair["task"]]
            problem = problem_of(task, pair)
            grade = task.grade if read == "marked" else task.grade_last
            verdict = grade(problem, pair["reply"]).value
            unmarked = read == "marked" and verdict == "wrong" and not task.is_marked(problem, pair["reply"])
            found.append("unmarked" if unmarked else verdict)
    return found


def math_verify_alone(pairs: Iterable[Pair]) -> list[str]:
    """Return the verdicts of math-verify as its README shows it: parse both sides, then verify."""
    from math_verify import parse, verify

    return ["right" if verify(parse(f"${pair['gold']}$"), parse(pair["reply"])) else "wrong" for pair in pairs]


def counted(pairs: Iterable[Pair], verdicts: Iterable[str]) -> dict[str, int]:
    """Count the wrong replies that were accepted, the right ones that were refused, and the ungraded and unmarked ones."""
    found = Counter({"pairs": 0, "wrong accepted": 0, "right refused": 0, "ungraded": 0, "unmarked": 0})
    for pair, verdict in zip(pairs, verdicts, strict=True):
        found["pairs"] += 1
        found["wrong accepted"] += verdict == "right" != pair["verdict"]
        found["right refused"] += verdict in ("wrong", "unmarked") and pair["verdict"] == "right"
        found["ungraded"] += verdict == "ungraded"
        found["unmarked"] += verdict == "unmarked"
    return dict(found)


def main() -> None:
    """Judge one file or all, and write the counts of each task."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=Path, nargs="+", default=sorted(PAIRS.glob("*.jsonl")))
    parser.add_argument("--result", type=Path, default=Path("docs/results/graders.json"))
    a = parser.parse_args()
    table: list[dict[str, Any]] = []
    for file in a.pairs:
        for task in sorted({pair["task"] for pair in read_pairs(file)}):
            pairs = [pair for pair in read_pairs(file) if pair["task"] == task]
            graders = {"marked": judged(pairs), "last": judged(pairs, "last")}
            if task in ("gsm8k", "math500"):
                graders["math-verify"] = math_verify_alone(pairs)
            for grader, verdicts in graders.items():
                table.append({"file": file.name, "task": task, "grader": grader} | counted(pairs, verdicts))
                print(*table[-1].values(), sep=" | ")
    what = "labelled pairs that each reading, and math-verify alone, judges otherwise than they are labelled"
    write_json(a.result, {"what": what, "made by": made_by({}), "graders": table})


if __name__ == "__main__":
    main()
