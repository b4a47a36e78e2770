"""Fast operations for training on the CPU: attention with torch's SDPA, and experts over tokens sorted by expert.

The reference backend loops over experts with autograd, which runs about forty small operations per expert. This module sorts
the tokens by expert once, so the tokens of an expert are a slice. Matrix products write into one preallocated tensor, and the
backward pass is hand-written.

In bf16, the rows of each expert are padded to a multiple of 64. Without padding, oneDNN would build a primitive for every new
row count, and the matrix product would take three times as long (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.first_derivative import first_derivative_only
from rorqual.ops.moe import Routing

BF16_ROWS = 64
BF16_SHORT = 512
"""Largest number of keys for which attention by batched products is faster than the fused kernel in bf16."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `ops.norm.rms_norm` with a hand-written backward pass.

    Without the hand-written backward pass, autograd would run a chain of small operations.
    """
    out: Tensor = _RMSNorm.apply(x, weight, eps)
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        normed = (wide * root).to(x.dtype)
        ctx.save_for_backward(normed, weight, root)
        return weight * normed

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, weight, root = ctx.saved_tensors
        n, g = normed.float(), grads[0].float()
        dweight = (g * n).reshape(-1, g.shape[-1]).sum(0)
        g = g * weight.float()
        projection = (g * n).mean(-1, keepdim=True)
        dx = torch.addcmul(g, n, projection, value=-1).mul_(root)
        return dx.to(normed.dtype), dweight.to(weight.dtype), None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Compute `ops.attention.attend` with scaled_dot_product_attention, or with batched products for short bf16 sequences.

    For short bf16 sequences, the fused kernel takes three times as long as batched products in forward and backward passes
    (docs/LOG.md). Attention scores are rounded to bf16, as in the reference backend. The softmax over keys is computed in fp32.
    """
    if q.dtype == torch.bfloat16 and k.shape[2] <= BF16_SHORT:
        return _attend_by_products(q, k, v, mask, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    batch, heads, queries, _ = q.shape
    hidden = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
    bias = hidden.expand(batch, heads, queries, k.shape[2]).flatten(0, 1)
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).unflatten(0, (batch, heads))


def experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """Compute `ops.moe.experts` over tokens sorted by expert. Under autocast, the experts compute in the autocast dtype, like a
    linear layer."""
    return experts_tuned(x, routing, gate_up, down, (), ())


