"""The batch-invariant backend, and the test that finds the row limits that batch invariance needs on this machine.

Libraries choose the kernel of a matrix product by the number of rows, and the chosen kernels differ between processors
(`ops.row_limits`, docs/explanation/engine.md). The engine can therefore guarantee bit-identical results only if
`find_row_limits` finds row limits for which every product of the model is invariant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rorqual.ops import grouped, invariant
from rorqual.ops.backends.packed import PackedLinear, PrepackingBackend
from rorqual.ops.backends.reference import FittedBackend, M, Matrices, PreparedExperts
from rorqual.ops.invariant import LANES
from rorqual.ops.layer import Layer, LinearMap
from rorqual.ops.moe import Routing
from rorqual.ops.prepacked import prepack, prepacked_linear
from rorqual.ops.row_limits import ENOUGH, RowLimits, apply_in_tiles, bmm, cancelling_rows

ProductKind = Literal["map", "packed", "transposed", "straight"]
"""The kind of matrix product: `map` (plain), `packed` (prepacked), or batched (`transposed` or `straight`).

The right-hand matrices of a batched product are stored as [out, width] (`transposed`) or [width, out] (`straight`).
"""
MatrixProduct = tuple[ProductKind, int, int, torch.dtype]
"""A matrix product: kind, number of input columns (width), number of output columns (out) and dtype."""
CHOICES = (RowLimits(4), ENOUGH, RowLimits(16, 32), RowLimits(16, 16))
"""The row limits that `find_row_limits` tries, from first to last.

MKL needs less row padding in the generic x86 code path than in the Intel code path. The bf16 matrix products of oneDNN on AMX
also need the limit `RowLimits.most`.
"""
EVEN = 4
"""The results of attention are batch-invariant only if the widths of keys and values are multiples of `EVEN`
(docs/explanation/engine.md)."""
STEPS = {torch.float32: (1, 2, 4)}
"""Row counts for which matrix products are tested, as multiples of `RowLimits.least`, by dtype."""
MORE_STEPS = (1, 2, 3, 4, 6, 16)
"""Row counts for which matrix products are tested for dtypes not in `STEPS`, as multiples of `RowLimits.least`."""
WHOLE = 20
"""Largest row count for which matrix products are tested, as a multiple of `RowLimits.least`."""
WIDEST = 16384
"""Largest number of output columns for which matrix products are tested.

In a matrix product with 49,152 output columns, the first 16,384 columns have the same bits as in a product with only 16,384
columns (docs/LOG.md). The test of matrix products therefore does not need a copy of the whole output head of a large
vocabulary.
"""
NARROW = 64
"""Matrix products with fewer than `NARROW` output columns are tested with all row counts up to `WHOLE`, because the edge of a
matrix may be computed differently from the interior of the matrix."""
NOT_HELD = (
    "answers may differ in their last bits, depending on what else is in the batch: no tested row padding makes all matrix products "
    "of this model batch-invariant on this device (docs/explanation/engine.md)"
)
"""Warning shown if batch-invariant results were requested but cannot be guaranteed."""


class TorchInvariant(PrepackingBackend):
    """The batch-invariant backend. The backend pads the inputs of matrix products and elementwise operations, and uses paged attention."""

    name = "torch-invariant"
    invariant = True
    in_blocks = True
    lanes = LANES

    def __init__(self, rows: RowLimits = ENOUGH) -> None:
        self.rows = rows

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return invariant.rms_norm(x, weight, eps)

    def silu(self, x: Tensor) -> Tensor:
        return invariant.silu(x)

    def sigmoid(self, x: Tensor) -> Tensor:
        return invariant.sigmoid(x)

    def experts(self, x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
        if isinstance(gate_up, Tensor) and isinstance(down, Tensor) and grouped.supports_grouped_mm(x, gate_up):
            return grouped.experts(
                x, routing, gate_up, down
            )  # results are not guaranteed to be invariant on this device
        return invariant.experts(x, routing, gate_up, down, self.rows)

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        return bmm(a, b, self.rows.most)

    def fit(self, model: nn.Module, *, cache_shapes: Iterable[tuple[int, int]], threads: int) -> FittedBackend:
        """Find row limits and a number of threads for which all matrix products of `model` are batch-invariant on this
        machine."""
        rows, is_invariant, threads = find_row_limits(model, cache_shapes, threads)
        fitted = copy.copy(self)
        fitted.rows = rows
        return FittedBackend(fitted, is_invariant, threads)

    def bind(self, model: M) -> M:
        clone = super().bind(model)
        if self.rows.most:
            with torch.inference_mode(False), torch.no_grad():
                clone = _tile_wide_linears(clone, self)
        return clone


def _tile_wide_linears(module: M, ops: TorchInvariant) -> M:
    """Return a copy of `module` that shares its parameters and whose wide linear maps multiply at most `ops.rows.most`
    rows at once."""
    clone, most = copy.copy(module), ops.rows.most
    if isinstance(clone, PackedLinear):
        clone.most = most
        return clone
    clone._modules = dict(module._modules)
    if isinstance(clone, Layer):
        for name, source in clone.tied.items():
            if clone._modules.get(name) is None:
                clone._modules[name] = ops.route_linears(_linear_with_weight(getattr(clone, source).weight))
    for key, child in clone._modules.items():
        if isinstance(child, nn.Linear) or (isinstance(child, LinearMap) and not isinstance(child, PackedLinear)):
            clone._modules[key] = TiledLinear(child, most)
        elif child is not None:
            clone._modules[key] = _tile_wide_linears(child, ops)
    return clone


def _linear_with_weight(weight: nn.Parameter) -> nn.Linear:
    """Return a linear map that uses the parameter `weight` without a copy."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = weight
    return linear


