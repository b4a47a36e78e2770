"""The batch-invariant backend, and the probe of how many rows its products need on this machine.

A library may choose another kernel for another number of rows, and the choice differs between processors (`ops.rows`;
docs/explanation/engine.md). The engine's guarantee of identical bits therefore depends on what `rows_of` measures for each product
of a model.
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
from rorqual.ops.backends.base import Fit, M, Matrices, PreparedExperts
from rorqual.ops.backends.packed import PackedLinear, Packing
from rorqual.ops.invariant import LANES
from rorqual.ops.layer import Layer, LinearMap
from rorqual.ops.layout import laid_out, times
from rorqual.ops.moe import Routing
from rorqual.ops.rows import ENOUGH, Rows, bmm, cancelling, in_tiles

Kind = Literal["map", "packed", "transposed", "straight"]
"""The form of a product with a matrix [out, width]: plain, prepacked or batched and transposed; or batched with a matrix [width, out]."""
Product = tuple[Kind, int, int, torch.dtype]
"""The kind, width, out and dtype of a product."""
CHOICES = (Rows(4), ENOUGH, Rows(16, 32), Rows(16, 16))
"""Row limits to try, in order. MKL's generic x86 path needs little padding and its Intel path more. oneDNN's bf16 on
AMX also needs a limit on wide rows.
"""
EVEN = 4
"""Widths of keys and values must be multiples of this for the guarantee to hold (docs/explanation/engine.md)."""
STEPS = {torch.float32: (1, 2, 4)}
"""Multiples of the least rows to test, by dtype."""
MORE_STEPS = (1, 2, 3, 4, 6, 16)
WHOLE = 20
WIDEST = 16384
"""Most outputs to test. Of 49,152, the first have the same bits (docs/log/same-bits.md), so a large head need not be copied."""
NOT_HELD = (
    "answers may differ in their last bits, depending on what else is in the batch: for no tested number of rows are all of this "
    "model's products on this device rounded in one way (docs/explanation/engine.md)"
)
"""The warning if the guarantee was requested but does not hold."""


class TorchInvariant(Packing):
    """Products of `rows` padded rows, attention in blocks of one size, and no element in the remainder of a vector loop."""

    name = "torch-invariant"
    invariant = True
    in_blocks = True
    lanes = LANES

    def __init__(self, rows: Rows = ENOUGH) -> None:
        self.rows = rows

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return invariant.rms_norm(x, weight, eps)

    def silu(self, x: Tensor) -> Tensor:
        return invariant.silu(x)

    def sigmoid(self, x: Tensor) -> Tensor:
        return invariant.sigmoid(x)

    def experts(self, x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
        if isinstance(gate_up, Tensor) and isinstance(down, Tensor) and grouped.fits(x, gate_up):
            return grouped.experts(x, routing, gate_up, down)  # no guarantee on this device
        return invariant.experts(x, routing, gate_up, down, self.rows)

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        return bmm(a, b, self.rows.most)

    def fit(self, model: nn.Module, *, cache_shapes: Iterable[tuple[int, int]], threads: int) -> Fit:
        """Use as many rows as `model`'s products need here, and no more threads than keep the guarantee."""
        rows, held, threads = rows_of(model, cache_shapes, threads)
        fitted = copy.copy(self)
        fitted.rows = rows
        return Fit(fitted, held, threads)

    def bind(self, model: M) -> M:
        clone = super().bind(model)
        if self.rows.most:
            with torch.inference_mode(False), torch.no_grad():
                clone = _tiled(clone, self)
        return clone


def _tiled(module: M, ops: TorchInvariant) -> M:
    """Return a module tree with the same parameters whose maps multiply at most `ops.rows.most` wide rows at once."""
    clone, most = copy.copy(module), ops.rows.most
    if isinstance(clone, PackedLinear):
        clone.most = most
        return clone
    clone._modules = dict(module._modules)
    if isinstance(clone, Layer):
        for name, source in clone.tied.items():
            if clone._modules.get(name) is None:
                clone._modules[name] = ops.route(_linear(getattr(clone, source).weight))
    for key, child in clone._modules.items():
        if isinstance(child, nn.Linear) or (isinstance(child, LinearMap) and not isinstance(child, PackedLinear)):
            clone._modules[key] = TiledLinear(child, most)
        elif child is not None:
            clone._modules[key] = _tiled(child, ops)
    return clone


