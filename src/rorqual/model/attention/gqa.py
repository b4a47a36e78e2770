"""Grouped-query attention (Ainslie et al. 2023) as Llama, Qwen2 (biases) and Qwen3 (norms on q and k) have it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from rorqual.model.attention.base import Attention, AttentionConfig, AttentionContext, LayerCache, RMSNorm
from rorqual.model.cost import Cost, linear, vector
from rorqual.ops.rope import Rope, rotate, softmax_factor


class GQAConfig(AttentionConfig):
    """Half-split rotary positions on the whole head. `attention_bias`: on q, k and v; `output_bias`: on the output."""

    kind: Literal["gqa"] = "gqa"
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    qk_norm: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    rope: Rope = Rope()

    def build(self, hidden_size: int, eps: float) -> Attention:
        return GQA(self, hidden_size, eps)

    def cost(self, hidden_size: int, context: int) -> Cost:
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        cost = linear(hidden_size, q, bias=self.attention_bias) + linear(hidden_size, kv, bias=self.attention_bias) * 2
        cost += linear(q, hidden_size, bias=self.output_bias) + Cost(flops=4 * q * context)
        return cost + vector(2 * self.head_dim) if self.qk_norm else cost

    def cache_width(self) -> int:
        return 2 * self.num_key_value_heads * self.head_dim

    def check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads, and head_dim even")


class GQA(Attention):
    """Caches keys (rotated) and values, side by side."""

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
        q = self.q_proj(x).unflatten(-1, (-1, c.head_dim))  # [batch, seq, heads, head_dim]
        k = self.k_proj(x).unflatten(-1, (-1, c.head_dim))
        v = self.v_proj(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, context.ops), self.k_norm(k, context.ops)
        cos, sin = context.rope(c.rope, c.head_dim)
        q, k = rotate(q, cos, sin, interleaved=False), rotate(k, cos, sin, interleaved=False)
        if cache is not None:
            kept = cache.append(context.positions, _join(k.flatten(-2), v))
            flat, v = kept.chunk(2, dim=-1)
            k = flat.unflatten(-1, (-1, c.head_dim))
        v = v.unflatten(-1, (-1, c.head_dim))
        repeat = c.num_attention_heads // c.num_key_value_heads
        if x.shape[1] == 1 and repeat > 1:
            # A decode step: the heads of a group are queries of one head, so that no key is copied (docs/LOG.md).
            grouped = q.squeeze(1).unflatten(1, (-1, repeat))  # [batch, kv heads, repeat, head_dim]
            out = context.ops.attend(grouped, k.transpose(1, 2), v.transpose(1, 2), context.mask, self.scale)
            return self.o_proj(out.flatten(1).unsqueeze(1))
        k, v = (t.repeat_interleave(repeat, dim=2).transpose(1, 2) for t in (k, v))
        out = context.ops.attend(q.transpose(1, 2), k, v, context.mask, self.scale)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


def _join(k: Tensor, v: Tensor) -> Tensor:
    out = k.new_empty(*k.shape[:-1], k.shape[-1] + v.shape[-1])
    out[..., : k.shape[-1]], out[..., k.shape[-1] :] = k, v
    return out
