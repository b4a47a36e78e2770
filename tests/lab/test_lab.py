"""An experiment is its jobs' files: whatever stops it, the same command goes on and ends with the same finding."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from commands import started, typed
from rorqual.core.errors import ConfigError
from rorqual.core.records import write_json
from rorqual.lab.experiment import Experiment, Readings
from rorqual.lab.experiment_run import LabPlan, conclude_finding, plan_within_budget
from rorqual.lab.find import EXPERIMENTS, find_experiment
from rorqual.lab.job import ExperimentJob
from rorqual.tasks.families import FAMILIES

SHARE = 0.01
CLOCKS = {"costs", "made"}


def lab(out: Path) -> list[str]:
    return ["lab", "zero", "--seeds", "1", "--budget", "0.04", "--out", str(out)]


def finding(out: Path, name: str = "zero") -> dict[str, Any]:
    found = json.loads((out / f"{name}.json").read_bytes())
    return {key: value for key, value in found.items() if key not in CLOCKS}


def processes(mark: str) -> set[int]:
    """Ids of processes whose command line or working files name `mark`."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/maps"):
        try:
            if any(mark in os.readlink(fd) for fd in (entry.parent / "fd").iterdir()):
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_killed_again_and_again_it_ends_with_the_same_finding(tmp_path: Path) -> None:
    straight = typed(tmp_path, *lab(tmp_path / "straight"))
    assert straight.code == 0, straight.err
    assert "core-minutes" in straight.out and "left" in straight.out
    out = tmp_path / "killed"
    # Within the first job, and after it.
    for written in ("metrics.jsonl", "costs/*.json"):
        process = started(tmp_path, *lab(out))
        while not any(path.stat().st_size for path in out.rglob(written)):
            assert process.is_alive(), f"it ended before it wrote {written}"
            time.sleep(0.05)
        process.kill()
        process.join()
        deadline = time.monotonic() + 60
        while processes(str(out)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes(str(out)), "a job lives on without its parent and writes beside the next one"
    resumed = typed(tmp_path, *lab(out))
    assert resumed.code == 0, resumed.err
    assert finding(out) == finding(tmp_path / "straight")
    assert "0.0 of them left" in typed(tmp_path, *lab(out)).out


def test_every_experiment_plans_jobs_in_order_and_says_what_they_cost(tmp_path: Path) -> None:
    for experiment in EXPERIMENTS.values():
        plan = LabPlan(experiment, tmp_path, (1, 2), 1.0)
        assert all(job.estimate > 0 for job in plan.jobs.values())
        names = [job.name for job in experiment.jobs(1, tmp_path, 1.0)]
        assert len({*names}) == len(names) and len(plan.jobs) == 2 * len(names)
        before = dict(zip(plan.jobs, range(len(plan.jobs)), strict=True))
        assert all(
            before[seed, need] < before[seed, name] for (seed, name), job in plan.jobs.items() for need in job.needs
        )
        assert {seed for seed, _ in plan.jobs} == {1, 2}
        assert plan.jobs_left() == plan.jobs


def test_a_budget_shrinks_the_work_and_one_that_is_enough_does_not(tmp_path: Path) -> None:
    experiment = find_experiment("zero")
    minutes = sum(job.estimate for job in LabPlan(experiment, tmp_path, (1,), 1.0).jobs.values()) / 60
    assert plan_within_budget(experiment, tmp_path, (1,), minutes).share == 1.0
    half = plan_within_budget(experiment, tmp_path, (1,), minutes / 2)
    assert half.share == pytest.approx(0.5, rel=0.02)
    assert sum(job.estimate for job in half.jobs.values()) / 60 == pytest.approx(minutes / 2, rel=0.02)
    with pytest.raises(ConfigError, match="core-minutes"):
        plan_within_budget(experiment, tmp_path, (1,), minutes / 1e5)


def test_what_was_done_with_less_work_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    experiment = find_experiment("zero")
    for job in experiment.jobs(1, tmp_path / "seed-1", 0.1):
        write_json(job.cost_file(tmp_path / "seed-1"), {"seconds": 1.0, "core_seconds": 1.0, "share": 0.1})
    assert LabPlan(experiment, tmp_path, (1,), 0.1).jobs_left() == {}
    with pytest.raises(ConfigError, match=r"10.00% of the full work.*100.00%"):
        LabPlan(experiment, tmp_path, (1,), 1.0).jobs_left()


def test_an_unknown_experiment_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError) as refused:
        find_experiment("distill-vs-rl")
    assert "distil-vs-rl" in str(refused.value) and "zero" in str(refused.value)


class Nothing(Experiment):
    """An experiment without work."""

    name, title, claim, source = "nothing", "t", "c", "s"
    arms, quantities, pairs, wording = {}, {}, (), {}  # type: ignore[var-annotated]

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        return []

    def read(self, place: Path) -> Readings:
        return {}


def test_a_finding_says_which_versions_of_the_families_were_drawn(tmp_path: Path) -> None:
    said = conclude_finding(LabPlan(Nothing(), tmp_path, (1,), 1.0), "x").made["families"]
    assert dict(part.split() for part in said.split(", ")) == {f.name: str(f.version) for f in FAMILIES}
