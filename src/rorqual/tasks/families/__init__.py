"""Families of generated problems with written reasoning steps that a small model can learn."""

from rorqual.tasks.families.family import Family
from rorqual.tasks.families.mixture import FAMILIES, NAMES, Families

__all__ = ["FAMILIES", "NAMES", "Families", "Family"]
