"""Operations whose every row is rounded in one way, however many rows there are: what generation runs on.

Three things make a row's bits depend on the others, and each has its remedy here. A product of fewer than four rows takes another
path in MKL: rows are filled up. Sums over keys depend on how many keys there are: `ops.paged`. And torch computes the last elements of a
contiguous tensor, up to 31, with another exponential than the rest: such tensors are filled up too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
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
    """`function`, element by element, of a tensor without a rest."""
    width = x.shape[-1]
    # Twice as much for two threads, which share a tensor in halves.
    if width % LANES == 0 or (x.is_contiguous() and x.numel() % (2 * LANES) == 0):
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
    if FEW <= len(x) < 2 * FEW and not torch.is_grad_enabled() and x.device.type == "cpu":
        used = sorted(set(routing.indices.view(-1).tolist()))
        if len(used) <= FEW:
            return _one_by_one(x, routing, gate_up, down, used)
    sizes, order, slot = _sorted(routing.indices, len(gate_up), multiple or ROWS.get(x.dtype, MULTIPLE))
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
    rows = x.index_select(0, at)
    grad = torch.is_grad_enabled()

    def products(rows: Tensor, weights: Tensor) -> Tensor:
        if together:
            return torch.bmm(rows.unflatten(0, (len(sizes), -1)), weights.transpose(1, 2)).flatten(0, 1)
        return _products(rows, sizes[used].tolist(), [weights[e] for e in used], weights.shape[1])

    gate, up = products(rows, gate_up).chunk(2, dim=-1)
    h = silu(gate) * up * gates if grad else silu(gate).mul_(up).mul_(gates)
    return x.new_zeros(x.shape).index_add(0, at, products(h, down))


def _one_by_one(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, used: list[int]) -> Tensor:
    """The few experts of few tokens, each on all of them: the gates of the others are 0."""
    gates = x.new_zeros(len(x), len(gate_up)).scatter_(1, routing.indices, routing.weights.to(x.dtype))
    out = torch.zeros_like(x, dtype=torch.float32)  # `index_add` adds in fp32, too, and rounds once
    for expert in used:
        gate, up = torch.mm(x, gate_up[expert].t()).chunk(2, dim=-1)
        h = silu(gate).mul_(up).mul_(gates[:, expert : expert + 1])
        out += torch.mm(h, down[expert].t())
    return out.to(x.dtype)


FEW = 4
"""Experts up to which nothing need be sorted; and as many tokens at least, so that no product has fewer rows."""
Ints = npt.NDArray[np.int64]
SMALL = 1 << 20
"""Values of all experts' first matrices that a processor's cache holds."""


def _sorted(indices: Tensor, n_experts: int, multiple: int) -> tuple[Ints, Ints, Ints]:
    """Rows of each expert, filled up [experts]; pairs of token and expert sorted by expert, and the row of each [tokens * k]."""
    flat = indices.cpu().numpy().reshape(-1)
    order = flat.argsort(kind="stable")
    counts = np.bincount(flat, minlength=n_experts)
    sizes = -(-counts // multiple) * multiple
    moved = (sizes.cumsum() - sizes) - (counts.cumsum() - counts)  # by how much an expert's rows move down
    return sizes, order, np.arange(len(flat)) + moved[flat[order]]


def _together(sizes: Ints, gate_up: Tensor) -> bool:
    """Whether one product over all experts, each with the rows of the largest, costs less than one for each."""
    rows, whole = len(sizes) * int(sizes.max()), int(sizes.sum())
    if gate_up.dtype != torch.float32 or gate_up.device.type != "cpu":
        return False
    cached = gate_up.numel() <= SMALL or np.count_nonzero(sizes) == len(sizes)
    return cached and (rows <= 1.6 * whole or (rows <= 256 and rows <= 4 * whole))


def _products(rows: Tensor, sizes: list[int], weights: list[Tensor], width: int) -> Tensor:
    """Each part of `rows` [sum(sizes), d] by its matrix [width, d]: [sum(sizes), width]."""
    parts = rows.split(sizes)
    if torch.is_grad_enabled():
        return torch.cat([torch.mm(part, w.t()) for part, w in zip(parts, weights)])
    out = rows.new_empty(len(rows), width)
    for part, w, place in zip(parts, weights, out.split(sizes)):
        torch.mm(part, w.t(), out=place)
    return out
