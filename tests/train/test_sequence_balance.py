"""The sequence-wise balance loss is really in the gradient, and packing does not change it."""

from __future__ import annotations

import torch

from rorqual.model.init import build
from rorqual.ops.moe import sequence_balance
from rorqual.recipes.models import v3_like
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import NextToken, SequenceBalance
from rorqual.train.workers import gradient, workers


def batch(rows: list[list[int]], width: int) -> TrainBatch:
    """Rows of documents of these lengths, the rest padding; the tokens of a document depend on its length alone."""
    shape = (len(rows), width)
    tokens = torch.zeros(shape, dtype=torch.long)
    segments, positions = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape)
    for row, lengths in enumerate(rows):
        start = 0
        for number, length in enumerate(lengths):
            here = slice(start, start + length)
            tokens[row, here] = torch.arange(length) * 7 % 50 + length
            segments[row, here], positions[row, here] = number, torch.arange(length)
            mask[row, start : start + length - 1] = 1.0
            start += length
    return TrainBatch(tokens, tokens.roll(-1, 1), mask, segments, positions)


def test_the_router_feels_it() -> None:
    model = build(v3_like("tiny", vocab_size=64, context=32), seed=0)
    names = [name for name, _ in model.named_parameters()]
    router = names.index("layers.1.ffn.router.gate")
    with workers(1) as pool:
        without = gradient(model, [NextToken()], batch([[9, 5], [12]], 16), parts=1, pool=pool)
        on = gradient(
            model, [NextToken(), SequenceBalance(coefficient=0.1)], batch([[9, 5], [12]], 16), parts=1, pool=pool
        )
    assert (without.grads[router] - on.grads[router]).abs().max() > 1e-6
    assert on.means["loss/sequence_balance"][1] == 3


def test_packed_is_alone_and_micro_batches_do_not_matter() -> None:
    model = build(v3_like("tiny", vocab_size=64, context=32), seed=0)
    terms = [SequenceBalance(coefficient=1.0)]
    with workers(1) as pool:
        packed = gradient(model, terms, batch([[9, 5], [12]], 16), parts=1, pool=pool)
        alone = gradient(model, terms, batch([[9], [5], [12]], 16), parts=3, pool=pool)
    assert abs(packed.loss - alone.loss) < 1e-5
    for one, other in zip(packed.grads, alone.grads):
        assert torch.allclose(one, other, atol=1e-6 + 1e-4 * float(one.abs().max()))


def test_even_scores_cost_one_for_each_sequence() -> None:
    """f and P are 1/E each where all is even, so the sum over E experts of f_i P_i, with V3's factor, is 1."""
    scores = torch.full((6, 4), 0.5)
    chosen = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3], [0, 2], [1, 3]])
    assert torch.isclose(sequence_balance(scores, chosen, torch.tensor([0, 0, 1, 1, 2, 2]), 3), torch.tensor(3.0))
