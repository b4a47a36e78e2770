"""The backend interface: linear maps, experts, norms, activations, attention and sampling."""

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
from rorqual.ops.layer import Layer, LinearMap
from rorqual.ops.moe import Routing
from rorqual.ops.rope import rotate
from rorqual.ops.rows import LOOSE, Rows
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata

M = TypeVar("M", bound=nn.Module)
Matrices = Tensor | Sequence[Tensor]
"""One matrix per expert: stacked [experts, out, in], or as `Backend.prepare_experts` returned them."""


@dataclass(frozen=True)
class Fit:
    """A backend configured for one model on this machine, with at most `threads` threads.

    `held` is True if its guarantee of invariance holds there.
    """

    backend: Backend
    held: bool
    threads: int


class Backend:
    """The reference implementation of every operation: plain, slow, differentiable. Subclasses override operations.

    A subclass with its own `name` is found by that name (`rorqual.ops.backends.backend`). A backend has no state except
    its settings. A name identifies one arithmetic: cached blocks on disk are only read under the name they were written
    under.
    """

    name = "reference"
    invariant = False
    """True if a row's bits depend on that row alone, whatever else is in the batch."""
    in_blocks = False
    """True if attention without a cache also runs in blocks of keys (`ops.paged`)."""
    rows: Rows = LOOSE
    """Row limits of products."""
    lanes = 1
    """Columns of logits are padded to a multiple of this."""

    def supports(
        self, device: torch.device, dtype: torch.dtype, model: nn.Module | None = None, *, training: bool = False
    ) -> str | None:
        """Return None if this backend can run `model` on `device` in `dtype`, otherwise the reason, which errors show."""
        return None

    @property
    def attention(self) -> PagedAttention:
        """The implementation of attention over blocks, including their layout."""
        return PagedAttention(self.rows)

    # ---- operations

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute x [..., in] @ weight^T [in, out] + bias [out]. Routers do not use it: they compute in fp32."""
        return F.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `ops.norm.rms_norm`."""
        return norm.rms_norm(x, weight, eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        """Attend without a cache. See `ops.attention.attend`."""
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
        """Compute x sigmoid(x)."""
        return F.silu(x)

    def act_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """Compute silu(gate) * up for equal shapes (Shazeer 2020, eq. 6)."""
        return self.silu(gate) * up

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
        """See `ops.rope.rotate`."""
        return rotate(x, cos, sin, interleaved=interleaved)

    def sigmoid(self, x: Tensor) -> Tensor:
        """Compute 1 / (1 + exp(-x))."""
        return torch.sigmoid(x)

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute a [batch, rows, in] @ b [batch, in, out] -> [batch, rows, out]."""
        return torch.bmm(a, b)

    def sample(self, logits: Tensor, asked: SamplingMetadata) -> SamplerOutput:
        """See `ops.sampling.sample`. Logits may have padding columns beyond the vocabulary, filled with -inf."""
        return sampling.sample(logits, asked)

    # ---- inference-only copies

    def prepares(self, model: nn.Module) -> bool:
        """Return True if `prepare` speeds up a model of this dtype and device. The default: True if this class repacks weights."""
        mine = type(self)
        return (mine.prepare_linear, mine.prepare_experts) != (Backend.prepare_linear, Backend.prepare_experts)

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        """Return a `LinearMap` of weight [out, in] and bias [out] in a faster layout, or None if the plain layout is as good."""
        return None

    def prepare_experts(self, gate_up: Tensor, down: Tensor) -> tuple[Matrices, Matrices] | None:
        """Return gate_up [experts, 2 i, d] and down [experts, d, i] in the layout for `experts`, or None to keep the plain layout."""
        return None

    def prepare(self, model: M, *, take: bool = False) -> M:
        """Return an inference-only copy of `model`: repacked weights, fused maps, derived tensors computed once.

        It shares all other parameters with `model`. `take` empties `model`, so weights are in memory twice only for one
        layer at a time. A tied embedding is the exception: it keeps one copy for lookup and one for products.
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
        """Compute derived tensors and fuse maps with the same input, in place."""
        layer.known = {name: tuple(t.detach() for t in layer.tensors(name)) for name in layer.derived}
        layer.known = {name: tuple(map(_dense, tensors)) for name, tensors in layer.known.items()}
        children = layer._modules
        names = [name for group in layer.shared_input for name in group]
        maps = [child for name in names if type(child := children[name]) is nn.Linear]
        if names and len(maps) == len(names):  # skip if an adapter wraps one
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
        """Return this backend configured to run `model` with `threads` threads.

        cache_shapes gives, for each cached part of its attention, the columns and the rows per block.
        """
        return Fit(self, self.invariant, threads)

    def compile(self, model: nn.Module) -> StepFunction | None:
        """Return a function that runs whole engine steps with `model`, as `bind` returned it.

        None means that the engine calls the model and `sample`. The engine calls `compile` again when weights or
        modules of the model change.
        """
        return None

    def bind(self, model: M) -> M:
        """Return a module tree that shares all parameters with `model` and computes with this backend."""
        clone = copy.copy(self.route(model))  # shares the parameter and module dictionaries
        clone.ops = self  # type: ignore[assignment]
        return clone

    def route(self, model: M) -> M:
        """Return a module tree that shares all parameters with `model` and whose linear maps call `linear`.

        It is `model` itself if this class does not override `linear`.
        """
        if type(self).linear is Backend.linear:
            return model
        routed = _routed(model, self)
        assert isinstance(routed, type(model))
        return routed


class RoutedLinear(nn.Linear):
    """A linear map that shares the parameters of another one and computes with a backend."""

    def __init__(self, other: nn.Linear, ops: Backend) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.ops = other.in_features, other.out_features, ops
        self._parameters = other._parameters

    def forward(self, input: Tensor) -> Tensor:
        return self.ops.linear(input, self.weight, self.bias)


def _routed(module: nn.Module, ops: Backend) -> nn.Module:
    if type(module) is nn.Linear:
        return RoutedLinear(module, ops)
    clone = copy.copy(module)
    if isinstance(clone, LinearMap):
        clone.linear = ops.linear
    clone._modules = {name: child if child is None else _routed(child, ops) for name, child in module._modules.items()}
    return clone


class Experts(nn.Module):
    """All routed experts: gate_up_proj [experts, 2 intermediate, hidden] (gate first), down_proj [experts, hidden, intermediate]."""

    def __init__(self, n: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(n, hidden_size, intermediate_size))

    def forward(self, x: Tensor, routing: Routing, ops: Backend) -> Tensor:
        """Return the gated sum [tokens, hidden] of each token's experts, for x [tokens, hidden]."""
        return ops.experts(x, routing, self.gate_up_proj, self.down_proj)


class PreparedExperts(nn.Module):
    """`Experts` with matrices that a backend prepared."""

    def __init__(self, gate_up: Matrices, down: Matrices) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor, routing: Routing, ops: Backend) -> Tensor:
        """See `Experts`."""
        return ops.experts(x, routing, self.gate_up, self.down)


def _dense(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor with the memory order of its last two dimensions kept. bf16 products copy strided tensors."""
    if tensor.ndim < 2 or tensor.stride(-1) <= tensor.stride(-2):
        return tensor.contiguous()
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _fused(maps: Sequence[nn.Linear]) -> nn.Linear:
    """Return one map [sum of out, in] whose output concatenates the outputs of `maps`."""
    weight = torch.cat([part.weight.detach() for part in maps])
    with torch.device("meta"):
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias=maps[0].bias is not None)
    fused.weight = nn.Parameter(weight, requires_grad=False)
    if maps[0].bias is not None:
        fused.bias = nn.Parameter(torch.cat([part.bias.detach() for part in maps]), requires_grad=False)
    return fused
