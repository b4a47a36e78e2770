"""Products in tiles of rows are those products; what probes them shows another order of a sum in every type."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rorqual.ops.row_limits import WIDE, apply_in_tiles, bmm, cancelling_rows


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("width", [WIDE - 4, WIDE, 3 * WIDE])
@pytest.mark.parametrize("shape", [(1,), (32,), (33,), (1, 100), (3, 40)])
def test_a_map_in_tiles_is_the_map(shape: tuple[int, ...], width: int) -> None:
    x, w = some(*shape, width), some(24, width)
    seen: list[int] = []

    def product(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.numel() // width)
        return F.linear(rows, w)

    found = apply_in_tiles(product, x, 32)
    assert found.shape == (*shape, 24)
    torch.testing.assert_close(found, F.linear(x, w), rtol=1e-5, atol=1e-3)
    assert sum(seen) == x.numel() // width
    assert max(seen) <= 32 or width < WIDE
    apply_in_tiles(product, x, 0)
    assert seen[-1] == x.numel() // width, "0 is all at once"


@pytest.mark.parametrize("rows", [1, 32, 33, 100])
def test_a_batched_product_in_tiles_is_that_product(rows: int) -> None:
    a, b = some(3, rows, WIDE), some(3, WIDE, 20)
    torch.testing.assert_close(bmm(a, b, 32), torch.bmm(a, b), rtol=1e-5, atol=1e-3)
    for row in range(0, rows, 32):
        assert torch.equal(bmm(a, b, 32)[:, row : row + 32], torch.bmm(a[:, row : row + 32], b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_that_is_cut_elsewhere_is_another(dtype: torch.dtype) -> None:
    """As a kernel would cut it, at a place where none does: two sums that are added, in fp32, before the result is rounded."""
    x, w = cancelling_rows(16, 64, 1024, dtype)
    x64, w64 = x.double(), w.double()
    assert (x64 @ w64.t()).abs().max() < 1e-9, "every term stands in it with both signs"
    whole = (x.float() @ w.float().t()).to(dtype)
    cut = (x[:, :333].float() @ w[:, :333].float().t() + x[:, 333:].float() @ w[:, 333:].float().t()).to(dtype)
    assert (whole != cut).float().mean() > 0.5
