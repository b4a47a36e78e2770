"""One model: cached equals uncached, chunked equals whole, absorbed equals naive, padded equals unpadded. In fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rorqual.engine.cache import KVCache
from rorqual.model import Decoder

LENGTH = 21


def fresh(model: Decoder, slots: int = 1, length: int = LENGTH) -> KVCache:
    return KVCache(model.config, slots, length, "cpu", torch.float32)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 264, (1, LENGTH), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def whole(model: Decoder, ids: Tensor) -> Tensor:
    return model.logits(model(ids).hidden)


@torch.no_grad()
def fed(model: Decoder, ids: Tensor, cuts: list[int], absorb: bool | None = None, start: int = 0) -> Tensor:
    """Logits of `ids` fed to one cache in pieces that end at `cuts`."""
    cache = fresh(model, slots=start + len(ids))
    out, before = [], 0
    for cut in cuts:
        positions = torch.arange(before, cut).expand(len(ids), -1)
        view = cache.view(start, start + len(ids), cut)
        out.append(model.logits(model(ids[:, before:cut], positions, cache=view, absorb=absorb).hidden))
        before = cut
    return torch.cat(out, dim=1)


def close(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_the_models_here_would_show_a_fault(model: Decoder, ids: Tensor) -> None:
    logits = whole(model, ids)
    assert 0.5 < logits.std() < 4
    shifted = model.logits(model(ids, torch.arange(LENGTH).mul(2).unsqueeze(0)).hidden)
    assert (shifted - logits).abs().max() > 1e-2 * logits.abs().max()  # positions matter


@pytest.mark.parametrize("absorb", [False, True, None])
def test_token_by_token_equals_the_whole(model: Decoder, ids: Tensor, absorb: bool | None) -> None:
    close(fed(model, ids, list(range(1, LENGTH + 1)), absorb), whole(model, ids))


@pytest.mark.parametrize("split", range(1, LENGTH))
def test_two_chunks_equal_the_whole_at_every_split(model: Decoder, ids: Tensor, split: int) -> None:
    close(fed(model, ids, [split, LENGTH]), whole(model, ids))


def test_absorbed_equals_naive_in_chunks(mla: Decoder, ids: Tensor) -> None:
    cuts = [5, 6, 13, LENGTH]
    close(fed(mla, ids, cuts, absorb=True), fed(mla, ids, cuts, absorb=False))


def test_a_row_of_a_batch_equals_the_row_alone(model: Decoder) -> None:
    many = torch.randint(0, 264, (7, LENGTH), generator=torch.Generator().manual_seed(5))
    together = fed(model, many, [9, *range(10, LENGTH + 1)], start=3)
    for row in range(7):
        close(together[row : row + 1], whole(model, many[row : row + 1]))


@torch.no_grad()
def test_right_padding_changes_nothing(model: Decoder) -> None:
    lengths = [3, 11, 7]
    many = torch.randint(0, 264, (3, 12), generator=torch.Generator().manual_seed(6))
    cache = fresh(model, slots=3)
    model(many[:, :11], torch.arange(11).expand(3, -1), cache=cache.view(0, 3, 11))  # padded with tokens like any
    last = torch.stack([many[row, length] for row, length in enumerate(lengths)]).unsqueeze(1)
    positions = torch.tensor(lengths).unsqueeze(1)
    logits = model.logits(model(last, positions, cache=cache.view(0, 3, 12)).hidden)
    for row, length in enumerate(lengths):
        close(logits[row], whole(model, many[row : row + 1, : length + 1])[0, -1:])


@torch.no_grad()
def test_growing_and_copying_keep_what_is_cached(model: Decoder, ids: Tensor) -> None:
    cache = fresh(model, slots=3, length=16)
    model(ids[:, :10], torch.arange(10).unsqueeze(0), cache=cache.view(1, 2, 10))
    cache.grow(60, cache.slots)
    assert cache.max_len >= 60
    cache.copy(torch.tensor([0, 2]), torch.tensor([1, 1]), 10)
    expected = whole(model, ids[:, :11])[:, -1:]
    for row in range(3):
        again = model(ids[:, 10:11], torch.tensor([[10]]), cache=cache.view(row, row + 1, 11))
        close(model.logits(again.hidden), expected)
