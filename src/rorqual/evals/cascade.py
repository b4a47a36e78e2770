"""A cascade of two models: a small student answers, and a teacher answers if the student's confidence is too low (FrugalGPT,
Chen et al. 2023, 2305.05176, section 3).

The student's confidence is the calibrated probability that the student's answer is right. The calibration maps a signal to this
probability. The signal is the share of votes for the student's majority answer, or the mean log-probability of the reply's
tokens. The calibration is a logistic regression on problems of the dev split (Platt 1999).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rorqual.core.config import Config
from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import write_json
from rorqual.evals.calibration import Calibration, Signal
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.stats import Interval, wilson
from rorqual.evals.votes import SamplesOfProblem, majority_accuracy

FEWEST = 10
"""Smallest number of graded answers on which a calibration can be fitted."""
CURVE = 200
"""Largest number of steps of a cascade's curve."""
BINS = 5
"""Number of bins of a calibration table, with equally many problems each."""


@dataclass(frozen=True)
class ProblemInCascade:
    """One problem of a cascade: the student's confidence, whether student and teacher are right (a fraction if votes tie), and
    the tokens that each model generated, and the FLOPs of each model (0 if unknown). The confidence is 0 if the student's reply
    failed, or if the reply was truncated and the signal is a log-probability."""

    key: str
    confidence: float
    student: float
    teacher: float
    student_tokens: int
    teacher_tokens: int
    student_flops: float = 0.0
    teacher_flops: float = 0.0


@dataclass(frozen=True)
class CascadePoint:
    """The result of a cascade at one threshold of confidence. `asked` is the share of problems that the teacher answers.

    `tokens` is the mean number of tokens per problem that student and teacher together generated. `flops` is the mean number of
    FLOPs per problem, or None if the models' FLOPs are unknown. `at_random` is the expected accuracy if the teacher answered
    the same number of problems, chosen at random.
    """

    asked: float
    accuracy: float
    interval: Interval
    at_random: float
    tokens: float
    flops: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """Problems of similar confidence: the student's mean confidence on these problems, and the share of right answers with its
    interval."""

    problems: int
    confidence: float
    accuracy: float
    interval: Interval


class Cascade(Config):
    """The evaluations of student and teacher on the same problems, and the calibration. `sure` is the smallest confidence at
    which the student's answer is kept. `flops` holds the FLOPs of student and teacher on each problem (prompt and replies, with
    attention), by the problem's key, if the FLOPs of both models are known. `fingerprints` identify the checkpoints of student
    and teacher. The fingerprint of a model behind a server is "".
    """

    student: Evaluation
    teacher: Evaluation
    calibration: Calibration
    sure: float
    flops: tuple[dict[str, float], dict[str, float]] | None = None
    fingerprints: tuple[str, str] = ("", "")

    def save(self, path: Path) -> None:
        """Write the cascade as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    def problems_by_confidence(self) -> list[ProblemInCascade]:
        """Return the problems that are graded for both models, ordered by the student's confidence, the lowest first.

        Raises DataError if no problem is graded.
        """
        teacher = self.teacher.samples_by_problem
        flops = self.flops or ({}, {})
        found = []
        for key, group in self.student.samples_by_problem.items():
            failed = bool(group[0].error)
            student, other = 0.0 if failed else accuracy(group), accuracy(teacher[key])
            if student is not None and other is not None:
                unsure = failed or (self.calibration.signal == "logprob" and group[0].truncated)
                confidence = 0.0 if unsure else self.calibration.probability(signal_of(group, self.calibration.signal))
                tokens = (_total_tokens(group), _total_tokens(teacher[key]))
                costs = (one.get(key, 0.0) for one in flops)
                found.append(ProblemInCascade(key, confidence, student, other, *tokens, *costs))
        if not found:
            raise DataError(
                "no problem was graded for both models", where="cascade", remedy="Look at the errors of the replies."
            )
        return sorted(found, key=lambda choice: choice.confidence)

    @property
    def ungraded_count(self) -> int:
        """Number of problems that are left out, because the reply of student or teacher could not be graded."""
        return len(self.student.problem_keys) - len(self.problems_by_confidence())

    def result_with_teacher_on(self, asked: int, choices: Sequence[ProblemInCascade]) -> CascadePoint:
        """Return the cascade's result if the teacher answers the `asked` problems of the lowest confidence. If only some
        problems with equal confidence go to the teacher, the point is the expectation over a random choice among these
        problems."""
        count, share = len(choices), asked / len(choices)
        shares = teacher_probabilities(asked, choices)
        right = sum(part * c.teacher + (1 - part) * c.student for c, part in zip(choices, shares, strict=True))
        student, teacher = (sum(getattr(choice, name) for choice in choices) / count for name in ("student", "teacher"))
        tokens, flops = (
            sum(
                getattr(c, f"student_{unit}") + part * getattr(c, f"teacher_{unit}")
                for c, part in zip(choices, shares, strict=True)
            )
            / count
            for unit in ("tokens", "flops")
        )
        at_random = (1 - share) * student + share * teacher
        interval = wilson(min(right, count), count)
        return CascadePoint(share, right / count, interval, at_random, tokens, flops if self.flops else None)

    def curve(self) -> list[CascadePoint]:
        """Return one point for each number of problems that the teacher may answer, from 0 to all. If there are more than
        `CURVE` problems, the curve has points at evenly spaced numbers."""
        choices = self.problems_by_confidence()
        steps = min(len(choices), CURVE)
        return [self.result_with_teacher_on(round(step * len(choices) / steps), choices) for step in range(steps + 1)]

    def result_at_threshold(self) -> CascadePoint:
        """Return the point at the threshold `sure`."""
        choices = self.problems_by_confidence()
        return self.result_with_teacher_on(sum(choice.confidence < self.sure for choice in choices), choices)

    def teacher_alone(self) -> CascadePoint:
        """Return the result if the teacher answers every problem without the student. The cost does not include the student's
        tokens."""
        choices = self.problems_by_confidence()
        point = self.result_with_teacher_on(len(choices), choices)
        tokens, flops = (
            sum(getattr(c, f"teacher_{unit}") for c in choices) / len(choices) for unit in ("tokens", "flops")
        )
        return replace(point, tokens=tokens, flops=flops if self.flops else None)

    def calibration_bins(self) -> list[CalibrationBin]:
        """Return mean confidence and accuracy in `BINS` bins of equally many problems, by rising confidence."""
        choices = self.problems_by_confidence()
        parts = [choices[i * len(choices) // BINS : (i + 1) * len(choices) // BINS] for i in range(BINS)]
        return [
            CalibrationBin(
                len(part),
                sum(choice.confidence for choice in part) / len(part),
                (right := sum(choice.student for choice in part)) / len(part),
                wilson(min(right, len(part)), len(part)),
            )
            for part in parts
            if part
        ]


def teacher_probabilities(asked: int, choices: Sequence[ProblemInCascade]) -> list[float]:
    """Return, for each problem, the probability that the teacher answers it, if the teacher answers the `asked` problems of the
    lowest confidence."""
    if not asked:
        return [0.0] * len(choices)
    last = choices[asked - 1].confidence
    below = sum(choice.confidence < last for choice in choices)
    level = sum(choice.confidence == last for choice in choices)
    return [1.0 if c.confidence < last else (asked - below) / level if c.confidence == last else 0.0 for c in choices]


def accuracy(group: SamplesOfProblem) -> float | None:
    """Return the probability that a problem's answer is right. With several samples, the answer is the majority answer."""
    return (
        majority_accuracy(group)
        if len(group) > 1
        else majority_accuracy([group[0].model_copy(update={"answered": "-"})])
    )


