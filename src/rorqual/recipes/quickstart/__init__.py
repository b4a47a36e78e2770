"""The main job: a teacher built, trained and reinforced, a student distilled from it and set against its rivals, a report.

Nothing here is special: each stage is a recipe, an evaluation, the factory or a report that a user can call alone. Every
stage that is done is found again by its files, so the same command goes on where it was.
"""

from rorqual.recipes.quickstart.place import BRANCHES, MODES, WHEN, Place
from rorqual.recipes.quickstart.scale import FULL, SCALES, SMALL, STUDENT_TASK, TASK, Scale
from rorqual.recipes.quickstart.stages import routed, run_quickstart

__all__ = [
    "BRANCHES",
    "FULL",
    "MODES",
    "SCALES",
    "SMALL",
    "STUDENT_TASK",
    "TASK",
    "WHEN",
    "Place",
    "Scale",
    "routed",
    "run_quickstart",
]
