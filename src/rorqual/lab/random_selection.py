"""A baseline for the experiment `sparse`: multi-head latent attention (MLA) over random positions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rorqual.core.config import Count, Natural, Seed
from rorqual.model.attention import Attention, LayerCache, MLAConfig, SelectingMLA


class RandomSelectionConfig(MLAConfig):
    """MLA over the query's own position and `topk` - 1 random earlier positions. The layer has the same weights as attention of
    kind `mla`.

    The choice of positions depends only on `seed`, `layer` and the query's position.
    """

    kind: Literal["random_selection"] = "random_selection"  # type: ignore[assignment]
    topk: Count
    seed: Seed = 0
    layer: Natural = 0

    def build(self, hidden_size: int, eps: float) -> Attention:
        return RandomSelection(self, hidden_size, eps)


class RandomSelection(SelectingMLA):
    """MLA over random positions."""

    config: RandomSelectionConfig

    def select(self, q: Tensor, positions: Tensor, cache: LayerCache) -> Tensor:
        """Return the positions [tokens, topk] that each query attends to. Unused entries of the returned tensor are -1."""
        c = self.config
        queries, which = positions.unique(return_inverse=True)
        keys = torch.arange(int(queries.max()) + 1, device=positions.device)
        ranks = _hash_integers(
            _hash_integers(queries.unsqueeze(1) + (c.seed * 1009 + c.layer) * 1_000_003) + keys
        ).double()
        ranks = ranks.masked_fill(keys == queries.unsqueeze(1), 2.0**32).masked_fill(keys > queries.unsqueeze(1), -1.0)
        best, rows = ranks.topk(min(c.topk, len(keys)), dim=1)
        return rows.masked_fill(best < 0, -1)[which]


def _hash_integers(values: Tensor) -> Tensor:
    """Hash integers to 32 bits (the finalizer of MurmurHash3)."""
    x = values & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
