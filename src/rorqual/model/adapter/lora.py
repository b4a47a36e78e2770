"""LoRA (Hu et al. 2021): a frozen linear map W plus a trained product of two low-rank matrices.

y = W x + s B A x, with A [r, in] and B [out, r]. The factor s is alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023).
B starts at zero, so attaching an adapter does not change the model. Merging an adapter computes W + s (B A) in fp32 and rounds
once to the dtype of W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from rorqual.core.config import Count, Positive
from rorqual.core.errors import ConfigError, suggest_name
from rorqual.model.adapter.tuning import SelectedExperts, Shapes, Tune
from rorqual.model.decoder import Decoder
from rorqual.ops.layer import LinearMap

ALL_LINEAR = "all-linear"


class LoRA(Tune):
    """LoRA fine-tuning of linear maps in the layers of the main model.

    `targets` lists linear maps by Rorqual's names: the end of the name (`q_proj`, `ffn.gate_proj`), the full name
    (`layers.3.attention.o_proj`), or `all-linear` for all linear maps. Stacked routed experts and MTP modules cannot be
    targets.
    """

    kind: Literal["lora"] = "lora"
    r: Count = 8
    alpha: Positive = 16.0
    targets: tuple[str, ...] = Field((ALL_LINEAR,), min_length=1)
    use_rslora: bool = False

    @field_validator("targets", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def scale(self) -> float:
        """The factor s of the low-rank product B A."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def attach(self, model: Decoder, *, seed: int, experts: SelectedExperts = ()) -> None:
        found = self.find_targets(model)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for name, linear in sorted(found.items()):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, LoRALinear(linear, self.r, self.scale, generator))

    def find_targets(self, model: Decoder) -> dict[str, nn.Linear]:
        """Return the linear maps that match `targets`, by name. Raises ConfigError if a target matches no linear map."""
        known = dict(named_linear_maps(model))
        unmatched = [t for t in self.targets if t != ALL_LINEAR and not any(_matches(name, t) for name in known)]
        if unmatched:
            last = {name.rpartition(".")[2] for name in known}
            raise ConfigError(
                f"target '{unmatched[0]}' matches no linear map of this model",
                where="tune.targets",
                remedy=f"{suggest_name(unmatched[0], last)} Valid targets: {', '.join(sorted(last))}, {ALL_LINEAR}.",
            )
        return {n: m for n, m in known.items() if any(t == ALL_LINEAR or _matches(n, t) for t in self.targets)}

    def trained_shapes(self, model: Decoder, experts: SelectedExperts = ()) -> Shapes:
        found: Shapes = {}
        for name, linear in self.find_targets(model).items():
            found[f"{name}.lora_A"] = (self.r, linear.in_features)
            found[f"{name}.lora_B"] = (linear.out_features, self.r)
        return found

    @torch.no_grad()
    def merge(self, model: Decoder, tensors: Mapping[str, Tensor]) -> None:
        for name, linear in self.find_targets(model).items():
            a, b = (tensors[f"{name}.lora_{letter}"].to(linear.weight.device, torch.float32) for letter in "AB")
            linear.weight.copy_(merge_weight(linear.weight, a, b, self.scale))


@torch.no_grad()
def merged_weights(model: Decoder) -> dict[str, Tensor]:
    """Return the state_dict of `model` with its LoRA adapter merged, under the tensor names of the base model."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith((".lora_A", ".lora_B"))}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            state[f"{name}.weight"] = module.weight
    return state


def named_linear_maps(model: Decoder) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear maps in the layers of the main model, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("layers."):
            yield name, module


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def merge_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Compute W + s (B A) [out, in] in fp32, even under autocast. weight is [out, in], a [r, in] and b [out, r]."""
    with torch.autocast(weight.device.type, enabled=False):
        return weight.float() + scale * (b.float() @ a.float())


class LoRALinear(LinearMap):
    """A linear map plus a trained LoRA product. The wrapped map's `weight` and `bias` are frozen and keep their names.

    Reading `weight` computes and returns the merged weight, which MLA needs for the absorbed form.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(self, linear: nn.Linear, r: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        # Share the parameters with the wrapped map. register_parameter would fail, because `weight` is a property.
        self._parameters |= {name: linear._parameters[name] for name in ("weight", "bias")}
        self.scale, self.inner = scale, r
        bound = 1 / math.sqrt(linear.in_features)  # Kaiming uniform with a = sqrt(5), as in nn.Linear
        a = torch.empty(r, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(linear.weight))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, r))

    @property
    def weight(self) -> Tensor:
        """The merged weight W + s (B A) [out, in]."""
        base = self._parameters["weight"]
        assert base is not None
        return merge_weight(base, self.lora_A, self.lora_B, self.scale).to(base.dtype)

    def forward(self, x: Tensor) -> Tensor:
        base = self._parameters["weight"]
        assert base is not None
        low_rank = self.linear(self.linear(x, self.lora_A), self.lora_B)
        return self.linear(x, base, self._parameters["bias"]) + self.scale * low_rank
