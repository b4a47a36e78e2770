"""Guessing baselines: rules that use only surface features of a prompt, such as its length. The rules are fitted on
train problems and scored on evaluation problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from rorqual.core.errors import RorqualError
from rorqual.evals.decision_tree import grow_tree
from rorqual.evals.evaluation import ALL, baseline_key
from rorqual.tasks.find import safe_grade, safe_problems
from rorqual.tasks.task import Problem, Task, Verdict

FIT = 500
"""Maximum number of train problems per family and level on which the rules are fitted."""
DRAWS = 4
"""At most `DRAWS` train problems are drawn for each train problem that is needed. Because of this limit, rare families may get
fewer than `FIT` train problems."""
UNIFORM = "uniform"

GuessingRule = Callable[[Problem], str]
FamilyAndLevel = tuple[str, str]


def majority(task: Task, train: Sequence[Problem]) -> GuessingRule:
    """Return a rule that always guesses the most frequent label in `train`."""
    most = Counter(map(task.label, train)).most_common(1)[0][0]
    return lambda problem: most


def by_length(task: Task, train: Sequence[Problem]) -> GuessingRule:
    """Return a rule that guesses the most frequent label among the train prompts with the prompt's numbers of characters and
    words.

    If no train prompt has these numbers of characters and words, the rule guesses the most frequent label in `train`.
    """
    labels: dict[tuple[int, int], Counter[str]] = {}
    for problem in train:
        labels.setdefault(_prompt_lengths(problem), Counter())[task.label(problem)] += 1
    most = {lengths: counts.most_common(1)[0][0] for lengths, counts in labels.items()}
    fallback = majority(task, train)
    return lambda problem: most[_prompt_lengths(problem)] if _prompt_lengths(problem) in most else fallback(problem)


def by_tree(task: Task, train: Sequence[Problem]) -> GuessingRule:
    """Return a rule that guesses labels with a small decision tree (see evals/decision_tree.py)."""
    tree = grow_tree([problem.prompt for problem in train], [task.label(problem) for problem in train])
    return lambda problem: tree.guess(problem.prompt)


RULES: dict[str, Callable[[Task, Sequence[Problem]], GuessingRule]] = {
    "majority": majority,
    "length": by_length,
    "tree": by_tree,
}


def baseline_accuracies(
    task: Task, problems: Sequence[Problem], seed: int, fit: int = FIT
) -> dict[str, dict[str, float]]:
    """Return the share of `problems` that each rule gets right, keyed by `family`, `family/level` or `all`, then by rule.

    A cell is a family and level. The rules of a cell are fitted on up to `fit` train problems of the cell. These train
    problems are drawn with `seed` and are not among `problems`. `uniform` is one divided by the number of distinct
    answers in the fitting set. A family at one level has no baselines if it has no train problems. Pooled baselines that include a cell without
    train problems are left out.
    """
    by_cell: dict[FamilyAndLevel, list[Problem]] = {}
    for problem in problems:
        by_cell.setdefault((problem.family, problem.level), []).append(problem)
    train_of = draw_train_problems(task, by_cell, seed, fit, {problem.key for problem in problems})
    shares_of: dict[str, dict[str, list[float]]] = {}
    lacking: set[str] = set()
    for (family, level), group in by_cell.items():
        names = {baseline_key(family, level), family, ALL}
        train = train_of[family, level]
        if not train:
            lacking |= names
            continue
        for rule, shares in rule_scores(task, train, group).items():
            for name in names:
                shares_of.setdefault(name, {}).setdefault(rule, []).extend(shares)
    return {
        name: {rule: sum(shares) / len(shares) for rule, shares in rules.items()}
        for name, rules in sorted(shares_of.items())
        if name not in lacking
    }


def draw_train_problems(
    task: Task, cells: Collection[FamilyAndLevel], seed: int, fit: int, held: Collection[str]
) -> dict[FamilyAndLevel, list[Problem]]:
    """Return up to `fit` train problems for each of `cells`, excluding the problems whose key is in `held`."""
    known: dict[FamilyAndLevel, list[Problem]] = {cell: [] for cell in cells}
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
    except RorqualError:  # an evaluation-only task may lack a train split
        return {cell: [] for cell in known}
    return known


def rule_scores(task: Task, train: Sequence[Problem], problems: Sequence[Problem]) -> dict[str, list[float]]:
    """Return the score of each rule, and of `uniform`, on each problem. A rule scores 1 on a problem that it answers
    correctly, else 0."""
    result = {UNIFORM: [1 / len(set(map(task.label, train)))] * len(problems)}
    for rule, fitted in RULES.items():
        guess = fitted(task, train)
        result[rule] = [float(_is_right_guess(task, problem, guess(problem))) for problem in problems]
    return result


def _is_right_guess(task: Task, problem: Problem, guess: str) -> bool:
    return guess == task.label(problem) or safe_grade(task, problem, guess) is Verdict.RIGHT


def _prompt_lengths(problem: Problem) -> tuple[int, int]:
    return len(problem.prompt), len(problem.prompt.split())
