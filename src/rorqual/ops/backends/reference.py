"""The backend interface: experts, norms, activations, attention, sampling and repacked weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rorqual.core.registry import Registered
from rorqual.ops import attention, moe, norm, sampling
from rorqual.ops.backends.attention import PagedAttention
from rorqual.ops.backends.step import StepFunction
from rorqual.ops.layer import Layer, LinearMap
from rorqual.ops.moe import Routing
from rorqual.ops.rope import rotate
from rorqual.ops.row_limits import LOOSE, RowLimits
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata

M = TypeVar("M", bound=nn.Module)
Matrices = Tensor | Sequence[Tensor]
"""The matrices of all experts: a stacked tensor [experts, out, in], or a result of `Backend.prepare_experts`."""


@dataclass(frozen=True)
class FittedBackend:
    """A backend that is configured for one model on this machine.

    `is_invariant` is True if the backend's results are guaranteed to be batch-invariant with at most `threads` threads.
    """

    backend: Backend
    is_invariant: bool
    threads: int


class Backend(Registered):
    """The reference backend: plain, slow, differentiable implementations of all operations. Other backends are subclasses that
    override operations.

    `rorqual.ops.backends.backend` finds a subclass by its `name`. A backend has no state except its settings. If the results of
    a backend change by a single bit, the backend needs a new name, because the name is part of the key of KV-cache blocks on
    disk.
    """

    name = "reference"
    invariant = False
    """True if the backend's results are batch-invariant: the bits of one row do not depend on other rows in the batch."""
    in_blocks = False
    """True if forward passes without a KV cache, as in training, also use paged attention (`ops.paged`)."""
    fuses_adapters = False
    """True if the function of `compile` adds the products of adapters (`model.adapter.bank.AdaptedLinear`)."""
    rows: RowLimits = LOOSE
    """Limits on the number of rows of the backend's matrix products (`ops.row_limits`)."""
    lanes = 1
    """The number of columns of logits is padded to a multiple of `lanes`."""

    def supports(
        self, device: torch.device, dtype: torch.dtype, model: nn.Module | None = None, *, training: bool = False
    ) -> str | None:
        """Return None if this backend can run `model` on `device` in `dtype`. If the backend cannot run `model`, return the reason as text.

        The returned reason is shown in the error message to the user.
        """
        return None

    @property
    def attention(self) -> PagedAttention:
        """The backend's paged attention, which also defines the layout of block pools."""
        return PagedAttention(self.rows)

    # ---- operations

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute x [..., in] @ weight^T [in, out] + bias [out]. Routers do not call `linear`, because routers compute in fp32."""
        return F.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `ops.norm.rms_norm`."""
        return norm.rms_norm(x, weight, eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        """Compute attention without a KV cache. See `ops.attention.attend`."""
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
        """Compute silu(gate) * up for `gate` and `up` of equal shapes (Shazeer 2020, eq. 6)."""
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

    def sample(self, logits: Tensor, metadata: SamplingMetadata) -> SamplerOutput:
        """See `ops.sampling.sample`. The logits may have padding columns after the vocabulary. Padding columns contain -inf."""
        return sampling.sample(logits, metadata)

    # ---- inference-only copies

    def prepares(self, model: nn.Module) -> bool:
        """Return whether `prepare` makes `model` faster, given its dtype and device.

        By default, `prepares` returns True if the backend class overrides `prepare_linear` or `prepare_experts`.
        """
        cls = type(self)
        return (cls.prepare_linear, cls.prepare_experts) != (Backend.prepare_linear, Backend.prepare_experts)

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        """Repack `weight` [out, in] and return a `LinearMap` with the bias `bias` [out]. Return None if repacking `weight` does
        not help."""
        return None

    def prepare_experts(self, gate_up: Tensor, down: Tensor) -> tuple[Matrices, Matrices] | None:
        """Repack gate_up [experts, 2 i, d] and down [experts, d, i] for `experts`. Return None if the experts should keep the
        plain layout."""
        return None

    def prepare(self, model: M, *, take: bool = False) -> M:
        """Return an inference-only copy of `model` with repacked weights, fused linear maps and precomputed derived tensors.

        All parameters that are not repacked, fused or precomputed are shared with `model`. With `take=True`, each layer is
        removed from `model` when the layer is copied, so at most one layer at a time is in memory twice. A tied embedding stays
        in memory twice, for lookup and for the head.
        """
        with torch.inference_mode(False), torch.no_grad():
            clone = self._prepare_module(model, take)
        assert type(clone) is type(model)
        return clone

    def _prepare_module(self, module: nn.Module, take: bool) -> nn.Module:
        if type(module) is nn.Linear:
            return self.prepare_linear(module.weight, module.bias) or module
        if isinstance(module, Experts):
            repacked = self.prepare_experts(module.gate_up_proj, module.down_proj)
            return module if repacked is None else PreparedExperts(*repacked)
        clone = copy.copy(module)
        clone._modules, clone._parameters = dict(module._modules), dict(module._parameters)
        if isinstance(clone, Layer):
            self._precompute_derived(clone)
        if take:
            module._modules = {}
        children = clone._modules
        for key in children:
            if (child := children[key]) is not None:
                children[key] = None
                children[key] = self._prepare_module(child, take)
                del child
        if isinstance(clone, Layer):
            self._add_untied_maps(clone)
        return clone

    def _precompute_derived(self, layer: Layer) -> None:
        """Precompute the derived tensors of `layer` and fuse its linear maps that share an input, in place."""
        layer.known = {name: tuple(t.detach() for t in layer.derived_tensors(name)) for name in layer.derived}
        layer.known = {name: tuple(map(_close_memory_gaps, tensors)) for name, tensors in layer.known.items()}
        children = layer._modules
        names = [name for group in layer.shared_input for name in group]
        maps = [child for name in names if type(child := children[name]) is nn.Linear]
        if names and len(maps) == len(names):  # do not fuse if an adapter wraps one of the linear maps
            width = dict(zip(names, (m.out_features for m in maps)))
            layer.widths = tuple(sum(width[name] for name in group) for group in layer.shared_input)
            children |= dict.fromkeys(names) | {"fused": _fuse_linears(maps)}
        for name in layer.derived.values():
            children.pop(name, None)
            layer._parameters.pop(name, None)

    def _add_untied_maps(self, layer: Layer) -> None:
        for name, source in layer.tied.items():
            weight = getattr(layer, source).weight
            head = self.prepare_linear(weight, None)
            if head is not None:
                layer._modules[name] = head

    # ---- running

    def fit(self, model: nn.Module, *, cache_shapes: Iterable[tuple[int, int]], threads: int) -> FittedBackend:
        """Configure this backend to run `model` with up to `threads` threads on this machine.

        `cache_shapes` lists (columns, rows per block) of each part of the KV cache.
        """
        return FittedBackend(self, self.invariant, threads)

    def compile(self, model: nn.Module) -> StepFunction | None:
        """Return a function that runs a complete engine step, or None if the engine should call the model and `sample`.

        `model` is a module tree that `bind` returned. The engine calls `compile` again when the model's weights or modules are
        replaced.
        """
        return None

    def bind(self, model: M) -> M:
        """Return a module tree that shares all parameters with `model` and computes with this backend."""
        clone = copy.copy(self.route_linears(model))  # the copy shares the parameter and module dictionaries
        clone.ops = self  # type: ignore[assignment]
        return clone

    def route_linears(self, model: M) -> M:
        """Return a module tree that shares all parameters with `model` and whose linear maps call `linear`.

        Return `model` itself if the backend class does not override `linear`.
        """
        if type(self).linear is Backend.linear:
            return model
        routed = _route_module(model, self)
        assert isinstance(routed, type(model))
        return routed


class BackendLinear(nn.Linear):
    """A linear map that shares the parameters of another linear map and computes with a backend."""

    computes_by_weight = True

    def __init__(self, other: nn.Linear, ops: Backend) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.ops = other.in_features, other.out_features, ops
        self._parameters = other._parameters

    def forward(self, input: Tensor) -> Tensor:
        return self.ops.linear(input, self.weight, self.bias)


def _route_module(module: nn.Module, ops: Backend) -> nn.Module:
    if type(module) is nn.Linear:
        return BackendLinear(module, ops)
    clone = copy.copy(module)
    if isinstance(clone, LinearMap):
        clone.linear = ops.linear
    clone._modules = {
        name: child if child is None else _route_module(child, ops) for name, child in module._modules.items()
    }
    return clone


class Experts(nn.Module):
    """A module of stacked routed experts.

    The weights are gate_up_proj [experts, 2 * intermediate, hidden] and down_proj [experts, hidden, intermediate]. In
    gate_up_proj, the rows of the gate projection come first.
    """

    def __init__(self, n: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(n, hidden_size, intermediate_size))

    def forward(self, x: Tensor, routing: Routing, ops: Backend) -> Tensor:
        """Compute the gated sum of each token's experts: x [tokens, hidden] -> [tokens, hidden]."""
        return ops.experts(x, routing, self.gate_up_proj, self.down_proj)


class PreparedExperts(nn.Module):
    """Routed experts whose weight matrices were repacked by a backend."""

    def __init__(self, gate_up: Matrices, down: Matrices) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor, routing: Routing, ops: Backend) -> Tensor:
        """See `Experts`."""
        return ops.experts(x, routing, self.gate_up, self.down)


def _close_memory_gaps(tensor: Tensor) -> Tensor:
    """Make a tensor contiguous but keep the memory order of its last two dimensions.

    Every bf16 matrix product would copy a tensor that has gaps in memory.
    """
    if tensor.ndim < 2 or tensor.stride(-1) <= tensor.stride(-2):
        return tensor.contiguous()
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _fuse_linears(maps: Sequence[nn.Linear]) -> nn.Linear:
    """Fuse linear maps that share an input into one linear map. The output of the fused map is the concatenation of the outputs
    of the maps in `maps`."""
    weight = torch.cat([part.weight.detach() for part in maps])
    with torch.device("meta"):
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias=maps[0].bias is not None)
    fused.weight = nn.Parameter(weight, requires_grad=False)
    if maps[0].bias is not None:
        fused.bias = nn.Parameter(torch.cat([part.bias.detach() for part in maps]), requires_grad=False)
    return fused
