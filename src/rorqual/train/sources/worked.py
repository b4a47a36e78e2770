"""Worked solutions of a task: endless problems, each with its steps or answered at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.chat import ChatFormat
from rorqual.data.pack import Sample
from rorqual.data.stream import GeneratedStream
from rorqual.tasks.base import Problem, Task
from rorqual.tasks.find import check_gold, load_task
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.base import Materials, Source, SourceConfig, Step

PROBE = 64


class WorkedConfig(SourceConfig):
    """`think`: the share of problems shown with their steps; the rest is answered at once. `row` tokens in each of `rows`."""

    kind: Literal["worked"] = "worked"
    task: str = "families"
    options: dict[str, Any] = {}
    think: float = Field(1.0, ge=0, le=1)
    rows: int = Field(32, ge=1)
    row: int = Field(128, ge=8)

    def build(self, materials: Materials) -> Source:
        return Worked(self, materials)

    def texts(self) -> Iterator[str]:
        for problem in islice(load_task(self.task, options=self.options).problems("train", 0), 2000):
            yield f"{problem.prompt} {problem.steps or ''} {problem.answer}"


class Worked(Source):
    """Each step draws its own problems from the train split, by seed and step."""

    def __init__(self, config: WorkedConfig, materials: Materials) -> None:
        self.config, self.chat, self.seed = config, materials.chat, materials.seed
        self.task = load_task(config.task, options=config.options)
        probe = list(islice(self.task.problems("train", self.seed), PROBE))
        if not probe:
            raise DataError(
                "no problems in the train split", where=f"task {self.task.name}", remedy="Check problems()."
            )
        check_gold(self.task, probe)
        if config.think and all(problem.steps is None for problem in probe):
            raise DataError(
                "none of its problems has worked steps",
                where=f"task {self.task.name}",
                remedy="Set source.think=0, or use `rorqual train grpo`.",
            )

    def step(self, step: int) -> Step:
        problems = repeat(self.task, self.seed * 1_000_003 + step)

        def make(rng: random.Random) -> Sample:
            return worked_sample(next(problems), self.chat, think=rng.random() < self.config.think)

        stream = GeneratedStream(make, self.config.rows, self.config.row, self.seed, pad=self.chat.tokenizer.pad)
        return Step([TrainBatch.from_packed(stream.batch(step))])


def repeat(task: Task, seed: int) -> Iterator[Problem]:
    """The task's train problems without end: a finite task begins again in another order."""
    while True:
        yield from task.problems("train", seed)
        seed += 7_919


def worked_sample(problem: Problem, chat: ChatFormat, *, think: bool) -> Sample:
    """A problem and its solution as ids with their mask."""
    reply = Message("assistant", problem.answer, problem.steps if think else None)
    rendered = chat.render((*problem.messages, reply))
    return Sample(rendered.ids, rendered.mask)
