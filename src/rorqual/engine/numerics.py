"""Which backend runs an engine's steps, and how, as long as its model is made of the same parts."""

from __future__ import annotations

import torch
from torch import nn

from rorqual.model import Decoder
from rorqual.ops.backends import Backend, Fit
from rorqual.ops.paged import BLOCK


class NumericsProbe:
    """Fits a backend to a model, and again where the model is made of other parts: where an adapter was attached, or taken off."""

    def __init__(self, model: Decoder, backend: Backend) -> None:
        self._model, self._backend = model, backend
        self._most = torch.get_num_threads()
        self._parts: tuple[object, ...] = ()
        self.fit: Fit
        self.renew()

    def renew(self) -> None:
        """Look what the model is made of now."""
        if (parts := _parts(self._model)) != self._parts:
            specs = (attention.cache_spec() for attention in self._model.config.attentions)
            shapes = [(part.width, BLOCK // part.every) for spec in specs for part in spec]
            self.fit = self._backend.fit(self._model, cache_shapes=shapes, threads=self._most)
            self._parts = parts


def _parts(model: nn.Module) -> tuple[object, ...]:
    """What the shapes of a model's products follow from: another where they are others."""
    return tuple(
        (type(module), *(p.shape for p in module._parameters.values() if p is not None)) for module in model.modules()
    )
