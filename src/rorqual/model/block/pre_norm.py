"""The standard pre-norm block: attention and a feed-forward network, each with a norm before it and a residual connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from rorqual.model.attention import AttentionConfig, AttentionContext, LayerCache, RMSNorm
from rorqual.model.block.block_kind import Block, BlockConfig
from rorqual.model.cost import Cost, vector_cost
from rorqual.model.ffn import FFN, FFNConfig
from rorqual.ops.moe import Routing


class PreNormConfig(BlockConfig):
    """A pre-norm block: x + attention(norm(x)), then x + ffn(norm(x))."""

    kind: Literal["pre_norm"] = "pre_norm"

    def build(self, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float) -> Block:
        return PreNorm(attention, ffn, hidden_size, eps)

    def cost(self, hidden_size: int) -> Cost:
        return vector_cost(2 * hidden_size)

    def residual_values(self, hidden_size: int) -> int:
        return 2 * hidden_size


class PreNorm(Block):
    def __init__(self, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.attention = attention.build(hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)
        self.ffn = ffn.build(hidden_size)

    @property
    def ffns(self) -> tuple[FFN, ...]:
        return (self.ffn,)

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        caches: Sequence[LayerCache | None],
        replay: Sequence[Tensor | None],
    ) -> tuple[Tensor, tuple[Routing | None, ...]]:
        (cache,), (chosen,) = caches, replay
        x = x + self.attention(self.input_layernorm(x, context.ops), context, cache)
        flat = self.post_attention_layernorm(x, context.ops).flatten(0, 1)
        y, routing = self.ffn(flat, context.ops, chosen)
        return x + y.view_as(x), (routing,)
