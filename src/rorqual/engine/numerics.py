"""Configure a backend for an engine's model with `Backend.fit`. Call `Backend.fit` again when the model's modules
change."""

from __future__ import annotations

import torch
from torch import nn

from rorqual.model import Decoder
from rorqual.ops.backends import Backend, Fit
from rorqual.ops.paged import BLOCK


class NumericsProbe:
    """Configures a backend for a model.

    `renew` configures the backend again if the modules changed, for example if an adapter was attached.
    """

    def __init__(self, model: Decoder, backend: Backend) -> None:
        self._model, self._backend = model, backend
        self._max_threads = torch.get_num_threads()
        self._parts: tuple[object, ...] = ()
        self.fit: Fit
        self.renew()

    def renew(self) -> None:
        """Configure the backend again if the modules or parameter shapes have changed."""
        if (parts := _parts(self._model)) != self._parts:
            specs = (attention.cache_spec() for attention in self._model.config.attentions)
            shapes = [(part.width, BLOCK // part.every) for spec in specs for part in spec]
            self.fit = self._backend.fit(self._model, cache_shapes=shapes, threads=self._max_threads)
            self._parts = parts


def _parts(model: nn.Module) -> tuple[object, ...]:
    """Return the module types and parameter shapes. Both determine the shapes of all matrix products."""
    return tuple(
        (type(module), *(p.shape for p in module._parameters.values() if p is not None)) for module in model.modules()
    )
