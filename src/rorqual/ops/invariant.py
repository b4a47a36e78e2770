"""Operations whose every row is rounded in one way, however many rows there are: what generation runs on.

Three things make a row's bits depend on the others, and each has its remedy here. A product of fewer than four rows takes another
path in MKL: rows are filled up. Sums over keys depend on how many keys there are: `ops.paged`. And torch computes the last elements of a
contiguous tensor, up to 31, with another exponential than the rest: such tensors are filled up too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.moe import Routing

LANES = 32
"""Elements that torch's vector loops take at once."""
ROWS = {torch.float32: 4, torch.bfloat16: 16}
"""An expert's rows are filled up to a multiple of this; in bf16 oneDNN builds a new primitive for every new number."""
MULTIPLE = 64
"""Of types that were not measured."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`ops.norm.rms_norm` in fewer operations: the mean of squares from the vectors' lengths."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    root = torch.addcmul(length.new_full((), eps), length, length, value=1 / x.shape[-1]).rsqrt()
    return weight * (wide * root).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return _whole(F.silu, x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return _whole(torch.sigmoid, x)


def _whole(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function`, element by element, of a tensor without a rest."""
    width = x.shape[-1]
    if width % LANES == 0:
        return function(x)
    return function(F.pad(x, (0, -width % LANES)))[..., :width]


def loose_experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """`experts` with rows as they come."""
    return experts(x, routing, gate_up, down, 1 if x.dtype == torch.float32 else ROWS.get(x.dtype, MULTIPLE))


def experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, multiple: int = 0) -> Tensor:
    """sum_k weight_k SwiGLU_k(x): x [tokens, d], gate_up [experts, 2 i, d], down [experts, d, i] -> [tokens, d].

    Tokens are sorted by expert and each expert's rows filled up; the gates multiply the narrow middle; a token's experts are
    added in the order of their numbers. `multiple`: of rows, instead of `ROWS`.
    """
    (n, _), k = x.shape, routing.indices.shape[1]
    flat = routing.indices.reshape(-1)
    order = flat.sort(stable=True).indices
    counts = torch.bincount(flat, minlength=gate_up.shape[0])
    multiple = multiple or ROWS.get(x.dtype, MULTIPLE)
    filled = (counts + (multiple - 1)).div(multiple, rounding_mode="floor") * multiple
    shift = filled.cumsum(0) - filled - counts.cumsum(0) + counts  # by how much an expert's rows move down
    slot = torch.arange(n * k, device=x.device) + shift.index_select(0, flat.index_select(0, order))
    sizes = filled.tolist()
    used = [expert for expert, size in enumerate(sizes) if size]
    sizes = [sizes[expert] for expert in used]
    token = order // k
    place = token.new_zeros(sum(sizes)).index_copy_(0, slot, token)  # rows that fill up hold token 0
    weights = routing.weights.reshape(-1, 1).index_select(0, order).to(x.dtype)
    gates = weights.new_zeros(len(place), 1).index_copy(0, slot, weights)  # and have gates of 0
    rows = x.index_select(0, place)
    gate, up = _products(rows, sizes, [gate_up[e] for e in used], gate_up.shape[1]).chunk(2, dim=-1)
    if torch.is_grad_enabled():
        h = silu(gate) * up * gates
    else:
        h = silu(gate).mul_(up).mul_(gates)
    y = _products(h, sizes, [down[e] for e in used], x.shape[1])
    return x.new_zeros(x.shape).index_add(0, place, y)


def _products(rows: Tensor, sizes: list[int], weights: list[Tensor], width: int) -> Tensor:
    """Each part of `rows` [sum(sizes), d] by its matrix [width, d]: [sum(sizes), width]."""
    parts = rows.split(sizes)
    if torch.is_grad_enabled():
        return torch.cat([torch.mm(part, w.t()) for part, w in zip(parts, weights)])
    out = rows.new_empty(len(rows), width)
    for part, w, place in zip(parts, weights, out.split(sizes)):
        torch.mm(part, w.t(), out=place)
    return out
