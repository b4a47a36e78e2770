"""Expert-specialised fine-tuning (ESFT, Wang et al. 2407.01906): train only the experts that a task uses.

The router sends most tokens of a given task to a few experts. An expert's relevance is the expert's mean gate value (eq. 7) or
the expert's share of the routed choices (eq. 8). An expert's relevance is averaged over the tokens of each document and then
over a sample of documents. In each layer, the most relevant experts are selected until the relevances of the selected experts
sum to p. The matrices of the selected experts are trained, and all other parameters are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rorqual.core.config import Count, Part
from rorqual.core.errors import ConfigError
from rorqual.model.adapter.tuning import SelectedExperts, Shapes, Tune
from rorqual.model.decoder import Decoder
from rorqual.model.ffn import FFN
from rorqual.ops.backends import Backend, Experts
from rorqual.ops.moe import Routing


class ESFT(Tune):
    """Expert-specialised fine-tuning.

    `score` is the measure of an expert's relevance: `gate` is the expert's mean gate value (eq. 7), and `token` is the expert's
    share of the routed choices (eq. 8). In each layer, the selected experts together have at least a share `p` of the total
    relevance of all experts. `sample` is the number of training steps whose batches are used to measure the experts' relevance.

    The relevances of experts are divided by the sum of relevances in their layer, so `p` is a share even if gates do not sum to
    1.
    """

    kind: Literal["esft"] = "esft"
    score: Literal["gate", "token"] = "token"
    p: Part = 0.2
    sample: Count = 4

    def attach(self, model: Decoder, *, seed: int, experts: SelectedExperts = ()) -> None:
        layers = routing_networks(model)
        model.requires_grad_(False)
        for ffn, chosen in zip(layers.values(), experts, strict=True):
            ffn.experts = TunedExperts(experts_of(ffn), chosen)

    def trained_shapes(self, model: Decoder, experts: SelectedExperts = ()) -> Shapes:
        layers = routing_networks(model)
        return {
            f"{name}.experts.{expert}.{part}": tuple(getattr(experts_of(ffn), part).shape[1:])
            for (name, ffn), chosen in zip(layers.items(), experts, strict=True)
            for expert in chosen
            for part in PARTS
        }

    @torch.no_grad()
    def merge(self, model: Decoder, tensors: Mapping[str, Tensor]) -> None:
        layers = routing_networks(model)
        for full, tensor in tensors.items():
            name, _, rest = full.partition(".experts.")
            expert, _, part = rest.partition(".")
            getattr(experts_of(layers[name]), part)[int(expert)].copy_(tensor)


PARTS = ("gate_up_proj", "down_proj")


def routing_networks(model: Decoder) -> dict[str, FFN]:
    """Return the feed-forward networks of the main model that route tokens, by name, in the order of `DecoderOutput.routing`.

    Raises ConfigError if the model has no stacked experts.
    """
    names = {module: name for name, module in model.named_modules()}
    found = {names[ffn]: ffn for ffn in model.routing_ffns() if names[ffn].startswith("layers.")}
    if not found or not all(isinstance(getattr(ffn, "experts", None), Experts) for ffn in found.values()):
        raise ConfigError(
            "the model has no routed experts", where="tune.kind=esft", remedy="Use tune.kind=lora or tune.kind=full."
        )
    return found


def experts_of(ffn: FFN) -> Experts:
    """Return the stacked experts of a feed-forward network from `routing_networks`."""
    assert isinstance(ffn.experts, Experts)
    return ffn.experts


def n_stacked_experts(ffn: FFN) -> int:
    """Return the number of stacked experts of a feed-forward network from `routing_networks`."""
    return len(experts_of(ffn).down_proj)


class TunedExperts(Experts):
    """The stacked experts of a feed-forward network. Only the experts with the indices `chosen` are trained.

    The trained parameters share memory with slices of the stacked expert tensors. An optimizer step therefore updates the
    stacked expert tensors in place, and generation needs no special handling of the trained experts.
    """

    def __init__(self, experts: Experts, chosen: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj
        self.chosen = tuple(chosen)
        # nn.Module does not register parameters held in a tuple, so these parameters stay out of the state_dict.
        self._parts = tuple(
            nn.Parameter(stack.detach()[e]) for e in self.chosen for stack in (experts.gate_up_proj, experts.down_proj)
        )

    def trained_slices(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and parameters of each chosen expert's matrices: `EXPERT.gate_up_proj` [2 i, d] and
        `EXPERT.down_proj` [d, i]."""
        names = (f"{expert}.{part}" for expert in self.chosen for part in PARTS)
        yield from zip(names, self._parts, strict=True)

    def forward(self, x: Tensor, routing: Routing, ops: Backend) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x, routing, ops)
        return ops.experts_tuned(x, routing, self.gate_up_proj, self.down_proj, self.chosen, self._parts)


# ---- expert selection


@torch.no_grad()
def expert_relevance(
    routing: Sequence[Routing], document: Tensor, score: Literal["gate", "token"], documents: int
) -> list[Tensor]:
    """Return, for each layer, the relevance of each expert [experts] in fp64, summed over documents.

    Each document contributes one relevance per expert. With `gate`, the relevance is the expert's mean gate value over the
    document's tokens. With `token`, the relevance is the expert's share of the router's choices for the document's tokens.
    `routing` holds the routing of n tokens in each layer. `document` [n] holds the document number of each token, or -1 for
    padding. A document must be passed whole, in a single call. A `SKIP` choice (no expert) is not counted for any expert.
    """
    is_token = document >= 0
    number = document[is_token]
    lengths = torch.bincount(number, minlength=documents).double()
    weight = 1 / lengths[number]  # [tokens]
    relevances = []
    for layer in routing:
        indices = layer.indices[is_token]
        values = (
            layer.weights[is_token].double() if score == "gate" else torch.full_like(indices, 1, dtype=torch.float64)
        )
        values = values / values.sum(-1, keepdim=True) if score == "token" else values
        weighted = (values * weight.unsqueeze(-1)).masked_fill(indices < 0, 0).flatten()
        index = indices.clamp_min(0).flatten()
        relevances.append(torch.zeros(layer.scores.shape[-1]).double().index_add(0, index.cpu(), weighted.cpu()))
    return relevances


def select_experts(scores: Sequence[Tensor], p: float) -> SelectedExperts:
    """Select the fewest experts of each layer whose shares of the layer's total relevance sum to at least `p`.

    Experts are selected by descending relevance. Between experts of equal relevance, the lower expert number is selected first.
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
