"""How many rows the products of a model need on this machine, and may have, so that each row is rounded in one way.

That is what the engine's promise of the same bits stands on, and it is the machine's to keep: a library may choose another kernel for
another number of rows, and does so on one make of processor otherwise than on another (`ops.rows`; docs/engine.md). This finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rorqual.engine.packed import PackedExperts, PackedLinear
from rorqual.model import Decoder
from rorqual.model.adapter.lora import LoRALinear
from rorqual.model.attention import MLA
from rorqual.model.ffn import MoE
from rorqual.ops.layout import laid_out, times
from rorqual.ops.paged import BLOCK
from rorqual.ops.rows import ENOUGH, LOOSE, Rows, bmm, cancelling, in_tiles

Kind = Literal["map", "packed", "transposed", "straight"]
"""A product with a matrix [out, width] as it lies; laid out; batched, transposed; batched, of a matrix [width, out]."""
Product = tuple[Kind, int, int, torch.dtype]
"""Kind, width and out, and type."""
CHOICES = (Rows(4), ENOUGH, Rows(16, 32), Rows(16, 16))
"""Filled up a little, as MKL's path for any x86 needs it; more, as its path for Intel's own; and with at most so many wide rows at once,
as oneDNN's bf16 on AMX."""
EVEN = 4
"""Widths of keys and values are multiples of this where the promise holds (docs/engine.md)."""
STEPS = {torch.float32: (1, 2, 4)}
"""Multiples of the least rows that are tried, by type."""
MORE_STEPS = (1, 2, 3, 4, 6, 16)
WHOLE = 20
WIDEST = 16384
"""Outputs that are tried: of 49,152 the first have the same bits (docs/LOG.md), and a head of a large vocabulary need not be made again."""
NOT_HELD = (
    "here answers may differ in their last bits by what runs beside them: no number of rows was found at which this model's products "
    "on this device are all rounded in one way (docs/engine.md)"
)
"""What to say where the promise was asked for and is not held."""


def rows_of(model: Decoder, threads: int) -> tuple[Rows, bool, int]:
    """How many rows its products are to have, whether each then rounds a row in one way, and with how many threads at most.

    The first of `CHOICES` under which every product of `model`, one of each shape, does so with `threads` as with one; else, with one.
    """
    if model.embed_tokens.weight.device.type != "cpu":
        return Rows(4), False, threads  # nobody has looked
    if any(part.width % EVEN for stage in model.config.stages for part in stage.attention.cache_spec()):
        # Keys of 18 and values of 10 are rounded in two ways in attention, though each product below holds.
        return ENOUGH, False, threads
    products = set(_products(model))
    for most in dict.fromkeys((threads, 1)):
        for rows in CHOICES:
            if all(_alike(*product, rows, most) for product in products):
                return rows, True, most
    return ENOUGH, False, threads


class NumericsProbe:
    """What the steps of an engine stand on: `rows` of products, at most `threads` threads, and whether the promise is `held`. It is found
    out anew where the model is made of other parts than before: where an adapter was attached, or taken off."""

    def __init__(self, model: Decoder, *, invariant: bool) -> None:
        self._model, self._wanted = model, invariant
        self._most = torch.get_num_threads()
        self._parts: tuple[object, ...] = ()
        self.rows, self.held, self.threads = LOOSE, False, self._most
        self.renew()

    def renew(self) -> None:
        """Look what the model is made of now."""
        if self._wanted and (parts := _parts(self._model)) != self._parts:
            self.rows, self.held, self.threads = rows_of(self._model, self._most)
            self._parts = parts


def _parts(model: Decoder) -> tuple[object, ...]:
    """What the shapes of a model's products follow from: another where they are others."""
    return tuple(
        (type(module), *(p.shape for p in module._parameters.values() if p is not None)) for module in model.modules()
    )


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


def _products(model: Decoder) -> Iterator[Product]:
    """Of each product."""
    dtype = model.embed_tokens.weight.dtype
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield "map", module.in_features, module.out_features, dtype
        if isinstance(module, LoRALinear):
            (r, width), out = module.lora_A.shape, module.lora_B.shape[0]
            yield from (("map", width, out, dtype), ("map", width, r, dtype), ("map", r, out, dtype))
        if isinstance(module, PackedLinear):
            yield "packed", module.shape[1], module.shape[0], dtype
        if isinstance(module, PackedExperts):
            for matrix in (module.gate_up[0], module.down[0]):
                yield "packed", matrix.shape[1], matrix.shape[0], dtype
        if isinstance(module, MoE):
            yield "map", module.gate.shape[1], module.gate.shape[0], torch.float32
        if isinstance(module, MLA):
            w_uk, w_uv = module.up_maps()
            yield "straight", w_uk.shape[1], w_uk.shape[2], dtype
            yield "transposed", w_uv.shape[2], w_uv.shape[1], dtype
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3:  # experts, one by one or all at once
                yield "map", parameter.shape[2], parameter.shape[1], dtype
                yield "transposed", parameter.shape[2], parameter.shape[1], dtype
    if model.lm_head is None:
        yield "map", model.config.hidden_size, model.config.vocab_size, dtype
    for stage in model.config.stages:
        for part in stage.attention.cache_spec():
            yield "transposed", part.width, BLOCK, dtype
            yield "straight", BLOCK, part.width, dtype
