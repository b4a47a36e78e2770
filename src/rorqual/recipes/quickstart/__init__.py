"""The quickstart: train a teacher, improve it with GRPO, distil a student, compare the student with alternatives, and
write a report.

Each stage runs a recipe, an evaluation, the data factory or the report, all of which users can also run separately. The
output files of a stage show whether the stage is complete, so running the same command again resumes the quickstart.
"""

from rorqual.recipes.quickstart.paths import BRANCHES, MODES, WHEN, QuickstartPaths
from rorqual.recipes.quickstart.scale import FULL, SCALES, SMALL, STUDENT_TASK, TASK, QuickstartScale
from rorqual.recipes.quickstart.stages import run_quickstart

__all__ = [
    "BRANCHES",
    "FULL",
    "MODES",
    "SCALES",
    "SMALL",
    "STUDENT_TASK",
    "TASK",
    "WHEN",
    "QuickstartPaths",
    "QuickstartScale",
    "run_quickstart",
]
