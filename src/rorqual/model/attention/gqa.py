"""Grouped-query attention (Ainslie et al. 2023) as in Llama, Qwen2 (with biases) and Qwen3 (with norms on q and k)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rorqual.core.config import MOST, Count
from rorqual.model.attention.attention import Attention, AttentionConfig, AttentionContext, RMSNorm
from rorqual.model.attention.cache import CachePart, LayerCache
from rorqual.model.cost import Cost, linear_cost, vector_cost
from rorqual.ops.rope import Rope, softmax_factor


class GQAConfig(AttentionConfig):
    """Grouped-query attention with half-split RoPE on the whole head.

    `attention_bias` adds biases to the q, k and v projections, and `output_bias` to the output projection.
    """

    kind: Literal["gqa"] = "gqa"
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: int = Field(ge=2, le=MOST)
    qk_norm: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    rope: Rope = Rope()

    def build(self, hidden_size: int, eps: float) -> Attention:
        return GQA(self, hidden_size, eps)

    def cost(self, hidden_size: int, context: int) -> Cost:
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        cost = (
            linear_cost(hidden_size, q, bias=self.attention_bias)
            + linear_cost(hidden_size, kv, bias=self.attention_bias) * 2
        )
        cost += linear_cost(q, hidden_size, bias=self.output_bias) + Cost(flops=4 * q * context)
        return cost + vector_cost(2 * self.head_dim) if self.qk_norm else cost

    def saved_activations(self, hidden_size: int, *, without_recomputation: bool) -> int:
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return heads * self.head_dim + (hidden_size if without_recomputation else 0)

    def split_by_tp(self) -> dict[str, int]:
        return {"num_attention_heads": self.num_attention_heads, "num_key_value_heads": self.num_key_value_heads}

    def cache_spec(self) -> tuple[CachePart, ...]:
        return tuple(CachePart(name, self.num_key_value_heads, self.head_dim) for name in ("key", "value"))

    def check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads, and head_dim must be even")


class GQA(Attention):
    """Grouped-query attention module. The KV cache holds the values, and the keys with RoPE applied."""

    shared_input = (("q_proj", "k_proj"), ("v_proj",))

    def __init__(self, config: GQAConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.config = config
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden_size, q, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden_size, kv, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden_size, kv, bias=config.attention_bias)
        self.o_proj = nn.Linear(q, hidden_size, bias=config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps) if config.qk_norm else None
        self.scale = config.head_dim**-0.5 * softmax_factor(config.rope)

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        c = self.config
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        qk, v = self.apply_shared_input(x)
        qk, v = qk.unflatten(-1, (-1, c.head_dim)), v.unflatten(-1, (-1, c.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((heads, kv_heads), dim=2)
            qk = torch.cat((self.q_norm(q, context.ops), self.k_norm(k, context.ops)), dim=2)
        cos, sin = context.rope(c.rope, c.head_dim, interleaved=False)
        q, k = context.ops.rope(qk, cos, sin, interleaved=False).split((heads, kv_heads), dim=2)
        repeat = heads // kv_heads
        if cache is not None:
            grouped = q.flatten(0, 1).unflatten(1, (-1, repeat))  # [tokens, kv heads, repeat, head_dim]
            cache.write({"key": k.flatten(0, 1), "value": v.flatten(0, 1)})
            out = cache.attend(grouped, "key", "value", self.scale)
            return self.o_proj(out.flatten(1).view(*x.shape[:2], -1))
        k, v = (t.repeat_interleave(repeat, dim=2).transpose(1, 2) for t in (k, v))
        out = context.attend(q.transpose(1, 2), k, v, self.scale)
        return self.o_proj(out.transpose(1, 2).flatten(-2))
