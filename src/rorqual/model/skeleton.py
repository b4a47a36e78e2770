"""A model without numbers: names, shapes and types of its tensors, for who fills or only counts them."""

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
    """Random numbers are not drawn. On the meta device the first one would import 800 modules of torch's compiler: 2 s and more."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        # nn.init's own functions are seen as they are called, and not what they call.
        draws = getattr(func, "__module__", None) == nn.init.__name__
        if draws or func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def skeleton(config: ModelConfig, ops: Backend = TORCH) -> Decoder:
    """The model on the meta device: it takes no memory, and `to_empty` gives it some."""
    with torch.device("meta"), _Unfilled():
        return Decoder(config, ops)
