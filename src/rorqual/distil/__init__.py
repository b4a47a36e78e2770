"""The factory of a teacher's samples: sampled, verified, filtered, decontaminated, kept as they arrive."""

from rorqual.distil.config import Access, FactoryConfig, FilterConfig
from rorqual.distil.factory import sample_teacher
from rorqual.distil.purse import BudgetReached

__all__ = ["Access", "BudgetReached", "FactoryConfig", "FilterConfig", "sample_teacher"]
