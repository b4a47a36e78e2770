"""The experiment `latent-vs-full`: is latent attention at least as good as full attention, with a smaller cache?"""

from __future__ import annotations

from rorqual.lab.experiment import ArmPair
from rorqual.lab.shape_experiment import CACHE, ShapeExperiment
from rorqual.lab.shapes import FULL, MOE


class LatentVsFull(ShapeExperiment):
    """The experiment on latent attention. The baseline, multi-head attention, has as many heads as the latent attention
    and about as many parameters."""

    name = "latent-vs-full"
    title = "Latent attention against full attention"
    claim = "latent attention is better than multi-head attention, with a fraction of the KV cache"
    source = "DeepSeek-V2, 2405.04434, section 2.1 and appendix D.2"
    parts = (("parameters", MOE, FULL),)

    def __init__(self) -> None:
        super().__init__()
        smaller = ArmPair(
            question=f"{CACHE}: experts + latent, then experts + full", quantity=CACHE, a=MOE, b=FULL, claimed=("all",)
        )
        self.pairs = (*self.pairs, smaller)
