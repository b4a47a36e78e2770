"""Weights laid out once, as oneDNN's products read them: for engines that nobody trains under.

A plain product brings a weight into oneDNN's blocked layout at every call, which at few rows takes as long as the product itself. Maps that
read the same rows (`joined`: queries, keys and values; gate and up) are laid side by side and read in one product.
Bits: in bf16 the same as without, in the engine's arithmetic (`INVARIANT`, `LOOSE`; under `FAST`, in which texts are scored, packed experts
agree with plain ones within rounding); in fp32 sums over more than some hundred columns are cut in another way, so that an engine with
packed weights and one without differ in their last bits, and each agrees with itself.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rorqual.model import Decoder
from rorqual.model.adapter.lora import LoRALinear
from rorqual.model.attention import Attention
from rorqual.model.ffn import FFN
from rorqual.model.ffn.moe import Experts
from rorqual.ops.layout import laid_out, plain, times
from rorqual.ops.moe import Routing
from rorqual.ops.registry import Ops
from rorqual.ops.rows import in_tiles

SMALLEST = 1 << 16
"""Values of a weight from which on packing pays."""


def can_pack(model: Decoder) -> bool:
    """Whether this torch and this machine have the layout for the model's type."""
    weight = model.embed_tokens.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def packed(model: Decoder, *, take: bool = False) -> Decoder:
    """A tree of modules that shares all parameters with `model` but those of its larger linear maps and experts, which are packed, and of
    joined ones.

    It answers, it cannot be trained. What reads a map's `weight` is given a copy in the plain layout.
    `take`: of `model` nothing is left, and but for a layer at a time no weight is there twice. A table of tokens that is the head, too, is: one
    copy to look up, one to multiply by.
    """
    with torch.inference_mode(False), torch.no_grad():
        clone = _clone(model, take)
    assert isinstance(clone, Decoder)
    if clone.lm_head is None:
        del clone.__dict__["lm_head"]  # where None stands, which would hide the module
        clone.register_module("lm_head", PackedLinear(clone.embed_tokens.weight, None))
    return clone


def _clone(module: nn.Module, take: bool) -> nn.Module:
    if type(module) is nn.Linear and module.weight.numel() >= SMALLEST:
        return PackedLinear(module.weight, module.bias)
    if isinstance(module, Experts) and module.down_proj[0].numel() >= SMALLEST:
        return PackedExperts(module)
    clone = copy.copy(module)
    clone._modules, clone._parameters = dict(module._modules), dict(module._parameters)
    if isinstance(clone, Attention | FFN):
        clone.lay_out()
    children = clone._modules
    for key, parts in getattr(module, "joined", {}).items():
        maps = [children[part] for part in parts]
        if all(type(part) is nn.Linear for part in maps):  # not where an adapter wraps one
            children |= dict.fromkeys(parts) | {key: _joined(maps)}
        del maps
    if take:
        module._modules = {}
    for key in children:
        if (child := children[key]) is not None:
            children[key] = None
            children[key] = _clone(child, take)
            del child
    return clone


def tiled(model: Decoder, most: int) -> Decoder:
    """A tree of modules that shares all parameters with `model`, each of whose maps multiplies at most `most` wide rows at once."""
    with torch.inference_mode(False), torch.no_grad():
        clone = _tiled(model, most)
    assert isinstance(clone, Decoder)
    if clone.lm_head is None:
        clone.__dict__.pop("lm_head", None)
        with torch.device("meta"):
            head = nn.Linear(clone.config.hidden_size, clone.config.vocab_size, bias=False)
        head.weight = clone.embed_tokens.weight
        clone.register_module("lm_head", TiledLinear(head, most))
    return clone


def _tiled(module: nn.Module, most: int) -> nn.Module:
    if type(module) is nn.Linear or isinstance(module, LoRALinear):
        return TiledLinear(module, most)
    clone = copy.copy(module)
    if isinstance(clone, PackedLinear):
        clone.most = most
        return clone
    clone._modules = {key: None if child is None else _tiled(child, most) for key, child in module._modules.items()}
    return clone


class TiledLinear(nn.Module):
    """Another's map, whose parameters it reads, with LoRA's product beside it where it has one; at most `most` wide rows at once
    (`ops.rows`)."""

    def __init__(self, other: nn.Linear | LoRALinear, most: int) -> None:
        super().__init__()
        self._other, self.most = (other,), most  # no module of this one's
        self._within = len(other.lora_A) if isinstance(other, LoRALinear) else 0

    @property
    def weight(self) -> Tensor:
        """[out, in]."""
        return self._other[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return in_tiles(self._other[0].forward, x, self.most, self._within)


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
        self.shape, self.most = tuple(weight.shape), 0
        self._bias = None if bias is None else bias.detach()
        self._packed = laid_out(weight)

    @property
    def weight(self) -> Tensor:
        """[out, in], a copy."""
        return plain(self._packed)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return in_tiles(partial(times, opaque=self._packed, bias=self._bias), x, self.most)


class PackedExperts(nn.Module):
    """`Experts` without gradients, each matrix by itself in oneDNN's layout."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.gate_up = [laid_out(weight) for weight in experts.gate_up_proj]
        self.down = [laid_out(weight) for weight in experts.down_proj]

    def forward(self, x: Tensor, routing: Routing, ops: Ops) -> Tensor:
        """x [tokens, hidden] -> the gated sum of its experts [tokens, hidden]."""
        return ops.experts_packed(x, routing, self.gate_up, self.down)
