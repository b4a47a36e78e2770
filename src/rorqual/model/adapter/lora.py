"""LoRA (Hu et al. 2021): a frozen matrix W of a linear map, and beside it a trained product of two narrow ones.

y = W x + s B A x with A [r, in], B [out, r] and s = alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023). B begins at zero, so that
nothing changes before the first step. Merged, in fp32 and then rounded once to W's type: W + s (B A).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from rorqual.core.config import Count, Positive
from rorqual.core.errors import ConfigError, nearest
from rorqual.model.adapter.base import Selection, Shapes, Tune
from rorqual.model.decoder import Decoder
from rorqual.ops.layer import LinearMap

ALL_LINEAR = "all-linear"


class LoRA(Tune):
    """`targets`: linear maps of the main layers, by our names: the last word (`q_proj`), more of them (`ffn.gate_proj`), a whole name
    (`layers.3.attention.o_proj`), or `all-linear`. Routed experts, which are stacked, are not among them; nor are the modules
    that predict further tokens."""

    kind: Literal["lora"] = "lora"
    r: Count = 8
    alpha: Positive = 16.0
    targets: tuple[str, ...] = Field((ALL_LINEAR,), min_length=1)
    use_rslora: bool = False

    @field_validator("targets", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def scale(self) -> float:
        """s, by which B A is multiplied."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def attach(self, model: Decoder, *, seed: int, experts: Selection = ()) -> None:
        found = self.find(model)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for name, linear in sorted(found.items()):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, LoRALinear(linear, self.r, self.scale, generator))

    def find(self, model: Decoder) -> dict[str, nn.Linear]:
        """The linear maps that `targets` name; one that names none is refused with the nearest that does."""
        known = dict(linears(model))
        lost = [t for t in self.targets if t != ALL_LINEAR and not any(_named(name, t) for name in known)]
        if lost:
            last = {name.rpartition(".")[2] for name in known}
            raise ConfigError(
                f"no linear map of this model is called '{lost[0]}'",
                where="tune.targets",
                remedy=f"{nearest(lost[0], last)} All that can be named: {', '.join(sorted(last))}, {ALL_LINEAR}.",
            )
        found = {n: m for n, m in known.items() if any(t == ALL_LINEAR or _named(n, t) for t in self.targets)}
        # Beyond the rank of the largest map a product is wider than what it stands beside, and may take all the memory there is.
        most = max(min(m.in_features, m.out_features) for m in found.values())
        if self.r > most:
            raise ConfigError(
                f"r={self.r}, and none of these maps has a rank above {most}",
                where="tune.r",
                remedy=f"Use {most} or less; 8 to 64 is usual.",
            )
        return found

    def shapes(self, model: Decoder, experts: Selection = ()) -> Shapes:
        found: Shapes = {}
        for name, linear in self.find(model).items():
            found[f"{name}.lora_A"] = (self.r, linear.in_features)
            found[f"{name}.lora_B"] = (linear.out_features, self.r)
        return found

    @torch.no_grad()
    def merge(self, model: Decoder, tensors: Mapping[str, Tensor]) -> None:
        for name, linear in self.find(model).items():
            a, b = (tensors[f"{name}.lora_{letter}"].to(linear.weight.device, torch.float32) for letter in "AB")
            linear.weight.copy_(merged(linear.weight, a, b, self.scale))


@torch.no_grad()
def whole_weights(model: Decoder) -> dict[str, Tensor]:
    """The weights of `model` under the names that they have without an adapter, which is merged into them."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith((".lora_A", ".lora_B"))}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            state[f"{name}.weight"] = module.weight
    return state


def linears(model: Decoder) -> Iterator[tuple[str, nn.Linear]]:
    """Linear maps of the main layers by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("layers."):
            yield name, module


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s (B A): weight [out, in], a [r, in], b [out, r] -> [out, in] in fp32, under autocast too."""
    with torch.autocast(weight.device.type, enabled=False):
        return weight.float() + scale * (b.float() @ a.float())


class LoRALinear(LinearMap):
    """A linear map with a product beside it; `weight` and `bias` are those of the map it stands for, frozen, under their old names.

    Whoever reads `weight` (latent attention does where it absorbs a map) is given the merged one, made there and then.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(self, linear: nn.Linear, r: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        # The very parameters, not copies; not by register_parameter, for `weight` is a property here.
        self._parameters |= {name: linear._parameters[name] for name in ("weight", "bias")}
        self.scale, self.inner = scale, r
        bound = 1 / math.sqrt(linear.in_features)  # Kaiming with a = sqrt(5), as a linear map's own
        a = torch.empty(r, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(linear.weight))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, r))

    @property
    def weight(self) -> Tensor:
        """W + s (B A) [out, in]."""
        base = self._parameters["weight"]
        assert base is not None
        return merged(base, self.lora_A, self.lora_B, self.scale).to(base.dtype)

    def forward(self, x: Tensor) -> Tensor:
        base = self._parameters["weight"]
        assert base is not None
        beside = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return F.linear(x, base, self._parameters["bias"]) + self.scale * beside
