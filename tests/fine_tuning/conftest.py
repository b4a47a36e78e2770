"""One base model, one server and one tuned model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai.types.fine_tuning import FineTuningJob
from tuned_server import TuneServer, sums, tuning, wait

from served import write_run


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("base") / "tiny", context=256)


@pytest.fixture(scope="session")
def tuner(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuneServer]:
    """The ladder's rungs have no encoder, because nothing is downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        with tuning(base, tmp_path_factory.mktemp("tuner"), "tune_jobs=2") as found:
            yield found


@pytest.fixture(scope="session")
def tuned(tuner: TuneServer, tmp_path_factory: pytest.TempPathFactory) -> FineTuningJob:
    """A job that has succeeded, of the tenant `default`, with a validation file."""
    folder = tmp_path_factory.mktemp("data")
    held_out = tuner.upload(sums(folder / "held out.jsonl", 20))
    hyperparameters = {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": 10.0}
    job = tuner.create(
        sums(folder / "sums.jsonl"), validation_file=held_out, suffix="sums", hyperparameters=hyperparameters
    )
    return wait(tuner.client, job.id)
