"""Weights laid out once, as oneDNN's products read them: for engines that nobody trains under.

A plain product brings a weight into oneDNN's blocked layout at every call, which at few rows takes as long as the product itself. Maps that
read the same rows (`joined`: queries, keys and values; gate and up) are laid side by side and read in one product.
Bits: in bf16 the same as without; in fp32 sums over more than some hundred columns are cut in another way, so that an engine with packed
weights and one without differ in their last bits, and each agrees with itself.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rorqual.model import Decoder

SMALLEST = 1 << 16
"""Values of a weight from which on packing pays."""
ROWS = 16
"""Rows of a product that the layout is chosen for."""


def can_pack(model: Decoder) -> bool:
    """Whether this torch and this machine have the layout for the model's type."""
    weight = model.embed_tokens.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def packed(model: Decoder) -> Decoder:
    """A tree of modules that shares all parameters with `model` but those of its larger linear maps, which are packed, and of joined ones.

    It answers, it cannot be trained. What reads a map's `weight` is given a copy in the plain layout.
    """
    clone = _clone(model)
    assert isinstance(clone, Decoder)
    if clone.lm_head is None:
        del clone.__dict__["lm_head"]  # where None stands, which would hide the module
        clone.register_module("lm_head", PackedLinear(model.embed_tokens.weight, None))
    return clone


def _clone(module: nn.Module, name: str = "") -> nn.Module:
    # Latent attention reads the matrix of kv_b_proj itself, in every step.
    if type(module) is nn.Linear and module.weight.numel() >= SMALLEST and name != "kv_b_proj":
        return PackedLinear(module.weight, module.bias)
    clone, children = copy.copy(module), dict(module._modules)
    for key, parts in getattr(module, "joined", {}).items():
        maps = [children[part] for part in parts]
        if all(type(part) is nn.Linear for part in maps):  # not where an adapter wraps one
            children |= dict.fromkeys(parts) | {key: _joined(maps)}
    clone._modules = {key: None if child is None else _clone(child, key) for key, child in children.items()}
    return clone


def _joined(maps: list[Any]) -> nn.Linear:
    """One map [sum of out, in] whose outputs are those of `maps`, side by side."""
    weight = torch.cat([part.weight.detach() for part in maps])
    with torch.device("meta"):
        joined = nn.Linear(weight.shape[1], weight.shape[0], bias=maps[0].bias is not None)
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if maps[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([part.bias.detach() for part in maps]), requires_grad=False)
    return joined


class PackedLinear(nn.Module):
    """y = x W^T + b without gradients; weight [out, in] is kept in oneDNN's layout alone."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        self._bias = None if bias is None else bias.detach()
        self.load(weight)

    def load(self, weight: Tensor) -> None:
        """Other values, of the same shape."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)

    @property
    def weight(self) -> Tensor:
        """[out, in], a copy."""
        dense: Tensor = self._packed.to_dense()
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", _NOTHING, "")
        return y


_NOTHING: list[Any] = []
