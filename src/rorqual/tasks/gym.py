"""Adapter for reasoning-gym: each procedural dataset is a task (`task=gym:NAME`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from rorqual.core.errors import RorqualError, TaskError, suggest_name
from rorqual.tasks.answer_marks import TAG, last_line
from rorqual.tasks.marked_task import VERSION, MarkedTask
from rorqual.tasks.task import Problem, Split, Verdict, split_of

BLOCK = 500
PROBES = 8
DRY = 20_000
"""Maximum number of consecutive samples without a problem of the requested split.
If no problem of this split is found in `DRY` samples, the dataset is too small to be split.
"""


class GymTask(MarkedTask):
    """The reasoning-gym dataset `dataset` as an endless task, split by a hash of the question.

    `options` are the fields of the dataset's config. The prompt asks for the mark `<answer>ANSWER</answer>`. A reply is right
    if the dataset gives the reply's last marked answer the score 1, else wrong. With `read=last`, the last line of the reply is
    scored.

    Raises RorqualError if reasoning-gym is not installed.
    Raises TaskError for an unknown name, an invalid option, or a dataset in which gold answers do not score 1.
    """

    mark = TAG

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
                f"reasoning-gym has no dataset '{dataset}'", where=self.name, remedy=suggest_name(dataset, DATASETS)
            )
        self._create = create_dataset
        self._scorer = self._create_block(0)
        for entry in itertools.islice(self._scorer, PROBES):
            gold = entry["answer"]
            score = None if gold is None else self._scorer.score_answer(gold, entry)
            if score is None or score < 1:
                raise TaskError(
                    f"the gold answer {gold!r:.40} scores {score}, so the dataset's grader is unreliable",
                    where=self.name,
                    remedy="Use another dataset.",
                )

    def _create_block(self, seed: int) -> Any:
        try:
            return self._create(self.dataset, seed=seed, size=BLOCK, **self.options)
        except (TypeError, ValueError, AssertionError) as error:
            raise TaskError(
                str(error), where=self.name, remedy="Check the options against reasoning-gym's config."
            ) from None

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        dry = 0
        for block in itertools.count():
            # In a block, reasoning-gym draws item i with the seed `seed + i`.
            for entry in self._create_block((seed + 1) * 1_000_003 + block * BLOCK):
                problem = self._problem(entry)
                if split_of(problem.key) == split:
                    dry = 0
                    yield problem
                elif (dry := dry + 1) > DRY:
                    raise TaskError(
                        f"{DRY} samples contain no problem of the split '{split}'",
                        where=self.name,
                        remedy="Use a larger dataset.",
                    )

    def _problem(self, entry: dict[str, Any]) -> Problem:
        return Problem(
            key=f"{self.name} {' '.join(entry['question'].split())}",
            prompt=self.mark.prompt_for_mark(entry["question"], "ANSWER"),
            answer=self.mark.mark_answer(str(entry["answer"])),
            family=self.dataset,
            meta={"entry": entry},
            version=VERSION,
        )

    def parse_answer(self, problem: Problem, text: str) -> str:
        return text

    def parse_last_answer(self, problem: Problem, reply: str) -> str:
        return last_line(reply)

    def compare_with_gold(self, problem: Problem, gold: str, value: str) -> Verdict:
        return Verdict.RIGHT if self._scorer.score_answer(value, problem.meta["entry"]) >= 1 else Verdict.WRONG
