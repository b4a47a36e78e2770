"""Run an experiment: print the cost, run the jobs of all seeds in parallel, compute the finding, and write its JSON
file and HTML page.

Each job has its own process with one torch thread, so two cores run two jobs and the processor time of each job is known.
Finished jobs are recognised by their files. After an interruption, the same command resumes the experiment, and a killed job
resumes from its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import rorqual
from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.progress import clock_text
from rorqual.core.records import RunDir, write_json
from rorqual.lab.experiment import Experiment
from rorqual.lab.find import EXPERIMENTS, find_experiment
from rorqual.lab.finding import Finding
from rorqual.lab.job import ExperimentJob, TrainJob
from rorqual.lab.page import write_page
from rorqual.model.adapter.files import fingerprint
from rorqual.tasks.families import FAMILIES

JobKey = tuple[int, str]
"""A job's seed and name."""


@dataclass
class LabPlan:
    """The jobs of an experiment. `jobs` maps (seed, name) to a job, for all seeds and in dependency order."""

    experiment: Experiment
    out: Path
    seeds: tuple[int, ...]
    share: float
    jobs: dict[JobKey, ExperimentJob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for seed in self.seeds:
            for job in self.experiment.jobs(seed, self.seed_folder(seed), self.share):
                self.jobs[seed, job.name] = job

    @property
    def estimated_core_seconds(self) -> float:
        """The expected core-seconds of all jobs."""
        return sum(job.estimate for job in self.jobs.values())

    def seed_folder(self, seed: int) -> Path:
        """Return the folder of a seed. All experiments with the same `out` share the folder of a seed."""
        return self.out / f"seed-{seed}"

    def jobs_left(self) -> dict[JobKey, ExperimentJob]:
        """Return the jobs that are not done, in dependency order."""
        return {key: job for key, job in self.jobs.items() if not job.job_is_done(self.seed_folder(key[0]), self.share)}


def run_lab(
    name: str, out: Path, *, seeds: tuple[int, ...], budget: float = 0.0, workers: int = 2, command: str
) -> Path:
    """Run the experiment `name` over `seeds`, write the results to the folder `out`, and return the page's path.

    `budget` is in core-minutes. The work is scaled down until its estimated time fits the budget. A budget of 0 means the full
    work.
    """
    plan = plan_within_budget(find_experiment(name), out, seeds, budget)
    todo = plan.jobs_left()
    remaining = sum(job.estimate for job in todo.values())
    print(f"{plan.experiment.title}\n  claim: {plan.experiment.claim} ({plan.experiment.source})")
    print(
        f"  {len(seeds)} seeds, {len(plan.jobs)} jobs, about {plan.estimated_core_seconds / 60:.1f} core-minutes, "
        f"{remaining / 60:.1f} of them left: "
        f"{clock_text(remaining / workers)} on {workers} cores"
    )
    run_jobs(plan, todo, workers)
    finding = conclude_finding(plan, command)
    write_json(out / f"{name}.json", finding.model_dump(mode="json"))
    page = write_page(finding, out)
    print(f"\n{finding.verdict}: {finding.headline}\n  " + "\n  ".join(finding.words) + f"\n\n  page  {page}")
    return page


def judge_finding_again(file: Path) -> Path:
    """Apply the experiment's current claim and verdict rule to a stored finding: rewrite the finding's JSON file and page, and
    return the page's path. A finding of another program only gets the rule of five seeds."""
    finding = Finding.load(file)
    if finding.experiment in EXPERIMENTS:
        finding = EXPERIMENTS[finding.experiment].judge_again(finding)
    write_json(file, finding.model_dump(mode="json"))
    print(f"{finding.experiment}: {finding.verdict} (seeds {', '.join(map(str, finding.seeds))})")
    return write_page(finding, file.parent)


def plan_within_budget(experiment: Experiment, out: Path, seeds: tuple[int, ...], budget: float) -> LabPlan:
    """Return the plan of the jobs, with the share of the full work that fits `budget` (core-minutes; 0: no limit). Raises
    ConfigError if the budget is too small."""
    full = LabPlan(experiment, out, seeds, 1.0)
    estimate = full.estimated_core_seconds / 60
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


def conclude_finding(plan: LabPlan, command: str) -> Finding:
    """Return the finding of the experiment, with the cost of every job, the machine, the software versions, and the ids of its
    runs."""
    finding = plan.experiment.conclude({seed: plan.seed_folder(seed) for seed in plan.seeds})
    names = list(dict.fromkeys(name for _, name in plan.jobs))
    costs = {
        name: tuple(round(plan.jobs[seed, name].cost(plan.seed_folder(seed)).core_seconds, 2) for seed in plan.seeds)
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
    runs = {
        arm: tuple(f"{run}@{fingerprint(RunDir(plan.out / run).checkpoint())[:12]}" for run in runs)
        for arm, runs in finding.runs.items()
    }
    update = {"costs": costs, "command": command, "made": made, "share": plan.share, "runs": runs}
    return Finding(**(dict(finding) | update | {"shared_runs": shared_runs(plan)}))


def shared_runs(plan: LabPlan) -> dict[str, tuple[str, ...]]:
    """Return for each other experiment the training runs that it shares with the experiment of `plan`, if both have the same
    output folder and seeds."""
    own = {name for _, name in plan.jobs}
    shared = {
        other.name: tuple(
            job.name
            for job in other.jobs(plan.seeds[0], plan.out, plan.share)
            if isinstance(job, TrainJob) and job.name in own
        )
        for other in EXPERIMENTS.values()
        if other.name != plan.experiment.name
    }
    return {name: runs for name, runs in shared.items() if runs}


def run_jobs(plan: LabPlan, todo: dict[JobKey, ExperimentJob], workers: int) -> None:
    """Run jobs in parallel processes, each job after the jobs that it needs. The first failure ends all running jobs. Finished
    jobs are kept."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rorqual.lab.experiment_run"])
    order = TopologicalSorter(
        {key: [(key[0], need) for need in job.needs if (key[0], need) in todo] for key, job in todo.items()}
    )
    order.prepare()
    ready: list[JobKey] = []
    busy: dict[int, tuple[JobKey, BaseProcess, float]] = {}  # by the process's sentinel
    total, done, start = sum(job.estimate for job in todo.values()), 0.0, time.monotonic()
    try:
        while order.is_active():
            ready += order.get_ready()
            while ready and len(busy) < workers:
                key = ready.pop(0)
                process = context.Process(
                    target=_run_job_process,
                    args=(plan.experiment.name, plan.out, plan.seeds, plan.share, key),
                    daemon=True,
                )
                process.start()
                busy[process.sentinel] = key, process, time.monotonic()
            for sentinel in wait([*busy]):
                key, ended, started = busy.pop(sentinel)  # type: ignore[arg-type]
                ended.join()
                if ended.exitcode:
                    raise RorqualError(
                        f"its process ended with code {ended.exitcode}",
                        where=f"{plan.experiment.name}, seed {key[0]}, {key[1]}",
                        remedy="Read the message above, and repeat the command: finished jobs are kept.",
                    )
                order.done(key)
                done += plan.jobs[key].estimate
                pace = (time.monotonic() - start) / max(done, 1e-9)
                print(
                    f"  seed {key[0]}  {key[1]:28} {clock_text(time.monotonic() - started):>6}   "
                    f"{done / total:4.0%}  left {clock_text((total - done) * pace)}",
                    flush=True,
                )
    finally:
        for _, worker, _ in busy.values():
            worker.terminate()
            worker.join()


def _run_job_process(name: str, out: Path, seeds: tuple[int, ...], share: float, key: JobKey) -> None:
    """Run one job. This function is the entry point of the job's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which terminates its jobs
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    plan = LabPlan(find_experiment(name), out, seeds, share)
    try:
        plan.jobs[key].finish(plan.seed_folder(key[0]), share)
    except RorqualError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename or out}: {error.strerror or error}")


def _die_with_parent() -> None:
    """Exit when the parent process dies. An orphaned job and its replacement would write to the same files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
