"""The key-value cache: one preallocated tensor a layer, read as plain slices.

The sequences in flight occupy rows 0..B-1 without a hole, so that a decode step reads `layer[:B, :keys]` and gathers
nothing. What lies beyond a row's own length is never seen: a query at position p attends to positions 0..p only. It must
be finite all the same, since a masked probability of 0 times NaN is NaN, so memory starts as zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rorqual.model import ModelConfig

STRIDE = 16
"""Key lengths are rounded up to a multiple of this: fewer shapes, and products that fill the vector registers."""


def round_up(length: int, multiple: int = STRIDE) -> int:
    """The next multiple of `multiple` at or above `length`."""
    return -(-length // multiple) * multiple


class KVCache:
    """`slots` rows of up to `max_len` positions; each layer is [slots, max_len, width], width as its attention says."""

    def __init__(
        self, config: ModelConfig, slots: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.slots, self.max_len = slots, round_up(max_len)
        self.layers = [
            torch.zeros(slots, self.max_len, stage.attention.cache_width(), device=device, dtype=dtype)
            for stage in config.layers
        ]

    @property
    def token_bytes(self) -> int:
        """Of one position of one row, in all layers."""
        return sum(layer.shape[2] * layer.element_size() for layer in self.layers)

    def grow(self, max_len: int, slots: int) -> None:
        """Make room for `max_len` positions in each of `slots` rows; what is cached in these stays."""
        old, self.max_len = self.max_len, round_up(max_len)
        kept, self.slots = min(self.slots, slots), slots
        for index, layer in enumerate(self.layers):
            wider = layer.new_zeros(slots, self.max_len, layer.shape[2])
            wider[:kept, :old] = layer[:kept]
            self.layers[index] = wider

    def copy(self, to: Tensor, from_: Tensor, keys: int) -> None:
        """Copy the first `keys` positions of rows `from_` [n] to rows `to` [n]; the two sets must not overlap."""
        for layer in self.layers:
            layer[to, :keys] = layer[from_, :keys]

    def view(self, start: int, stop: int, keys: int) -> CacheView:
        """Rows start..stop-1 as the `Cache` of a forward that attends over at most `keys` positions."""
        return CacheView(self, start, stop, min(round_up(keys), self.max_len))


class CacheView:
    """Implements `rorqual.model.Cache` for a range of rows."""

    def __init__(self, cache: KVCache, start: int, stop: int, keys: int) -> None:
        self.start, self.stop, self.keys = start, stop, keys
        self._cache = cache
        self._positions: Tensor | None = None
        self._index = torch.empty(0, dtype=torch.long)

    def layer(self, index: int) -> LayerView:
        return LayerView(self, self._cache.layers[index])

    def flat(self, positions: Tensor) -> Tensor:
        """Places of positions [rows, new] in a layer seen as [slots * max_len, width]; computed once a forward."""
        if self._positions is not positions:
            rows = torch.arange(self.start, self.stop, device=positions.device).unsqueeze(1)
            self._positions, self._index = positions, (rows * self._cache.max_len + positions).flatten()
        return self._index


class LayerView:
    """Implements `rorqual.model.attention.LayerCache`."""

    def __init__(self, view: CacheView, values: Tensor) -> None:
        self._view, self._values = view, values

    def append(self, positions: Tensor, values: Tensor) -> Tensor:
        """Store values [rows, new, width] at positions [rows, new]; return [rows, keys, width], the new included."""
        view = self._view
        self._values.flatten(0, 1).index_copy_(0, view.flat(positions), values.flatten(0, 1))
        return self._values[view.start : view.stop, : view.keys]
