"""A source of worked solutions: an endless stream of a task's problems, with worked steps or with only the answer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rorqual.core.config import RowLength, Rows, Share
from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.chat import ChatFormat
from rorqual.data.pack import TrainingSample
from rorqual.data.stream import GeneratedStream
from rorqual.tasks.find import check_gold, check_splits, load_task, problem_location, refuse_empty_answer, safe_problems
from rorqual.tasks.task import Problem, Task
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.source import Source, SourceConfig, SourceInputs, StepBatches

PROBE = 256
DRY = 10_000
"""If this many consecutive problems are longer than a row, the source raises an error."""


class TaskSourceConfig(SourceConfig):
    """Base class of the sources that draw a task's problems. `data` is the file or folder for tasks that read files."""

    task: str
    data: str = ""
    options: dict[str, Any] = {}

    def load(self) -> Task:
        """Load the configured task."""
        return load_task(self.task, data=Path(self.data) if self.data else None, options=self.options)

    def texts(self) -> Iterator[str]:
        for problem in islice(safe_problems(self.load(), "train", 0), 2000):
            yield f"{problem.prompt} {problem.steps or ''} {problem.answer}"


class WorkedConfig(TaskSourceConfig):
    """Train on worked solutions of a task.

    `think` is the share of solutions that include the worked steps. A solution without worked steps consists of only the
    answer. A step has `rows` rows of `row` tokens. `longer` sets whether a solution longer than a row is an error or is
    skipped.
    """

    kind: Literal["worked"] = "worked"
    task: str = "families"
    longer: Literal["error", "skip"] = "error"
    think: Share = 1.0
    rows: Rows = 32
    row: RowLength = 128

    def build(self, materials: SourceInputs) -> Source:
        return WorkedSolutions(self, materials)


class WorkedSolutions(Source):
    """A source that draws problems from the train split. Seed and step determine the problems."""

    def __init__(self, config: WorkedConfig, materials: SourceInputs) -> None:
        self.config, self.chat, self.seed = config, materials.chat, materials.seed
        self.task = config.load()
        self.versions = self.task.versions
        probe = first_problems(self.task, self.seed, PROBE)
        self.prompts = [] if config.data else example_prompts(probe)
        if not self.task.has_gold_replies:
            raise DataError(
                "the task has no gold replies to train on",
                where=f"task {self.task.name}",
                remedy="Use `rorqual train grpo`.",
            )
        if config.think and all(problem.steps is None for problem in probe):
            raise DataError(
                "none of the task's problems has worked steps",
                where=f"task {self.task.name}",
                remedy="Set source.think=0, or use `rorqual train grpo`.",
            )
        fit = [self._render_sample(problem, think=config.think > 0) for problem in probe]
        if all(sample is None for sample in fit):
            raise self._too_long(probe[0])

    def step(self, step: int) -> StepBatches:
        problems = endless_problems(self.task, self.seed * 1_000_003 + step)

        def make(rng: random.Random) -> TrainingSample:
            think = rng.random() < self.config.think
            for problem in islice(problems, DRY):
                if (sample := self._render_sample(problem, think=think)) is not None:
                    return sample
            raise DataError(
                f"{DRY} consecutive problems are longer than a row of {self.config.row} tokens",
                where=f"task {self.task.name}",
                remedy="Set a larger row=.",
            )

        stream = GeneratedStream(make, self.config.rows, self.config.row, self.seed, pad=self.chat.pad)
        return StepBatches([TrainBatch.from_packed(stream.batch(step))])

    def _render_sample(self, problem: Problem, *, think: bool) -> TrainingSample | None:
        """Return the rendered solution, or None if the solution is longer than a row and must be skipped."""
        sample = worked_sample(problem, self.chat, think=think)
        if len(sample) <= self.config.row:
            return sample
        if self.config.longer == "skip":
            return None
        raise self._too_long(problem)

    def _too_long(self, problem: Problem) -> DataError:
        length = len(worked_sample(problem, self.chat, think=self.config.think > 0))
        return DataError(
            f"a worked problem of {length} tokens does not fit a row of {self.config.row}",
            where=problem_location(self.task, problem),
            remedy=f"Set row={length} or more, source.longer=skip, or tokenizer=bpe:1024 for shorter rows.",
        )


def first_problems(task: Task, seed: int, count: int) -> list[Problem]:
    """Check the first `count` problems of the train split, and return these problems.

    Raises TaskError if a problem of a user's task is in both the train and the test split. Raises DataError if the train split
    is empty, if all problems are the same, or if the grader rejects a gold answer. Also raises DataError if the problems do not
    depend on the seed, because every step would train on the same problems.
    """
    where = f"task {task.name}"
    probe = list(islice(safe_problems(task, "train", seed), count))
    if not probe:
        raise DataError("the train split is empty", where=where, remedy="Check problems().")
    if task.has_gold_replies:
        check_gold(task, probe)
    check_splits(task, seed)
    if len(probe) == count and len({problem.key for problem in probe}) == 1:
        raise DataError(
            f"the first {count} problems of the train split are all the same: {probe[0].key!r:.60}",
            where=where,
            remedy="Let problems() yield problems with distinct keys.",
        )
    next_keys = [problem.key for problem in islice(safe_problems(task, "train", seed + 1), count)]
    if len(probe) == count and next_keys == [problem.key for problem in probe]:
        raise DataError(
            f"the first {count} problems of the train split are the same for every seed, so every step would repeat them",
            where=where,
            remedy="Let problems(split, seed) use its seed to draw or shuffle: random.Random(seed).shuffle(rows).",
        )
    return probe


def example_prompts(problems: Iterable[Problem]) -> list[str]:
    """Return the prompts of `problems`, without prompts that a model must decline (`meta["declined"]`)."""
    return [problem.prompt for problem in problems if not problem.meta.get("declined")]


def endless_problems(task: Task, seed: int) -> Iterator[Problem]:
    """Yield problems of the train split without end. If the task is finite, its problems are repeated with another seed."""
    while True:
        found = False
        for problem in safe_problems(task, "train", seed):
            refuse_empty_answer(task, problem)
            found = True
            yield problem
        if not found:
            raise DataError(
                f"the train split is empty for seed {seed}",
                where=f"task {task.name}",
                remedy="Check problems().",
            )
        seed += 7_919


def worked_sample(problem: Problem, chat: ChatFormat, *, think: bool) -> TrainingSample:
    """Render a problem and its solution to token ids with a loss mask. `think` includes the worked steps."""
    has_steps = think and problem.steps is not None and problem.steps.strip()
    reply = Message("assistant", problem.answer, problem.steps if has_steps else None)
    rendered = chat.render((*problem.messages, reply))
    return TrainingSample(rendered.ids, rendered.mask)
