"""A rung for numbers: a ranking of the calculations with two numbers of the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
MOST_NUMBERS = 8
"""Only the first numbers of a prompt are combined."""


@dataclass(frozen=True)
class Calculation:
    """A calculation with two numbers of a prompt: its result, and its features."""

    value: Fraction
    features: dict[str, float]


class RankedCalculations(Rung):
    """The calculation with two numbers of the prompt, or the single number, that logistic regression ranks first.

    Trained to tell the calculations that give the answer from the others of the same prompt. The features are the operation with the
    words of the prompt and of its last sentence, the words beside both numbers, their order and their sizes. The probability is a softmax
    over the prompt's calculations. Raises ConfigError without scikit-learn.
    """

    name = "ranked calculations"

    def fit(self, rows: TrainingRows) -> None:
        with require_extra("teach", "sklearn"):
            from sklearn.feature_extraction import DictVectorizer
            from sklearn.linear_model import LogisticRegression
        features, right = [], []
        for one in rows.examples:
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
            shares /= shares.sum()
            best = found[int(scores.argmax())].value
            agree = sum(float(share) for share, made in zip(shares, found, strict=True) if made.value == best)
            guesses.append(Guess(str(best.numerator) if best.denominator == 1 else f"{float(best):g}", agree))
        return guesses


def calculations(prompt: str) -> Iterator[Calculation]:
    """Yield the sums, differences, products and quotients of each pair of the prompt's numbers."""
    matches = [*NUMBER.finditer(prompt)][:MOST_NUMBERS]
    values = [Fraction(match.group().replace(",", "")) for match in matches]
    question = max(prompt.rstrip(" ?.!").rfind(mark) for mark in ".?!\n") + 1
    words, asked = (WORD.findall(text.lower()) for text in (prompt, prompt[question:]))
    after = [next(iter(WORD.findall(prompt[match.end() :].lower())), "#") for match in matches]
    for first, second in permutations(range(len(values)), 2):
        x, y = values[first], values[second]
        made = {"-": x - y} | ({"+": x + y, "*": x * y} if first < second else {}) | ({"/": x / y} if y else {})
        for sign, value in made.items():
            names = [f"n {len(values)}", f"larger {x > y}", f"whole {value.denominator == 1}", f"negative {value < 0}"]
            names += [f"places {first} {second}", f"ends {len(values) - first} {len(values) - second}"]
            names += [f"same noun {after[first] == after[second]}", f"asked {matches[first].start() >= question}"]
            names += [f"first {after[first]}", f"second {after[second]}"]
            names += [f"noun asked {after[place] in asked} {n}" for n, place in enumerate((first, second))]
            names += [f"word {word}" for word in words] + [f"asked word {word}" for word in asked]
            names += [f"asked pair {one} {two}" for one, two in pairwise(asked)]
            yield Calculation(value, dict.fromkeys((f"{sign} {name}" for name in names), 1.0))
