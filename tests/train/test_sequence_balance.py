"""The sequence-wise balance loss is really in the gradient, and packing does not change it."""

from __future__ import annotations

import torch
from little import documents, loud, packed, padded, relative, same_gradient, tiny, update_of

from rorqual.ops.moe import route, sequence_balance_loss
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


def balance_of_a_sequence(scores: list[list[float]], chosen: list[list[int]]) -> float:
    """Eq. 17-20 for one sequence, without alpha: scores [token][expert], chosen [token] the k experts counted."""
    n_tokens, n_experts, k = len(scores), len(scores[0]), len(chosen[0])
    loss = 0.0
    for i in range(n_experts):
        f = n_experts / (k * n_tokens) * sum(1 for experts in chosen if i in experts)
        p = sum(row[i] / sum(row) for row in scores) / n_tokens
        loss += f * p
    return loss


def test_value_and_gradient_are_those_of_the_equations() -> None:
    generator = torch.Generator().manual_seed(2)
    lengths, experts = [5, 9, 1], 6
    logits = torch.randn(sum(lengths), experts, generator=generator, requires_grad=True)
    routing = route(logits, torch.zeros(experts), k=2)
    sequence = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    loss = sequence_balance_loss(routing.scores, routing.indices, sequence, 3)
    rows = list(zip(routing.scores.detach().split(lengths), routing.indices.split(lengths)))
    expected = sum(balance_of_a_sequence(s.double().tolist(), i.tolist()) for s, i in rows)
    assert abs(float(loss.detach()) - expected) < 1e-5
    loss.backward()
    assert logits.grad is not None and float(logits.grad.abs().max()) > 1e-3
