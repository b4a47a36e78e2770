"""Who computes: one object answers for linear maps, experts, norms, activations and attention."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rorqual.ops import attention, moe, norm, sampling
from rorqual.ops.backends.attention import PagedAttention
from rorqual.ops.backends.step import StepFunction
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing
from rorqual.ops.rope import rotate
from rorqual.ops.rows import LOOSE, Rows
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata

M = TypeVar("M", bound=nn.Module)
Matrices = Tensor | Sequence[Tensor]
"""One for each expert: stacked [experts, out, in], or as `Backend.prepare_experts` gave them."""


@dataclass(frozen=True)
class Fit:
    """A backend as it runs one model on this machine, with at most `threads` threads. `held`: it keeps its promise of invariance there."""

    backend: Backend
    held: bool
    threads: int


class Backend:
    """The reference implementation of every operation: plain, slow, differentiable. A subclass replaces what it computes otherwise.

    A subclass with a `name` of its own is found by that name (`rorqual.ops.backends.backend`). A backend holds no state but its settings.
    A name stands for one arithmetic: blocks on disk that were written under it are read under it.
    """

    name = "reference"
    invariant = False
    """Whether the bits of a row depend on that row alone, whatever runs beside it."""
    in_blocks = False
    """Whether attention runs in blocks of keys (`ops.paged`) without a cache, too, as it does with one."""
    rows: Rows = LOOSE
    """Rows to which products are filled up."""
    lanes = 1
    """Columns of logits are filled up to a multiple of this."""

    def supports(
        self, device: torch.device, dtype: torch.dtype, model: nn.Module | None = None, *, training: bool = False
    ) -> str | None:
        """None where this backend runs `model` on `device` in `dtype`; else the reason why not, which an error shows."""
        return None

    @property
    def attention(self) -> PagedAttention:
        """Who attends to keys in blocks, and lays these out."""
        return PagedAttention(self.rows)

    # ---- operations

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `ops.norm.rms_norm`."""
        return norm.rms_norm(x, weight, eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        """See `ops.attention.attend`: attention without a cache."""
        return attention.attend(q, k, v, mask, scale)

    def experts(self, x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
        """See `ops.moe.experts`."""
        return moe.experts(x, routing, gate_up, down)

    def experts_tuned(
        self, x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, tuned: Sequence[int], parts: Sequence[Tensor]
    ) -> Tensor:
        """See `ops.moe.experts_tuned`."""
        return moe.experts_tuned(x, routing, gate_up, down, tuned, parts)

    def silu(self, x: Tensor) -> Tensor:
        """x sigmoid(x)."""
        return F.silu(x)

    def act_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) up, of equal shapes (Shazeer 2020, eq. 6)."""
        return self.silu(gate) * up

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
        """See `ops.rope.rotate`."""
        return rotate(x, cos, sin, interleaved=interleaved)

    def sigmoid(self, x: Tensor) -> Tensor:
        """1 / (1 + exp(-x))."""
        return torch.sigmoid(x)

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        """a [batch, rows, in] b [batch, in, out] -> [batch, rows, out]."""
        return torch.bmm(a, b)

    def sample(self, logits: Tensor, asked: SamplingMetadata) -> SamplerOutput:
        """See `ops.sampling.sample`. Logits may have more columns than the vocabulary; these are -inf."""
        return sampling.sample(logits, asked)

    # ---- copies for inference alone

    def prepares(self, model: nn.Module) -> bool:
        """Whether `prepare` gains anything for a model of this type on this device; unless overridden, whether this class has a layout."""
        mine = type(self)
        return (mine.prepare_linear, mine.prepare_experts) != (Backend.prepare_linear, Backend.prepare_experts)

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        """A `LinearMap` of weight [out, in] and bias [out] in a layout of its own; None: the plain layout is as good."""
        return None

    def prepare_experts(self, gate_up: Tensor, down: Tensor) -> tuple[Matrices, Matrices] | None:
        """gate_up [experts, 2 i, d] and down [experts, d, i] as `experts` shall be given them; None: the plain layout is as good."""
        return None

    def prepare(self, model: M, *, take: bool = False) -> M:
        """A copy of `model` that answers and cannot be trained: repacked weights, fused maps, derived tensors computed once.

        It shares every other parameter with `model`. `take`: nothing is left of `model`, and no weight is in memory twice but for a layer at
        a time. A tied table of tokens is: one copy to look up, one to multiply by.
        """
        with torch.inference_mode(False), torch.no_grad():
            clone = self._prepared(model, take)
        assert type(clone) is type(model)
        return clone

    def _prepared(self, module: nn.Module, take: bool) -> nn.Module:
        if type(module) is nn.Linear:
            return self.prepare_linear(module.weight, module.bias) or module
        if isinstance(module, Experts):
            found = self.prepare_experts(module.gate_up_proj, module.down_proj)
            return module if found is None else PreparedExperts(*found)
        clone = copy.copy(module)
        clone._modules, clone._parameters = dict(module._modules), dict(module._parameters)
        if isinstance(clone, Layer):
            self._compute_ahead(clone)
        if take:
            module._modules = {}
        children = clone._modules
        for key in children:
            if (child := children[key]) is not None:
                children[key] = None
                children[key] = self._prepared(child, take)
                del child
        if isinstance(clone, Layer):
            self._untie(clone)
        return clone

    def _compute_ahead(self, layer: Layer) -> None:
        """Compute derived tensors and fuse maps that read the same rows, in place."""
        layer.known = {name: tuple(t.detach() for t in layer.tensors(name)) for name in layer.derived}
        layer.known = {name: tuple(map(_dense, tensors)) for name, tensors in layer.known.items()}
        children = layer._modules
        names = [name for group in layer.shared_input for name in group]
        maps = [child for name in names if type(child := children[name]) is nn.Linear]
        if names and len(maps) == len(names):  # not where an adapter wraps one
            width = dict(zip(names, (m.out_features for m in maps)))
            layer.widths = tuple(sum(width[name] for name in group) for group in layer.shared_input)
            children |= dict.fromkeys(names) | {"fused": _fused(maps)}
        for name in layer.derived.values():
            children.pop(name, None)
            layer._parameters.pop(name, None)

    def _untie(self, layer: Layer) -> None:
        for name, source in layer.tied.items():
            weight = getattr(layer, source).weight
            head = self.prepare_linear(weight, None)
            if head is not None:
                layer._modules[name] = head

    # ---- running

    def fit(self, model: nn.Module, *, cache_shapes: Iterable[tuple[int, int]], threads: int) -> Fit:
        """This backend as it shall run `model` with `threads` threads. cache_shapes: of each part that its attention
        caches, columns and rows of a block."""
        return Fit(self, self.invariant, threads)

    def compile(self, model: nn.Module) -> StepFunction | None:
        """A function that runs whole steps of an engine with `model`, as `bind` gave it; None: the engine calls the model and `sample`.

        It is asked for again where weights or modules of the model changed.
        """
        return None

    def bind(self, model: M) -> M:
        """A tree of modules that shares all parameters with `model` and computes with this backend."""
        clone = copy.copy(model)  # the same dictionaries
        clone.ops = self  # type: ignore[assignment]
        return clone


class Experts(nn.Module):
    """All routed experts: gate_up_proj [experts, 2 intermediate, hidden] (gate first), down_proj [experts, hidden, intermediate]."""

    def __init__(self, n: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(n, hidden_size, intermediate_size))

    def forward(self, x: Tensor, routing: Routing, ops: Backend) -> Tensor:
        """x [tokens, hidden] -> the gated sum of its experts [tokens, hidden]."""
        return ops.experts(x, routing, self.gate_up_proj, self.down_proj)


class PreparedExperts(nn.Module):
    """`Experts` whose matrices are as a backend prepared them."""

    def __init__(self, gate_up: Matrices, down: Matrices) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor, routing: Routing, ops: Backend) -> Tensor:
        """See `Experts`."""
        return ops.experts(x, routing, self.gate_up, self.down)


def _dense(tensor: Tensor) -> Tensor:
    """The same in one piece, its last two dimensions in the order in memory that they have: products of bf16 copy what does not lie so."""
    if tensor.ndim < 2 or tensor.stride(-1) <= tensor.stride(-2):
        return tensor.contiguous()
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _fused(maps: Sequence[nn.Linear]) -> nn.Linear:
    """One map [sum of out, in] whose outputs are those of `maps`, side by side."""
    weight = torch.cat([part.weight.detach() for part in maps])
    with torch.device("meta"):
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias=maps[0].bias is not None)
    fused.weight = nn.Parameter(weight, requires_grad=False)
    if maps[0].bias is not None:
        fused.bias = nn.Parameter(torch.cat([part.bias.detach() for part in maps]), requires_grad=False)
    return fused
