"""A backend that runs whole steps by one function, as a user writes it: it also draws, from what a step is given."""

from __future__ import annotations

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
            drawn = super(Fused, self.model.ops).sample(self.model.logits(hidden[given.last]), given.sampling)
        return StepOutput(hidden, experts, drawn)
