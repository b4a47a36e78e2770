"""However an update's tokens are laid out and shared, it has one gradient (contract 5 of docs/explanation/house.md)."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
import torch
from little import documents, loud, packed, padded, same_gradient, tiny, update_of
from torch.nn.functional import logsigmoid

from rorqual.core.errors import ConfigError
from rorqual.model import Decoder
from rorqual.model.decoder import DecoderOutput
from rorqual.ops.losses import token_logprobs
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import compare_with_sampler, open_workers
from rorqual.train.objectives import LossTerm, MultiToken, NextToken, Objective

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


class Preferred(Objective):
    """DPO without a reference: of rows 0 and 1, 2 and 3, ... the first is the better one."""

    kind: Literal["preferred"] = "preferred"
    rows_together: ClassVar[int] = 2

    def weight(self, batch: TrainBatch) -> float:
        return len(batch.tokens) / 2

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        better, worse = (
            (token_logprobs(model.logits(output.hidden), batch.targets) * batch.loss_mask).sum(-1).unflatten(0, (-1, 2))
        ).unbind(1)
        return LossTerm(-logsigmoid(0.05 * (better - worse)).sum())


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_pairs_of_rows_stay_in_one_micro_batch(parts: int) -> None:
    """Of six rows; also beside an objective of single rows, and where trainer and sampler are compared."""
    model, batch = loud(tiny()), padded(documents(1, count=6))
    objectives = [NextToken(), Preferred()]
    whole, other = (update_of(model, objectives, batch, parts=n) for n in (1, parts))
    same_gradient(model, whole, other)
    assert other.loss == pytest.approx(whole.loss, rel=1e-5) and len(batch.split(parts, 2)) == min(parts, 3)
    with open_workers(1) as pool:
        compare_with_sampler(model, objectives, [batch], parts=parts, pool=pool)
    with pytest.raises(ConfigError, match="the batch has 5 rows, but an objective keeps 2 rows together"):
        update_of(model, objectives, padded(documents(1, count=5)), parts=2)
