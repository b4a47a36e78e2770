"""The experiment `moe-vs-dense`: is a mixture of experts better than a dense model at equal FLOPs, and at equal time?"""

from __future__ import annotations

from rorqual.lab.shape_experiment import ShapeExperiment
from rorqual.lab.shapes import DENSE_CLOCK, DENSE_FLOPS, MOE


class MoEVsDense(ShapeExperiment):
    """The experiment on mixtures of experts. The dense model's width is chosen for equal FLOPs per token.

    The dense model needs less time per FLOP. For equal time, the dense model is therefore trained for more steps. The
    number of steps was chosen on other seeds, so that both models train for the same number of core-seconds.
    """

    name = "moe-vs-dense"
    title = "A mixture of experts against a dense model"
    claim = "a mixture of experts is better than a dense model at equal FLOPs, and also at equal time"
    source = "first part: DeepSeekMoE, 2401.06066, section 4.2; nanochat tried the second twice, without success"
    parts = (("active FLOPs", MOE, DENSE_FLOPS), ("core-seconds", MOE, DENSE_CLOCK))