class TiledLinear(LinearMap):
    """A wrapper of a linear map. If the linear map is wide (`ops.row_limits`), the wrapper applies the map to at most `most`
    rows at once."""

    def __init__(self, wrapped: nn.Linear | LinearMap, most: int) -> None:
        super().__init__()
        self._wrapped, self.most = (wrapped,), most  # in a tuple, so that it is not registered as a submodule
        self.inner = getattr(wrapped, "inner", 0)

    @property
    def weight(self) -> Tensor:
        """The weight [out, in] of the wrapped linear map."""
        return self._wrapped[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return apply_in_tiles(self._wrapped[0].forward, x, self.most, self.inner)


def find_row_limits(
    model: nn.Module, cache_shapes: Iterable[tuple[int, int]], threads: int
) -> tuple[RowLimits, bool, int]:
    """Return row limits for the model's matrix products, whether the products are batch-invariant with these row limits, and
    the number of threads.

    The returned row limits are the first `RowLimits` in `CHOICES` with which products of every shape are batch-invariant: the
    bits of a row do not depend on the number of rows or threads. If no `RowLimits` in `CHOICES` passes with `threads` threads,
    all `RowLimits` in `CHOICES` are tested with one thread.
    """
    shapes = sorted(set(cache_shapes))
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return RowLimits(4), False, threads  # invariance was measured only on CPUs
    if any(width % EVEN for width, _ in shapes):
        # Attention with keys of width 18 and values of width 10 is not invariant, although each of its products is.
        return ENOUGH, False, threads
    products = set(products_of(model, shapes))
    for most in dict.fromkeys((threads, 1)):
        for rows in CHOICES:
            if all(_is_invariant(*product, rows, most) for product in products):
                return rows, True, most
    return ENOUGH, False, threads


def products_of(model: nn.Module, cache_shapes: Iterable[tuple[int, int]]) -> Iterator[MatrixProduct]:
    """Yield the matrix products of a model: products with parameters, prepacked weights, derived tensors, and cached keys and values."""
    dtype = next(model.parameters()).dtype
    for width, keys in cache_shapes:  # for one block: the scores, then the weighted sums of values
        yield "transposed", width, keys, dtype
        yield "straight", keys, width, dtype
    for module in model.modules():
        replaced: set[str] = set()
        if isinstance(module, Layer):
            replaced = set(module.derived.values())
            for name in module.derived:
                for tensor in module.derived_tensors(name):
                    if tensor.ndim == 2:
                        yield "map", tensor.shape[1], tensor.shape[0], tensor.dtype
                    else:
                        kind: ProductKind = "straight" if tensor.stride(-1) <= tensor.stride(-2) else "transposed"
                        yield kind, tensor.shape[1], tensor.shape[2], tensor.dtype
        if isinstance(module, PackedLinear):
            yield "packed", module.shape[1], module.shape[0], module.dtype
        if isinstance(module, PreparedExperts):
            for matrix in (module.gate_up[0], module.down[0]):
                yield "packed", matrix.shape[1], matrix.shape[0], matrix.dtype
        for name, parameter in module._parameters.items():
            if parameter is None or name in replaced:
                continue
            if parameter.ndim == 2:  # a linear map, an adapter, or an embedding (same shape as the head)
                yield "map", parameter.shape[1], parameter.shape[0], parameter.dtype
            if parameter.ndim == 3:  # experts: one product per expert, or one batched product
                yield "map", parameter.shape[2], parameter.shape[1], parameter.dtype
                yield "transposed", parameter.shape[2], parameter.shape[1], parameter.dtype


@lru_cache(maxsize=1024)
def _is_invariant(kind: ProductKind, width: int, out: int, dtype: torch.dtype, rows: RowLimits, threads: int) -> bool:
    before = torch.get_num_threads()
    try:
        with torch.inference_mode(False), torch.no_grad():
            steps = range(1, WHOLE + 1) if out < NARROW else STEPS.get(dtype, MORE_STEPS)
            x, matrix = cancelling_rows(rows.least * min(WHOLE, 2 * steps[-1]), min(out, WIDEST), width, dtype)
            product = _product_function(kind, matrix, rows.most)
            del matrix
            torch.set_num_threads(1)
            expected = product(x)
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(len(x))
            places = (torch.randperm(len(x), generator=generator)[: rows.least * n] for n in (*steps, WHOLE))
            return all(torch.equal(product(x[place]), expected[place]) for place in places)
    finally:
        torch.set_num_threads(before)


def _product_function(kind: ProductKind, matrix: Tensor, most: int) -> Callable[[Tensor], Tensor]:
    if kind == "map":
        return partial(apply_in_tiles, partial(F.linear, weight=matrix), most=most)
    if kind == "packed":
        return partial(apply_in_tiles, partial(prepacked_linear, opaque=prepack(matrix)), most=most)
    right = matrix.t() if kind == "transposed" else matrix.t().contiguous()
    return lambda x: bmm(x[None], right[None], most)[0]
