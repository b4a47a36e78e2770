"""Mixture of experts: the router of DeepSeek-V3 (report eq. 12-16) and the experts' sum, plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Literal["sigmoid", "softmax"]
SKIP = -1
"""In place of an expert's number: none serves the token there."""
CHOOSE = -2
"""In place of an expert's number that is replayed: the router chooses for itself."""


@dataclass(frozen=True)
class Routing:
    """Where tokens went in one layer.

    indices [tokens, k] the experts used, `SKIP` for none, numbers beyond the experts' for identity experts; weights [tokens, k] their gates
    (with gradient); scores [tokens, choices] the unbiased affinities; own [tokens, k] what this forward would have chosen itself (equal to
    `indices` unless replayed); gap [tokens] how far, in biased score, the chosen set lies below a best one (0 where it is the router's own).
    """

    indices: Tensor
    weights: Tensor
    scores: Tensor
    own: Tensor
    gap: Tensor
    skips: bool = True
    """False where `indices` hold nothing but experts with weights: kernels then need no mask."""

    def served(self, n_experts: int) -> Routing:
        """The same for kernels, which know experts 0 to `n_experts` - 1 alone: expert 0 with a gate of zero stands in for the rest."""
        if not self.skips:
            return self
        absent = (self.indices < 0) | (self.indices >= n_experts)
        return replace(
            self, indices=self.indices.masked_fill(absent, 0), weights=self.weights.masked_fill(absent, 0), skips=False
        )

    def returned(self, n_experts: int) -> Tensor:
        """The summed gates of identity experts, which are numbered from `n_experts` on: [tokens, 1]."""
        return self.weights.masked_fill(self.indices < n_experts, 0).sum(-1, keepdim=True)


