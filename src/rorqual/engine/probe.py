"""Whether this machine rounds a row of a product in one way, however many rows there are.

That is what the engine's promise of the same bits stands on, and it is the machine's to keep: a library may choose another kernel for
another number of rows. On x86 with MKL and oneDNN it holds from four rows on (docs/engine.md); elsewhere this finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from rorqual.engine.packed import PackedLinear
from rorqual.model import Decoder
from rorqual.ops.paged import BLOCK, MIN_ROWS

COUNTS = (MIN_ROWS, MIN_ROWS + 1, 8, 16, 19, 32, 48)
EVEN = 4
"""Widths of keys and values are multiples of this where the promise holds (docs/engine.md)."""
MOST = 67
"""Rows that the others are compared with."""


@torch.no_grad()
def rounds_alike(model: Decoder) -> bool:
    """Whether the first rows of each product of `model`, one of each shape, are the same for every number of rows in `COUNTS`."""
    generator = torch.Generator().manual_seed(0)
    weight = model.embed_tokens.weight
    if weight.device.type != "cpu":
        return False  # nobody has looked
    if any(part.width % EVEN for stage in model.config.stages for part in stage.attention.cache_spec()):
        return (
            False  # keys of 18 and values of 10 are rounded in two ways in attention, though each product below holds
        )
    for width, product in _products(model):
        x = torch.randn(MOST, width, generator=generator).to(weight.dtype)
        whole = product(x)
        if not all(torch.equal(product(x[:count]), whole[:count]) for count in COUNTS):
            return False
    return True


def _products(model: Decoder) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
    """One product of each shape: the width of its rows, and the product."""
    seen: set[tuple[int, ...]] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear | PackedLinear):
            shape = module.shape if isinstance(module, PackedLinear) else tuple(module.weight.shape)
            if shape not in seen:
                seen.add(shape)
                yield shape[1], module
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3 and (shape := tuple(parameter.shape[1:])) not in seen:
                seen.add(shape)
                yield shape[1], partial(_times, other=parameter[0].t())
    for stage in model.config.stages:
        for part in stage.attention.cache_spec():
            if (part.width,) not in seen:
                seen.add((part.width,))
                keys = torch.linspace(-1, 1, BLOCK * part.width).view(BLOCK, part.width).to(model.embed_tokens.weight)
                yield part.width, partial(_batched, other=keys.t())
                yield BLOCK, partial(_batched, other=keys)


def _times(x: Tensor, other: Tensor) -> Tensor:
    return torch.mm(x, other)


def _batched(x: Tensor, other: Tensor) -> Tensor:
    return torch.bmm(x[None], other[None])[0]
