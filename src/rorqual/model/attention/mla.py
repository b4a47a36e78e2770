"""Multi-head latent attention (DeepSeek-V2, section 2.1; V3 eq. 1-11).

`MLA` computes latent attention in two forms. The naive form, for training without a KV cache, expands latents to the keys and
values of each head. The absorbed form, with a KV cache, applies W^UK to the query and W^UV to the attention output, so
attention runs on the cached latents. Prefill also uses the absorbed form, so that a token gets the same rounding in prefill and
decode.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rorqual.core.config import MOST, Count, Natural
from rorqual.model.attention.attention import Attention, AttentionConfig, AttentionContext, RMSNorm
from rorqual.model.attention.cache import CachePart, LayerCache
from rorqual.model.cost import Cost, linear_cost, vector_cost
from rorqual.ops.backends import Backend
from rorqual.ops.paged import SelectedRows
from rorqual.ops.rope import Rope, softmax_factor


class MLAConfig(AttentionConfig):
    """Multi-head latent attention with interleaved RoPE. With `q_lora_rank=0`, queries are projected directly, without a
    latent, as in V2-Lite."""

    kind: Literal["mla"] = "mla"
    num_attention_heads: Count
    q_lora_rank: Natural = 0
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: int = Field(ge=2, le=MOST)
    v_head_dim: Count
    rope: Rope = Rope()

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head: the columns without RoPE plus the columns with RoPE."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def build(self, hidden_size: int, eps: float) -> Attention:
        return MLA(self, hidden_size, eps)

    def cost(self, hidden_size: int, context: int) -> Cost:
        heads, q_out = self.num_attention_heads, self.num_attention_heads * self.qk_head_dim
        if self.q_lora_rank:
            cost = (
                linear_cost(hidden_size, self.q_lora_rank)
                + vector_cost(self.q_lora_rank)
                + linear_cost(self.q_lora_rank, q_out)
            )
        else:
            cost = linear_cost(hidden_size, q_out)
        cost += linear_cost(hidden_size, self.kv_lora_rank + self.qk_rope_head_dim) + vector_cost(self.kv_lora_rank)
        cost += linear_cost(self.kv_lora_rank, heads * (self.qk_nope_head_dim + self.v_head_dim))
        cost += Cost(flops=2 * heads * (self.qk_head_dim + self.v_head_dim) * context)
        return cost + linear_cost(heads * self.v_head_dim, hidden_size)

    def decode_flops(self, hidden_size: int, context: float) -> float:
        # Absorbed form: queries attend to the latents directly.
        return 2 * self.num_attention_heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim) * context

    def saved_activations(self, hidden_size: int, *, without_recomputation: bool) -> int:
        heads = self.num_attention_heads
        latents = self.q_lora_rank + self.kv_lora_rank + self.qk_rope_head_dim
        expanded = heads * (2 * self.qk_head_dim + self.v_head_dim)
        return latents + heads * self.v_head_dim + ((hidden_size + expanded) if without_recomputation else 0)

    def split_by_tp(self) -> dict[str, int]:
        return {"num_attention_heads": self.num_attention_heads}

    def cache_spec(self) -> tuple[CachePart, ...]:
        return (CachePart("latent", 1, self.kv_lora_rank + self.qk_rope_head_dim),)

    def check(self) -> None:
        if self.qk_rope_head_dim % 2:
            raise ValueError("qk_rope_head_dim must be even")


class MLA(Attention):
    """Multi-head latent attention module. The KV cache holds, per token, the normed latent c^KV and the shared RoPE key k^R,
    concatenated."""

    derived = {"up_maps": "kv_b_proj"}

    def __init__(self, config: MLAConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.config = c = config
        q_out = c.num_attention_heads * c.qk_head_dim
        if c.q_lora_rank:
            self.q_a_proj = nn.Linear(hidden_size, c.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank, eps)
            self.q_b_proj = nn.Linear(c.q_lora_rank, q_out, bias=False)
        else:
            self.q_proj = nn.Linear(hidden_size, q_out, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden_size, c.kv_lora_rank + c.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, eps)
        self.kv_b_proj = nn.Linear(
            c.kv_lora_rank, c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(c.num_attention_heads * c.v_head_dim, hidden_size, bias=False)
        self.shared_input = (("q_a_proj" if c.q_lora_rank else "q_proj",), ("kv_a_proj_with_mqa",))
        self.scale = c.qk_head_dim**-0.5 * softmax_factor(c.rope)

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        _, q_nope, q_rope, latent, k_rope = self.project(x, context)
        if cache is None:
            return self._attend_naive(q_nope, q_rope, latent, k_rope, context)
        cache.write({"latent": self.cache_rows(latent, k_rope)})
        return self.attend_absorbed(self.latent_queries(q_nope, q_rope, context.ops), cache, context)

    def project(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return five inputs of attention for x [batch, seq, hidden], after norms and RoPE.

        - c^Q [batch, seq, q_lora_rank], or without `q_lora_rank` all queries [batch, seq, heads * qk_head_dim].
        - The queries' parts without and with RoPE, [batch, seq, heads, nope] and [batch, seq, heads, rope].
        - c^KV [batch, seq, kv_lora_rank] and k^R [batch, seq, rope].
        """
        c, ops = self.config, context.ops
        q_input, kv = self.apply_shared_input(x)
        if c.q_lora_rank:
            q_input = self.q_a_layernorm(q_input, ops)
        q = self.q_b_proj(q_input) if c.q_lora_rank else q_input
        q = q.unflatten(-1, (c.num_attention_heads, c.qk_head_dim))  # [batch, seq, heads, qk_head_dim]
        q_nope, q_rope = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), dim=-1)
        latent, k_rope = kv.split((c.kv_lora_rank, c.qk_rope_head_dim), dim=-1)
        latent = self.kv_a_layernorm(latent, ops)  # [batch, seq, kv_lora_rank]
        cos, sin = context.rope(c.rope, c.qk_rope_head_dim, interleaved=True)
        rotated = ops.rope(torch.cat((q_rope, k_rope.unsqueeze(2)), dim=2), cos, sin, interleaved=True)
        return q_input, q_nope, rotated[:, :, :-1], latent, rotated[:, :, -1]

    @staticmethod
    def cache_rows(latent: Tensor, k_rope: Tensor) -> Tensor:
        """Return the rows of the cached part `latent` [tokens, 1, kv_lora_rank + rope]."""
        return torch.cat((latent, k_rope), dim=-1).flatten(0, 1).unsqueeze(1)

    def _attend_naive(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, context: AttentionContext
    ) -> Tensor:
        c = self.config
        if "up_maps" in self.known:
            w_uk, w_uv = self.known["up_maps"]
            kv = context.ops.linear(latent, torch.cat((w_uk, w_uv.transpose(1, 2)), dim=1).flatten(0, 1))
        else:
            kv = self.kv_b_proj(latent)
        kv = kv.unflatten(-1, (c.num_attention_heads, -1))  # [batch, keys, heads, nope + v]
        k_nope, v = kv.split((c.qk_nope_head_dim, c.v_head_dim), dim=-1)
        k = torch.cat((k_nope, k_rope.unsqueeze(2).expand(-1, -1, c.num_attention_heads, -1)), dim=-1)
        q = torch.cat((q_nope, q_rope), dim=-1)
        out = context.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.scale)
        return self.o_proj(out.transpose(1, 2).flatten(-2))

    def up_maps(self) -> tuple[Tensor, Tensor]:
        """Return the up-projections of the latent: W^UK [heads, nope, kv_lora_rank] and the transposed W^UV [heads, kv_lora_rank, v]."""
        c = self.config
        weight = self.kv_b_proj.weight.unflatten(0, (c.num_attention_heads, -1))  # [heads, nope + v, kv_lora_rank]
        w_uk, w_uv = weight.split((c.qk_nope_head_dim, c.v_head_dim), dim=1)
        return w_uk, w_uv.transpose(1, 2)

    def latent_queries(self, q_nope: Tensor, q_rope: Tensor, ops: Backend) -> Tensor:
        """Return the queries of the absorbed form [tokens, 1, heads, kv_lora_rank + rope].

        W^UK is applied to the part of the queries without RoPE.
        """
        w_uk, _ = self.derived_tensors("up_maps")
        flat = q_nope.flatten(0, 1).transpose(0, 1)  # [heads, tokens, nope]
        q_latent = ops.bmm(flat, w_uk).transpose(0, 1)
        return torch.cat((q_latent, q_rope.flatten(0, 1)), dim=-1).unsqueeze(1)

    def attend_absorbed(
        self, q: Tensor, cache: LayerCache, context: AttentionContext, selected: SelectedRows | None = None
    ) -> Tensor:
        """Attend from `latent_queries` to all cached latents, or only to the selected rows. Returns the module's output [batch,
        seq, hidden]."""
        c = self.config
        _, w_uv = self.derived_tensors("up_maps")
        mixed = cache.attend(q, "latent", "latent", self.scale, value_width=c.kv_lora_rank, selected=selected)
        out = context.ops.bmm(mixed.squeeze(1).transpose(0, 1), w_uv).transpose(0, 1)  # [tokens, heads, v_head_dim]
        return self.o_proj(out.flatten(1).view(*context.positions.shape, -1))


class SelectingMLA(MLA):
    """MLA over the positions that `select` returns. `SelectingMLA` always runs on a KV cache, in the absorbed form.

    `SelectingMLA` records `selected` [tokens, k]: the selected positions, or -1 for no position.
    """

    needs_cache = True

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        assert cache is not None
        _, q_nope, q_rope, latent, k_rope = self.project(x, context)
        cache.write({"latent": self.cache_rows(latent, k_rope)})
        q = self.latent_queries(q_nope, q_rope, context.ops)
        rows = self.select(q.detach(), context.positions.flatten(), cache)
        context.record("selected", rows)
        return self.attend_absorbed(q, cache, context, SelectedRows(rows, torch.zeros_like(rows, dtype=torch.float32)))

    @abstractmethod
    def select(self, q: Tensor, positions: Tensor, cache: LayerCache) -> Tensor:
        """Return the positions [tokens, k] that each query sees, or -1 for no position. `q` is from `latent_queries`, and
        `positions` is [tokens].

        `cache` already contains the new rows of the cache part `latent`.
        """
