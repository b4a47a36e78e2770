"""Three everyday tasks (classification, regression, generation) with true answers and with noisy ones, as in a real data set."""

from rorqual.tasks.everyday.base import Chore
from rorqual.tasks.everyday.mixture import CHORES, Everyday
from rorqual.tasks.everyday.prices import Prices, price_of
from rorqual.tasks.everyday.reviews import Reviews
from rorqual.tasks.everyday.sentences import Sentences

__all__ = ["CHORES", "Chore", "Everyday", "Prices", "Reviews", "Sentences", "price_of"]
