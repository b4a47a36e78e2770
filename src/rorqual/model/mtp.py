"""Multi-token prediction (V3 eq. 21-25): a module that predicts token t_{i+2} from hidden state h_i and the embedding of t_{i+1}."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rorqual.model.attention import AttentionContext, LayerCache, RMSNorm
from rorqual.model.config import ModelConfig
from rorqual.ops.moe import Routing


class MTP(nn.Module):
    """One multi-token prediction module. The MTP module shares the embedding and the head with the main model.

    The input of the MTP module is the embedding followed by the hidden state, as in the published checkpoint. The hidden state
    that the MTP module reads is taken after the main model's final norm, as in inference engines that reach the published
    acceptance rate.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(d, eps)
        self.hnorm = RMSNorm(d, eps)
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        self.expand = config.last_block_config.expand(d)
        self.block = config.stages[-1].build(d, eps)
        self.collapse = config.last_block_config.collapse(d, eps)
        self.norm = RMSNorm(d, eps)

    def forward(
        self, hidden: Tensor, embedded: Tensor, context: AttentionContext, caches: Sequence[LayerCache | None]
    ) -> tuple[Tensor, tuple[Routing | None, ...]]:
        """Return the hidden states [batch, seq, d] after the MTP module's norm, and the routing of each feed-forward network in
        the MTP module.

        For position i, `hidden` [batch, seq, d] holds the hidden state at i, and `embedded` [batch, seq, d] holds the
        embedding of the token at i + 1.
        """
        joined = torch.cat((self.enorm(embedded, context.ops), self.hnorm(hidden, context.ops)), dim=-1)
        # `.to(joined.dtype)` keeps the residual stream in fp32 under autocast.
        x = self.expand(self.eh_proj(joined).to(joined.dtype), context.ops)
        x, routing = self.block(x, context, caches, [None] * len(self.block.ffns))
        return self.norm(self.collapse(x, context.ops), context.ops), routing
