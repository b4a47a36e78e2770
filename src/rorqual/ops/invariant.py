"""Batch-invariant operations for generation: each row's rounding is independent of the number of rows.

Three effects can make a row's bits depend on other rows, and each has a remedy.

- Libraries compute products of few rows with other kernels than products of many: rows are padded (`ops.rows`).
- The order of a sum over keys varies with the number of keys: `ops.paged` fixes this order.
- torch computes a contiguous tensor's last elements, up to 31, with another exponential: such tensors are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.layout import times
from rorqual.ops.moe import Routing
from rorqual.ops.rows import ENOUGH, Rows, bmm, in_tiles

LANES = 32
"""Elements that torch's vectorised loops process at once."""
GRAIN = 32768
"""Largest number of elements that torch gives to one thread. Larger tensors are split into equal parts."""
ROWS = {torch.bfloat16: (4, 8, 16)}
"""Row counts to which an expert's rows are padded: the smallest that is enough, or a multiple of the largest.

oneDNN builds a new primitive for every new row count. fp32 does not use oneDNN, so its rows are padded to a multiple of
the required rows.
"""
MANY = (64,)
"""Row counts for dtypes that were not measured."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `ops.norm.rms_norm` in fewer operations, with the mean of squares taken from vector norms."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    root = torch.addcmul(_number(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt()
    return weight * (wide * root).to(x.dtype)


@lru_cache
def _number(value: float, device: torch.device) -> Tensor:
    """Return a zero-dimensional tensor that is usable in and outside inference mode."""
    with torch.inference_mode(False):
        return torch.tensor(value, device=device)


def silu(x: Tensor) -> Tensor:
    """Compute x sigmoid(x)."""
    return _whole(F.silu, x)


def sigmoid(x: Tensor) -> Tensor:
    """Compute 1 / (1 + exp(-x))."""
    return _whole(torch.sigmoid, x)


def _whole(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementwise `function` so that no element falls into the remainder of a vector loop, in any thread's part."""
    width, size = x.shape[-1], x.numel()
    parts = max(1, min(torch.get_num_threads(), -(-size // GRAIN)))
    if size % (LANES * parts) == 0 and (width % LANES == 0 or x.is_contiguous()):
        return function(x)
    if width > GRAIN:
        return torch.cat([_whole(function, some) for some in x.split(GRAIN, dim=-1)], dim=-1)
    if parts > 1:
        rows = x.reshape(-1, width).split(GRAIN // width)
        return torch.cat([_whole(function, some) for some in rows]).view(x.shape)
    return function(F.pad(x, (0, -width % LANES)))[..., :width]


Matrices = Tensor | Sequence[Tensor]
"""One matrix per expert: a stacked tensor, or a sequence of prepacked ones (`ops.layout`)."""


def loose_experts(x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
    """Compute `experts` without padding rows."""
    return experts(x, routing, gate_up, down, Rows(1))


def experts(x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices, rows: Rows = ENOUGH) -> Tensor:
    """Compute sum_k weight_k SwiGLU_k(x): x [tokens, d], gate_up [experts, 2 i, d], down [experts, d, i] -> [tokens, d].

    Tokens are sorted by expert, and each expert's rows are padded. Gates multiply the hidden activation, which is
    narrower. A token's experts are added in the order of their numbers. Prepacked matrices get no gradients.
    """
    least, most = rows.least, rows.most
    if least <= len(x) < 2 * least and not torch.is_grad_enabled() and x.device.type == "cpu":
        used = sorted(set(routing.indices.view(-1).tolist()))
        if len(used) <= FEW:
            return _one_by_one(x, routing, gate_up, down, used, most)
    sizes, order, slot = _sorted(routing.indices, len(gate_up), _fill(x.dtype, least))
    used = np.flatnonzero(sizes).tolist()
    together = _together(sizes, gate_up)
    if together:  # pad every expert to the rows of the largest: two products instead of two per expert
        size = int(sizes.max())
        slot = (
            slot + (np.arange(len(sizes)) * size - (sizes.cumsum() - sizes))[routing.indices.numpy().reshape(-1)[order]]
        )
        sizes = np.full(len(sizes), size)
    place = np.zeros(int(sizes.sum()), np.int64)  # padding rows hold token 0
    place[slot] = order // routing.indices.shape[1]
    at, slots, orders = (torch.from_numpy(array).to(x.device) for array in (place, slot, order))
    weights = routing.weights.reshape(-1, 1).index_select(0, orders).to(x.dtype)
    gates = weights.new_zeros(len(place), 1).index_copy(0, slots, weights)  # padding rows have gate 0
    taken = x.index_select(0, at)
    grad = torch.is_grad_enabled()

    def products(rows: Tensor, weights: Matrices) -> Tensor:
        if together:
            assert isinstance(weights, Tensor)
            return bmm(rows.unflatten(0, (len(sizes), -1)), weights.transpose(1, 2), most).flatten(0, 1)
        return _products(rows, sizes[used].tolist(), [weights[e] for e in used], most)

    gate, up = products(taken, gate_up).chunk(2, dim=-1)
    h = silu(gate) * up * gates if grad else silu(gate).mul_(up).mul_(gates)
    return x.new_zeros(x.shape).index_add(0, at, products(h, down).to(x.dtype))  # autocast gives bf16


def _one_by_one(x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices, used: list[int], most: int) -> Tensor:
    """Run each of a few experts on all of a few tokens, with gate 0 for tokens that did not choose it."""
    # Add, because an expert may occur twice, once with a gate of zero (`Routing.served`).
    gates = x.new_zeros(len(x), len(gate_up)).scatter_add_(1, routing.indices, routing.weights.to(x.dtype))
    out = torch.zeros_like(x, dtype=torch.float32)  # like `index_add`, add in fp32 and round once
    for expert in used:
        gate, up = _product(x, gate_up[expert], most).chunk(2, dim=-1)
        h = silu(gate).mul_(up).mul_(gates[:, expert : expert + 1])
        out += _product(h, down[expert], most)
    return out.to(x.dtype)


FEW = 4
"""Largest number of experts that run without sorting, if no product exceeds the padded number of rows."""
Ints = npt.NDArray[np.int64]
SMALL = 1 << 20
"""Number of values of all experts' first matrices that fit in a processor's cache."""


def _fill(dtype: torch.dtype, least: int) -> tuple[int, ...]:
    if dtype == torch.float32:
        return (least,)
    return tuple(rows for rows in ROWS.get(dtype, MANY) if rows >= least)


def _sorted(indices: Tensor, n_experts: int, fill: tuple[int, ...]) -> tuple[Ints, Ints, Ints]:
    """Sort token-expert pairs by expert.

    Returns the padded rows of each expert [experts], the pairs sorted by expert, and the row of each pair [tokens * k].
    """
    flat = indices.cpu().numpy().reshape(-1)
    order = flat.argsort(kind="stable")
    counts = np.bincount(flat, minlength=n_experts)
    sizes = -(-counts // fill[-1]) * fill[-1]
    for few in fill[-2::-1]:
        sizes[(counts > 0) & (counts <= few)] = few
    moved = (sizes.cumsum() - sizes) - (counts.cumsum() - counts)  # shift of each expert's rows due to padding
    return sizes, order, np.arange(len(flat)) + moved[flat[order]]


def _together(sizes: Ints, gate_up: Matrices) -> bool:
    """Return True if one batched product, with every expert padded to the largest, costs less than one product per expert."""
    rows, whole = len(sizes) * int(sizes.max()), int(sizes.sum())
    if not isinstance(gate_up, Tensor) or gate_up.dtype != torch.float32 or gate_up.device.type != "cpu":
        return False
    cached = gate_up.numel() <= SMALL or np.count_nonzero(sizes) == len(sizes)
    return cached and (rows <= 1.6 * whole or (rows <= 256 and rows <= 4 * whole))


def _product(rows: Tensor, weight: Tensor, most: int) -> Tensor:
    return in_tiles(
        partial(times, opaque=weight) if weight.is_mkldnn else partial(torch.mm, mat2=weight.t()), rows, most
    )


def _products(rows: Tensor, sizes: list[int], weights: list[Tensor], most: int) -> Tensor:
    """Multiply each part of `rows` [sum(sizes), d] by its matrix [width, d], giving [sum(sizes), width]."""
    parts = rows.split(sizes)
    if torch.is_grad_enabled() or weights[0].is_mkldnn or most:
        return torch.cat([_product(part, w, most) for part, w in zip(parts, weights)])
    out = rows.new_empty(len(rows), weights[0].shape[0])
    for part, w, place in zip(parts, weights, out.split(sizes)):
        torch.mm(part, w.t(), out=place)
    return out
