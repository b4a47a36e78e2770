"""Reference implementation of mixture of experts: DeepSeek-V3's router (report eq. 12-16) and the gated sum of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Literal["sigmoid", "softmax"]
SKIP = -1
"""The expert number that stands for no expert."""
CHOOSE = -2
"""The expert number in `replay` that lets the router choose."""


@dataclass(frozen=True)
class Routing:
    """The routing of tokens in one layer.

    - `indices` [tokens, k]: the chosen experts, or `SKIP`. Identity experts are numbered after the experts with weights.
    - `weights` [tokens, k]: the gates of the chosen experts, with gradient.
    - `scores` [tokens, choices]: the affinities of the router choices, without bias.
    - `own` [tokens, k]: the experts that the router itself chooses. `own` differs from `indices` only if experts are replayed.
    - `gap` [tokens]: the biased score of the experts `own` minus the biased score of the replayed experts (`_score_gap`).
      `gap` is 0 without replay.
    """

    indices: Tensor
    weights: Tensor
    scores: Tensor
    own: Tensor
    gap: Tensor
    skips: bool = True
    """False if `indices` contains only experts with weights. If `skips` is False, kernels need no mask."""

    def routed_only(self, n_experts: int) -> Routing:
        """Return the routing with only experts 0 to `n_experts` - 1, for kernels. In the returned routing, `SKIP` and identity
        experts are replaced by expert 0 with gate 0."""
        if not self.skips:
            return self
        absent = (self.indices < 0) | (self.indices >= n_experts)
        return replace(
            self, indices=self.indices.masked_fill(absent, 0), weights=self.weights.masked_fill(absent, 0), skips=False
        )

    def identity_gates(self, n_experts: int) -> Tensor:
        """Return, for each token, the sum of the gates of the token's identity experts [tokens, 1]. The numbers of identity
        experts start at `n_experts`."""
        return self.weights.masked_fill(self.indices < n_experts, 0).sum(-1, keepdim=True)


def router_logits(x: Tensor, gate: Tensor) -> Tensor:
    """Compute logits [tokens, experts] in fp32 from x [tokens, d] and gate [experts, d] of any dtype.

    Autocast is disabled, because a matrix product in bf16 would change the chosen experts.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), gate.float())


def affinity(logits: Tensor, score: Score, sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
    """Convert router logits [tokens, experts] in fp32 to affinities by sigmoid or softmax."""
    return sigmoid(logits) if score == "sigmoid" else logits.softmax(-1)


def _group_scores(groups: Tensor, group_by: Literal["top2", "max"]) -> Tensor:
    """Return the score of each group [tokens, groups], from groups [tokens, groups, experts per group]."""
    return groups.topk(2, dim=-1).values.sum(-1) if group_by == "top2" else groups.amax(-1)


def choose(biased: Tensor, *, k: int, n_group: int, topk_group: int, group_by: Literal["top2", "max"]) -> Tensor:
    """Choose the k experts with the highest biased scores in the `topk_group` best of `n_group` groups: [tokens, k].

    Expert groups that are not chosen are masked with -inf, because a masked score of 0 would beat negative biased scores. For
    equal scores, torch.topk does not guarantee the lowest index, but equal scores do not occur in trained routers.
    """
    if n_group > 1:
        groups = biased.unflatten(-1, (n_group, -1))  # [tokens, groups, experts per group]
        group_scores = _group_scores(groups, group_by)
        kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(
            -1, group_scores.topk(topk_group, dim=-1).indices, True
        )
        biased = groups.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)
    return biased.topk(k, dim=-1, sorted=False).indices


