"""One transformer block: attention and a feed-forward network, each behind a norm, each added to the stream."""

from __future__ import annotations

from torch import Tensor, nn

from rorqual.model.attention import AttentionContext, LayerCache, RMSNorm
from rorqual.model.config import Stage
from rorqual.ops.moe import Routing


class Block(nn.Module):
    """x [batch, seq, hidden] -> the same, and the routing of its tokens (None where the network is dense)."""

    def __init__(self, stage: Stage, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.attention = stage.attention.build(hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)
        self.ffn = stage.ffn.build(hidden_size)

    def forward(
        self, x: Tensor, context: AttentionContext, cache: LayerCache | None = None, replay: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.attention(self.input_layernorm(x, context.ops), context, cache)
        flat = self.post_attention_layernorm(x, context.ops).flatten(0, 1)
        y, routing = self.ffn(flat, context.ops, replay)
        return x + y.view_as(x), routing
