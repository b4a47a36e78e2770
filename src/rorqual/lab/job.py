"""Jobs: units of an experiment's work for one seed. A job is idempotent and resumable, and runs in its own process on one core.

All jobs of a seed write to one folder. Jobs are identified by name, so that experiments can share the results of jobs.
For example, the teacher of seed 100 is trained once for all experiments.
"""

from __future__ import annotations

import fcntl
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rorqual.core.config import Config, parse_config
from rorqual.core.errors import ConfigError
from rorqual.core.ledger import read_ledger, sum_entries
from rorqual.core.records import RunDir, Thinking, write_json
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import Evaluation
from rorqual.factory.config import FactoryConfig
from rorqual.factory.sampling_run import COSTS, sample_teacher
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Split
from rorqual.train.loop import fit
from rorqual.train.run import Run

SAMPLED = SamplingParams(max_tokens=80, temperature=0.6, top_p=0.95)
"""The sampling parameters of DeepSeek-R1's evaluations (R1, section 3)."""


class JobCost(Config):
    """The cost of a job. Experiments that require equal costs compare `core_seconds`, the processor time, because jobs may
    share a machine.

    `share` is the fraction of its full work that the job did.
    """

    seconds: float
    core_seconds: float
    share: float = 1.0

    def __add__(self, other: JobCost) -> JobCost:
        return JobCost(
            seconds=self.seconds + other.seconds,
            core_seconds=self.core_seconds + other.core_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class ExperimentJob(ABC):
    """A unit of an experiment's work. `estimate` is the expected number of core-seconds on the reference machine.

    `needs` names the jobs that must finish first.
    """

    name: str
    estimate: float
    needs: tuple[str, ...] = ()

    @abstractmethod
    def do_job(self, place: Path) -> JobCost:
        """Do the work in the seed's folder `place`, resume unfinished work there, and return the cost.

        The cost of a job includes killed attempts if the cost of these attempts is known.
        """

    def job_is_done(self, place: Path, share: float = 1.0) -> bool:
        """Return whether the job is done. Raises ConfigError if the job was done with another `share` of the full work."""
        if not self.cost_file(place).is_file():
            return False
        done_share = self.cost(place).share
        if done_share != share:
            raise ConfigError(
                f"job {self.name} was done with {done_share:.2%} of the full work, but {share:.2%} is requested",
                where=str(place),
                remedy="Give another --out, or the same --seeds and --budget as before.",
            )
        return True

    def cost_file(self, place: Path) -> Path:
        """Return the file with the job's cost. The cost file is written last, so its existence shows that the job is
        finished."""
        return place / "costs" / f"{self.name}.json"

    def cost(self, place: Path) -> JobCost:
        """Return the cost of the finished job."""
        file = self.cost_file(place)
        return parse_config(JobCost, json.loads(file.read_bytes()), where=str(file))

    def finish(self, place: Path, share: float = 1.0) -> JobCost:
        """Do the job if it is not done, save its cost, and return this cost. A lock makes other experiments wait while the job
        runs."""
        file = self.cost_file(place)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_name(f".{self.name}.lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.job_is_done(place, share):
                write_json(file, self.do_job(place).model_copy(update={"share": share}).model_dump(mode="json"))
        return self.cost(place)


@dataclass(frozen=True, kw_only=True)
class TrainJob(ExperimentJob):
    """A training run, written to the folder `name` in the seed's folder. `make` is called only after the jobs in `needs` have
    finished, because a recipe reads the start checkpoint when it makes the run."""

    make: Callable[[], Run]

    def do_job(self, place: Path) -> JobCost:
        out = RunDir(place / self.name)
        fit(self.make(), out, threads=1, quiet=True, extend=False)
        return run_cost(out)


def run_cost(out: RunDir) -> JobCost:
    """Return the cost of a run, summed over its metrics. A step that was repeated after the process was killed counts once."""
    records = list(out.metrics())
    return JobCost(
        seconds=sum(r["seconds"] for r in records),
        core_seconds=sum(r["core_seconds"] for r in records),
    )


@dataclass(frozen=True, kw_only=True)
class SampleJob(ExperimentJob):
    """A job that samples a teacher, and writes the verified and filtered samples to the
    file `data.parquet` of the folder `name` in the seed's folder."""

    config: FactoryConfig

    def do_job(self, place: Path) -> JobCost:
        sample_teacher(self.config, place / self.name, threads=1, quiet=True)
        cost = sum_entries(read_ledger(place / self.name / COSTS))
        return JobCost(seconds=cost.seconds, core_seconds=cost.core_seconds)


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(ExperimentJob):
    """A job that evaluates the run `model` in the seed's folder on held-out problems. The evaluation is written to
    `evals/<name>.json` in the seed's folder.

    The evaluation has `count` problems of each family and level. The default of `params` is the sampling parameters of the
    quickstart. `more` holds further arguments of `evaluate`.
    """

    model: str
    seed: int
    task: str
    options: dict[str, Any]
    count: int
    split: Split = "test"
    thinking: Thinking = "auto"
    params: SamplingParams = SAMPLED
    more: Mapping[str, Any] = field(default_factory=dict)

    def do_job(self, place: Path) -> JobCost:
        with measure_cost() as cost:
            result = evaluate(
                Engine(RunDir(place / self.model).path, threads=1),
                load_task(self.task, options=self.options),
                split=self.split,
                count=self.count,
                seed=self.seed,
                thinking=self.thinking,
                params=self.params,
                per_family=True,
                model=self.model,
                measured={},  # no experiment compares with guessing
                **self.more,
            )
            result.save(evaluation_file(place, self.name))
        return cost[0]


def evaluation_file(place: Path, name: str) -> Path:
    """Return the path where `EvaluationJob` saves its evaluation."""
    return place / "evals" / f"{name}.json"


def load_evaluation(place: Path, name: str) -> Evaluation:
    """Return the evaluation that the job `name` saved."""
    return Evaluation.load(evaluation_file(place, name))


@dataclass(frozen=True, kw_only=True)
class ComputeJob(ExperimentJob):
    """A job that computes a JSON value and writes it to `values/<name>.json` in the seed's folder.
    `function` is called with the seed's folder, and its JSON value must depend only on files in this folder.
    """

    function: Callable[[Path], Any]

    def do_job(self, place: Path) -> JobCost:
        with measure_cost() as cost:
            write_json(value_file(place, self.name), self.function(place))
        return cost[0]


def value_file(place: Path, name: str) -> Path:
    """Return the path where `ComputeJob` saves its value."""
    return place / "values" / f"{name}.json"


def load_value(place: Path, name: str) -> Any:
    """Return the value that the job `name` computed."""
    return json.loads(value_file(place, name).read_bytes())


@contextmanager
def measure_cost() -> Iterator[list[JobCost]]:
    """Measure the cost of a `with` block. The `with` block gets an empty list. When the block ends, its cost is appended to
    this list."""
    wall, cpu = time.monotonic(), time.process_time()
    costs: list[JobCost] = []
    yield costs
    costs.append(JobCost(seconds=time.monotonic() - wall, core_seconds=time.process_time() - cpu))
