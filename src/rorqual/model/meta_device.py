"""Build models on the meta device, where tensors have names, shapes and dtypes but no memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rorqual.model.config import ModelConfig
from rorqual.model.decoder import Decoder
from rorqual.ops.backends import TORCH, Backend


class _SkipInitialization(TorchFunctionMode):
    """A torch function mode that skips random initialization.

    On the meta device, the first random draw would import 800 modules of torch's compiler and take 2 s or more.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        # This mode intercepts calls to functions of nn.init, but not the calls that these functions make.
        draws = getattr(func, "__module__", None) == nn.init.__name__
        if draws or func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0] if args else options["tensor"]
        return func(*args, **options)


def build_on_meta_device(config: ModelConfig, ops: Backend = TORCH) -> Decoder:
    """Return a model on the meta device. Call `allocate` to give its tensors memory."""
    with torch.device("meta"), _SkipInitialization():
        return Decoder(config, ops)


def allocate(model: Decoder, device: str) -> Decoder:
    """Give the tensors of a model on the meta device memory on `device`, which is not initialized, and return the model.

    `Module.to_empty` does the same, but it calls `empty_like` on the meta device, which imports torch's compiler and takes 0.5 s.
    """
    return model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
