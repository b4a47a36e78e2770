"""A job is one piece of an experiment's work for one seed: idempotent, resumable, run in a process of its own on one core.

Jobs of a seed live in one folder and are known by name, so that experiments share what they have in common: the teacher of seed 100
is trained once, whoever asks for it first.
"""

from __future__ import annotations

import fcntl
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.core.config import Config, parse
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, Thinking, write_json
from rorqual.distil.config import FactoryConfig
from rorqual.distil.factory import CLOCK, sample_teacher
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.run import evaluate
from rorqual.model.account import account
from rorqual.model.load.run import read_model_config
from rorqual.tasks.base import Split
from rorqual.tasks.find import load_task
from rorqual.train.loop import fit
from rorqual.train.run import Run

SAMPLED = SamplingParams(max_tokens=80, temperature=0.6, top_p=0.95)
"""As DeepSeek-R1 was evaluated (R1, section 3)."""


class JobCost(Config):
    """What a job took: `core_seconds` of processor time are what an equal-cost rule compares, for two jobs may share a machine.

    `share`: of the full amounts of work.
    """

    seconds: float
    core_seconds: float
    tokens: int = 0
    flops: int = 0
    share: float = 1.0

    def __add__(self, other: JobCost) -> JobCost:
        return JobCost(
            seconds=self.seconds + other.seconds,
            core_seconds=self.core_seconds + other.core_seconds,
            tokens=self.tokens + other.tokens,
            flops=self.flops + other.flops,
        )


@dataclass(frozen=True, kw_only=True)
class ExperimentJob(ABC):
    """`estimate`: core-seconds that it took here, for the cost that is said before the start. `needs`: names of jobs before it."""

    name: str
    estimate: float
    needs: tuple[str, ...] = ()

    @abstractmethod
    def work(self, place: Path) -> JobCost:
        """Do it in the seed's folder `place`, from where it stands there; what it took, a killed part's share included where known."""

    def done(self, place: Path, share: float = 1.0) -> bool:
        """Whether it has been done. Errors: `ConfigError` where it was done with other amounts of work."""
        if not self.cost_file(place).is_file():
            return False
        had = self.cost(place).share
        if had != share:
            raise ConfigError(
                f"job {self.name} was done there with {had:.2%} of the full amounts of work, and {share:.2%} are asked for",
                where=str(place),
                remedy="Give another --out, or the --seeds and --budget of before.",
            )
        return True

    def cost_file(self, place: Path) -> Path:
        """Written last."""
        return place / "costs" / f"{self.name}.json"

    def cost(self, place: Path) -> JobCost:
        """What it took."""
        file = self.cost_file(place)
        return parse(JobCost, json.loads(file.read_bytes()), where=str(file))

    def finish(self, place: Path, share: float = 1.0) -> JobCost:
        """Do it unless it is done, and keep what it took. Two experiments that need it do it once: the second one waits."""
        file = self.cost_file(place)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_name(f".{self.name}.lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.done(place, share):
                write_json(file, self.work(place).model_copy(update={"share": share}).model_dump(mode="json"))
        return self.cost(place)


@dataclass(frozen=True, kw_only=True)
class Train(ExperimentJob):
    """A training, in `place/NAME`. `make` gives its run once the jobs that it needs are done: a recipe reads what it starts from."""

    make: Callable[[], Run]

    def work(self, place: Path) -> JobCost:
        out = RunDir(place / self.name)
        fit(self.make(), out, threads=1, quiet=True, extend=False)
        return run_cost(out)


def run_cost(out: RunDir) -> JobCost:
    """What a run's metrics add up to; the part of a killed run that was done again is in neither."""
    records = list(out.metrics())
    return JobCost(
        seconds=sum(r["seconds"] for r in records),
        core_seconds=sum(r["core_seconds"] for r in records),
        tokens=sum(r["tokens"] + r.get("sampled_tokens", 0) for r in records),
        flops=sum(r["flops"] for r in records),
    )


@dataclass(frozen=True, kw_only=True)
class SampleJob(ExperimentJob):
    """A teacher sampled, verified and filtered, in `place/NAME`; the Parquet is `place/NAME/data.parquet`."""

    config: FactoryConfig

    def work(self, place: Path) -> JobCost:
        sample_teacher(self.config, place / self.name, threads=1, quiet=True)
        stages = json.loads((place / self.name / CLOCK).read_bytes()).values()
        return JobCost(
            seconds=sum(stage["seconds"] for stage in stages),
            core_seconds=sum(stage["core_seconds"] for stage in stages),
        )


@dataclass(frozen=True, kw_only=True)
class Measure(ExperimentJob):
    """An evaluation of the run `place/MODEL` on held-out problems, kept in `place/evals/NAME.json`.

    `count` problems of each family and level; answers are sampled as in the quickstart unless `params` says otherwise.
    """

    model: str
    seed: int
    task: str
    options: dict[str, Any]
    count: int
    split: Split = "test"
    thinking: Thinking = "auto"
    params: SamplingParams = SAMPLED

    def work(self, place: Path) -> JobCost:
        run = RunDir(place / self.model)
        with spent() as cost:
            found = evaluate(
                Engine(run.path, threads=1),
                load_task(self.task, options=self.options),
                split=self.split,
                count=self.count,
                seed=self.seed,
                thinking=self.thinking,
                params=self.params,
                per_family=True,
                model=self.model,
            )
            found.save(evaluation_file(place, self.name))
        tokens = sum(found.usage.values())
        flops = account(read_model_config(run), context=64).flops
        return cost[0].model_copy(update={"tokens": tokens, "flops": tokens * flops})


def evaluation_file(place: Path, name: str) -> Path:
    """Where `Measure` keeps what it found."""
    return place / "evals" / f"{name}.json"


def evaluation(place: Path, name: str) -> Evaluation:
    """What the job `name` measured."""
    return Evaluation.load(evaluation_file(place, name))


@dataclass(frozen=True, kw_only=True)
class Compute(ExperimentJob):
    """Any other work whose result is a JSON value, kept in `place/values/NAME.json`. `function(place)` must be a pure one of its files."""

    function: Callable[[Path], Any]

    def work(self, place: Path) -> JobCost:
        with spent() as cost:
            write_json(value_file(place, self.name), self.function(place))
        return cost[0]


def value_file(place: Path, name: str) -> Path:
    """Where `Compute` keeps its value."""
    return place / "values" / f"{name}.json"


def value(place: Path, name: str) -> Any:
    """What the job `name` computed."""
    return json.loads(value_file(place, name).read_bytes())


@contextmanager
def spent() -> Iterator[list[JobCost]]:
    """Gives a list that holds, after the block, what it took."""
    wall, cpu = time.monotonic(), time.process_time()
    found: list[JobCost] = []
    yield found
    found.append(JobCost(seconds=time.monotonic() - wall, core_seconds=time.process_time() - cpu))
