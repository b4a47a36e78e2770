"""The `torch` backend.

The `torch` backend is the fastest for training, and for inference engines that do not need batch-invariant results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rorqual.ops import grouped, invariant
from rorqual.ops.backends import training
from rorqual.ops.backends.packed import PrepackingBackend
from rorqual.ops.backends.reference import Backend, FittedBackend, Matrices
from rorqual.ops.moe import Routing, expert_matrices


class Torch(PrepackingBackend):
    """The `torch` backend: fused attention, experts over expert-sorted tokens, hand-written backward passes (`ops.backends.training`)."""

    name = "torch"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return training.rms_norm(x, weight, eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        return training.attend(q, k, v, mask, scale)

    def experts(self, x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
        if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
            return (grouped if grouped.supports_grouped_mm(x, gate_up) else training).experts(x, routing, gate_up, down)
        return invariant.experts(x, routing, gate_up, down)

    def experts_tuned(
        self, x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, tuned: Sequence[int], parts: Sequence[Tensor]
    ) -> Tensor:
        if grouped.supports_grouped_mm(x, gate_up):
            return grouped.experts(x, routing, *map(torch.stack, expert_matrices(gate_up, down, tuned, parts)))
        return training.experts_tuned(x, routing, gate_up, down, tuned, parts)

    def fit(self, model: nn.Module, *, cache_shapes: Iterable[tuple[int, int]], threads: int) -> FittedBackend:
        return FittedBackend(_TorchStepBackend(), False, threads)


class _TorchStepBackend(Torch):
    """The `torch` backend for engine steps, which need no gradients. The rows of matrix products are not padded, and attention
    is paged."""

    in_blocks = True
    lanes = invariant.LANES

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return invariant.rms_norm(x, weight, eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        return Backend.attend(self, q, k, v, mask, scale)

    def experts(self, x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
        if isinstance(gate_up, Tensor) and isinstance(down, Tensor) and x.device.type != "cpu":
            return grouped.experts(x, routing, gate_up, down)
        return invariant.unpadded_experts(x, routing, gate_up, down)

    def experts_tuned(
        self, x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, tuned: Sequence[int], parts: Sequence[Tensor]
    ) -> Tensor:
        return Backend.experts_tuned(self, x, routing, gate_up, down, tuned, parts)
