"""Batch-invariant operations for generation: the rounding of one row does not depend on the other rows of the batch.

With torch's own operations, three effects make the bits of one row depend on other rows:

- Libraries use different kernels for matrix products with different numbers of rows. `ops.invariant` pads the number of rows
  (`ops.row_limits`).
- The order of a sum over keys varies with the number of keys. `ops.paged` fixes the order of the sum.
- torch applies a scalar exponential function to up to 31 elements at the end of a contiguous tensor, and a vectorized function
  to all other elements. `ops.invariant` pads tensors so that torch uses only the vectorized function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.moe import Routing
from rorqual.ops.prepacked import prepacked_linear
from rorqual.ops.row_limits import ENOUGH, RowLimits, apply_in_tiles, bmm

LANES = 32
"""Number of tensor elements per iteration of torch's vectorized loops."""
GRAIN = 32768
"""Largest number of tensor elements that torch processes in one thread. torch splits larger tensors into equal parts."""
ROWS = {torch.bfloat16: (4, 8, 16)}
"""Row counts to which the rows of an expert are padded, by dtype.

The rows of an expert are padded to the smallest row count in the list that is large enough. If no row count is large enough,
the rows are padded to a multiple of the largest row count.

The list of row counts is short because oneDNN builds a new primitive for every row count. Matrix products in fp32 do not use
oneDNN, so the rows of fp32 products are padded to a multiple of `RowLimits.least`.
"""
OTHER_ROWS = (64,)
"""Row counts to which the rows of an expert are padded, for dtypes that were not measured."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `ops.norm.rms_norm` with fewer operations: the mean square is computed from the vector norm."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    root = torch.addcmul(_scalar_tensor(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt()
    return weight * (wide * root).to(x.dtype)


@lru_cache
def _scalar_tensor(value: float, device: torch.device) -> Tensor:
    """Return `value` as a zero-dimensional tensor that can be used inside and outside inference mode."""
    with torch.inference_mode(False):
        return torch.tensor(value, device=device)


def silu(x: Tensor) -> Tensor:
    """Compute x sigmoid(x)."""
    return _elementwise(F.silu, x)


def sigmoid(x: Tensor) -> Tensor:
    """Compute 1 / (1 + exp(-x))."""
    return _elementwise(torch.sigmoid, x)


def _elementwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementwise `function` to slices or padded copies of `x`, so that torch computes every element in its vectorized loop."""
    width, size = x.shape[-1], x.numel()
    parts = max(1, min(torch.get_num_threads(), -(-size // GRAIN)))
    if size % (LANES * parts) == 0 and (width % LANES == 0 or x.is_contiguous()):
        return function(x)
    if width > GRAIN:
        return torch.cat([_elementwise(function, chunk) for chunk in x.split(GRAIN, dim=-1)], dim=-1)
    if parts > 1:
        rows = x.reshape(-1, width).split(GRAIN // width)
        return torch.cat([_elementwise(function, chunk) for chunk in rows]).view(x.shape)
    return function(F.pad(x, (0, -width % LANES)))[..., :width]


Matrices = Tensor | Sequence[Tensor]
"""The matrices of all experts: a stacked tensor, or a sequence of prepacked matrices (`ops.prepacked`)."""


def unpadded_experts(x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
    """Compute `experts` without padding. The results of `unpadded_experts` are not batch-invariant."""
    return experts(x, routing, gate_up, down, RowLimits(1))


def experts(x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices, rows: RowLimits = ENOUGH) -> Tensor:
    """Compute sum_k weight_k SwiGLU_k(x): x [tokens, d], gate_up [experts, 2 i, d], down [experts, d, i] -> [tokens, d].

    Tokens are sorted by expert, and the rows of each expert are padded. Gates multiply the hidden activation instead of the
    output, because the hidden activation is narrower. The outputs of a token's experts are added in the order of expert
    numbers. Prepacked expert matrices receive no gradients.
    """
    least, most = rows.least, rows.most
    if least <= len(x) < 2 * least and not torch.is_grad_enabled() and x.device.type == "cpu":
        used = sorted(set(routing.indices.view(-1).tolist()))
        if len(used) <= FEW:
            return _run_few_experts(x, routing, gate_up, down, used, most)
    sizes, order, slot = _sort_by_expert(routing.indices, len(gate_up), _padded_row_counts(x.dtype, least))
    used = np.flatnonzero(sizes).tolist()
    batched = _is_batched_cheaper(sizes, gate_up)
    if batched:  # pad every expert to the largest row count: two products instead of two per expert
        size = int(sizes.max())
        slot = (
            slot + (np.arange(len(sizes)) * size - (sizes.cumsum() - sizes))[routing.indices.numpy().reshape(-1)[order]]
        )
        sizes = np.full(len(sizes), size)
    place = np.zeros(int(sizes.sum()), np.int64)  # padding rows contain token 0
    place[slot] = order // routing.indices.shape[1]
    at, slots, orders = (torch.from_numpy(array).to(x.device) for array in (place, slot, order))
    weights = routing.weights.reshape(-1, 1).index_select(0, orders).to(x.dtype)
    gates = weights.new_zeros(len(place), 1).index_copy(0, slots, weights)  # padding rows have gate 0
    sorted_x = x.index_select(0, at)
    grad = torch.is_grad_enabled()

    def expert_products(rows: Tensor, weights: Matrices) -> Tensor:
        if batched:
            assert isinstance(weights, Tensor)
            return bmm(rows.unflatten(0, (len(sizes), -1)), weights.transpose(1, 2), most).flatten(0, 1)
        return _multiply_by_expert(rows, sizes[used].tolist(), [weights[e] for e in used], most)

    gate, up = expert_products(sorted_x, gate_up).chunk(2, dim=-1)
    h = silu(gate) * up * gates if grad else silu(gate).mul_(up).mul_(gates)
    return x.new_zeros(x.shape).index_add(
        0, at, expert_products(h, down).to(x.dtype)
    )  # under autocast, products are bf16


def _run_few_experts(
    x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices, used: list[int], most: int
) -> Tensor:
    """Run each expert in `used` on all tokens. The gate of an expert is 0 for tokens that did not choose the expert."""
    # A token may have expert 0 several times, because `Routing.routed_only` changes `SKIP` and identity experts to expert 0 and
    # sets their gates to 0. scatter_add sums the gates.
    gates = x.new_zeros(len(x), len(gate_up)).scatter_add_(1, routing.indices, routing.weights.to(x.dtype))
    out = torch.zeros_like(x, dtype=torch.float32)  # add in fp32 and round once, like `index_add`
    for expert in used:
        gate, up = _multiply_rows(x, gate_up[expert], most).chunk(2, dim=-1)
        h = silu(gate).mul_(up).mul_(gates[:, expert : expert + 1])
        out += _multiply_rows(h, down[expert], most)
    return out.to(x.dtype)


FEW = 4
"""Largest number of used experts for which `_run_few_experts` computes a small batch."""
Ints = npt.NDArray[np.int64]
SMALL = 1 << 20
"""Largest number of elements of the stacked gate_up matrices that is assumed to fit in the processor's cache."""


def _padded_row_counts(dtype: torch.dtype, least: int) -> tuple[int, ...]:
    if dtype == torch.float32:
        return (least,)
    return tuple(rows for rows in ROWS.get(dtype, OTHER_ROWS) if rows >= least)


def _sort_by_expert(indices: Tensor, n_experts: int, fill: tuple[int, ...]) -> tuple[Ints, Ints, Ints]:
    """Sort the (token, expert) pairs of a batch by expert.

    Returns the padded number of rows per expert [experts], the indices that sort the pairs [tokens * k], and the row of
    each sorted pair [tokens * k].
    """
    flat = indices.cpu().numpy().reshape(-1)
    order = flat.argsort(kind="stable")
    counts = np.bincount(flat, minlength=n_experts)
    sizes = -(-counts // fill[-1]) * fill[-1]
    for few in fill[-2::-1]:
        sizes[(counts > 0) & (counts <= few)] = few
    shift = (sizes.cumsum() - sizes) - (counts.cumsum() - counts)  # number of padding rows before each expert's rows
    return sizes, order, np.arange(len(flat)) + shift[flat[order]]


def _is_batched_cheaper(sizes: Ints, gate_up: Matrices) -> bool:
    """Return whether one batched product, with every expert's rows padded to the largest row count in `sizes`, is faster than
    one product per expert."""
    rows, total_rows = len(sizes) * int(sizes.max()), int(sizes.sum())
    if not isinstance(gate_up, Tensor) or gate_up.dtype != torch.float32 or gate_up.device.type != "cpu":
        return False
    cached = gate_up.numel() <= SMALL or np.count_nonzero(sizes) == len(sizes)
    return cached and (rows <= 1.6 * total_rows or (rows <= 256 and rows <= 4 * total_rows))


def _multiply_rows(rows: Tensor, weight: Tensor, most: int) -> Tensor:
    return apply_in_tiles(
        partial(prepacked_linear, opaque=weight) if weight.is_mkldnn else partial(torch.mm, mat2=weight.t()), rows, most
    )


def _multiply_by_expert(rows: Tensor, sizes: list[int], weights: list[Tensor], most: int) -> Tensor:
    """Split `rows` [sum(sizes), d] by `sizes` and multiply each part by its expert's matrix [width, d]. Returns the products
    [sum(sizes), width]."""
    parts = rows.split(sizes)
    if torch.is_grad_enabled() or weights[0].is_mkldnn or most:
        return torch.cat([_multiply_rows(part, w, most) for part, w in zip(parts, weights)])
    out = rows.new_empty(len(rows), weights[0].shape[0])
    for part, w, place in zip(parts, weights, out.split(sizes)):
        torch.mm(part, w.t(), out=place)
    return out
