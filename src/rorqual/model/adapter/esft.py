"""Expert-specialised fine-tuning (ESFT, Wang et al. 2407.01906): train only the experts that a task uses.

A task's tokens go to few experts. A sample of the data gives each expert's relevance (eq. 7 and 8). This is
the expert's gate value, or its share of the selected experts, averaged over each document's tokens and then over
documents. Each layer selects its most relevant experts until their relevance sums to p. Only their matrices are trained; other experts, routers,
attention and norms are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rorqual.core.config import Count, Part
from rorqual.core.errors import ConfigError
from rorqual.model.adapter.base import Selection, Shapes, Tune
from rorqual.model.decoder import Decoder
from rorqual.model.ffn import FFN
from rorqual.ops.backends import Backend, Experts
from rorqual.ops.moe import Routing


class ESFT(Tune):
    """Expert-specialised fine-tuning.

    `score` measures relevance by `gate` (eq. 7) or by `token`, the share of choices (eq. 8). `p` is the share of a
    layer's relevance to train. `sample` is the number of steps whose batches are read to measure it.

    A layer's relevances are divided by their sum, so p is a share even if gates do not sum to 1.
    """

    kind: Literal["esft"] = "esft"
    score: Literal["gate", "token"] = "token"
    p: Part = 0.2
    sample: Count = 4

    @property
    def selects(self) -> bool:
        return True

    def attach(self, model: Decoder, *, seed: int, experts: Selection = ()) -> None:
        layers = routed(model)
        check_selection(layers, experts)
        model.requires_grad_(False)
        for ffn, chosen in zip(layers.values(), experts, strict=True):
            ffn.experts = TunedExperts(stacked(ffn), chosen)

    def shapes(self, model: Decoder, experts: Selection = ()) -> Shapes:
        layers = routed(model)
        check_selection(layers, experts)
        return {
            f"{name}.experts.{expert}.{part}": tuple(getattr(stacked(ffn), part).shape[1:])
            for (name, ffn), chosen in zip(layers.items(), experts, strict=True)
            for expert in chosen
            for part in PARTS
        }

    @torch.no_grad()
    def merge(self, model: Decoder, tensors: Mapping[str, Tensor]) -> None:
        layers = routed(model)
        for full, tensor in tensors.items():
            name, _, rest = full.partition(".experts.")
            expert, _, part = rest.partition(".")
            getattr(stacked(layers[name]), part)[int(expert)].copy_(tensor)


PARTS = ("gate_up_proj", "down_proj")


def routed(model: Decoder) -> dict[str, FFN]:
    """Return the main model's routing networks by name, in the order of its routing.

    Raises ConfigError if the model has no stacked experts.
    """
    names = {module: name for name, module in model.named_modules()}
    found = {names[ffn]: ffn for ffn in model.routers() if names[ffn].startswith("layers.")}
    if not found or not all(isinstance(getattr(ffn, "experts", None), Experts) for ffn in found.values()):
        raise ConfigError(
            "the model has no routed experts", where="tune.kind=esft", remedy="Use tune.kind=lora or tune.kind=full."
        )
    return found


def stacked(ffn: FFN) -> Experts:
    """Return the experts of a network that `routed` found."""
    assert isinstance(ffn.experts, Experts)
    return ffn.experts


def n_stacked(ffn: FFN) -> int:
    """Return the number of experts of a network that `routed` found."""
    return len(stacked(ffn).down_proj)


def check_selection(layers: Mapping[str, FFN], experts: Selection) -> None:
    """Refuse experts that the model does not have, and selections that do not cover every layer."""
    if len(experts) != len(layers):
        raise ConfigError(
            f"the selection covers {len(experts)} layers, but the model has {len(layers)} with experts",
            where="tune.kind=esft",
        )
    for (name, ffn), chosen in zip(layers.items(), experts):
        n = n_stacked(ffn)
        if not chosen or list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < n:
            raise ConfigError(
                f"experts {list(chosen)} are not distinct ascending numbers below {n}", where=f"tune.kind=esft, {name}"
            )


class TunedExperts(Experts):
    """Frozen stacked experts with trained parameters that share the memory of the chosen experts' slices.

    An optimizer's write to a part changes the stack at once, so generation reads the stack without special handling.
    """

    def __init__(self, experts: Experts, chosen: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj
        self.chosen = tuple(chosen)
        # A tuple keeps them out of the module's parameters and its state_dict.
        self._parts = tuple(
            nn.Parameter(stack.data[e]) for e in self.chosen for stack in (experts.gate_up_proj, experts.down_proj)
        )

    def parts(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield `NUMBER.gate_up_proj` [2 i, d] and `NUMBER.down_proj` [d, i] of each chosen expert."""
        names = (f"{expert}.{part}" for expert in self.chosen for part in PARTS)
        yield from zip(names, self._parts, strict=True)

    def forward(self, x: Tensor, routing: Routing, ops: Backend) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x, routing, ops)
        return ops.experts_tuned(x, routing, self.gate_up_proj, self.down_proj, self.chosen, self._parts)


# ---- expert selection


@torch.no_grad()
def relevance(
    routing: Sequence[Routing], document: Tensor, score: Literal["gate", "token"], documents: int
) -> list[Tensor]:
    """Return each layer's relevance per expert [experts] in fp64, summed over documents.

    A document contributes the mean over its tokens of each expert's gate or choices. `routing` holds each layer's
    routing of n tokens. document [n] numbers documents from 0, with -1 on padding; documents must be whole. `SKIP`
    counts for no expert.
    """
    real = document >= 0
    number = document[real]
    lengths = torch.bincount(number, minlength=documents).double()
    weight = 1 / lengths[number]  # [tokens]
    found = []
    for one in routing:
        indices = one.indices[real]
        part = one.weights[real].double() if score == "gate" else torch.full_like(indices, 1, dtype=torch.float64)
        part = part / part.sum(-1, keepdim=True) if score == "token" else part
        each = (part * weight.unsqueeze(-1)).masked_fill(indices < 0, 0).flatten()
        index = indices.clamp_min(0).flatten()
        found.append(torch.zeros(one.scores.shape[-1]).double().index_add(0, index.cpu(), each.cpu()))
    return found


def select(scores: Sequence[Tensor], p: float) -> Selection:
    """Select in each layer the fewest experts whose shares of the layer's relevance reach p, most relevant first.

    Ties go to the lower number.
    """
    chosen = []
    for score in scores:
        share = (score / score.sum()).tolist()
        order = sorted(range(len(share)), key=lambda e: (-share[e], e))
        total, taken = 0.0, []
        for expert in order:
            if total >= p - 1e-12:
                break
            total += share[expert]
            taken.append(expert)
        chosen.append(tuple(sorted(taken)))
    return tuple(chosen)
