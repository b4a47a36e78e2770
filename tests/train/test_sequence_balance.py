"""The sequence-wise balance loss is really in the gradient, and packing does not change it."""

from __future__ import annotations

import torch
from little import documents, loud, packed, padded, relative, same_gradient, tiny, update_of

from rorqual.ops.moe import sequence_balance
from rorqual.train.objectives import NextToken, SequenceBalance


def test_the_router_feels_it() -> None:
    model, batch = loud(tiny()), packed(documents(1))
    router = [name for name, _ in model.named_parameters()].index("layers.1.ffn.router.gate")
    without = update_of(model, (NextToken(),), batch)
    on = update_of(model, (NextToken(), SequenceBalance(coefficient=0.1)), batch)
    assert relative(without.grads[router], on.grads[router]) > 1e-3
    assert on.means["loss/sequence_balance"][1] == len(documents(1))


def test_packed_is_alone_and_micro_batches_do_not_matter() -> None:
    model, samples, terms = loud(tiny()), documents(2), (SequenceBalance(coefficient=1.0),)
    together, alone = update_of(model, terms, packed(samples)), update_of(model, terms, padded(samples), parts=3)
    assert abs(together.loss - alone.loss) < 1e-5
    same_gradient(model, together, alone, 1e-4)


def test_even_scores_cost_one_for_each_sequence() -> None:
    """f and P are 1/E each where all is even, so the sum over E experts of f_i P_i, with V3's factor, is 1."""
    scores = torch.full((6, 4), 0.5)
    chosen = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3], [0, 2], [1, 3]])
    assert torch.isclose(sequence_balance(scores, chosen, torch.tensor([0, 0, 1, 1, 2, 2]), 3), torch.tensor(3.0))
