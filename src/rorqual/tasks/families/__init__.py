"""Families of generated problems that a small model can learn to reason about, with their steps written out."""

from rorqual.tasks.families.base import Family
from rorqual.tasks.families.mixture import FAMILIES, NAMES, Families

__all__ = ["FAMILIES", "NAMES", "Families", "Family"]
