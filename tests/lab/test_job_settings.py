"""The settings of every job of every experiment are those that the published results were made with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.records import RunDir
from rorqual.lab.find import EXPERIMENTS
from rorqual.lab.job import EvaluationJob, ExperimentJob, SampleJob, TrainJob
from rorqual.recipes.sft import sft
from rorqual.train.loop import fit

GOLDEN = Path(__file__).parent / "job_settings.json"
"""For each job of seed 1 with the full work, a digest of all settings that differ from their defaults."""
TYPES = {"TrainJob": "Train", "EvaluationJob": "Measure", "ComputeJob": "Compute", "SparsifyJob": "Sparsify"}
"""The names of the classes when the digests were made."""
METRICS = [{"step": step, "tokens": 5000, "sampled_tokens": 4000} for step in range(1, 101)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that stands for every run that a job starts from."""
    out = RunDir(tmp_path_factory.mktemp("start") / "run")
    fit(sft(task="families:add", size="tiny", steps=2, rows=2, row=128, seed=0), out, threads=1, quiet=True)
    (out.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in METRICS), encoding="utf-8")
    return out.path


def settings(job: ExperimentJob, place: Path) -> str:
    """Return a digest of a job's settings. Paths are relative to the seed's folder."""
    found: dict[str, Any] = {
        "type": TYPES.get(type(job).__name__, type(job).__name__),
        "estimate": job.estimate,
        "needs": sorted(job.needs),
    }
    if isinstance(job, TrainJob):
        found["run"] = job.make().model_dump(mode="json", exclude_defaults=True)
    elif isinstance(job, SampleJob):
        found["config"] = job.config.model_dump(mode="json", exclude_defaults=True)
    elif isinstance(job, EvaluationJob):
        found |= asdict(job) | {"needs": sorted(job.needs), "more": dict(job.more)}
    text = json.dumps(found, sort_keys=True, default=str).replace(str(place), "PLACE")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_settings_are_those_of_the_published_results(name: str, start: Path, tmp_path: Path) -> None:
    jobs = EXPERIMENTS[name].jobs(1, tmp_path, 1.0)
    for job in jobs:
        target = tmp_path / job.name
        if isinstance(job, TrainJob) or job.name in ("sparse-dsa", "data-read"):
            target.symlink_to(start)
    assert {job.name: settings(job, tmp_path) for job in jobs} == json.loads(GOLDEN.read_bytes())[name]
