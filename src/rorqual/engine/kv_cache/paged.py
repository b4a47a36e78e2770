"""The cache: pools of blocks, a block holding what `BLOCK` positions of one sequence keep in every layer.

Which sequence has which blocks is the scheduler's affair. What lies beyond a sequence's own length in its last block is never seen, but
must be finite: a weight of 0 times NaN is NaN. So memory starts as zeros, and as zeros that the system gives out only when touched; and once
something was written that is no number, blocks are cleared before somebody has them (`clear`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.model import ModelConfig
from rorqual.model.attention import CacheLayout, CachePart, LayerCache
from rorqual.model.sheet import InBlocks, angles, fill
from rorqual.ops.paged import BLOCK, Tiles
from rorqual.ops.rope import Rope

NOBODY = 0
"""The block that filling-up tokens write to."""
Ints = npt.NDArray[np.int64]


def zeros(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written."""
    if device.type != "cpu":
        return torch.zeros(*shape, device=device, dtype=dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * size), np.uint8)).view(dtype)


def token_bytes(config: ModelConfig, dtype: torch.dtype) -> float:
    """Of one position in all layers; of a whole block it is a whole number."""
    return sum(part.token_bytes(dtype) for attention in config.attentions for part in attention.cache_spec())


class PagedCache:
    """`layers[i]`, of the attention i: by name, a tensor [blocks, heads, BLOCK / every, width] for each part of `layouts[i]`; `experts` [blocks,
    BLOCK, routers, k], the routers' choices, which belong to a position as its keys do.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        device: torch.device,
        dtype: torch.dtype,
        max_len: int,
        experts: tuple[int, int] = (0, 0),
        expert_dtype: torch.dtype = torch.int8,
    ) -> None:
        self.device = device
        self.layouts = [CacheLayout.of(attention) for attention in config.attentions]
        self.layers = [
            {p.name: zeros((blocks, p.heads, BLOCK // p.every, p.width), device, p.dtype or dtype) for p in parts}
            for parts in (layout.parts.values() for layout in self.layouts)
        ]
        self.experts = zeros((blocks, BLOCK, *experts), device, expert_dtype)
        self._angles: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        self._positions = max_len

    def pools(self) -> Iterator[Tensor]:
        """Every tensor, [blocks, ...] each."""
        for layer in self.layers:
            yield from layer.values()
        if self.experts.numel():
            yield self.experts

    def copy(self, to: Sequence[int], from_: Sequence[int]) -> None:
        """Copy blocks `from_` to blocks `to`."""
        target, source = (torch.tensor(ids, device=self.device) for ids in (to, from_))
        for pool in self.pools():
            pool.index_copy_(0, target, pool.index_select(0, source))

    def clear(self, blocks: Sequence[int]) -> None:
        """Zeros in these blocks."""
        target = torch.tensor(blocks, device=self.device)
        for pool in self.pools():
            pool.index_fill_(0, target, 0)

    def read(self, block: int) -> bytes:
        """A block's contents, as `write` takes them."""
        return b"".join(
            pool[block].contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes() for pool in self.pools()
        )

    def write(self, block: int, contents: bytes) -> bool:
        """Put a block back; False, and nothing changed, where the size is not that of a block."""
        if len(contents) != sum(pool[0].numel() * pool.element_size() for pool in self.pools()):
            return False
        flat = torch.frombuffer(bytearray(contents), dtype=torch.uint8)
        for pool in self.pools():
            size = pool[0].numel() * pool.element_size()
            part, flat = flat[:size], flat[size:]
            pool[block].copy_(part.clone().view(pool.dtype).view_as(pool[block]))
        return True

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """cos and sin of every position up to `max_len`."""
        if (rope, dim) not in self._angles:
            self._angles[rope, dim] = angles(rope, dim, self._positions, self.device)
        return self._angles[rope, dim]


@dataclass(frozen=True)
class Group:
    """Tokens start .. start + size - 1 of a forward, and whom they see."""

    start: int
    size: int
    tiles: Tiles


class StepCache:
    """Implements `rorqual.model.Cache` for the tokens of one forward: block and offset [tokens], where each is kept."""

    def __init__(self, cache: PagedCache, block: Ints, offset: Ints, groups: Sequence[Group]) -> None:
        self.cache, self.pieces = cache, [(slice(g.start, g.start + g.size), g.tiles) for g in groups]
        self._block, self._offset = block, offset
        self._ends: dict[int, tuple[Ints, Ints, Ints]] = {}
        self._places: dict[tuple[int, int], Tensor] = {}
        self._groups: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def layer(self, index: int) -> LayerCache:
        """One layer's pools."""
        return _Layer(self, self.cache.layouts[index], self.cache.layers[index])

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """See `PagedCache.table`."""
        return self.cache.table(rope, dim)

    def places(self, heads: int, every: int = 1) -> Tensor:
        """[rows * heads]: where this forward's rows of a part go in its pool, seen as [blocks * heads * BLOCK / every, width]."""
        if (heads, every) not in self._places:
            block, offset = (self._block, self._offset) if every == 1 else self._completed(every)[1:]
            rows = (block[:, None] * heads + np.arange(heads)) * (BLOCK // every) + offset[:, None] // every
            self._places[heads, every] = self._tensor(rows.reshape(-1))
        return self._places[heads, every]

    def groups(self, every: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each group of `every` tokens that the forward completes: its block [groups, 1], its offsets there [groups, every], and its last
        token [groups]."""
        if every not in self._groups:
            last, block, offset = self._completed(every)
            at = offset[:, None] + np.arange(1 - every, 1)
            self._groups[every] = self._tensor(block[:, None]), self._tensor(at), self._tensor(last)
        return self._groups[every]

    def _completed(self, every: int) -> tuple[Ints, Ints, Ints]:
        """The last token of each group, its block and its offset [groups]; what fills up is token 0, and nobody's."""
        if every not in self._ends:
            found = np.flatnonzero((self._offset % every == every - 1) & (self._block != NOBODY))
            least = self.pieces[0][1].rows.least if self.pieces else 1
            last = np.zeros(fill(len(found), least), np.int64)
            block, offset = np.full_like(last, NOBODY), np.full_like(last, every - 1)
            last[: len(found)], block[: len(found)] = found, self._block[found]
            offset[: len(found)] = self._offset[found]
            self._ends[every] = last, block, offset
        return self._ends[every]

    def _tensor(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self.cache.device)


class _Layer(InBlocks):
    def __init__(self, step: StepCache, layout: CacheLayout, pools: dict[str, Tensor]) -> None:
        super().__init__(layout, step.pieces)
        self._step, self._tensors = step, pools

    def _keep(self, part: CachePart, rows: Tensor) -> None:
        flat = self._tensors[part.name].view(-1, part.width)
        places = self._step.places(part.heads, part.every)
        flat.index_copy_(0, places, rows.reshape(-1, part.width).to(flat.dtype))

    def _groups(self, name: str, every: int) -> tuple[Tensor, Tensor]:
        block, offset, last = self._step.groups(every)
        return self._tensors[name].transpose(1, 2)[block, offset], last

    def _pool(self, name: str) -> Tensor:
        return self._tensors[name]
