"""The rule of a cascade: the smallest confidence at which the student's answer is kept. `evals.cascade` fits the calibration.
This module does not import torch, because the server imports this module.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from rorqual.core.config import Config, parse_config
from rorqual.core.errors import DataError
from rorqual.core.records import read_json

Signal = Literal["votes", "logprob"]


def sigmoid(z: float) -> float:
    """Return 1 / (1 + exp(-z)), without an overflow for any z."""
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


class Calibration(Config):
    """The probability that an answer is right, as a function of the student's signal x: 1 / (1 + exp(-(slope x + intercept)))."""

    signal: Signal
    slope: float
    intercept: float

    def probability(self, x: float) -> float:
        """Return the probability that a student's answer with signal `x` is right."""
        return sigmoid(self.slope * x + self.intercept)


class CascadeRule(Config):
    """The parts of a cascade's result that a server needs: the names and fingerprints of student and teacher, and the
    calibration.

    `sure` is the smallest confidence at which the student's answer is kept.
    `temperature` is the sampling temperature of the student's evaluation.
    """

    student: str
    teacher: str
    fingerprints: tuple[str, str]
    temperature: float
    calibration: Calibration
    sure: float


def read_cascade_rule(path: Path) -> CascadeRule:
    """Read the cascade rule from the result file of a cascade. Raises DataError with path and key if the file is missing or
    invalid."""
    remedy = "Run `rorqual eval cascade=STUDENT,TEACHER out=FILE.json` to create it."
    data = read_json(path, "the file", remedy)
    try:
        rule = {name: data[name] for name in ("fingerprints", "calibration", "sure")}
        rule |= {name: data[name]["model"] for name in ("student", "teacher")}
        rule["temperature"] = data["student"]["params"]["temperature"]
    except (KeyError, TypeError, IndexError):
        raise DataError("the file is not the result of a cascade", where=str(path), remedy=remedy) from None
    return parse_config(CascadeRule, rule, where=str(path))
