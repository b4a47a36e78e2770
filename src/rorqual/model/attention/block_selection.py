"""Block selection: MLA over the blocks of positions whose mean key gets most attention (after Quest, 2406.10774).

Quest rates a block by an upper bound of the query's scores, computed from the minimum and the maximum of each key channel in
the block. The attention kind `block` rates a block by the mean of the block's keys, as the compressed attention of NSA does
(2502.11089, eq. 7 to 9). All heads of a query select the same blocks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rorqual.core.config import Count
from rorqual.model.attention.attention import Attention
from rorqual.model.attention.cache import CachePart, LayerCache
from rorqual.model.attention.mla import MLAConfig, SelectingMLA
from rorqual.model.cost import Cost
from rorqual.ops.paged import BLOCK


class BlockSelectionConfig(MLAConfig):
    """MLA over the block of `block_size` positions that contains the query, and over the `block_topk` best earlier blocks.

    The attention kind `block` has the same weights as the attention kind `mla`.
    """

    kind: Literal["block"] = "block"  # type: ignore[assignment]
    block_size: Count = 16
    block_topk: Count

    def build(self, hidden_size: int, eps: float) -> Attention:
        return BlockSelection(self, hidden_size, eps)

    def cost(self, hidden_size: int, context: int) -> Cost:
        return super().cost(hidden_size, 0) + Cost(flops=round(self.decode_flops(hidden_size, context)))

    def decode_flops(self, hidden_size: int, context: float) -> float:
        scored = 2 * self.num_attention_heads * (self.kv_lora_rank + self.qk_rope_head_dim) * context / self.block_size
        return scored + super().decode_flops(hidden_size, min(context, (self.block_topk + 1) * self.block_size))

    def cache_spec(self) -> tuple[CachePart, ...]:
        width = self.kv_lora_rank + self.qk_rope_head_dim
        return (*super().cache_spec(), CachePart("block_mean", 1, width, every=self.block_size))

    def check(self) -> None:
        super().check()
        if BLOCK % self.block_size or self.block_size < 2:
            raise ValueError(f"block_size {self.block_size} must be at least 2 and divide {BLOCK}")


class BlockSelection(SelectingMLA):
    """MLA over selected blocks. Between blocks with equal scores, the earlier block is selected."""

    config: BlockSelectionConfig

    def select(self, q: Tensor, positions: Tensor, cache: LayerCache) -> Tensor:
        """Return the positions [tokens, (block_topk + 1) * block_size] that each query sees, or -1 for no position.

        The block that contains the query is always visible. If the block that contains the query is complete,
        `select_by_attention` may return this block, so `select` requests `block_topk` + 1 blocks.
        """
        c = self.config
        complete, _ = cache.groups("latent", c.block_size)
        cache.write({"block_mean": complete.mean(1)})
        blocks = cache.select_by_attention(q, "block_mean", self.scale, c.block_topk + 1).rows
        within, current = torch.arange(c.block_size, device=q.device), (positions // c.block_size).unsqueeze(1)
        wanted = (blocks >= 0) & (blocks != current)
        wanted &= wanted.cumsum(1) <= c.block_topk
        earlier = blocks.where(wanted, -1).unsqueeze(2)
        rows = (earlier * c.block_size + within).where(earlier >= 0, -1).flatten(1)
        local = current * c.block_size + within
        return torch.cat((rows, local.where(local <= positions.unsqueeze(1), -1)), dim=1)
