"""The experiment `mtp`: does multi-token prediction improve the main model at equal steps, and at equal time?"""

from __future__ import annotations

from rorqual.lab.shape_experiment import ShapeExperiment
from rorqual.lab.shapes import MOE, MTP, PLAIN_CLOCK


class MultiTokenPrediction(ShapeExperiment):
    """The experiment on multi-token prediction. Every measurement is made without the MTP module.

    The module makes a training step more expensive. For equal time, the model without the module is therefore trained for
    more steps.
    """

    name = "mtp"
    title = "Multi-token prediction as a training signal"
    claim = "predicting one more token makes the main model better, at equal steps and at equal time"
    source = "first part: DeepSeek-V3, 2412.19437, table 4"
    parts = (("steps", MTP, MOE), ("core-seconds", MTP, PLAIN_CLOCK))
