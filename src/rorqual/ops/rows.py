"""How many rows a product needs, and may have, so that each row is rounded the same way for any number of rows.

A library chooses kernels by the number of rows. If two kernels split the sum over columns at different places, a row's
last bits depend on the number of other rows. Which row counts are affected depends on the processor (docs/log/same-bits.md, 'two
makes of processor').
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WIDE = 512
"""Number of columns from which oneDNN's bf16 products on AMX split sums according to the number of rows."""


@dataclass(frozen=True)
class Rows:
    """Row limits of a product.

    Rows are padded to a multiple of `least`. For `WIDE` columns or more, at most `most` rows are multiplied at once (0:
    all).
    """

    least: int
    most: int = 0

    @property
    def loose(self) -> bool:
        """True if products are not padded and their bits carry no guarantee."""
        return self.least == 1


LOOSE = Rows(1)
ENOUGH = Rows(16)
"""Limits that sufficed on every measured processor, except for wide bf16 rows on AMX."""


def cancelling(rows: int, out: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x [rows, width] and w [out, width] whose products consist only of rounding errors.

    Each term of a sum occurs again with the opposite sign. Another summation order is therefore visible even after
    rounding to bf16, which hides it in most numbers.
    """
    generator = torch.Generator().manual_seed(width)
    half = width // 2
    order = torch.randperm(2 * half, generator=generator)
    a = torch.randn(rows, half, generator=generator)
    b = torch.randn(min(out, 64), half, generator=generator)
    x, w = torch.zeros(rows, width), torch.zeros(len(b), width)
    x[:, : 2 * half], w[:, : 2 * half] = torch.cat((a, a), 1)[:, order], torch.cat((b, -b), 1)[:, order]
    return x.to(dtype), w.to(dtype).repeat(-(-out // len(b)), 1)[:out].contiguous()


def in_tiles(product: Callable[[Tensor], Tensor], x: Tensor, most: int, within: int = 0) -> Tensor:
    """Apply a map of rows x [..., d] -> [..., out] to at most `most` rows at a time if d or `within` is at least `WIDE`.

    `within` is the largest inner width of the map.
    """
    if not most or max(within, x.shape[-1]) < WIDE or x.numel() <= most * x.shape[-1]:
        return product(x)
    parts = x.reshape(-1, x.shape[-1]).split(most)
    return torch.cat([product(part) for part in parts]).unflatten(0, x.shape[:-1])


def bmm(a: Tensor, b: Tensor, most: int = 0) -> Tensor:
    """Compute a [batch, rows, d] @ b [batch, d, out] -> [batch, rows, out], at most `most` rows at a time if d is at least `WIDE`."""
    if not most or a.shape[-1] < WIDE or a.shape[1] <= most:
        return torch.bmm(a, b)
    return torch.cat([torch.bmm(part, b) for part in a.split(most, dim=1)], dim=1)
