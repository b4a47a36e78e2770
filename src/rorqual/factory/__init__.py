"""Creation of training data by a teacher model: sample it on a task, then grade, filter and decontaminate the samples."""

from rorqual.factory.budget import BudgetReached
from rorqual.factory.config import Access, FactoryConfig, FilterConfig
from rorqual.factory.run import sample_teacher

__all__ = ["Access", "BudgetReached", "FactoryConfig", "FilterConfig", "sample_teacher"]
