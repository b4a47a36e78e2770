"""The experiment `latent-vs-full`: is latent attention at least as good as full attention, with a smaller cache?"""

from __future__ import annotations

from typing import ClassVar

from rorqual.core.records import RunDir
from rorqual.evals.verdict import Verdict
from rorqual.lab.equal_budget import EqualBudgetClaim, Places, ShapeExperiment
from rorqual.lab.shapes import FULL, MOE
from rorqual.model.account import account
from rorqual.model.load.run import read_model_config


class LatentVsFull(ShapeExperiment):
    """The experiment on latent attention. The baseline, multi-head attention, has as many heads as the latent attention
    and about as many parameters."""

    name = "latent-vs-full"
    title = "Latent attention against full attention"
    claim = "latent attention is better than multi-head attention, with a fraction of the KV cache"
    source = "DeepSeek-V2, 2405.04434, section 2.1 and appendix D.2"
    parts: ClassVar = (EqualBudgetClaim("parameters", MOE, FULL),)

    def also(self, places: Places) -> tuple[tuple[Verdict, ...], tuple[str, ...]]:
        first = next(iter(places.values()))
        latent, full = (account(read_model_config(RunDir(first / name))).cache_bytes for name in (MOE, FULL))
        words = f"The KV cache takes {latent:,} bytes per token against {full:,} (two bytes per value): {latent / full:.0%}."
        return ("holds" if latent < full else "does not hold",), (words,)
