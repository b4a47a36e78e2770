"""Run an experiment: print the cost, run the jobs of all seeds in parallel, compute the finding, and write its JSON
file and HTML page.

Each job has its own process with one torch thread, so two cores run two jobs and the processor time of each job is known.
Finished jobs are recognised by their files. The same command resumes the experiment, and a killed job resumes from its
checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import rorqual
from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.log import clock
from rorqual.core.records import write_json
from rorqual.evals.verdicts import compact
from rorqual.lab.experiment import Experiment
from rorqual.lab.find import find_experiment
from rorqual.lab.finding import Finding
from rorqual.lab.job import ExperimentJob, Measure, evaluation
from rorqual.lab.page import write_page
from rorqual.tasks.families import FAMILIES


@dataclass
class LabPlan:
    """The plan of an experiment. `jobs` maps (seed, name) to the jobs of all seeds, in dependency order."""

    experiment: Experiment
    out: Path
    seeds: tuple[int, ...]
    share: float
    jobs: dict[tuple[int, str], ExperimentJob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for seed in self.seeds:
            for job in self.experiment.jobs(seed, self.place(seed), self.share):
                missing = [need for need in job.needs if (seed, need) not in self.jobs]
                if (seed, job.name) in self.jobs or missing:
                    raise ValueError(
                        f"{self.experiment.name}: job {job.name} occurs twice, or needs jobs that are not listed before it: {missing}"
                    )
                self.jobs[seed, job.name] = job

    def place(self, seed: int) -> Path:
        """Return the folder of a seed, which all experiments share."""
        return self.out / f"seed-{seed}"

    def left(self) -> dict[tuple[int, str], ExperimentJob]:
        """Return the jobs that are not done, in dependency order."""
        return {key: job for key, job in self.jobs.items() if not job.done(self.place(key[0]), self.share)}


def run_lab(
    name: str, out: Path, *, seeds: tuple[int, ...], budget: float = 0.0, workers: int = 2, command: str
) -> Path:
    """Run the experiment `name` over `seeds` into `out`, and return the page's path.

    `budget` is in core-minutes. The work is scaled down until its estimated time fits the budget. 0 means the full
    work.
    """
    plan = planned(find_experiment(name), out, seeds, budget)
    todo = plan.left()
    total, remaining = (sum(job.estimate for job in jobs.values()) for jobs in (plan.jobs, todo))
    print(f"{plan.experiment.title}\n  claim: {plan.experiment.claim} ({plan.experiment.source})")
    print(
        f"  {len(seeds)} seeds, {len(plan.jobs)} jobs, about {total / 60:.1f} core-minutes, {remaining / 60:.1f} of them left: "
        f"{clock(remaining / workers)} on {workers} cores"
    )
    _do(plan, todo, workers)
    finding = concluded(plan, command)
    write_json(out / f"{name}.json", finding.model_dump(mode="json"))
    page = write_page(finding, out)
    print(f"\n{finding.verdict}: " + "\n  ".join(finding.words) + f"\n\n  page  {page}")
    return page


def judge_again(file: Path) -> Path:
    """Apply the current verdict rule to a stored finding: rewrite its JSON and its page, and return the page's path."""
    finding = Finding.load(file)
    write_json(file, finding.model_dump(mode="json"))
    print(f"{finding.experiment}: {finding.verdict} (seeds {', '.join(map(str, finding.seeds))})")
    return write_page(finding, file.parent)


def planned(experiment: Experiment, out: Path, seeds: tuple[int, ...], budget: float) -> LabPlan:
    """Return the plan whose estimate fits the budget. Raises ConfigError if the budget is too small."""
    full = LabPlan(experiment, out, seeds, 1.0)
    estimate = sum(job.estimate for job in full.jobs.values()) / 60
    if not budget or budget >= estimate:
        return full
    share = budget / estimate
    if share < 1e-3:
        raise ConfigError(
            f"a budget of {budget:g} core-minutes covers only {share:.2%} of the full experiment, "
            f"which needs {estimate:.0f} core-minutes",
            where="budget",
            remedy=f"Give at least {estimate / 1000:.1g} core-minutes, or fewer seeds.",
        )
    return LabPlan(experiment, out, seeds, float(f"{share:.2g}"))


