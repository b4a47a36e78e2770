"""Sample a teacher: generate, verify, filter, decontaminate, and save every sample on arrival."""

from rorqual.factory.budget import BudgetReached
from rorqual.factory.config import Access, FactoryConfig, FilterConfig
from rorqual.factory.run import sample_teacher

__all__ = ["Access", "BudgetReached", "FactoryConfig", "FilterConfig", "sample_teacher"]
