"""A rung for numbers: a ranking of the calculations with two or three numbers of the prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from rorqual.core.extras import require_extra
from rorqual.tasks.answer import final_answer, final_number
from rorqual.teach.answer_format import NUMBER
from rorqual.teach.rungs.rung import Guess, Rung, TrainingRows

WORD = re.compile(r"[^\W\d]+")
PENALTY = 1.0
"""The value of C, the inverse strength of the L2 penalty."""
MOST_NUMBERS, MOST_FOR_THREE = 8, 4
"""Only the first `MOST_NUMBERS` numbers of a prompt are combined, and only two at a time if there are more than `MOST_FOR_THREE`."""
MOST_DIGITS, MOST_ROWS = 30, 1_000
"""Longer numbers are left out. Of more training examples, about `MOST_ROWS` are used, because each takes some megabytes."""


@dataclass(frozen=True)
class Form:
    """A form of calculations with `count` numbers. The result does not depend on the order of the first `symmetric` numbers."""

    name: str
    count: int
    symmetric: int
    result: Callable[..., Fraction]


FORMS = (
    Form("-", 2, 1, lambda x, y: x - y), Form("+", 2, 2, lambda x, y: x + y),
    Form("*", 2, 2, lambda x, y: x * y), Form("/", 2, 1, lambda x, y: x / y),
    Form("x+y-z", 3, 2, lambda x, y, z: x + y - z), Form("z-x-y", 3, 2, lambda x, y, z: z - x - y),
    Form("x+y+z", 3, 3, lambda x, y, z: x + y + z), Form("x*y-z", 3, 2, lambda x, y, z: x * y - z),
    Form("x*y+z", 3, 2, lambda x, y, z: x * y + z), Form("z-x*y", 3, 2, lambda x, y, z: z - x * y),
)  # fmt: skip
PAIRS = 4
"""The first forms, which have two numbers."""


@dataclass(frozen=True)
class Calculation:
    """A calculation with numbers of a prompt: its result, and its features."""

    value: Fraction
    features: dict[str, float]


class RankedCalculations(Rung):
    """The result of the calculations with two or three numbers of the prompt that logistic regression ranks first.

    Trained to tell the calculations that give the answer from the others of the same prompt. The features are the operation with the
    words of the prompt and of its last sentence, the words after its numbers, their order and their sizes. The probability is a softmax
    over the prompt's calculations. Raises ConfigError without scikit-learn.
    """

    name = "ranked calculations"

    def fit(self, rows: TrainingRows) -> None:
        with require_extra("teach", "sklearn"):
            from sklearn.feature_extraction import DictVectorizer
            from sklearn.linear_model import LogisticRegression
        features, right = [], []
        for one in rows.examples[:: -(-len(rows.examples) // MOST_ROWS)]:
            gold, found = final_number(final_answer(one.answer)), [*calculations(one.prompt)]
            if any(made.value == gold for made in found) and not all(made.value == gold for made in found):
                features += [made.features for made in found]
                right += [made.value == gold for made in found]
        self.vectors: Any = None
        if features:
            self.vectors = DictVectorizer(dtype=np.float32)
            table = self.vectors.fit_transform(features)
            self.model: Any = LogisticRegression(C=PENALTY, max_iter=300).fit(table, right)

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        guesses = []
        for prompt in prompts:
            found = [*calculations(prompt)]
            if self.vectors is None or not found:
                guesses.append(Guess("", 0.0))
                continue
            scores = self.model.decision_function(self.vectors.transform([made.features for made in found]))
            shares = np.exp(scores - scores.max())
            guesses.append(most_probable(found, shares / shares.sum()))
        return guesses


def most_probable(found: Sequence[Calculation], shares: Any) -> Guess:
    """Return the result with the largest probability. `shares` has the probability of each calculation."""
    total: dict[Fraction, float] = {}
    for one, share in zip(found, shares, strict=True):
        total[one.value] = total.get(one.value, 0.0) + float(share)
    best = max(total, key=total.__getitem__)
    return Guess(str(best.numerator) if best.denominator == 1 else f"{float(best):g}", total[best])


def calculations(prompt: str) -> Iterator[Calculation]:
    """Yield the calculations of each form with each choice of the prompt's numbers."""
    matches = [match for match in NUMBER.finditer(prompt) if len(match.group()) <= MOST_DIGITS][:MOST_NUMBERS]
    values = [Fraction(match.group().replace(",", "")) for match in matches]
    question = max(prompt.rstrip(" ?.!").rfind(mark) for mark in ".?!\n") + 1
    words, asked = (WORD.findall(text.lower()) for text in (prompt, prompt[question:]))
    after = [next(iter(WORD.findall(prompt[match.end() :].lower())), "#") for match in matches]
    shared = [f"n {len(values)}", *(f"word {word}" for word in words), *(f"asked word {word}" for word in asked)]
    shared += [f"asked pair {one} {two}" for one, two in pairwise(asked)]
    for form in FORMS[: None if len(values) <= MOST_FOR_THREE else PAIRS]:
        for places in permutations(range(len(values)), form.count):
            try:
                value = form.result(*(values[place] for place in places))
            except ZeroDivisionError:
                continue
            if [*places[: form.symmetric]] != sorted(places[: form.symmetric]):
                continue
            first, second, *_ = places
            names = [f"larger {values[first] > values[second]}", f"same noun {after[first] == after[second]}"]
            names += [f"whole {value.denominator == 1}", f"negative {value < 0}", f"places {places}"]
            names += [f"ends {[len(values) - place for place in places]}"]
            for n, place in enumerate(places):
                names += [f"noun {n} {after[place]}", f"noun asked {n} {after[place] in asked}"]
                names += [f"asked {n} {matches[place].start() >= question}"]
            features = dict.fromkeys((f"{form.name} {name}" for name in (*names, *shared)), 1.0)
            yield Calculation(value, features)
