"""Adapter to reasoning-gym: its procedural datasets as tasks (`task=gym:NAME`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from rorqual.core.errors import RorqualError, TaskError, nearest
from rorqual.tasks.base import Problem, Split, Task, Verdict, split_of
from rorqual.tasks.marks import marked

BLOCK = 500
PROBES = 8
DRY = 20_000
"""Draws without a problem of the split after which a dataset counts as too small to be split."""


class GymTask(Task):
    """The dataset `dataset` of reasoning-gym, endless, split by a hash of the question; `options` go to its config.

    A score of 1 is right, and less is wrong, of the whole reply or of what it marks as its answer (`The answer is 5.`).
    Errors: `RorqualError` where reasoning-gym is not installed, `TaskError` for an unknown name, options it does not take, or a
    dataset whose own gold answers do not score 1.
    """

    def __init__(self, dataset: str, **options: Any) -> None:
        self.name, self.dataset, self.options = f"gym:{dataset}", dataset, options
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError:
            raise RorqualError(
                "reasoning-gym is not installed", where=self.name, remedy='pip install "rorqual[gym]"'
            ) from None
        if dataset not in DATASETS:
            raise TaskError(
                f"reasoning-gym has no dataset '{dataset}'", where=self.name, remedy=nearest(dataset, DATASETS)
            )
        self._create = create_dataset
        self._scorer = self._block(0)
        for entry in itertools.islice(self._scorer, PROBES):
            gold = entry["answer"]
            score = None if gold is None else self._scorer.score_answer(gold, entry)
            if score is None or score < 1:
                raise TaskError(
                    f"its own gold answer {gold!r:.40} scores {score}: its grader cannot be trusted",
                    where=self.name,
                    remedy="Take another dataset.",
                )

    def _block(self, seed: int) -> Any:
        try:
            return self._create(self.dataset, seed=seed, size=BLOCK, **self.options)
        except (TypeError, ValueError, AssertionError) as error:
            raise TaskError(
                str(error), where=self.name, remedy="Check the options against reasoning-gym's config."
            ) from None

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        dry = 0
        for block in itertools.count():
            for entry in self._block(
                (seed + 1) * 1_000_003 + block * BLOCK
            ):  # item i of a block is drawn with seed + i
                problem = self._problem(entry)
                if split_of(problem.key) == split:
                    dry = 0
                    yield problem
                elif (dry := dry + 1) > DRY:
                    raise TaskError(
                        f"no problem of the split '{split}' in {DRY} draws",
                        where=self.name,
                        remedy="Take a larger dataset.",
                    )

    def _problem(self, entry: dict[str, Any]) -> Problem:
        return Problem(
            key=f"{self.name} {' '.join(entry['question'].split())}",
            prompt=entry["question"],
            answer=str(entry["answer"]),
            family=self.dataset,
            meta={"entry": entry},
        )

    def grade(self, problem: Problem, reply: str) -> Verdict:
        said = (reply.strip(), marked(reply))
        right = any(self._scorer.score_answer(text, problem.meta["entry"]) >= 1 for text in said if text is not None)
        return Verdict.RIGHT if right else Verdict.WRONG
