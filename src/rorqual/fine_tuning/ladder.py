"""The process of a job without a language model: `python -m rorqual.fine_tuning.ladder FOLDER THREADS MEMORY`.

It chooses among the cheaper rungs of `rorqual teach`.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from rorqual.fine_tuning.job_process import main
from rorqual.fine_tuning.store import JobFolder, Outcome
from rorqual.teach.config import TeachConfig
from rorqual.teach.paths import TeachPaths
from rorqual.teach.stages import NONE, teach

ACCURACY = re.compile(r"  \S.* % of [\d,]+ .*right.*")
"""A line that `rorqual teach` prints when a rung has been measured."""


class MeasuredRungs(io.TextIOBase):
    """An output that keeps each line about a measured rung as an event of the job."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder, self._line = folder, ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in filter(ACCURACY.fullmatch, lines):
            self._folder.add_event_once(line.strip())
        return len(text)


def teach_ladder(folder: JobFolder, threads: int, is_stopped: Callable[[], bool]) -> Outcome:
    """Choose the cheapest rung for the job's examples, and write the report. The validation file, if any, has the test examples.

    Raises DataError if a file of the job cannot be used.
    """
    job, paths = folder.job(), TeachPaths(folder.taught)
    test = str(folder.validation_data) if job.validation_file is not None else ""
    config = TeachConfig(file=str(folder.training_data), test=test, base=NONE, seed=job.seed)
    with redirect_stdout(MeasuredRungs(folder)):
        teach(config, folder.taught, threads=threads, import_progress=lambda done, total, name: None)
    results = json.loads(paths.results.read_bytes())
    found = results["test"][results["chosen"]]
    folder.add_event_once(f"Chosen: {results['chosen']}, right on {found['right']} of {found['of']} test examples")
    shutil.copyfile(paths.report, folder.report_file)
    return Outcome()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), teach_ladder, can_always_stop=True))