def experts_tuned(
    x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, tuned: Sequence[int], parts: Sequence[Tensor]
) -> Tensor:
    """Compute `ops.moe.experts_tuned`. The backward pass skips the gradients of frozen experts."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    stacked = (gate_up.to(dtype), down.to(dtype))
    with torch.autocast(device, enabled=False):  # autocast would round the fp32 gates
        out: Tensor = _Experts.apply(
            x.to(dtype),
            routing.weights,
            routing.indices,
            *stacked,
            tuple(tuned),
            *(part.to(dtype) for part in parts),
        )
    return out


class _ExpertSlices:
    """The (token, expert) pairs of a batch, sorted by expert.

    `slot[j]` is the row of pair j in expert order. Token t and its i-th expert form pair t * k + i. `bounds` lists (expert,
    start, stop) for the rows of each used expert.
    """

    def __init__(self, indices: Tensor, n_experts: int, multiple: int) -> None:
        flat = indices.reshape(-1)
        order = torch.sort(flat, stable=True).indices
        counts = torch.bincount(flat, minlength=n_experts).tolist()
        self.bounds: list[tuple[int, int, int]] = []
        start, starts = 0, []
        for expert, count in enumerate(counts):
            starts.append(start)
            if count:
                stop = start + -(-count // multiple) * multiple
                self.bounds.append((expert, start, stop))
                start = stop
        self.rows = start
        row = torch.arange(len(flat), device=flat.device)
        if multiple > 1:
            first_pair = torch.tensor([sum(counts[:e]) for e in range(n_experts)], device=flat.device)
            sorted_experts = flat[order]
            row = row - first_pair[sorted_experts] + torch.tensor(starts, device=flat.device)[sorted_experts]
        self.slot = torch.empty_like(order)
        self.slot[order] = row

    def to_expert_order(self, pairs: Tensor) -> Tensor:
        """Reorder the values of (token, expert) pairs [pairs, d] from token order to expert order [rows, d]. Padding rows are zero."""
        allocate = pairs.new_empty if self.rows == len(pairs) else pairs.new_zeros
        return allocate(self.rows, pairs.shape[1]).index_copy_(0, self.slot, pairs)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        indices: Tensor,
        gate_up: Tensor,
        down: Tensor,
        tuned: tuple[int, ...],
        *parts: Tensor,
    ) -> Tensor:
        (n, d), k = x.shape, indices.shape[1]
        at = _ExpertSlices(indices, gate_up.shape[0], BF16_ROWS if x.dtype == torch.bfloat16 else 1)
        xs = at.to_expert_order(x.unsqueeze(1).expand(n, k, d).reshape(n * k, d))
        gu = x.new_empty(at.rows, gate_up.shape[1])
        for e, i, j in at.bounds:
            torch.mm(xs[i:j], gate_up[e].t(), out=gu[i:j])
        gate, up = gu.chunk(2, dim=-1)
        h = F.silu(gate) * up
        ys = x.new_empty(at.rows, d)
        for e, i, j in at.bounds:
            torch.mm(h[i:j], down[e].t(), out=ys[i:j])
        y = ys.index_select(0, at.slot).view(n, k, d)
        ctx.save_for_backward(weights, gate_up, down, xs, gu, h, y)
        ctx.at, ctx.tuned = at, tuned
        return torch.bmm(weights.unsqueeze(1), y.to(weights.dtype)).squeeze(1).to(x.dtype)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dout,) = grads
        weights, gate_up, down, xs, gu, h, y = ctx.saved_tensors
        at: _ExpertSlices = ctx.at
        n, k, d = y.shape
        dweights = torch.bmm(y.to(weights.dtype), dout.to(weights.dtype).unsqueeze(-1)).squeeze(-1)
        dys = at.to_expert_order((weights.unsqueeze(-1) * dout.unsqueeze(1)).to(y.dtype).view(n * k, d))
        needed = ctx.needs_input_grad[3:5]
        dstacked = [torch.zeros_like(t) if need else None for need, t in zip(needed, (gate_up, down))]
        dparts = [torch.zeros_like(t[e]) for e in ctx.tuned for t in (gate_up, down)]
        # For each expert, the tensors that receive the gradients of its gate and up matrix and of its down matrix.
        trained: dict[int, Sequence[Tensor | None]] = {
            e: dparts[2 * place : 2 * place + 2] for place, e in enumerate(ctx.tuned)
        }
        if any(needed) and not ctx.tuned:
            trained = {e: [None if grad is None else grad[e] for grad in dstacked] for e, _, _ in at.bounds}
        dh = torch.empty_like(h)
        for e, i, j in at.bounds:
            torch.mm(dys[i:j], down[e], out=dh[i:j])
            if (grad := trained.get(e, (None, None))[1]) is not None:
                torch.mm(dys[i:j].t(), h[i:j], out=grad)
        gate, up = gu.chunk(2, dim=-1)
        s = torch.sigmoid(gate)
        dgu = torch.cat((dh * up * (s * (1 + gate * (1 - s))), dh * gate * s), dim=-1)
        dxs = torch.empty_like(xs)
        for e, i, j in at.bounds:
            torch.mm(dgu[i:j], gate_up[e], out=dxs[i:j])
            if (grad := trained.get(e, (None, None))[0]) is not None:
                torch.mm(dgu[i:j].t(), xs[i:j], out=grad)
        dx = dxs.index_select(0, at.slot).view(n, k, d).sum(1)
        return dx, dweights, None, *dstacked, None, *dparts
