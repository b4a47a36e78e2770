"""Sliding-window attention with attention sinks (StreamingLLM, 2309.17453): MLA over the last and the first positions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rorqual.core.config import Count, Natural
from rorqual.model.attention.attention import Attention
from rorqual.model.attention.cache import LayerCache
from rorqual.model.attention.mla import MLAConfig, SelectingMLA
from rorqual.model.cost import Cost


class SlidingWindowConfig(MLAConfig):
    """MLA over the last `window` positions, including the position of the query, and over the first `sinks` positions of the sequence.

    Sliding-window attention has the same weights as the attention kind `mla`. The KV cache keeps all positions.
    """

    kind: Literal["window"] = "window"  # type: ignore[assignment]
    window: Count
    sinks: Natural = 4

    def build(self, hidden_size: int, eps: float) -> Attention:
        return SlidingWindowMLA(self, hidden_size, eps)

    def cost(self, hidden_size: int, context: int) -> Cost:
        return super().cost(hidden_size, 0) + Cost(flops=round(self.decode_flops(hidden_size, context)))

    def decode_flops(self, hidden_size: int, context: float) -> float:
        return super().decode_flops(hidden_size, min(context, self.window + self.sinks))


class SlidingWindowMLA(SelectingMLA):
    """MLA over the positions in a sliding window and over attention sinks."""

    config: SlidingWindowConfig

    def select(self, q: Tensor, positions: Tensor, cache: LayerCache) -> Tensor:
        """Return the positions [tokens, window + sinks] that each query sees, or -1 for no position."""
        c, own = self.config, positions.unsqueeze(1)
        near = own - torch.arange(c.window, device=own.device)
        first = torch.arange(c.sinks, device=own.device).expand(len(own), -1)
        near, first = near.where(near >= c.sinks, -1), first.where(first <= own, -1)
        return torch.cat((near, first), dim=1)