def _score_gap(
    biased: Tensor,
    own: Tensor,
    other: Tensor,
    *,
    n_group: int,
    topk_group: int,
    group_by: Literal["top2", "max"],
) -> Tensor:
    """Return, for each token, the biased score of the best choice `own` minus the biased score of `other`, both [tokens, k].

    Let G be the best set of expert groups that contains all experts of `other`. The group difference is the score of the best
    groups minus the score of G. The expert difference is the score of the best experts in G minus the score of `other`. The
    returned gap is the larger of the group difference and the expert difference.

    A comparison of only the experts would be misleading: a near tie between groups would look like a large error, and a wrong
    group with better experts would look correct. If `own` and `other` contain the same experts, the returned gap is exactly 0.
    """
    own, other = own.sort(-1).values, other.sort(-1).values  # sorted, so that equal sets have bit-identical sums
    if n_group == 1:
        return biased.gather(-1, own).sum(-1) - biased.gather(-1, other).sum(-1)
    group_scores = _group_scores(biased.unflatten(-1, (n_group, -1)), group_by)
    used = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(-1, other // (biased.shape[-1] // n_group), True)
    # The best set of groups that contains all groups of `other`.
    kept = group_scores.masked_fill(used, float("inf")).topk(topk_group, dim=-1).indices
    groups = group_scores.topk(topk_group, dim=-1).values.sum(-1) - group_scores.gather(-1, kept).sum(-1)
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
    """Choose experts by affinity plus `bias` [experts] (None: no bias). Gates use the affinity without bias (V3 eq. 13-16).

    `replay` [tokens, k] fixes the experts of each token. Negative entries of `replay` let the router choose. Gates are computed
    even for replayed experts, so the router receives a gradient.
    """
    scores = affinity(logits.float(), score, sigmoid)  # [tokens, experts]
    biased = scores.detach() if bias is None else scores.detach() + bias
    own = choose(biased, k=k, n_group=n_group, topk_group=topk_group, group_by=group_by)
    indices, gap = own, torch.zeros_like(biased[:, 0])
    if replay is not None:
        indices = torch.where(replay >= 0, replay.long(), own)
        gap = _score_gap(biased, own, indices, n_group=n_group, topk_group=topk_group, group_by=group_by)
    weights = scores.gather(-1, indices)
    if norm:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(indices, weights * scale, scores, own, gap, skips=False)


def experts(x: Tensor, routing: Routing, gate_up: Tensor | Sequence[Tensor], down: Tensor | Sequence[Tensor]) -> Tensor:
    """Compute sum_k weight_k SwiGLU_k(x), one expert at a time.

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
    """Compute the result of `experts`, with gradients only for the matrices of the experts `tuned`.

    `parts` lists the matrices of each tuned expert: gate_up [2 i, d], then down [d, i]. The matrices in `parts` equal
    slices of the stacked tensors.
    """
    return experts(x, routing, *expert_matrices(gate_up, down, tuned, parts))


def expert_matrices(
    gate_up: Tensor, down: Tensor, tuned: Sequence[int], parts: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gate_up and down matrices of each expert.

    The matrices of the experts `tuned` come from `parts`. The matrices of all other experts are detached slices of `gate_up` and `down`.
    """
    gate_ups, downs = list(gate_up.detach().unbind(0)), list(down.detach().unbind(0))
    for place, expert in enumerate(tuned):
        gate_ups[expert], downs[expert] = parts[2 * place], parts[2 * place + 1]
    return gate_ups, downs


def expected_load(load: Tensor, target: Tensor | None) -> Tensor:
    """Return the target token count of each router choice [choices], given the token counts `load` [choices] and the float64
    target shares `target` [choices].

    If `target` is None, all router choices have the same target token count.
    """
    mean = load.float().mean()
    if target is None:
        return mean.expand(load.shape)
    return mean * (target * len(target)).float().to(
        load.device
    )  # n shares of 1 / n give exactly 1 in float64, but not in float32


def sequence_balance_loss(scores: Tensor, indices: Tensor, sequence: Tensor, n_sequences: int) -> Tensor:
    """Compute V3's sequence-wise balance loss without the factor alpha (eq. 17-20), summed over sequences.

    - `scores` [tokens, experts]: the affinities of the experts, without bias.
    - `indices` [tokens, k]: the experts that count for the load f_i of an expert i (eq. 18). The V3 report counts the top k of
      the scores without bias (`scores.topk(k).indices`).
    - `sequence` [tokens]: the index of each token's sequence.

    The tensors must not include padding tokens.
    """
    n_experts, k = scores.shape[1], indices.shape[1]
    tokens = torch.zeros(n_sequences, device=scores.device).index_add(0, sequence, torch.ones_like(scores[:, 0]))
    tokens = tokens.clamp_min(1).unsqueeze(-1)
    chosen = torch.zeros_like(scores).scatter_add(-1, indices.clamp_min(0), (indices >= 0).to(scores))  # exclude `SKIP`
    share = scores / scores.sum(-1, keepdim=True)
    zeros = scores.new_zeros(n_sequences, n_experts)
    f = zeros.index_add(0, sequence, chosen) * n_experts / (k * tokens)
    p = zeros.index_add(0, sequence, share) / tokens
    return (f * p).sum()
