"""One model: what is fed to a paged cache, in whatever pieces and blocks, is what one forward says. In fp32.

Every kind at every split: tests/conformance. To the last bit: test_same_bits.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rorqual.model import Decoder
from rorqual.ops.paged import BLOCK

LENGTH = BLOCK + 21


def some(count: int, length: int = LENGTH) -> list[Tensor]:
    return list(torch.randint(0, 264, (count, length), generator=torch.Generator().manual_seed(4)))


@torch.no_grad()
def whole(model: Decoder, ids: Tensor) -> Tensor:
    return model.logits(model(ids.unsqueeze(0)).hidden)[0]


def test_the_models_here_would_show_a_fault(model: Decoder) -> None:
    (ids,) = some(1)
    logits = whole(model, ids)
    assert 0.5 < logits.std() < 4
    shifted = model.logits(model(ids.unsqueeze(0), torch.arange(LENGTH).mul(2).unsqueeze(0)).hidden)
    assert (shifted - logits).abs().max() > 1e-2 * logits.abs().max()  # positions matter