def router_logits(x: Tensor, gate: Tensor) -> Tensor:
    """x [tokens, d], gate [experts, d] of any type -> logits [tokens, experts], computed in fp32.

    Autocast is off here: it would cast the product back to bf16, and tokens would choose other experts.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), gate.float())


def affinity(logits: Tensor, score: Score, sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
    """Router logits [tokens, experts] (fp32) to affinities."""
    return sigmoid(logits) if score == "sigmoid" else logits.softmax(-1)


def _merit(groups: Tensor, group_by: Literal["top2", "max"]) -> Tensor:
    """groups [tokens, groups, experts per group] -> [tokens, groups]."""
    return groups.topk(2, dim=-1).values.sum(-1) if group_by == "top2" else groups.amax(-1)


def choose(biased: Tensor, *, k: int, n_group: int, topk_group: int, group_by: Literal["top2", "max"]) -> Tensor:
    """The k experts of each token by biased score, within its `topk_group` best of `n_group` groups: [tokens, k].

    A group not selected is masked with -inf: with 0 it would win over biased scores below zero. Ties: lowest index first
    is not promised by torch.topk; equal biased scores do not occur in trained routers.
    """
    if n_group > 1:
        groups = biased.unflatten(-1, (n_group, -1))  # [tokens, groups, experts per group]
        merit = _merit(groups, group_by)
        kept = torch.zeros_like(merit, dtype=torch.bool).scatter_(-1, merit.topk(topk_group, dim=-1).indices, True)
        biased = groups.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)
    return biased.topk(k, dim=-1, sorted=False).indices


def _shortfall(
    biased: Tensor,
    own: Tensor,
    other: Tensor,
    *,
    n_group: int,
    topk_group: int,
    group_by: Literal["top2", "max"],
) -> Tensor:
    """By how much `other` [tokens, k] misses being a best choice, as `own` is: [tokens], 0 where they are one set.

    Two choices are made, groups and then experts, and the larger miss counts. Without the first, a near tie between
    groups would look like a large error, or a wrong group of better experts like none.
    """
    own, other = own.sort(-1).values, other.sort(-1).values  # one order: equal sets have equal sums, to the bit
    if n_group == 1:
        return biased.gather(-1, own).sum(-1) - biased.gather(-1, other).sum(-1)
    merit = _merit(biased.unflatten(-1, (n_group, -1)), group_by)
    used = torch.zeros_like(merit, dtype=torch.bool).scatter_(-1, other // (biased.shape[-1] // n_group), True)
    # The best groups that hold `other`: those it uses, then the best of the rest.
    kept = merit.masked_fill(used, float("inf")).topk(topk_group, dim=-1).indices
    groups = merit.topk(topk_group, dim=-1).values.sum(-1) - merit.gather(-1, kept).sum(-1)
    allowed = torch.zeros_like(used).scatter_(-1, kept, True).repeat_interleave(biased.shape[-1] // n_group, dim=-1)
    best = biased.masked_fill(~allowed, float("-inf")).topk(own.shape[-1], dim=-1).indices.sort(-1).values
    return torch.maximum(groups, biased.gather(-1, best).sum(-1) - biased.gather(-1, other).sum(-1))


def route(
    logits: Tensor,
    bias: Tensor | None,
    *,
    k: int,
    n_group: int = 1,
    topk_group: int = 1,
    score: Score = "sigmoid",
    norm: bool = True,
    scale: float = 1.0,
    group_by: Literal["top2", "max"] = "top2",
    replay: Tensor | None = None,
    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> Routing:
    """Choose experts by affinity plus `bias` [experts] (None: none); gate by the affinity alone (V3 eq. 13-16).

    `replay` [tokens, k] fixes the choice (below 0: choose here; this router never skips); the gates are still computed here, so that the
    router keeps its gradient.
    """
    scores = affinity(logits.float(), score, sigmoid)  # [tokens, experts]
    biased = scores.detach() if bias is None else scores.detach() + bias
    own = choose(biased, k=k, n_group=n_group, topk_group=topk_group, group_by=group_by)
    indices, gap = own, torch.zeros_like(biased[:, 0])
    if replay is not None:
        indices = torch.where(replay >= 0, replay.long(), own)
        gap = _shortfall(biased, own, indices, n_group=n_group, topk_group=topk_group, group_by=group_by)
    weights = scores.gather(-1, indices)
    if norm:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(indices, weights * scale, scores, own, gap, skips=False)


def experts(x: Tensor, routing: Routing, gate_up: Tensor | Sequence[Tensor], down: Tensor | Sequence[Tensor]) -> Tensor:
    """sum_k weight_k SwiGLU_k(x), expert by expert.

    x [tokens, d], gate_up [experts, 2 i, d] (gate first), down [experts, d, i] -> [tokens, d].
    """
    out = torch.zeros_like(x)
    for expert in routing.indices.unique().tolist():
        token, rank = (routing.indices == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], gate_up[expert]).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down[expert])
        out = out.index_add(0, token, (y * routing.weights[token, rank].unsqueeze(-1)).to(out.dtype))
    return out


def experts_tuned(
    x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, tuned: Sequence[int], parts: Sequence[Tensor]
) -> Tensor:
    """`experts` where the experts `tuned` alone have a gradient; the others' matrices are constants.

    `parts`: gate_up [2 i, d] and down [d, i] of each of these in turn, equal to the slices of the stacked tensors.
    """
    first, second = list(gate_up.detach().unbind(0)), list(down.detach().unbind(0))
    for place, expert in enumerate(tuned):
        first[expert], second[expert] = parts[2 * place], parts[2 * place + 1]
    return experts(x, routing, first, second)


def aimed_load(load: Tensor, target: Tensor | None) -> Tensor:
    """How many of the choices counted in load [choices] each should have had by the shares target [choices] (float64; None: even ones)."""
    mean = load.float().mean()
    if target is None:
        return mean.expand(load.shape)
    return mean * (target * len(target)).float().to(
        load.device
    )  # n shares of 1 / n: exactly 1, which float32 would miss


def sequence_balance(scores: Tensor, indices: Tensor, sequence: Tensor, n_sequences: int) -> Tensor:
    """V3's sequence-wise balance loss without its factor alpha (eq. 17-20), summed over sequences.

    scores [tokens, experts] unbiased affinities; indices [tokens, k] the choices counted in f: the report counts the top k
    of the unbiased scores (`scores.topk(k).indices`), not the biased choice; sequence [tokens] the sequence each token is of
    (padding must be left out by the caller).
    """
    n_experts, k = scores.shape[1], indices.shape[1]
    tokens = torch.zeros(n_sequences, device=scores.device).index_add(0, sequence, torch.ones_like(scores[:, 0]))
    tokens = tokens.clamp_min(1).unsqueeze(-1)
    chosen = torch.zeros_like(scores).scatter_add(-1, indices.clamp_min(0), (indices >= 0).to(scores))  # not `SKIP`
    share = scores / scores.sum(-1, keepdim=True)
    zeros = scores.new_zeros(n_sequences, n_experts)
    f = zeros.index_add(0, sequence, chosen) * n_experts / (k * tokens)
    p = zeros.index_add(0, sequence, share) / tokens
    return (f * p).sum()
