"""The choice of problems for the teacher: as many as requested, no key twice, and none that matches an evaluation set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError
from rorqual.evals.run import pick
from rorqual.factory.config import FactoryConfig
from rorqual.factory.contamination import Evaluations, Meeting, evaluation_items, own_test
from rorqual.tasks.base import Problem, Split, Task, Verdict
from rorqual.tasks.find import load_task, safe_grade, safe_problems


@dataclass
class Chosen:
    """The problems to sample, and the problems that were excluded, with reasons."""

    task: Task
    problems: list[Problem]
    evaluations: Evaluations
    met: list[tuple[Problem, Meeting]]
    notes: list[str]

    def listed(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of `contaminated.jsonl` for excluded problems."""
        for problem, meeting in self.met:
            yield {
                "key": problem.key,
                "prompt": problem.prompt,
                "where": str(problem.meta.get("where", f"task {self.task.name}")),
                "met": meeting.where,
                "by": meeting.how,
                "what": "problem",
            }


class Counted(Task):
    """A wrapper around a task that counts repeated problems."""

    def __init__(self, inner: Task) -> None:
        self.inner, self.name, self.repeated = inner, inner.name, 0

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        self.repeated = 0
        seen: set[str] = set()
        for problem in safe_problems(self.inner, split, seed):
            self.repeated += problem.key in seen
            seen.add(problem.key)
            yield problem

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return safe_grade(self.inner, problem, reply)


def choose(config: FactoryConfig) -> Chosen:
    """Draw the problems. Problems that match an evaluation set are replaced by others, as far as the task has more.

    Raises what the task raises, with its name. Raises DataError, naming the match, if no problem is left.
    """
    task = load_task(config.task, data=Path(config.data) if config.data else None, options=config.options)
    held, note = own_test(task, config.seed)
    for source in config.decontaminate:
        held += evaluation_items(source, config.seed)
    evaluations, counted = Evaluations(held, config.filters.overlap), Counted(task)
    wanted, had = config.problems, -1
    while True:
        pool = pick(counted, config.split, wanted, config.seed, config.per_family)
        index = Evaluations(held, config.filters.overlap)
        index.leave_out_common(problem.prompt for problem in pool)
        met = [(problem, meeting) for problem in pool if (meeting := index.meets(problem.prompt, problem.key))]
        out = {problem.key for problem, _ in met}
        clean = _first([problem for problem in pool if problem.key not in out], config)
        evaluations = index
        if not met or len(pool) == had or _enough(clean, pool, config):
            break
        wanted, had = wanted + len(met), len(pool)
    if not clean:
        problem, meeting = met[0]
        raise DataError(
            f"all {len(met)} problems match an evaluation set; the first, {problem.key!r:.60}, matches {meeting.where}",
            where=str(problem.meta.get("where", f"task {task.name}")),
            remedy="Use training problems that are not held out for evaluation. If all problems of the task share their sentences,"
            " set `patterned = True` in its class.",
        )
    notes = [note] if note else []
    asked = len(clean)
    if not config.per_family and asked < config.problems:
        notes.append(f"the task has {asked} of the {config.problems} requested problems")
    if counted.repeated:
        notes.append(f"the task repeated a problem {counted.repeated} times; each problem was used once")
    return Chosen(task, clean, evaluations, met, notes)


def _first(problems: Sequence[Problem], config: FactoryConfig) -> list[Problem]:
    """Return the first `config.problems` problems, or as many of each family and level."""
    taken: Counter[tuple[str, str]] = Counter()
    kept: list[Problem] = []
    for problem in problems:
        stratum = (problem.family, problem.level) if config.per_family else ("", "")
        if taken[stratum] < config.problems:
            taken[stratum] += 1
            kept.append(problem)
    return kept


def _enough(clean: Sequence[Problem], pool: Sequence[Problem], config: FactoryConfig) -> bool:
    if not config.per_family:
        return len(clean) == config.problems
    have = Counter((problem.family, problem.level) for problem in clean)
    return all(have[p.family, p.level] == config.problems for p in pool)