def _linear(weight: nn.Parameter) -> nn.Linear:
    """Return a map that multiplies by `weight` itself, not a copy."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = weight
    return linear


class TiledLinear(LinearMap):
    """A wrapper that runs another linear map on at most `most` wide rows at once (`ops.rows`). It reads that map's parameters."""

    def __init__(self, other: nn.Linear | LinearMap, most: int) -> None:
        super().__init__()
        self._other, self.most = (other,), most  # a tuple hides it from the module tree
        self.inner = getattr(other, "inner", 0)

    @property
    def weight(self) -> Tensor:
        """The wrapped map's weight [out, in]."""
        return self._other[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return in_tiles(self._other[0].forward, x, self.most, self.inner)


def rows_of(model: nn.Module, cache_shapes: Iterable[tuple[int, int]], threads: int) -> tuple[Rows, bool, int]:
    """Return the row limits of the model's products, whether they are then invariant, and the maximum number of threads.

    The limits are the first of `CHOICES` for which every product, one of each shape, gives the same bits with `threads`
    threads as with one. If none do, one thread is tried.
    """
    shapes = sorted(set(cache_shapes))
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return Rows(4), False, threads  # not measured on other devices
    if any(width % EVEN for width, _ in shapes):
        # With keys of width 18 and values of width 10, attention is not invariant although each product below is.
        return ENOUGH, False, threads
    products = set(products_of(model, shapes))
    for most in dict.fromkeys((threads, 1)):
        for rows in CHOICES:
            if all(_alike(*product, rows, most) for product in products):
                return rows, True, most
    return ENOUGH, False, threads


def products_of(model: nn.Module, cache_shapes: Iterable[tuple[int, int]]) -> Iterator[Product]:
    """Yield the shapes of a model's products: parameters, packed weights, derived tensors and cached parts of attention."""
    dtype = next(model.parameters()).dtype
    for width, keys in cache_shapes:  # scores and sums over a block
        yield "transposed", width, keys, dtype
        yield "straight", keys, width, dtype
    for module in model.modules():
        replaced: set[str] = set()
        if isinstance(module, Layer):
            replaced = set(module.derived.values())
            for name in module.derived:
                for tensor in module.tensors(name):
                    if tensor.ndim == 2:
                        yield "map", tensor.shape[1], tensor.shape[0], tensor.dtype
                    else:
                        kind: Kind = "straight" if tensor.stride(-1) <= tensor.stride(-2) else "transposed"
                        yield kind, tensor.shape[1], tensor.shape[2], tensor.dtype
        if isinstance(module, PackedLinear):
            yield "packed", module.shape[1], module.shape[0], module.dtype
        if isinstance(module, PreparedExperts):
            for matrix in (module.gate_up[0], module.down[0]):
                yield "packed", matrix.shape[1], matrix.shape[0], matrix.dtype
        for name, parameter in module._parameters.items():
            if parameter is None or name in replaced:
                continue
            if parameter.ndim == 2:  # a linear map, an adapter, or an embedding, which has the shape of the head
                yield "map", parameter.shape[1], parameter.shape[0], parameter.dtype
            if parameter.ndim == 3:  # experts, one by one or all at once
                yield "map", parameter.shape[2], parameter.shape[1], parameter.dtype
                yield "transposed", parameter.shape[2], parameter.shape[1], parameter.dtype


@lru_cache(maxsize=1024)
def _alike(kind: Kind, width: int, out: int, dtype: torch.dtype, rows: Rows, threads: int) -> bool:
    before = torch.get_num_threads()
    try:
        with torch.inference_mode(False), torch.no_grad():
            steps = STEPS.get(dtype, MORE_STEPS)
            x, matrix = cancelling(rows.least * min(WHOLE, 2 * steps[-1]), min(out, WIDEST), width, dtype)
            product = _product(kind, matrix, rows.most)
            del matrix
            torch.set_num_threads(1)
            whole = product(x)
            torch.set_num_threads(threads)
            some = (min(rows.least * n, len(x)) for n in (*steps, WHOLE))
            return all(torch.equal(product(x[:count]), whole[:count]) for count in some)
    finally:
        torch.set_num_threads(before)


def _product(kind: Kind, matrix: Tensor, most: int) -> Callable[[Tensor], Tensor]:
    if kind == "map":
        return partial(in_tiles, partial(F.linear, weight=matrix), most=most)
    if kind == "packed":
        return partial(in_tiles, partial(times, opaque=laid_out(matrix)), most=most)
    other = matrix.t() if kind == "transposed" else matrix.t().contiguous()
    return lambda x: bmm(x[None], other[None], most)[0]