def signal_of(group: SamplesOfProblem, signal: Signal) -> float:
    """Return the signal of a problem: the share of votes for the leading answer (0 without answers), or the mean
    log-probability of the first sample's tokens.

    Raises ConfigError if the generator returned no log-probabilities.
    """
    if signal == "votes":
        answers = [sample.answered for sample in group if sample.answered is not None]
        return max((answers.count(answer) for answer in answers), default=0) / len(group)
    if group[0].logprob is None:
        raise ConfigError(
            "the student's replies have no log-probabilities, so there is no confidence",
            where="cascade",
            remedy="Give votes=N and temperature=1 to use the share of votes instead.",
        )
    return group[0].logprob


def calibrate(evaluation: Evaluation) -> Calibration:
    """Fit the calibration on the student's graded answers, with Platt's targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2).

    Raises ConfigError if there are fewer than `FEWEST` graded answers, or if the signals of all answers are equal.
    """
    signal: Signal = "votes" if evaluation.params.n > 1 else "logprob"
    pairs = [
        (signal_of(group, signal), right)
        for group in evaluation.samples_by_problem.values()
        if (right := accuracy(group)) is not None
        and not group[0].error
        and not (signal == "logprob" and group[0].truncated)
    ]
    x, y = np.array(pairs, float).reshape(-1, 2).T
    if len(x) < FEWEST or np.ptp(x) == 0:
        raise ConfigError(
            f"{len(x)} graded answers of the dev split, with {len(np.unique(x))} different signals, do not give a calibration",
            where="cascade",
            remedy="Use a task with more problems in its dev split, or raise count.",
        )
    positive = y.sum()
    targets = y * (positive + 1) / (positive + 2) + (1 - y) / (len(y) - positive + 2)
    mean, scale = x.mean(), x.std()
    slope, intercept = _fit_logistic((x - mean) / scale, targets)
    return Calibration(signal=signal, slope=slope / scale, intercept=intercept - slope * mean / scale)


def _fit_logistic(x: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept of the logistic regression, by Newton's method with halved steps."""

    def loss(w: np.ndarray) -> float:
        z = features @ w
        return float((np.logaddexp(0, z) - targets * z).sum())

    features = np.stack([x, np.ones_like(x)], 1)
    weights = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (p - targets)
        hessian = features.T @ (features * (p * (1 - p))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def _total_tokens(group: SamplesOfProblem) -> int:
    return sum(sample.total_tokens for sample in group)
