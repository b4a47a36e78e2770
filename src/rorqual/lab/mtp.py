"""Does predicting the token after the next make the main model better, for the same steps, and for the same time?"""

from __future__ import annotations

from typing import ClassVar

from rorqual.lab.halves import Half, ShapeExperiment
from rorqual.lab.shapes import MOE, MTP, PLAIN_CLOCK


class MultiTokenPrediction(ShapeExperiment):
    """The module is dropped for every measurement. It makes a step dearer, so for the second half the model without it is trained for
    as many steps as that buys."""

    name = "mtp"
    title = "Multi-token prediction as a training signal"
    claim = "predicting one token more makes the main model better, for the same steps and for the same time"
    source = "the first half: DeepSeek-V3, 2412.19437, table 4"
    halves: ClassVar = (Half("steps", MTP, MOE), Half("core-seconds", MTP, PLAIN_CLOCK))
