"""A rung for numbers that no calculation gives exactly, such as prices: gradient-boosted trees on the numbers and words of the prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.core.extras import require_extra
from rorqual.tasks.answer import final_answer, final_number
from rorqual.teach.answer_format import NUMBER
from rorqual.teach.rungs.calculation import WORD
from rorqual.teach.rungs.rung import Guess, Rung, TrainingRows

DECIMALS = re.compile(r"\.(\d+)\D*$")
MOST_NUMBERS, MOST_WORDS, FEWEST = 12, 200, 5
"""The features are the first `MOST_NUMBERS` numbers of the prompt, and which of the `MOST_WORDS` most frequent words and pairs of words it
has. Each needs `FEWEST` training prompts that have it, and as many that do not."""
PARTS = 5
"""Number of models, each fitted on all but one of as many parts of the examples. Their spread is the doubt of an answer."""
Floats = NDArray[np.float64]


def words_of(prompt: str) -> set[str]:
    """Return the words of a prompt, and its pairs of neighbouring words."""
    words = WORD.findall(prompt.lower())
    return {*words, *(f"{one} {two}" for one, two in pairwise(words))}


def _varies(values: Floats) -> bool:
    """Return whether there are two different numbers among `values`, which the trees need."""
    return len(np.unique(values[~np.isnan(values)])) > 1


class NumberRegression(Rung):
    """The mean of gradient-boosted regression trees (Friedman 2001), on a logarithmic scale if all training answers are positive.

    The answer has as many decimal places as the training answers. The probability is 1 / (1 + the spread of the models in units of the
    training answers' spread). Raises ConfigError without scikit-learn.
    """

    name = "regression trees"

    def fit(self, rows: TrainingRows) -> None:
        with require_extra("teach", "sklearn"):
            from sklearn.ensemble import HistGradientBoostingRegressor
        gold = [final_number(final_answer(one.answer)) for one in rows.examples]
        kept = [(one, value) for one, value in zip(rows.examples, gold, strict=True) if value is not None]
        decimals = (DECIMALS.search(final_answer(one.answer)) for one, _ in kept)
        self.places = max((len(found[1]) for found in decimals if found), default=0)
        counts = Counter(word for one, _ in kept for word in words_of(one.prompt))
        self.numbers = min(MOST_NUMBERS, max((len(NUMBER.findall(one.prompt)) for one, _ in kept), default=0))
        frequent = [word for word, count in counts.most_common() if FEWEST <= count <= len(kept) - FEWEST]
        self.words = frequent[:MOST_WORDS]
        values = np.array([float(value) for _, value in kept])
        self.logarithmic = bool(len(values)) and bool((values > 0).all())
        targets = np.log(values) if self.logarithmic else values
        self.spread = (float(targets.std()) if len(targets) else 0.0) or 1.0
        table, part = self._features([one.prompt for one, _ in kept]), np.arange(len(kept)) % PARTS
        parts = [part != left_out for left_out in range(PARTS)]
        self.columns = [column for column, values in enumerate(table.T) if all(_varies(values[one]) for one in parts)]
        table = table[:, self.columns]
        self.models: list[Any] = [
            HistGradientBoostingRegressor(random_state=0, min_samples_leaf=5, max_iter=200, learning_rate=0.05).fit(
                table[one], targets[one]
            )
            for one in (parts if self.columns else [])
        ]

    def _features(self, prompts: Sequence[str]) -> Floats:
        """Return the features [prompts, numbers and words]. A number that a prompt does not have is NaN."""
        table = np.full((len(prompts), self.numbers + len(self.words)), np.nan)
        for row, prompt in zip(table, prompts, strict=True):
            found = [float(match.group().replace(",", "")) for match in NUMBER.finditer(prompt)][: self.numbers]
            row[: len(found)] = found
            has = words_of(prompt)
            row[self.numbers :] = [word in has for word in self.words]
        return table

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        if not self.models:
            return [Guess("", 0.0)] * len(prompts)
        table = self._features(prompts)[:, self.columns]
        found = np.stack([model.predict(table) for model in self.models])
        means, doubts = found.mean(0), found.std(0) / self.spread
        values = np.exp(means) if self.logarithmic else means
        return [
            Guess(f"{value:.{self.places}f}", float(1 / (1 + doubt)))
            for value, doubt in zip(values, doubts, strict=True)
        ]
