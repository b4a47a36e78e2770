"""The answers of rungs to examples that they were not fitted on, and the choice of a rung by them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rorqual.evals.stats import Interval, wilson
from rorqual.teach.examples import Example
from rorqual.teach.folds import DEV, FOLDS
from rorqual.teach.rungs.rung import AnswerKind, Integers, Predictor, Rung, TrainingRows
from rorqual.teach.rungs.simple import UserRule

Grade = Callable[[Example, str], bool]
"""A function of an example and a reply that returns whether the reply is right."""
TIMED, TIMING_SECONDS = 9, 3.0
"""At most `TIMED` prompts are answered one by one to measure the time of an answer, and none after `TIMING_SECONDS`."""
CLEARLY = 1.0
"""A rung clearly beats a cheaper one if its gain in accuracy is more than `CLEARLY` standard errors of the paired difference. This is the
one-standard-error rule (Breiman et al. 1984, section 3.4.3)."""
WITH_WRITTEN = ", with written rows"
"""The end of the name of a rung that is also fitted on the rows that a teacher wrote."""


@dataclass(frozen=True)
class HeldOut:
    """The answers of a rung to examples that it was not fitted on.

    `right` and `probability` have one entry for each example, by key: whether the answer is right, and how sure the rung is of it.
    `answer_seconds` is the median time of an answer, and `fit_seconds` the time of the last fit. `offered` says whether the rung may be
    chosen.
    """

    name: str
    right: Mapping[str, bool]
    probability: Mapping[str, float]
    answer_seconds: float
    fit_seconds: float
    offered: bool = True

    @property
    def accuracy(self) -> float:
        """The share of right answers, or 0 without examples."""
        return sum(self.right.values()) / max(1, len(self.right))

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the accuracy."""
        return wilson(sum(self.right.values()), len(self.right))


def cross_validate(
    rung: Rung,
    pool: Sequence[Example],
    fold: Integers,
    kind: AnswerKind,
    grade: Grade,
    *,
    seconds: float,
    extra: Sequence[Example] = (),
) -> HeldOut:
    """Fit `rung` on all folds of `pool` but one and measure it on that one, for each fold in turn.

    `fold` is the number of the fold of each example. The first fold is the dev split, on which no setting is chosen. If the next fold
    would end after more than `seconds`, the result has the examples of the finished folds alone. The written rows `extra` are added to
    the fits (see `training_rows`). They are never held out, and choose no setting.
    """
    right: dict[str, bool] = {}
    probability: dict[str, float] = {}
    began = time.monotonic()
    rung.settle(training_rows(pool, fold, kind, DEV))
    for number in range(FOLDS):
        started = time.monotonic()
        rung.fit(training_rows(pool, fold, kind, number, extra))
        fitted = time.monotonic() - started
        held = [one for one, at in zip(pool, fold, strict=True) if at == number]
        record_answers(rung, held, grade, right, probability)
        if (time.monotonic() - began) * (number + 2) / (number + 1) > seconds:
            break
    return HeldOut(rung.name, right, probability, seconds_of_answer(rung, pool), fitted)


def training_rows(
    pool: Sequence[Example], fold: Integers, kind: AnswerKind, without: int, extra: Sequence[Example] = ()
) -> TrainingRows:
    """Return the examples of all folds of `pool` but the fold `without`, and the rows of `extra` whose writer saw no example of that fold."""
    held = {one.line for one, at in zip(pool, fold, strict=True) if at == without}
    kept = [one for one, at in zip(pool, fold, strict=True) if at != without]
    return TrainingRows([*kept, *(one for one in extra if held.isdisjoint(one.shown))], kind)


def record_answers(
    predictor: Predictor,
    examples: Sequence[Example],
    grade: Grade,
    right: dict[str, bool],
    probability: dict[str, float],
) -> None:
    """Let `predictor` answer `examples`, and add the grades and probabilities of its answers to `right` and `probability`."""
    for one, guess in zip(examples, predictor.predict([one.prompt for one in examples]), strict=True):
        right[one.key], probability[one.key] = grade(one, guess.answer), guess.probability


def seconds_of_answer(predictor: Predictor, examples: Sequence[Example]) -> float:
    """Return the median time of an answer to a single prompt. A space makes each prompt one whose embedding is not
    stored; a user's rule sees the prompt alone."""
    times: list[float] = []
    for one in examples[:TIMED]:
        prompt = one.prompt + " " * (not isinstance(predictor, UserRule))
        began = time.monotonic()
        predictor.predict([prompt])
        times.append(time.monotonic() - began)
        if sum(times) > TIMING_SECONDS:
            break
    return median(times)


def gain_over(one: HeldOut, other: HeldOut) -> tuple[float, float]:
    """Return the gain in accuracy of `one` over `other` on the examples that both answered, and its standard error.

    The standard error counts one change more than there is, so that a single changed answer is no clear gain. Without a common example,
    the standard error is infinite.
    """
    changes = [float(right) - other.right[key] for key, right in one.right.items() if key in other.right]
    if not changes:
        return 0.0, math.inf
    mean = math.fsum(changes) / len(changes)
    squares = math.fsum(c * c for c in changes) + 1
    return mean, math.sqrt((squares / len(changes) - mean * mean) / len(changes))


def clearly_beats(one: HeldOut, other: HeldOut) -> bool:
    """Return whether `one` is more than `CLEARLY` standard errors better than `other` on the examples that both answered."""
    gain, error = gain_over(one, other)
    return gain > 0 and gain > CLEARLY * error


def choose(results: Sequence[HeldOut]) -> HeldOut:
    """Return the cheapest rung that no costlier one clearly beats, and that does better than every cheaper one. `results` has the cheapest
    rung first."""
    best = max(results, key=lambda one: one.accuracy)
    for place, one in enumerate(results):
        beaten = any(clearly_beats(costlier, one) for costlier in results[place + 1 :])
        if not beaten and all(gain_over(one, cheaper)[0] > 0 for cheaper in results[:place]):
            return one
    return best


def best_other(results: Iterable[HeldOut], chosen: HeldOut) -> HeldOut:
    """Return the rung beside `chosen` that may be chosen, with the largest gain over it or the smallest loss."""
    others = [one for one in results if one.name != chosen.name]
    return max([one for one in others if one.offered] or others, key=lambda one: gain_over(one, chosen)[0])


def cannot_be_beaten(one: HeldOut) -> bool:
    """Return whether even a rung without an error would not clearly beat `one`."""
    perfect = HeldOut("", dict.fromkeys(one.right, True), {}, 0.0, 0.0)
    return not clearly_beats(perfect, one)
