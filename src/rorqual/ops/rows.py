"""How many rows a product needs here, and may have, so that each row is rounded in one way however many there are.

A library chooses its kernels by the number of rows, and where two kernels cut the sum over columns in different places, a row's last
bits say how many others there were. Where that happens is the processor's affair (measured: docs/LOG.md, 'two makes of processor').
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WIDE = 512
"""Columns from which on oneDNN's products of bf16 on AMX cut the sum over them according to the number of rows."""


@dataclass(frozen=True)
class Rows:
    """Rows of a product are filled up to a multiple of `least`; of `WIDE` columns or more, `most` rows are multiplied at once (0: all)."""

    least: int
    most: int = 0

    @property
    def loose(self) -> bool:
        """Products as they come: nothing is promised of their bits."""
        return self.least == 1


LOOSE = Rows(1)
ENOUGH = Rows(16)
"""What has been enough on every processor that was measured, but for wide rows of bf16 on AMX."""


def cancelling(rows: int, out: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [rows, width] and w [out, width] whose products are all rounding: each term of a sum stands in it once more with the other sign. So
    another order of the sum is seen even where the result is rounded to bf16, which hides it in most numbers."""
    generator = torch.Generator().manual_seed(width)
    half = width // 2
    order = torch.randperm(2 * half, generator=generator)
    a = torch.randn(rows, half, generator=generator)
    b = torch.randn(min(out, 64), half, generator=generator)
    x, w = torch.zeros(rows, width), torch.zeros(len(b), width)
    x[:, : 2 * half], w[:, : 2 * half] = torch.cat((a, a), 1)[:, order], torch.cat((b, -b), 1)[:, order]
    return x.to(dtype), w.to(dtype).repeat(-(-out // len(b)), 1)[:out].contiguous()


def in_tiles(product: Callable[[Tensor], Tensor], x: Tensor, most: int, within: int = 0) -> Tensor:
    """A map of rows, x [..., d] -> [..., out], at most `most` rows at a time where they, or those of `within` columns on the way, are `WIDE`."""
    if not most or max(within, x.shape[-1]) < WIDE or x.numel() <= most * x.shape[-1]:
        return product(x)
    parts = x.reshape(-1, x.shape[-1]).split(most)
    return torch.cat([product(part) for part in parts]).unflatten(0, x.shape[:-1])


def bmm(a: Tensor, b: Tensor, most: int = 0) -> Tensor:
    """a [batch, rows, d] b [batch, d, out] -> [batch, rows, out], at most `most` rows at a time where they are `WIDE`."""
    if not most or a.shape[-1] < WIDE or a.shape[1] <= most:
        return torch.bmm(a, b)
    return torch.cat([torch.bmm(part, b) for part in a.split(most, dim=1)], dim=1)
