"""Create training data with a teacher model: sample the teacher on a task, then grade, filter and decontaminate the
samples."""

from rorqual.factory.budget import BudgetReached
from rorqual.factory.config import FactoryConfig, FilterConfig, RemoteAccess
from rorqual.factory.sampling_run import sample_teacher

__all__ = ["BudgetReached", "FactoryConfig", "FilterConfig", "RemoteAccess", "sample_teacher"]
