"""Families of generated problems with written steps, which a small model can learn to reason about."""

from rorqual.tasks.families.base import Family
from rorqual.tasks.families.mixture import FAMILIES, NAMES, Families

__all__ = ["FAMILIES", "NAMES", "Families", "Family"]
