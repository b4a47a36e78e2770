"""Models on the meta device: names, shapes and types of tensors without values, to be filled or only counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rorqual.model.config import ModelConfig
from rorqual.model.decoder import Decoder
from rorqual.ops.backends import TORCH, Backend


class _Unfilled(TorchFunctionMode):
    """Skip random initialisation.

    On the meta device the first random draw would import 800 modules of torch's compiler, which takes 2 s or more.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        # This mode sees calls to nn.init's functions, not the calls that those make.
        draws = getattr(func, "__module__", None) == nn.init.__name__
        if draws or func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def skeleton(config: ModelConfig, ops: Backend = TORCH) -> Decoder:
    """Return the model on the meta device, without memory. `to_empty` allocates its tensors."""
    with torch.device("meta"), _Unfilled():
        return Decoder(config, ops)
