"""Train only the indexers of sparse attention (DeepSeek-V3.2-Exp, section 2.1.1: the dense warm-up)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from rorqual.core.errors import ConfigError
from rorqual.model.adapter.tuning import SelectedExperts, Shapes, Tune
from rorqual.model.decoder import Decoder


class IndexerTuning(Tune):
    """Train the indexers of all attention layers, including the attention layers of MTP modules. All weights outside the
    indexers are frozen."""

    kind: Literal["indexer"] = "indexer"

    def attach(self, model: Decoder, *, seed: int, experts: SelectedExperts = ()) -> None:
        found = indexers(model)
        model.requires_grad_(False)
        for indexer in found.values():
            indexer.requires_grad_(True)

    def trained_shapes(self, model: Decoder, experts: SelectedExperts = ()) -> Shapes:
        return {
            f"{name}.{part}": tuple(p.shape)
            for name, indexer in indexers(model).items()
            for part, p in indexer.named_parameters()
        }

    @torch.no_grad()
    def merge(self, model: Decoder, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def indexers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the indexers of a model by name. Raises ConfigError if the model has no indexer."""
    found = {name: module for name, module in model.named_modules() if name.endswith(".indexer")}
    if not found:
        raise ConfigError(
            "the model has no indexer",
            where="tune.kind=indexer",
            remedy="Use attention with an indexer, such as kind dsa. `rorqual sparsify RUN OUT` adds indexers to a model with mla.",
        )
    return found
