"""A backend that runs whole steps by one function, as a user writes it: sampling in fp64, row by row, from what a step is given."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from transposed import Transposed

from rorqual.model import Decoder
from rorqual.ops.backends.step import StepFunction, StepInput, StepOutput
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata


class Fused(Transposed):
    name = "fused"

    def compile(self, model: nn.Module) -> StepFunction:
        assert isinstance(model, Decoder) and model.ops is self
        return Whole(model)

    def sample(self, logits: Tensor, asked: SamplingMetadata) -> SamplerOutput:
        raise AssertionError("who fuses a step draws in it")


class Whole:
    def __init__(self, model: Decoder) -> None:
        self.model = model

    def __call__(self, given: StepInput) -> StepOutput:
        self.model.ops.used.append("step")
        output = self.model(given.ids, given.positions, cache=given.cache, inputs_embeds=given.embeds)
        hidden = output.hidden[0]
        experts = torch.stack([one.indices for one in output.routing], 1) if output.routing else None
        drawn = None
        if given.sampling is not None:
            drawn = drawn_plainly(self.model.logits(hidden[given.last]), given.sampling)
        return StepOutput(hidden, experts, drawn)


def drawn_plainly(logits: Tensor, asked: SamplingMetadata) -> SamplerOutput:
    rows = [distribution_of(row, number, asked) for number, row in enumerate(logits.double())]
    every = torch.stack(rows)
    greedy = asked.settings.greedy.flatten().tolist()
    ids = [
        int(row.argmax()) if best else int((row.exp().cumsum(0) <= u * row.exp().sum()).sum())
        for row, best, u in zip(every, greedy, asked.uniform.tolist(), strict=True)
    ]
    chosen = torch.tensor(ids)
    return SamplerOutput(chosen, every.gather(1, chosen.unsqueeze(1)).squeeze(1).float(), every.float())


def distribution_of(x: Tensor, number: int, asked: SamplingMetadata) -> Tensor:
    """Penalties, biases, what may be drawn, temperature, top-k, top-p, min-p."""
    settings, x = asked.settings, x.clone()
    if (penalties := settings.penalties) is not None:
        if number in penalties.rows:
            at = penalties.rows.tolist().index(number)
            assert asked.seen is not None
            said = dict(zip(asked.seen[0][at].tolist(), asked.seen[1][at].tolist()))
            repetition, presence, frequency = (
                float(column[at]) for column in (penalties.repetition, penalties.presence, penalties.frequency)
            )
            for token, times in said.items():
                x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
                x[token] -= frequency * times + presence * (times > 0)
        for row, token, bias in zip(*penalties.biased.tolist(), penalties.bias.tolist()):
            if row == number:
                x[token] += bias
    if asked.allowed is not None and number in asked.allowed[0]:
        mask = asked.allowed[1][asked.allowed[0].tolist().index(number)]
        x[: len(mask)][~torch.from_numpy(np.array(mask))] = -torch.inf
    p = (x / float(settings.temperature[number])).softmax(0)
    if (cut := settings.cut) is not None and number in cut.rows:
        at = cut.rows.tolist().index(number)
        assert not cut.min_p_first[at]
        order = p.argsort(descending=True, stable=True)[: int(cut.top_k[at]) or None]
        before = p[order].cumsum(0) - p[order]
        order = order[before < float(cut.top_p[at]) * p[order].sum()]
        order = order[p[order] >= float(cut.log_min_p[at].exp()) * p[order[0]]]
        p = torch.zeros_like(p).index_copy(0, order, p[order])
    return (p / p.sum()).log()
