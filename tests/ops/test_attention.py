"""Plain attention in bf16: products are rounded, and the softmax between them is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rorqual.ops.attention import attend, document_mask


def bits(x: Tensor) -> Tensor:
    """bf16 as numbers that differ by 1 from one value to the next."""
    return x.view(torch.int16).int()


@pytest.mark.parametrize("scale", [0.3, 1.7])
def test_the_softmax_runs_in_fp32(scale: float) -> None:
    """Values that are the identity show the weights: those of float64, rounded once."""
    generator = torch.Generator().manual_seed(0)
    q, k = (1.5 * torch.randn(2, 3, 16, 8, generator=generator) for _ in range(2))
    q, k = q.to(torch.bfloat16), k.to(torch.bfloat16)
    v = torch.eye(16).to(torch.bfloat16).expand(2, 3, 16, 16)
    mask = document_mask(torch.zeros(2, 16, dtype=torch.long))
    found = attend(q, k, v, mask, scale)
    scores = (q @ k.transpose(-1, -2)).double() * scale
    wanted = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(torch.bfloat16)
    assert found.dtype == torch.bfloat16
    seen = wanted > 1e-6  # below, fp32's own rounding begins to show
    assert int((bits(found) - bits(wanted))[seen].abs().max()) <= 1
    assert float((bits(found) != bits(wanted))[seen].float().mean()) < 0.01
