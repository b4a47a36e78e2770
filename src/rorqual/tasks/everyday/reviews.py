"""Classification: decide whether a review has more positive opinions or more negative opinions."""

from __future__ import annotations

import random
from typing import ClassVar

from rorqual.tasks.everyday.everyday_task import EverydayTask, Form
from rorqual.tasks.task import Problem, Verdict

GOOD = ("good", "fine", "warm", "clever", "lovely", "bright")
BAD = ("bad", "dull", "cold", "silly", "ugly", "bleak")
ASPECTS = ("plot", "cast", "music", "pace", "end", "light", "sound", "humour")
LABELS = ("negative", "positive")
MOOD, NOT = 0.8, 0.2
"""`MOOD` is the probability that an opinion agrees with the review's overall sentiment.
`NOT` is the probability that an opinion is written as a negation."""
FLIPPED = 0.3


class Reviews(EverydayTask):
    """Problems that ask whether a review is positive, such as `reviews: plot good, cast not dull, end bad`. This review
    is positive, because two of its three opinions are positive.

    The opinions of one review tend to agree, as in real reviews. Because the opinions agree, a model can learn which words are
    similar even from reviews without labels.
    """

    name: ClassVar[str] = "reviews"
    form: ClassVar[Form] = "classification"

    def sample(self, rng: random.Random) -> Problem:
        mood = rng.random() < 0.5
        opinions, balance = [], 0
        for aspect in rng.sample(ASPECTS, 3):
            good = mood if rng.random() < MOOD else not mood
            negated = rng.random() < NOT
            word = rng.choice(GOOD if good != negated else BAD)
            opinions.append(f"{aspect} {'not ' * negated}{word}")
            balance += 1 if good else -1
        return self.problem(", ".join(sorted(opinions)), ", ".join(opinions), LABELS[balance > 0])

    def vocabulary_question(self, problem: Problem) -> tuple[str, str]:
        """Return one opinion of the review and the meaning of this opinion, for example `words: cast not dull` and
        `good`."""
        opinion = problem.prompt.removeprefix(f"{self.name}: ").split(", ")[0]
        good = (opinion.split()[-1] in GOOD) != (" not " in opinion)
        return f"words: {opinion}", GOOD[0] if good else BAD[0]

    def corrupt(self, problem: Problem, rng: random.Random) -> str:
        right = LABELS.index(problem.answer)
        return LABELS[1 - right if rng.random() < FLIPPED else right]

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT if reply.strip() == problem.answer else Verdict.WRONG
