"""Multi-token prediction (V3 eq. 21-25): a module that, from h_i and the embedding of t_{i+1}, predicts t_{i+2}."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rorqual.model.attention import AttentionContext, LayerCache, RMSNorm
from rorqual.model.config import ModelConfig
from rorqual.ops.moe import Routing


class MTP(nn.Module):
    """Embedding and head are the main model's. The checkpoint's order of the join: embedding first, hidden second.

    `hidden` is the main model's output after its final norm, as the engines that reach the published acceptance feed it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(d, eps)
        self.hnorm = RMSNorm(d, eps)
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        self.expand = config.ends.expand(d)
        self.block = config.stages[-1].build(d, eps)
        self.collapse = config.ends.collapse(d, eps)
        self.norm = RMSNorm(d, eps)

    def forward(
        self, hidden: Tensor, embedded: Tensor, context: AttentionContext, caches: Sequence[LayerCache | None]
    ) -> tuple[Tensor, tuple[Routing | None, ...]]:
        """hidden [batch, seq, d] at positions i, embedded [batch, seq, d] of the tokens at i + 1 -> normed [batch, seq, d]."""
        joined = torch.cat((self.enorm(embedded, context.ops), self.hnorm(hidden, context.ops)), dim=-1)
        x = self.expand(self.eh_proj(joined).to(joined.dtype), context.ops)  # the stream stays fp32 under autocast
        x, routing = self.block(x, context, caches, [None] * len(self.block.ffns))
        return self.norm(self.collapse(x, context.ops), context.ops), routing
