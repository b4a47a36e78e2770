"""Rungs that choose among the answers of the training examples by features of the prompt: nearest neighbour and logistic regression."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from rorqual.core.extras import require_extra
from rorqual.teach.rungs.features import Features
from rorqual.teach.rungs.rung import Guess, Integers, Rung, TrainingRows

NEAREST = "nearest neighbour"
"""The name of the rung that answers with the nearest training prompt by TF-IDF. It is measured for every kind of answers."""
PENALTIES = (10.0, 100.0, 1.0)
"""Candidate values of C, the inverse strength of the L2 penalty of logistic
regression. If several values of C are equally good, the first of these values is used."""
NAME_WEIGHTS = (0.0, 2.0)
"""Candidate weights of the labels' names as further training prompts. A training prompt has the weight 1."""
FOLDS, CHOICE_ROWS = 3, 1000
"""Number of folds of the cross-validation, and approximate maximum number of train examples in the cross-validation."""


class NearestNeighbour(Rung):
    """The answer of the train prompt with the highest cosine similarity of features. The guess's probability is this
    cosine, for a prompt whose features are all known."""

    def __init__(self, name: str, features: Features) -> None:
        self.name, self.features = name, features

    def fit(self, rows: TrainingRows) -> None:
        self.features.fit(rows.prompts)
        self.train, self.answers = self.features.of(rows.prompts), [rows.answers[place] for place in rows.classes]

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        guesses: list[Guess] = []
        for row in self.features.of(prompts) if prompts else ():  # a product of several rows has other last bits
            # All train rows have the same norm, so the train row with the largest inner product has the largest cosine.
            products = _dense(row @ self.train.T).ravel()
            place = int(products.argmax())
            most = min(1.0, float(products[place]) / self.features.squared_length)
            guesses.append(Guess(self.answers[place], most))
        return guesses


class LogisticRegression(Rung):
    """Logistic regression over the answers of the training examples. The name of a label, such as "card not working", may count as a
    prompt with this label. Cross-validation on the examples chooses the features, the penalty and the weight of the names.

    Raises ConfigError without scikit-learn.
    """

    def __init__(self, name: str, choices: Mapping[str, Features]) -> None:
        self.name, self.choices = name, choices
        self.settings: tuple[str, float, float] | None = None

    def settle(self, rows: TrainingRows) -> None:
        self.settings = self._best_settings(rows)

    def fit(self, rows: TrainingRows) -> None:
        name, weight, penalty = self.settings or self._best_settings(rows)
        self.features, self.answers = self.choices[name], rows.answers
        self.model = _fit(_table(self.features, rows), rows.classes, weight, penalty)

    def _best_settings(self, rows: TrainingRows) -> tuple[str, float, float]:
        return _best_choice({name: _table(features, rows) for name, features in self.choices.items()}, rows.classes)

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        table, guesses = self.features.of(prompts), []
        for row in range(len(prompts)):  # one at a time: the bits of a matrix product may depend on the number of rows
            [shares] = self.model.probabilities(table[row : row + 1])
            guesses.append(Guess(self.answers[self.model.classes[shares.argmax()]], float(shares.max())))
        return guesses

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the features that were not chosen."""
        return vars(self) | {"choices": {self.name: self.features}}


class FittedClassifier:
    """A fitted logistic regression, or a constant if the rows have only one class, because logistic regression needs two."""

    def __init__(self, rows: Any, classes: Integers, penalty: float, weights: Any = None) -> None:
        self.classes, self.model = np.unique(classes), None
        if len(self.classes) > 1:
            with require_extra("teach", "sklearn"):
                from sklearn.exceptions import ConvergenceWarning
                from sklearn.linear_model import LogisticRegression as Fitted
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # after 200 steps the predictions hardly change
                self.model = Fitted(C=penalty, max_iter=200).fit(rows, classes, weights)

    def probabilities(self, rows: Any) -> Any:
        """Return the probability of each class of `classes` [rows, classes]."""
        return np.ones((rows.shape[0], 1)) if self.model is None else self.model.predict_proba(rows)


def label_name(label: str) -> str:
    """Return the words of a label: "card_not_working", "card-not-working" and "CardNotWorking" all give three words."""
    return re.sub(r"[\W_]+|(?<=[a-z])(?=[A-Z])", " ", label).strip()


def _table(features: Features, rows: TrainingRows) -> Any:
    """Fit the features on the training prompts, and return those of the prompts and then of the names of the labels."""
    features.fit(rows.prompts)
    return features.of([*rows.prompts, *map(label_name, rows.answers)])


def _fit(table: Any, classes: Integers, weight: float, penalty: float) -> FittedClassifier:
    """Fit the rows of the prompts, of the classes `classes`, and if `weight` is above 0, the last rows, which are the names of the labels."""
    prompts, names = len(classes), table.shape[0] - len(classes)
    if not weight:
        return FittedClassifier(table[:prompts], classes, penalty)
    both = np.concatenate([classes, np.arange(names)])
    return FittedClassifier(table, both, penalty, np.repeat([1.0, weight], [prompts, names]))


def _best_choice(tables: Mapping[str, Any], classes: Integers) -> tuple[str, float, float]:
    """Return the name of the features, the weight of the labels' names and the penalty with the highest accuracy in cross-validation."""
    order = np.argsort(classes, kind="stable")
    order = order[:: -(-len(order) // CHOICE_ROWS)]  # each class keeps its share
    known, folds = classes[order], np.arange(len(order)) % FOLDS  # neighbours have one class, so folds share each class
    right: dict[tuple[str, float, float], int] = {}
    for name, table in tables.items():
        names = range(len(classes), table.shape[0])
        compact = _compact_features(table[[*order, *names]])
        for weight, penalty in product(NAME_WEIGHTS, PENALTIES):
            right[name, weight, penalty] = 0
            for fold in range(FOLDS if len(order) >= FOLDS else 0):
                held = folds == fold
                kept = np.append(~held, np.ones(len(names), bool))
                model = _fit(compact[kept], known[~held], weight, penalty)
                predicted = model.classes[model.probabilities(compact[: len(order)][held]).argmax(1)]
                right[name, weight, penalty] += int((predicted == known[held]).sum())
    return max(right, key=right.__getitem__)


def _compact_features(rows: Any) -> Any:
    """Return features [rows, rows] such that the inner product of each pair of rows is the same as in `rows`.

    Logistic regression with an L2 penalty depends only on these inner products. Fitting is much faster than with sparse rows, which have
    one column per sequence of words or characters. The returned features have one column per row. Dense rows are returned as they are.
    """
    if isinstance(rows, np.ndarray):
        return rows
    values, vectors = np.linalg.eigh((rows @ rows.T).toarray().astype(np.float64))
    return vectors * np.sqrt(values.clip(0))


def _dense(matrix: Any) -> Any:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