def concluded(plan: LabPlan, command: str) -> Finding:
    """Return the finding with the cost of every job, the machine and versions, and the verdict of every problem."""
    finding = plan.experiment.conclude({seed: plan.place(seed) for seed in plan.seeds})
    names = list(dict.fromkeys(name for _, name in plan.jobs))
    costs = {
        name: tuple(round(plan.jobs[seed, name].cost(plan.place(seed)).core_seconds, 2) for seed in plan.seeds)
        for name in names
    }
    made = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rorqual": rorqual.__version__,
        "families": ", ".join(f"{family.name} {family.version}" for family in FAMILIES),
    }
    evaluated = [name for name in names if isinstance(plan.jobs[plan.seeds[0], name], Measure)]
    verdicts = compact(
        {name: [evaluation(plan.place(seed), name) for seed in plan.seeds] for name in evaluated}, plan.seeds
    )
    update = {
        "costs": costs,
        "command": command,
        "made": made,
        "share": plan.share,
        "verdicts": (*finding.verdicts, *verdicts),
    }
    return finding.model_copy(update=update)


@dataclass
class JobProcess:
    """A running job: its process, the pipe for its final message, and its start time."""

    key: tuple[int, str]
    process: BaseProcess
    pipe: Connection
    start: float


def _do(plan: LabPlan, todo: dict[tuple[int, str], ExperimentJob], workers: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rorqual.lab.run"])
    busy: list[JobProcess] = []
    total, done, start = sum(job.estimate for job in todo.values()), 0.0, time.monotonic()
    try:
        while todo or busy:
            while len(busy) < workers and (key := _ready(plan, todo, busy)) is not None:
                del todo[key]
                busy.append(_start(context, plan, key))
            wait([worker.process.sentinel for worker in busy])
            for worker in [w for w in busy if not w.process.is_alive()]:
                busy.remove(worker)
                _ended(plan, worker)
                done += plan.jobs[worker.key].estimate
                pace = (time.monotonic() - start) / max(done, 1e-9)
                seed, name = worker.key
                print(
                    f"  seed {seed}  {name:28} {clock(time.monotonic() - worker.start):>6}   "
                    f"{done / total:4.0%}  left {clock((total - done) * pace)}",
                    flush=True,
                )
    finally:
        for worker in busy:
            worker.process.terminate()
            worker.process.join()


def _ready(
    plan: LabPlan, todo: Mapping[tuple[int, str], ExperimentJob], busy: list[JobProcess]
) -> tuple[int, str] | None:
    """Return the key of the first job that can start, because all jobs that it needs are done. Return None if there is
    none."""
    under_way = {worker.key for worker in busy}
    for (seed, name), job in todo.items():
        if all((seed, need) not in todo and (seed, need) not in under_way for need in job.needs):
            return seed, name
    return None


def _start(context: multiprocessing.context.ForkServerContext, plan: LabPlan, key: tuple[int, str]) -> JobProcess:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(plan.experiment.name, plan.out, plan.seeds, plan.share, key, sender), daemon=True
    )
    process.start()
    sender.close()
    return JobProcess(key, process, receiver, time.monotonic())


def _ended(plan: LabPlan, worker: JobProcess) -> None:
    """Read a job's final message. A failed job stops the experiment. The results of finished jobs are kept."""
    seed, name = worker.key
    try:
        message = worker.pipe.recv()
    except EOFError:  # no message: the job was killed, or crashed with a traceback above
        message = f"its process ended with code {worker.process.exitcode}"
    if message:
        raise RorqualError(
            message,
            where=f"{plan.experiment.name}, seed {seed}, {name}",
            remedy="Repeat the command: finished jobs are kept.",
        )


def _work(name: str, out: Path, seeds: tuple[int, ...], share: float, key: tuple[int, str], pipe: Connection) -> None:
    """Run one job. The job's process starts in this function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which terminates its jobs
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    plan = LabPlan(find_experiment(name), out, seeds, share)
    try:
        plan.jobs[key].finish(plan.place(key[0]), share)
        pipe.send("")
    except RorqualError as error:
        pipe.send(str(error))
    except OSError as error:
        pipe.send(f"{error.filename or out}: {error.strerror or error}")


def _die_with_parent() -> None:
    """Exit when the parent dies. Otherwise, an orphaned job and its replacement would write to the same files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
