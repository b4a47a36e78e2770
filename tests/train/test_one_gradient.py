"""However an update's tokens are laid out and shared, it has one gradient (contract 5 of docs/explanation/house.md)."""

from __future__ import annotations

import pytest
import torch
from little import documents, loud, packed, padded, same_gradient, tiny, update_of

from rorqual.train.objectives import MultiToken, NextToken, Objective

SUPERVISED: tuple[Objective, ...] = (NextToken(), MultiToken())


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_supervised(layout: str, parts: int) -> None:
    model, samples = loud(tiny()), documents(1)
    whole = update_of(model, SUPERVISED, padded(samples))
    batch = padded(samples) if layout == "padded" else packed(samples)
    other = update_of(model, SUPERVISED, batch, parts=parts)
    same_gradient(model, whole, other)
    assert other.loss == pytest.approx(whole.loss, rel=1e-5)
    assert all(float(g.abs().max()) > 0 for g in whole.grads), "a gradient that is zero shows nothing"


@pytest.mark.parametrize("parts", [2, 3])
def test_threads_change_no_bit(parts: int) -> None:
    model, samples = loud(tiny()), documents(3, count=9)
    one, two = (update_of(model, SUPERVISED, padded(samples), parts=parts, threads=n) for n in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.grads, two.grads, strict=True))
    assert one.loss == two.loss and one.means == two.means
