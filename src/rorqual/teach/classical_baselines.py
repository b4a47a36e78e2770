"""Classical baselines: simple predictors that a taught model must beat. All predictors are fitted on the train examples only."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.core.errors import TaskError
from rorqual.core.extras import require_extra
from rorqual.tasks.find import wrap_user_error
from rorqual.teach.examples import AnswerKind, Example, canonical_answer

Rule = Callable[[str], str]
PENALTIES = (10.0, 100.0, 1.0)
"""Candidate values of C, the inverse strength of the L2 penalty of logistic
regression. If several values of C are equally good, the first of these values is used."""
FOLDS, CHOICE_ROWS = 3, 1000
"""Number of folds of the cross-validation, and approximate maximum number of train examples in the cross-validation."""
CHUNK = 256
"""Number of test prompts that are compared with all train prompts at once. This number of prompts limits the memory that the
comparison needs."""
Integers = NDArray[np.int64]


def predict_with_baselines(
    train: Sequence[Example], test: Sequence[Example], kind: AnswerKind, *, rule: Rule | None = None
) -> dict[str, list[str]]:
    """Return the predicted answers of each baseline for the test examples, in order.

    - "majority": the most frequent answer of `train`. Of equally frequent answers, the first in `train` is used.
    - "nearest neighbour": the answer of the train prompt with the highest cosine similarity of TF-IDF features.
    - "logistic regression", only for labels: features and penalty are chosen by cross-validation on `train`.
    - "unchanged input", only for free text: the prompt itself.
    - "rule", if given: the user's function from a prompt to an answer.

    Answers with the same canonical form count as one answer. A predicted answer is written as in the first train example with
    its canonical form.

    Raises ConfigError without scikit-learn, and TaskError if `rule` fails.
    """
    spelling: dict[str, str] = {}
    for one in train:
        spelling.setdefault(canonical_answer(one, kind), one.answer)
    number = {form: place for place, form in enumerate(spelling)}
    classes = np.array([number[canonical_answer(one, kind)] for one in train])
    answers = list(spelling.values())
    prompts = [one.prompt for one in train], [one.prompt for one in test]
    features = _features(*prompts)
    predicted = {"nearest neighbour": _nearest_prompt_classes(*features["words and characters"], classes)}
    if kind == "label":
        predicted["logistic regression"] = _logistic_classes(features, classes)
    result = {"majority": [answers[Counter(classes.tolist()).most_common(1)[0][0]]] * len(test)}
    result |= {name: [answers[place] for place in places] for name, places in predicted.items()}
    if kind == "text":
        result["unchanged input"] = prompts[1]
    if rule is not None:
        result["rule"] = [apply_rule(rule, prompt) for prompt in prompts[1]]
    return result


def apply_rule(rule: Rule, prompt: str) -> str:
    """Return the rule's answer to a prompt. Raises TaskError, with the prompt, if the rule raises or returns no text."""
    name, where = getattr(rule, "__name__", repr(rule)), f"the prompt {prompt!r:.80}"
    try:
        answer = rule(prompt)
    except Exception as error:  # a user's rule may raise any exception
        raise wrap_user_error(error, where, f"the rule `{name}`") from error
    if isinstance(answer, dict):
        with suppress(TypeError, ValueError):
            return json.dumps(answer, ensure_ascii=False)
    if not isinstance(answer, str):
        raise TaskError(
            f"the rule `{name}` returned a {type(answer).__name__}, not a string or a dict of JSON values",
            where=where,
            remedy="Return the answer as a string, or the fields of a JSON answer as a dict.",
        )
    return answer


def _features(train: list[str], test: list[str]) -> dict[str, tuple[Any, Any]]:
    """Return TF-IDF features, fitted on `train`, of the train and test prompts: sparse matrices [prompts, features]."""
    with require_extra("teach", "sklearn"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import FeatureUnion
    # Punctuation counts as words, so that no prompt is without features. Chinese is written without spaces; its characters count.
    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, dtype=np.float32)
    choices = {
        "words and characters": FeatureUnion([("words", words), ("characters", characters)]),
        "characters": characters,
    }
    return {name: (choice.fit_transform(train).tocsr(), choice.transform(test).tocsr()) for name, choice in choices.items()}  # fmt: skip


def _nearest_prompt_classes(train: Any, test: Any, classes: Integers) -> list[int]:
    """Return for each test row the class of the most similar train row. All train rows have the same norm, so the train row
    with the largest inner product has the largest cosine."""
    products = (test[start : start + CHUNK] @ train.T for start in range(0, test.shape[0], CHUNK))
    return [int(classes[place]) for part in products for place in part.toarray().argmax(1)]


def _logistic_classes(features: dict[str, tuple[Any, Any]], classes: Integers) -> list[int]:
    """Return the classes that logistic regression predicts for the test rows. Cross-validation chooses the features and the value of C."""
    order = np.argsort(classes, kind="stable")
    order = order[:: -(-len(order) // CHOICE_ROWS)]  # each class keeps its share
    known, folds = classes[order], np.arange(len(order)) % FOLDS  # neighbours have one class, so folds share each class
    right: dict[tuple[str, float], int] = {}
    for name, (rows, _) in features.items():
        compact = _compact_features(rows[order])
        for penalty in PENALTIES:
            right[name, penalty] = 0
            for fold in range(FOLDS if len(order) >= FOLDS else 0):
                held = folds == fold
                predicted = _fit_and_predict(compact[~held], known[~held], compact[held], penalty)
                right[name, penalty] += int((predicted == known[held]).sum())
    name, penalty = max(right, key=right.__getitem__)
    return [int(place) for place in _fit_and_predict(features[name][0], classes, features[name][1], penalty)]


def _compact_features(rows: Any) -> Any:
    """Return features [rows, rows] such that the inner product of each pair of rows is the same as in `rows`.

    Logistic regression with an L2 penalty depends only on these inner products. Fitting is much faster than with `rows`, which has one
    column per sequence of words or characters. The returned features have one column per row.
    """
    values, vectors = np.linalg.eigh((rows @ rows.T).toarray().astype(np.float64))
    return vectors * np.sqrt(values.clip(0))


def _fit_and_predict(train: Any, classes: Integers, test: Any, penalty: float) -> Integers:
    """Return the predicted class of each row of `test`. If `classes` has only one class, predict this class, because logistic
    regression needs two classes."""
    if (classes == classes[0]).all():
        return np.full(test.shape[0], classes[0])
    with require_extra("teach", "sklearn"):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after 200 steps the predictions hardly change
        predicted: Integers = LogisticRegression(C=penalty, max_iter=200).fit(train, classes).predict(test)
    return predicted
