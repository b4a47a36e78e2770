"""The cache: pools of blocks, a block holding what `BLOCK` positions of one sequence keep in every layer.

Which sequence has which blocks is the scheduler's affair. What lies beyond a sequence's own length in its last block is never seen, but
must be finite: a weight of 0 times NaN is NaN. So memory starts as zeros, and as zeros that the system gives out only when touched; and once
something was written that is no number, blocks are cleared before somebody has them (`clear`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.model import ModelConfig
from rorqual.model.attention import LayerCache, check_parts
from rorqual.model.sheet import angles, read
from rorqual.ops.paged import BLOCK, Tiles, attend
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


def token_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Of one position in all layers."""
    return sum(part.token_bytes(dtype) for attention in config.attentions for part in attention.cache_spec())


class PagedCache:
    """`layers[i]`, of the attention i: by name, a tensor [blocks, heads, BLOCK, width] for each part of its `cache_spec`; `experts` [blocks,
    BLOCK, routers, k], the routers' choices, which belong to a position as its keys do. Raises ValueError where two parts share a name.
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
        self.layers: list[dict[str, Tensor]] = []
        for attention in config.attentions:
            spec = attention.cache_spec()
            if len({part.name for part in spec}) < len(spec):
                raise ValueError(f"two parts of the cache of kind '{attention.kind}' have one name")
            self.layers.append(
                {p.name: zeros((blocks, p.heads, BLOCK, p.width), device, p.dtype or dtype) for p in spec}
            )
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
        self.cache, self.groups = cache, groups
        self._block, self._offset = block, offset
        self._places: dict[int, Tensor] = {}

    def layer(self, index: int) -> LayerCache:
        """One layer's pools."""
        return _Layer(self, self.cache.layers[index])

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """See `PagedCache.table`."""
        return self.cache.table(rope, dim)

    def places(self, heads: int) -> Tensor:
        """[tokens * heads]: rows of a pool seen as [blocks * heads * BLOCK, width]."""
        if heads not in self._places:
            rows = (self._block[:, None] * heads + np.arange(heads)) * BLOCK + self._offset[:, None]
            self._places[heads] = torch.from_numpy(rows.reshape(-1)).to(self.cache.device)
        return self._places[heads]


class _Layer(LayerCache):
    def __init__(self, step: StepCache, pools: dict[str, Tensor]) -> None:
        self._step, self._pools = step, pools

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """See `LayerCache`."""
        check_parts(parts, self._pools)
        for name, part in parts.items():
            flat = self._pools[name].view(-1, part.shape[2])
            flat.index_copy_(0, self._step.places(part.shape[1]), part.reshape(-1, part.shape[2]).to(flat.dtype))

    def attend(self, q: Tensor, keys: str, values: str, scale: float, *, value_width: int | None = None) -> Tensor:
        """See `LayerCache`. Tokens of no group fill up: they get what the first token got, and go the way that it goes."""
        pools = read(self._pools, keys, values, value_width)
        outs = [
            attend(q[group.start : group.start + group.size], *pools, group.tiles, scale) for group in self._step.groups
        ]
        spare = len(q) - sum(group.size for group in self._step.groups)
        if spare:
            outs.append(outs[0][:1].expand(spare, -1, -1, -1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)
