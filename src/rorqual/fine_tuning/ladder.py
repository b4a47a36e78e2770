"""Jobs without a language model: the cheaper rungs of `rorqual teach`, under the name `ladder` of a base model."""

from __future__ import annotations

import json
import shutil

from rorqual.fine_tuning.store import JobFolder, Outcome
from rorqual.teach.config import TeachConfig
from rorqual.teach.paths import TeachPaths
from rorqual.teach.stages import NONE, teach

LADDER = "ladder"
"""The name of the base model of such a job."""


def teach_ladder(folder: JobFolder, threads: int) -> Outcome:
    """Choose the cheapest rung for the job's examples, and write the report. The validation file, if any, has the test examples.

    Raises DataError if a file of the job cannot be used.
    """
    job, paths = folder.job(), TeachPaths(folder.taught)
    test = str(folder.validation_data) if job.validation_file is not None else ""
    config = TeachConfig(
        file=str(folder.training_data), test=test, base=NONE, seed=job.seed, threads=threads, quiet=True
    )
    teach(config, folder.taught, threads=threads, import_progress=lambda done, total, name: None)
    for sentence in json.loads(paths.results.read_bytes())["sentences"]:
        folder.add_event_once(sentence)
    shutil.copyfile(paths.report, folder.report_file)
    return Outcome()
