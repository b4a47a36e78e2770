"""Sample a teacher: generate, verify, filter, decontaminate, and save every sample on arrival."""

from rorqual.distil.config import Access, FactoryConfig, FilterConfig
from rorqual.distil.factory import sample_teacher
from rorqual.distil.purse import BudgetReached

__all__ = ["Access", "BudgetReached", "FactoryConfig", "FilterConfig", "sample_teacher"]
