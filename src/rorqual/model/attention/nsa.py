"""Native Sparse Attention (Yuan et al. 2025, arXiv 2502.11089): the gated sum of three branches of grouped-query attention.

- Compression: each block of `compress_block` tokens is reduced to one key and one value (eq. 7). The key and value
  are visible to the block's last token and to later tokens.
- Selection: attention to the tokens of `num_selected_blocks` blocks of `select_block` tokens (eq. 8 to 12). The importance of a
  block is the block's share of the attention weights in the compression branch, summed over the query heads of a key-value
  head. The first blocks and the query's latest blocks are always selected. Between blocks of equal importance, the earlier
  block is selected.
- Sliding window: attention to the last `window_size` tokens.

The output of a query head is sum_c g_c o_c over the branches c (eq. 5), with gates g = sigmoid(x W_g). The selection of blocks
has no gradient. If a query sees no key in a branch, the output of the branch is 0 for this query.

Compressed blocks do not overlap: the stride d of the NSA paper equals the block length l here. The NSA paper itself uses d = l
/ 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rorqual.core.config import MOST, Count, Natural
from rorqual.model.attention.attention import Attention, AttentionConfig, AttentionContext
from rorqual.model.attention.cache import CachePart, LayerCache
from rorqual.model.cost import Cost, linear_cost
from rorqual.ops.backends import Backend
from rorqual.ops.layer import Layer
from rorqual.ops.paged import BLOCK, SelectedRows
from rorqual.ops.rope import Rope, softmax_factor

BRANCHES = ("cmp", "slc", "win")
"""The attention branches in the order of their gates: compression, selection, sliding window."""


class NSAConfig(AttentionConfig):
    """Native Sparse Attention with half-split RoPE on the whole head.

    - `compress_block` (l in the NSA paper), `select_block` (l') and `window_size` (w) are numbers of tokens.
    - `num_selected_blocks` (n) includes `num_initial_blocks` and `num_local_blocks`, which are always selected. The local
      blocks of a query are the query's own block and the `num_local_blocks` - 1 blocks before it.
    - Compression concatenates the keys of a block before RoPE and applies a key MLP. RoPE is applied to the output of the
      key MLP, at the position of the block's last token. A value MLP maps the values of a block. All key-value heads share the
      key MLP and the value MLP.
    - Each branch has its own keys and values, as in the NSA paper.
    """

    kind: Literal["nsa"] = "nsa"
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: int = Field(ge=2, le=MOST)
    compress_block: int = Field(ge=2, le=BLOCK)
    select_block: Count
    num_selected_blocks: Count
    num_initial_blocks: Natural = 1
    num_local_blocks: Count = 2
    window_size: Count
    rope: Rope = Rope()

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer of the compression MLPs."""
        return 2 * self.head_dim

    def build(self, hidden_size: int, eps: float) -> Attention:
        return NSA(self, hidden_size)

    def cost(self, hidden_size: int, context: int) -> Cost:
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        cost = linear_cost(hidden_size, q) + linear_cost(hidden_size, kv * len(BRANCHES)) * 2
        cost += linear_cost(hidden_size, len(BRANCHES) * self.num_attention_heads) + linear_cost(q, hidden_size)
        mlp = linear_cost(self.compress_block * self.head_dim, self.mlp_width, bias=True)
        mlp = (mlp + linear_cost(self.mlp_width, self.head_dim)) * 2
        cost += Cost(mlp.params, mlp.active, mlp.flops * self.num_key_value_heads // self.compress_block)
        attended = context // self.compress_block + min(context, self.window_size)
        attended += min(context, self.num_selected_blocks * self.select_block)
        return cost + Cost(flops=4 * q * attended)

    def saved_activations(self, hidden_size: int, *, without_recomputation: bool) -> int:
        # The query, the output of each branch and their weighted sum.
        saved = self.num_attention_heads * ((2 + len(BRANCHES)) * self.head_dim + len(BRANCHES)) + self.cache_width()
        if without_recomputation:
            saved += hidden_size
            saved += 2 * self.num_key_value_heads * (self.head_dim + 2 * self.mlp_width / self.compress_block)
        return round(saved)

    def split_by_tp(self) -> dict[str, int]:
        return {"num_attention_heads": self.num_attention_heads, "num_key_value_heads": self.num_key_value_heads}

    def cache_spec(self) -> tuple[CachePart, ...]:
        # One part per key-value head, because each key-value head selects blocks of its own.
        heads = range(self.num_key_value_heads)
        names = [f"{branch}_{part}" for branch in BRANCHES for part in ("key", "value")]
        every = dict.fromkeys(names, 1) | {"block_key": self.compress_block, "block_value": self.compress_block}
        return tuple(CachePart(f"{name}.{h}", 1, self.head_dim, every=n) for name, n in every.items() for h in heads)

    def check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads, and head_dim must be even")
        if BLOCK % self.compress_block:
            raise ValueError(f"compress_block {self.compress_block} does not divide {BLOCK}, the cache's block size")
        if self.select_block % self.compress_block:
            raise ValueError(
                f"select_block {self.select_block} is not a multiple of compress_block {self.compress_block}, so a compressed "
                "block would lie in two selected blocks"
            )
        always = self.num_initial_blocks + self.num_local_blocks
        if self.num_selected_blocks < always:
            raise ValueError(
                f"num_selected_blocks {self.num_selected_blocks} is smaller than {always}, the number of initial and local "
                "blocks, which are always selected"
            )


class Compressor(Layer):
    """The MLP that maps the keys or values of a block to one key or value (eq. 7).

    The first layer of the MLP has a bias and separate columns for each position of the block. The NSA paper's intra-block
    position encoding is left out, because the encoding would only change the bias of the first layer.
    """

    reads_blocks = ("up_proj", "down_proj")

    def __init__(self, config: NSAConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.compress_block * config.head_dim, config.mlp_width)
        self.down_proj = nn.Linear(config.mlp_width, config.head_dim, bias=False)

    def forward(self, rows: Tensor, ops: Backend) -> Tensor:
        """Map the rows of each block [blocks, compress_block, heads, head_dim] to one row per block [blocks, heads,
        head_dim]."""
        out: Tensor = self.down_proj(ops.silu(self.up_proj(rows.transpose(1, 2).flatten(2))))
        return out


class NSA(Attention):
    """Native Sparse Attention module. `NSA` always runs on a KV cache.

    `NSA` records `selected_blocks` [tokens, kv heads, at most num_selected_blocks]: the numbers of the selected blocks, best
    first, or -1 for no block.
    """

    needs_cache = True
    shared_input = (("q_proj", "k_proj"), ("v_proj",), ("g_proj",))

    def __init__(self, config: NSAConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        kv *= len(BRANCHES)
        self.q_proj = nn.Linear(hidden_size, q, bias=False)
        self.k_proj = nn.Linear(hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(hidden_size, kv, bias=False)
        self.g_proj = nn.Linear(hidden_size, len(BRANCHES) * config.num_attention_heads, bias=False)
        self.o_proj = nn.Linear(q, hidden_size, bias=False)
        self.k_compress, self.v_compress = Compressor(config), Compressor(config)
        self.scale = config.head_dim**-0.5 * softmax_factor(config.rope)

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        assert cache is not None
        c = self.config
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        qk, v, gate = self.apply_shared_input(x)
        qk, v = qk.unflatten(-1, (-1, c.head_dim)), v.unflatten(-1, (-1, c.head_dim)).flatten(0, 1)
        cos, sin = context.rope(c.rope, c.head_dim, interleaved=False)
        rotated = context.ops.rope(qk, cos, sin, interleaved=False).flatten(0, 1)
        raw, q, k = qk.flatten(0, 1)[:, heads:], rotated[:, :heads], rotated[:, heads:]
        self._write_keys_and_values(cache, raw, k, v)
        self._write_compressed_blocks(cache, context)

        q = q.unflatten(1, (kv_heads, -1))  # [tokens, kv heads, repeat, head_dim]
        gate = context.ops.sigmoid(gate.float()).to(x.dtype).view(len(q), kv_heads, -1, len(BRANCHES), 1)
        positions = context.positions.flatten()
        outs, chosen = [], []
        for h in range(kv_heads):
            query, keys = q[:, h : h + 1], f"block_key.{h}"
            selected, blocks = self._select_blocks(cache.select_by_attention(query, keys, self.scale, MOST), positions)
            chosen.append(blocks)
            branches = (
                cache.attend(query, keys, f"block_value.{h}", self.scale),
                cache.attend(query, f"slc_key.{h}", f"slc_value.{h}", self.scale, selected=selected),
                cache.attend(query, f"win_key.{h}", f"win_value.{h}", self.scale, window=c.window_size),
            )
            weighted = [gate[:, h : h + 1, :, i] * out for i, out in enumerate(branches)]
            outs.append(weighted[0] + weighted[1] + weighted[2])
        context.record("selected_blocks", torch.stack(chosen, dim=1))
        return self.o_proj(torch.cat(outs, dim=1).flatten(1).view(*x.shape[:2], -1))

    def _write_keys_and_values(self, cache: LayerCache, raw: Tensor, k: Tensor, v: Tensor) -> None:
        """Store the new keys and values [tokens, 3 * kv heads, head_dim]. `raw` are the keys without RoPE."""
        n = self.config.num_key_value_heads
        parts: dict[str, Tensor] = {}
        for i, branch in enumerate(BRANCHES):
            own = slice(i * n, (i + 1) * n)
            for name, rows in (("key", (raw if branch == "cmp" else k)[:, own]), ("value", v[:, own])):
                parts |= {f"{branch}_{name}.{h}": row for h, row in enumerate(rows.split(1, dim=1))}
        cache.write(parts)

    def _write_compressed_blocks(self, cache: LayerCache, context: AttentionContext) -> None:
        """Store a compressed key and a compressed value for each block of `compress_block` tokens that the forward pass
        completes."""
        c = self.config
        found = [
            [cache.groups(f"{name}.{h}", c.compress_block) for h in range(c.num_key_value_heads)]
            for name in ("cmp_key", "cmp_value")
        ]
        keys, values = (torch.cat([rows for rows, _ in groups], dim=2) for groups in found)
        last = found[0][0][1]
        cos, sin = (t.flatten(0, 1)[last] for t in context.rope(c.rope, c.head_dim, interleaved=False))
        keys = context.ops.rope(self.k_compress(keys, context.ops), cos, sin, interleaved=False)
        values = self.v_compress(values, context.ops)
        both = {"block_key": keys, "block_value": values}
        cache.write({f"{name}.{h}": row for name, rows in both.items() for h, row in enumerate(rows.split(1, dim=1))})

    def _select_blocks(self, weights: SelectedRows, positions: Tensor) -> tuple[SelectedRows, Tensor]:
        """Select blocks for each token, given the attention weights of the compressed blocks and the positions [tokens].

        Returns the tokens of the selected blocks, up to the query's position, and the numbers of the selected blocks [tokens,
        at most num_selected_blocks].
        """
        c = self.config
        per = c.select_block // c.compress_block
        number = weights.rows.shape[1] // per + 1  # one more block for tokens that are not compressed yet
        none = weights.rows < 0
        flat = weights.scores.new_zeros(len(positions), number * per + 1)  # the last column is for row -1 (no row)
        flat = flat.scatter(1, weights.rows.masked_fill(none, number * per), weights.scores.masked_fill(none, 0))
        mass = flat[:, :-1].unflatten(1, (number, per)).sum(-1)

        block, own = torch.arange(number, device=mass.device), (positions // c.select_block).unsqueeze(1)
        always = (block < c.num_initial_blocks) | (block > own - c.num_local_blocks)
        mass = mass.masked_fill(always, torch.inf).masked_fill(block > own, -torch.inf)
        mass, blocks = (t[:, : c.num_selected_blocks] for t in mass.sort(dim=-1, descending=True, stable=True))
        blocks = blocks.masked_fill(mass == -torch.inf, -1)

        rows = blocks.unsqueeze(-1) * c.select_block + torch.arange(c.select_block, device=mass.device)
        unseen = (rows < 0) | (rows > positions.view(-1, 1, 1))
        scores = mass.unsqueeze(-1).masked_fill(unseen, -torch.inf)
        return SelectedRows(rows.masked_fill(unseen, -1).flatten(1), scores.flatten(1)), blocks
