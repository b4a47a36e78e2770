"""The KV cache in memory: pools of blocks. A block holds everything that attention caches, such as keys and values, for
`BLOCK` positions of one sequence in every layer.

The scheduler decides which blocks a sequence owns. In the last block of a sequence, rows beyond the end of the sequence get
attention weight 0. Cached rows with attention weight 0 must still be finite, because 0 times NaN is NaN. Block pools are
therefore initialized with zeros. The operating system allocates a memory page of a pool only when the page is first written.
After a NaN or infinity was written to a block pool, `clear` fills each newly allocated block with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rorqual.model import ModelConfig
from rorqual.model.attention import CacheLayout, CachePart, LayerCache
from rorqual.ops.backends.attention import AttentionPlan, PagedAttention
from rorqual.ops.paged import BLOCK
from rorqual.ops.rope import Rope, rope_angle_table


def zeros(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros. On the CPU, the tensor of zeros takes no memory until the tensor is written."""
    if device.type != "cpu":
        return torch.zeros(*shape, device=device, dtype=dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * size), np.uint8)).view(dtype)


def _as_bytes(tensor: Tensor) -> Tensor:
    """View 8-bit floats as bytes, because torch cannot copy 8-bit floats by index on a CPU. Return other tensors unchanged."""
    return tensor.view(torch.uint8) if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def cache_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> float:
    """Return the number of KV-cache bytes per token position, summed over all layers.

    The number of bytes per token position is fractional if attention caches one row per group of tokens. The number of bytes of
    a whole block is an integer.
    """
    return sum(attention.cache_bytes(dtype.itemsize) for attention in config.attentions)


class PagedCache:
    """The block pools of all layers.

    `layers[i]` holds the block pools of attention module i by name: one block pool per tensor that the module caches
    (`layouts[i].parts`). The backend's `attention` decides the memory layout of a block pool. `experts` [blocks, BLOCK,
    routers, k] holds the routers' choices for each cached position.
    """

    def __init__(
        self,
        attention: PagedAttention,
        config: ModelConfig,
        blocks: int,
        device: torch.device,
        dtype: torch.dtype,
        max_len: int,
        experts: tuple[int, int] = (0, 0),
        expert_dtype: torch.dtype = torch.int8,
    ) -> None:
        self.attention, self.device = attention, device
        self.layouts = [kind.cache_layout() for kind in config.attentions]
        self.layers = [
            {
                p.name: zeros(attention.shape(blocks, p.heads, BLOCK // p.every, p.width), device, p.dtype or dtype)
                for p in layout.parts.values()
            }
            for layout in self.layouts
        ]
        self.experts = zeros((blocks, BLOCK, *experts), device, expert_dtype)
        self._angles: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        self._positions = max_len
        contents = self._block_contents([0])
        self._sizes = [tensor.numel() * tensor.element_size() for tensor in contents]
        self._kinds = [(tensor.dtype, tensor.shape) for tensor in contents]

    def pools(self) -> Iterator[Tensor]:
        """Yield every block pool of every layer."""
        for layer in self.layers:
            yield from layer.values()

    def copy_blocks(self, to: Sequence[int], from_: Sequence[int]) -> None:
        """Copy the contents of the blocks `from_` to the blocks `to`."""
        self._fill_blocks(to, self._block_contents(from_))

    def clear(self, blocks: Sequence[int]) -> None:
        """Fill the KV-cache blocks `blocks` with zeros."""
        empty = (torch.zeros(len(blocks), *shape[1:], dtype=dtype, device=self.device) for dtype, shape in self._kinds)
        self._fill_blocks(blocks, list(empty))

    def read(self, block: int) -> bytes:
        """Return the contents of a block as bytes, for `write`. The returned bytes do not depend on the memory layout of the
        block pools."""
        return b"".join(
            tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()
            for tensor in self._block_contents([block])
        )

    def write(self, block: int, contents: bytes) -> bool:
        """Restore the contents of a block. If `contents` does not have the size of a block, `write` returns False and changes
        nothing."""
        if len(contents) != sum(self._sizes):
            return False
        parts = torch.frombuffer(bytearray(contents), dtype=torch.uint8).split(self._sizes)
        tensors = [part.clone().view(dtype).view(shape) for part, (dtype, shape) in zip(parts, self._kinds)]
        self._fill_blocks([block], [tensor.to(self.device) for tensor in tensors])
        return True

    def _block_contents(self, blocks: Sequence[int]) -> list[Tensor]:
        """Return the contents of the n blocks `blocks`: one tensor [n, heads, rows per block, width] per block pool, then
        `experts` for an MoE model."""
        index = torch.tensor(blocks, device=self.device)
        contents = [self.attention.read(pool, index) for pool in self.pools()]
        return [*contents, self.experts.index_select(0, index)] if self.experts.numel() else contents

    def _fill_blocks(self, blocks: Sequence[int], contents: Sequence[Tensor]) -> None:
        index = torch.tensor(blocks, device=self.device)
        for pool, tensor in zip(self.pools(), contents):
            self.attention.fill(_as_bytes(pool), index, _as_bytes(tensor))
        if self.experts.numel():
            self.experts.index_copy_(0, index, contents[-1])

    def rope_cos_sin(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """Return the RoPE cosines and sines of all token positions up to `max_len`."""
        if (rope, dim) not in self._angles:
            self._angles[rope, dim] = rope_angle_table(rope, dim, self._positions, self.device)
        return self._angles[rope, dim]


class StepCache:
    """The `rorqual.model.Cache` of one forward pass. `plan` gives the cache slot of each token, and the positions to
    which the token attends."""

    def __init__(self, cache: PagedCache, plan: AttentionPlan) -> None:
        self.cache, self.plan, self.pools = cache, plan, cache.layers

    def layer(self, index: int) -> LayerCache:
        """Return the cache of the attention module with the index `index` in the whole model."""
        return _StepLayerCache(self, self.cache.layouts[index], self.cache.layers[index])

    def rope_cos_sin(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """See `PagedCache.rope_cos_sin`."""
        return self.cache.rope_cos_sin(rope, dim)


class _StepLayerCache(LayerCache):
    def __init__(self, step: StepCache, layout: CacheLayout, pools: dict[str, Tensor]) -> None:
        super().__init__(layout, step.cache.attention, step.plan)
        self._tensors = pools

    def _store(self, part: CachePart, rows: Tensor) -> None:
        pool = self._tensors[part.name]
        self._attention.write(_as_bytes(pool), _as_bytes(rows.to(pool.dtype)), self._plan)

    def _read_completed_groups(self, name: str, every: int) -> tuple[Tensor, Tensor]:
        return self._attention.groups(self._tensors[name], self._plan, every)

    def _pool(self, name: str) -> Tensor:
        return self._tensors[name]
