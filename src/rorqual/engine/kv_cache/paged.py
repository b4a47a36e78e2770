"""The cache: pools of blocks, a block holding what `BLOCK` positions of one sequence keep in every layer.

Which sequence has which blocks is the scheduler's affair. What lies beyond a sequence's own length in its last block is never seen, but
must be finite: a weight of 0 times NaN is NaN. So memory starts as zeros, and as zeros that the system gives out only when touched; and once
something was written that is no number, blocks are cleared before somebody has them (`clear`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rorqual.model import ModelConfig
from rorqual.model.attention import CacheLayout, CachePart, LayerCache
from rorqual.model.sheet import InBlocks, angles
from rorqual.ops.backends.attention import PagedAttention, Plan
from rorqual.ops.paged import BLOCK
from rorqual.ops.rope import Rope


def zeros(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written."""
    if device.type != "cpu":
        return torch.zeros(*shape, device=device, dtype=dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * size), np.uint8)).view(dtype)


def token_bytes(config: ModelConfig, dtype: torch.dtype) -> float:
    """Of one position in all layers; of a whole block it is a whole number."""
    return sum(attention.cache_bytes(dtype.itemsize) for attention in config.attentions)


class PagedCache:
    """`layers[i]`, of the attention i: by name, a pool for each part of `layouts[i]`, as `attention` lays it out; `experts` [blocks, BLOCK,
    routers, k], the routers' choices, which belong to a position as its keys do.
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
        self.layouts = [CacheLayout.of(kind) for kind in config.attentions]
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
        contents = self._contents([0])
        self._sizes = [tensor.numel() * tensor.element_size() for tensor in contents]
        self._kinds = [(tensor.dtype, tensor.shape) for tensor in contents]

    def pools(self) -> Iterator[Tensor]:
        """Every pool of every layer."""
        for layer in self.layers:
            yield from layer.values()

    def copy(self, to: Sequence[int], from_: Sequence[int]) -> None:
        """Copy blocks `from_` to blocks `to`."""
        self._fill(to, self._contents(from_))

    def clear(self, blocks: Sequence[int]) -> None:
        """Zeros in these blocks."""
        empty = (torch.zeros(len(blocks), *shape[1:], dtype=dtype, device=self.device) for dtype, shape in self._kinds)
        self._fill(blocks, list(empty))

    def read(self, block: int) -> bytes:
        """A block's contents, as `write` takes them: the same bytes however the pools are laid out."""
        return b"".join(
            tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes() for tensor in self._contents([block])
        )

    def write(self, block: int, contents: bytes) -> bool:
        """Put a block back; False, and nothing changed, where the size is not that of a block."""
        if len(contents) != sum(self._sizes):
            return False
        parts = torch.frombuffer(bytearray(contents), dtype=torch.uint8).split(self._sizes)
        tensors = [part.clone().view(dtype).view(shape) for part, (dtype, shape) in zip(parts, self._kinds)]
        self._fill([block], [tensor.to(self.device) for tensor in tensors])
        return True

    def _contents(self, blocks: Sequence[int]) -> list[Tensor]:
        """Of each pool [n, heads, BLOCK / every, width], and of `experts` where anything routes."""
        index = torch.tensor(blocks, device=self.device)
        found = [self.attention.read(pool, index) for pool in self.pools()]
        return [*found, self.experts.index_select(0, index)] if self.experts.numel() else found

    def _fill(self, blocks: Sequence[int], contents: Sequence[Tensor]) -> None:
        index = torch.tensor(blocks, device=self.device)
        for pool, tensor in zip(self.pools(), contents):
            self.attention.fill(pool, index, tensor)
        if self.experts.numel():
            self.experts.index_copy_(0, index, contents[-1])

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """cos and sin of every position up to `max_len`."""
        if (rope, dim) not in self._angles:
            self._angles[rope, dim] = angles(rope, dim, self._positions, self.device)
        return self._angles[rope, dim]


class StepCache:
    """Implements `rorqual.model.Cache` for the tokens of one forward, of which `plan` says where each is kept and whom it sees."""

    def __init__(self, cache: PagedCache, plan: Plan) -> None:
        self.cache, self.plan, self.pools = cache, plan, cache.layers

    def layer(self, index: int) -> LayerCache:
        """One layer's pools."""
        return _Layer(self, self.cache.layouts[index], self.cache.layers[index])

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """See `PagedCache.table`."""
        return self.cache.table(rope, dim)


class _Layer(InBlocks):
    def __init__(self, step: StepCache, layout: CacheLayout, pools: dict[str, Tensor]) -> None:
        super().__init__(layout, step.cache.attention, step.plan)
        self._tensors = pools

    def _keep(self, part: CachePart, rows: Tensor) -> None:
        self._attention.write(self._tensors[part.name], rows, self._plan)

    def _groups(self, name: str, every: int) -> tuple[Tensor, Tensor]:
        return self._attention.groups(self._tensors[name], self._plan, every)

    def _pool(self, name: str) -> Tensor:
        return self._tensors[name]
