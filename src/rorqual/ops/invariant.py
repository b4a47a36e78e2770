"""Operations whose every row is rounded in one way, however many rows there are: what generation runs on.

Three things make a row's bits depend on the others, and each has its remedy here. A product of few rows takes another path than one of
many: rows are filled up (`ops.rows`). Sums over keys depend on how many keys there are: `ops.paged`. And torch computes the last elements of a
contiguous tensor, up to 31, with another exponential than the rest: such tensors are filled up too.
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
"""Elements that torch's vector loops take at once."""
GRAIN = 32768
"""Elements up to which torch gives a tensor to one thread; more are shared in equal parts."""
ROWS = {torch.bfloat16: (4, 8, 16)}
"""An expert's rows are filled up to one of these that is enough, or a multiple of the last: oneDNN builds a new primitive for every new
number. In fp32, which is not oneDNN's, to a multiple of what is enough."""
MANY = (64,)
"""Of types that were not measured."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`ops.norm.rms_norm` in fewer operations: the mean of squares from the vectors' lengths."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    root = torch.addcmul(_number(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt()
    return weight * (wide * root).to(x.dtype)


@lru_cache
def _number(value: float, device: torch.device) -> Tensor:
    """A tensor without dimensions that any mode may use."""
    with torch.inference_mode(False):
        return torch.tensor(value, device=device)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return _whole(F.silu, x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return _whole(torch.sigmoid, x)


def _whole(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function`, element by element, of a tensor without a rest: nor has any of the parts in which threads share it."""
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
"""One for each expert: stacked, or each by itself and laid out (`ops.layout`)."""


def loose_experts(x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
    """`experts` with rows as they come."""
    return experts(x, routing, gate_up, down, Rows(1))


def experts(x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices, rows: Rows = ENOUGH) -> Tensor:
    """sum_k weight_k SwiGLU_k(x): x [tokens, d], gate_up [experts, 2 i, d], down [experts, d, i] -> [tokens, d].

    Tokens are sorted by expert and each expert's rows filled up; the gates multiply the narrow middle; a token's experts are
    added in the order of their numbers. Matrices that are laid out take no gradients.
    """
    least, most = rows.least, rows.most
    if least <= len(x) < 2 * least and not torch.is_grad_enabled() and x.device.type == "cpu":
        used = sorted(set(routing.indices.view(-1).tolist()))
        if len(used) <= FEW:
            return _one_by_one(x, routing, gate_up, down, used, most)
    sizes, order, slot = _sorted(routing.indices, len(gate_up), _fill(x.dtype, least))
    used = np.flatnonzero(sizes).tolist()
    together = _together(sizes, gate_up)
    if together:  # every expert has as many rows as the largest: two products instead of two for each
        size = int(sizes.max())
        slot = (
            slot + (np.arange(len(sizes)) * size - (sizes.cumsum() - sizes))[routing.indices.numpy().reshape(-1)[order]]
        )
        sizes = np.full(len(sizes), size)
    place = np.zeros(int(sizes.sum()), np.int64)  # rows that fill up hold token 0
    place[slot] = order // routing.indices.shape[1]
    at, slots, orders = (torch.from_numpy(array).to(x.device) for array in (place, slot, order))
    weights = routing.weights.reshape(-1, 1).index_select(0, orders).to(x.dtype)
    gates = weights.new_zeros(len(place), 1).index_copy(0, slots, weights)  # and have gates of 0
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
    """The few experts of few tokens, each on all of them: the gates of the others are 0."""
    # Added: an expert may stand twice, once with a gate of zero (`Routing.served`).
    gates = x.new_zeros(len(x), len(gate_up)).scatter_add_(1, routing.indices, routing.weights.to(x.dtype))
    out = torch.zeros_like(x, dtype=torch.float32)  # `index_add` adds in fp32, too, and rounds once
    for expert in used:
        gate, up = _product(x, gate_up[expert], most).chunk(2, dim=-1)
        h = silu(gate).mul_(up).mul_(gates[:, expert : expert + 1])
        out += _product(h, down[expert], most)
    return out.to(x.dtype)


FEW = 4
"""Experts up to which nothing need be sorted, where no product has more rows than it is filled up to."""
Ints = npt.NDArray[np.int64]
SMALL = 1 << 20
"""Values of all experts' first matrices that a processor's cache holds."""


def _fill(dtype: torch.dtype, least: int) -> tuple[int, ...]:
    if dtype == torch.float32:
        return (least,)
    return tuple(rows for rows in ROWS.get(dtype, MANY) if rows >= least)


def _sorted(indices: Tensor, n_experts: int, fill: tuple[int, ...]) -> tuple[Ints, Ints, Ints]:
    """Rows of each expert, filled up [experts]; pairs of token and expert sorted by expert, and the row of each [tokens * k]."""
    flat = indices.cpu().numpy().reshape(-1)
    order = flat.argsort(kind="stable")
    counts = np.bincount(flat, minlength=n_experts)
    sizes = -(-counts // fill[-1]) * fill[-1]
    for few in fill[-2::-1]:
        sizes[(counts > 0) & (counts <= few)] = few
    moved = (sizes.cumsum() - sizes) - (counts.cumsum() - counts)  # by how much an expert's rows move down
    return sizes, order, np.arange(len(flat)) + moved[flat[order]]


def _together(sizes: Ints, gate_up: Matrices) -> bool:
    """Whether one product over all experts, each with the rows of the largest, costs less than one for each."""
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
    """Each part of `rows` [sum(sizes), d] by its matrix [width, d]: [sum(sizes), width]."""
    parts = rows.split(sizes)
    if torch.is_grad_enabled() or weights[0].is_mkldnn or most:
        return torch.cat([_product(part, w, most) for part, w in zip(parts, weights)])
    out = rows.new_empty(len(rows), weights[0].shape[0])
    for part, w, place in zip(parts, weights, out.split(sizes)):
        torch.mm(part, w.t(), out=place)
    return out
