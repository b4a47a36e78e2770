"""Is a mixture of experts better than a dense model, for the same arithmetic, and for the same time?"""

from __future__ import annotations

from typing import ClassVar

from rorqual.lab.halves import Half, ShapeExperiment
from rorqual.lab.shapes import DENSE_CLOCK, DENSE_FLOPS, MOE


class MoEVsDense(ShapeExperiment):
    """The dense model has the width at which a token costs as many FLOPs. It is faster for each of them, so for the second half it
    is trained for as many steps as the mixture's core-seconds were found to buy on other seeds."""

    name = "moe-vs-dense"
    title = "A mixture of experts against a dense model"
    claim = "for the same arithmetic a mixture of experts is better than a dense model, and still is for the same time"
    source = "the first half: DeepSeekMoE, 2401.06066, section 4.2; nanochat tried the second twice and lost"
    halves: ClassVar = (Half("active FLOPs", MOE, DENSE_FLOPS), Half("core-seconds", MOE, DENSE_CLOCK))
