"""Limits on the number of rows of a matrix product. With suitable row limits, the rounding of one row does not depend on other
rows.

Libraries choose the kernel of a matrix product by the number of rows. If two kernels split the sum over columns differently,
the last bits of a row depend on the number of rows. The affected row counts depend on the processor (docs/LOG.md, 'two makes of
processor').
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WIDE = 512
"""Number of columns from which on oneDNN's bf16 products on AMX split sums over columns differently for different row
counts."""


@dataclass(frozen=True)
class RowLimits:
    """Limits on the number of rows of matrix products, called row limits.

    The number of rows of a matrix product is padded to a multiple of `least`. Matrix products with at least `WIDE` columns are
    split into parts of at most `most` rows. A `most` of 0 means no limit.
    """

    least: int
    most: int = 0


LOOSE = RowLimits(1)
ENOUGH = RowLimits(16)
"""Row limits that are sufficient on every measured processor, except for wide bf16 products on AMX."""


def cancelling_rows(rows: int, out: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x [rows, width] and w [out, width] such that x w^T consists only of rounding errors.

    Every term of the sum over columns occurs twice with opposite signs, so the exact sum is 0. A change of the summation order
    therefore changes the computed sum visibly. With plain random numbers, rounding to bf16 would hide most changes of the
    summation order.
    """
    generator = torch.Generator().manual_seed(width)
    half = width // 2
    order = torch.randperm(2 * half, generator=generator)
    a = torch.randn(rows, half, generator=generator)
    b = torch.randn(min(out, 64), half, generator=generator)
    x, w = torch.zeros(rows, width), torch.zeros(len(b), width)
    x[:, : 2 * half], w[:, : 2 * half] = torch.cat((a, a), 1)[:, order], torch.cat((b, -b), 1)[:, order]
    return x.to(dtype), w.to(dtype).repeat(-(-out // len(b)), 1)[:out].contiguous()


def apply_in_tiles(product: Callable[[Tensor], Tensor], x: Tensor, most: int, within: int = 0) -> Tensor:
    """Apply `product`, which maps [..., d] to [..., out], to `x`.

    If d or `within` is at least `WIDE`, `product` is applied to at most `most` rows at a time (0: no limit). `within` is
    the largest number of columns of a matrix product inside `product`.
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
