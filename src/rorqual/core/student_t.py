"""Quantiles of Student's t distribution."""

from __future__ import annotations

import math
from functools import cache

import numpy as np


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution with `degrees` of freedom, by integrating the density.

    `probability` lies between 0.5 and 0.9999.
    """
    # With t = sqrt(degrees) tan(angle) the density becomes cos(angle)^(degrees - 1) on a finite range.
    angles = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    density = np.cos(angles).clip(0) ** (degrees - 1)
    mass = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return math.sqrt(degrees) * math.tan(float(np.interp(probability, mass / mass[-1], angles)))
