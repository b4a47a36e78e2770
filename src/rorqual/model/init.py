"""Weight initialization as in DeepSeek-V3 (report section 4.2).

Weight matrices are drawn from a normal distribution with standard deviation `initializer_range`. Norm weights are 1 and biases
are 0.
"""

from __future__ import annotations

import torch
from torch import nn

from rorqual.model.config import ModelConfig
from rorqual.model.decoder import Decoder
from rorqual.ops.backends import TORCH, Backend


def init_weights(model: nn.Module, std: float, seed: int) -> None:
    """Initialize every parameter of `model` in place.

    One random generator fills the parameters in the order of their names, so that `seed` determines all weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.dim() > 1:
            parameter.data.copy_(torch.empty_like(parameter, device="cpu").normal_(0.0, std, generator=generator))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)


def build(config: ModelConfig, *, seed: int, ops: Backend = TORCH) -> Decoder:
    """Return a model with newly initialized fp32 weights on the CPU, in evaluation mode."""
    model = Decoder(config, ops)
    init_weights(model, config.initializer_range, seed)
    return model.eval()
