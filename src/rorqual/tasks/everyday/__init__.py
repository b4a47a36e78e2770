"""Three everyday tasks: classification, regression and generation. Each problem has a true answer and a noisy answer,
as in a real data set."""

from rorqual.tasks.everyday.everyday_task import EverydayTask
from rorqual.tasks.everyday.mixture import EVERYDAY_TASKS, EverydayMixture
from rorqual.tasks.everyday.prices import Prices, price_of
from rorqual.tasks.everyday.reviews import Reviews
from rorqual.tasks.everyday.sentences import Sentences

__all__ = ["EVERYDAY_TASKS", "EverydayMixture", "EverydayTask", "Prices", "Reviews", "Sentences", "price_of"]
