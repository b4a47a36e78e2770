"""Baselines that are measured: rules that see a prompt's surface, fitted on train problems, judged on the problems of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from rorqual.core.errors import RorqualError
from rorqual.evals.evaluation import ALL, cell_name
from rorqual.evals.surface import grow_tree
from rorqual.tasks.base import Problem, Task, Verdict
from rorqual.tasks.find import safe_grade, safe_problems

FIT = 500
"""Train problems of each family and level that the rules of an evaluation are fitted on."""
DRAWS = 4
"""A family and level that has not come `FIT` times after this many times the problems wanted in all makes do with what came."""
UNIFORM = "uniform"

Guess = Callable[[Problem], str]
Cell = tuple[str, str]


def majority(task: Task, train: Sequence[Problem]) -> Guess:
    """Always the label that is most frequent in `train`."""
    most = Counter(map(task.label, train)).most_common(1)[0][0]
    return lambda problem: most


def by_length(task: Task, train: Sequence[Problem]) -> Guess:
    """The most frequent label among prompts with as many characters and words; for lengths that `train` lacks, that of all."""
    labels: dict[tuple[int, int], Counter[str]] = {}
    for problem in train:
        labels.setdefault(_lengths(problem), Counter())[task.label(problem)] += 1
    most = {lengths: found.most_common(1)[0][0] for lengths, found in labels.items()}
    other = majority(task, train)
    return lambda problem: most[_lengths(problem)] if _lengths(problem) in most else other(problem)


def by_tree(task: Task, train: Sequence[Problem]) -> Guess:
    """What a small decision tree says."""
    tree = grow_tree([problem.prompt for problem in train], [task.label(problem) for problem in train])
    return lambda problem: tree.guess(problem.prompt)


RULES: dict[str, Callable[[Task, Sequence[Problem]], Guess]] = {
    "majority": majority,
    "length": by_length,
    "tree": by_tree,
}


def baselines(task: Task, problems: Sequence[Problem], seed: int, fit: int = FIT) -> dict[str, dict[str, float]]:
    """The share of `problems` that each rule gets right, for each family, family/level and all; and `uniform`.

    The rules of a family and level are fitted on `fit` problems of its train split, drawn with `seed`, none of them among `problems`.
    `uniform` is one over the number of different answers among those. What has no such problems, as a task without a train split, has no
    baselines, and nor has a pool that holds it.
    """
    asked: dict[Cell, list[Problem]] = {}
    for problem in problems:
        asked.setdefault((problem.family, problem.level), []).append(problem)
    known = training(task, asked, seed, fit, {problem.key for problem in problems})
    found: dict[str, dict[str, list[float]]] = {}
    lacking: set[str] = set()
    for (family, level), group in asked.items():
        names = {cell_name(family, level), family, ALL}
        train = known[family, level]
        if not train:
            lacking |= names
            continue
        for rule, shares in scores(task, train, group).items():
            for name in names:
                found.setdefault(name, {}).setdefault(rule, []).extend(shares)
    return {
        name: {rule: sum(shares) / len(shares) for rule, shares in rules.items()}
        for name, rules in sorted(found.items())
        if name not in lacking
    }


def training(
    task: Task, cells: Collection[Cell], seed: int, fit: int, held: Collection[str]
) -> dict[Cell, list[Problem]]:
    """Up to `fit` problems of the train split for each of `cells`, none whose key is in `held`."""
    known: dict[Cell, list[Problem]] = {cell: [] for cell in cells}
    lacking = set(known)
    try:
        for drawn, problem in enumerate(safe_problems(task, "train", seed), 1):
            cell = problem.family, problem.level
            if cell in lacking and problem.key not in held:
                known[cell].append(problem)
                if len(known[cell]) == fit:
                    lacking.remove(cell)
            if not lacking or drawn >= DRAWS * fit * len(known):
                break
    except RorqualError:  # files to measure on need none to learn from
        return {cell: [] for cell in known}
    return known


def scores(task: Task, train: Sequence[Problem], asked: Sequence[Problem]) -> dict[str, list[float]]:
    """For each rule, and for `uniform`, its score on each problem: 1 where right."""
    found = {UNIFORM: [1 / len(set(map(task.label, train)))] * len(asked)}
    for rule, fitted in RULES.items():
        guess = fitted(task, train)
        found[rule] = [float(_right(task, problem, guess(problem))) for problem in asked]
    return found


def _right(task: Task, problem: Problem, guess: str) -> bool:
    return guess == task.label(problem) or safe_grade(task, problem, guess) is Verdict.RIGHT


def _lengths(problem: Problem) -> tuple[int, int]:
    return len(problem.prompt), len(problem.prompt.split())
