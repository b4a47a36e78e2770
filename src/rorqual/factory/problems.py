"""Selection of problems for the teacher. Duplicate problems and problems that match an evaluation set are excluded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError
from rorqual.evals.evaluating import pick_problems
from rorqual.factory.config import FactoryConfig
from rorqual.factory.contamination import EvalItemIndex, EvalMatch, evaluation_items, own_test_items
from rorqual.tasks.find import load_task, problem_location
from rorqual.tasks.task import Problem, Task


@dataclass
class ChosenProblems:
    """The selected problems, and the problems that were excluded because they match an evaluation set.

    `met` has (problem, match) for each excluded problem. `notes` are remarks for the dataset card.
    """

    task: Task
    problems: list[Problem]
    evaluations: EvalItemIndex
    met: list[tuple[Problem, EvalMatch]]
    notes: list[str]

    def contaminated_lines(self) -> Iterator[dict[str, Any]]:
        """Yield a line of `contaminated.jsonl` for each excluded problem."""
        for problem, meeting in self.met:
            yield {
                "key": problem.key,
                "prompt": problem.prompt,
                "where": problem_location(self.task, problem),
                "met": meeting.where,
                "by": meeting.how,
                "what": "problem",
            }


def choose_problems(config: FactoryConfig) -> ChosenProblems:
    """Select the problems to sample. A problem that matches an evaluation set is replaced if the task has more problems.

    Errors of the task's code are raised with the task's name. Raises DataError with an example of a match if all problems
    match.
    """
    task = load_task(config.task, data=Path(config.data) if config.data else None, options=config.options)
    items, note = own_test_items(task, config.seed)
    notes = [note]
    for source in config.decontaminate:
        found, note = evaluation_items(source, config.seed)
        items += found
        notes.append(note)
    evaluations = EvalItemIndex(items, config.filters.overlap)
    n_wanted, previous_size, enough = config.problems, -1, 0
    while True:
        pool = pick_problems(task, config.split, n_wanted, config.seed, per_family=False)
        matches = [(problem, _find_match(evaluations, problem)) for problem in pool]
        met = [(problem, match) for problem, match in matches if match is not None]
        excluded = {problem.key for problem, _ in met}
        clean = [problem for problem in pool if problem.key not in excluded][: config.problems]
        enough = enough or len(pool)  # the first pool has as many problems as were requested, or all that exist
        if not met or len(pool) == previous_size or len(clean) >= enough:
            break
        n_wanted, previous_size = n_wanted + len(met), len(pool)
    if not clean:
        problem, meeting = met[0]
        raise DataError(
            f"all {len(met)} problems match an evaluation set; the first, {problem.key!r:.60}, matches {meeting.where}",
            where=problem_location(task, problem),
            remedy="Use training problems that are not held out for evaluation. If all problems of the task share "
            "sentence patterns, set `patterned = True` in its class.",
        )
    if evaluations.common:
        notes.append(
            "decontamination: word sequences that many evaluation items share do not count as matches"
            f" ({len(evaluations.common)} in all, such as '{evaluations.common[0]}')"
        )
    n_problems = len(clean)
    if n_problems < config.problems:
        notes.append(f"the task has {n_problems} of the {config.problems} requested problems")
    return ChosenProblems(task, clean, evaluations, met, list(filter(None, dict.fromkeys(notes))))


def _find_match(evaluations: EvalItemIndex, problem: Problem) -> EvalMatch | None:
    """Return how a message of the problem, or its messages joined, match an evaluation item, or None."""
    messages = [message.label for message in problem.messages]
    user_text = "\n".join(message.label for message in problem.messages if message.role == "user")
    texts = dict.fromkeys((problem.prompt, *messages, user_text, "\n".join(messages)))
    matches = (evaluations.match_problem(text, problem.key) for text in texts)
    return next(filter(None, matches), None)
