"""The `native` backend: linear maps and whole engine steps in C, with one order of every sum.

An output of the kernels depends on its inputs alone, not on other rows, threads or the instruction set (`csrc/vector.h`,
`csrc/linear.h`). So the backend is batch-invariant by construction. Truncation (top-k, top-p, min-p) and the softmax of prompt
log-probabilities are torch's, which may round otherwise on another processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.engine.native.library import LARGEST, PANEL, TYPES, instruction_set, kernel
from rorqual.engine.native.native_step import NativeStep, head_of, unsupported_part
from rorqual.engine.native.panels import PanelLinear
from rorqual.model.decoder import Decoder
from rorqual.ops.backends.attention import AttentionMetadata, AttentionPlan, PagedAttention
from rorqual.ops.backends.reference import Backend, Experts, FittedBackend, M, Matrices
from rorqual.ops.backends.step import StepFunction
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata, adjust_logits, truncate_rows


class NativePlan(AttentionPlan):
    """A plan whose query tiles are built only if an operation of `PagedAttention` reads them. The kernels read `metadata` alone."""

    def __init__(self, metadata: AttentionMetadata, build: Callable[[], AttentionPlan]) -> None:
        self.__dict__ |= {"metadata": metadata, "_build": build}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__ |= vars(self._build()) | self.__dict__
        return self.__dict__[name]


class NativeAttention(PagedAttention):
    def plan(
        self, metadata: AttentionMetadata, device: torch.device, last: AttentionPlan | None = None
    ) -> AttentionPlan:
        return NativePlan(metadata, partial(super().plan, metadata, device))


class Native(Backend):
    """The `native` backend, for inference on x86 processors with AVX2 or AVX-512."""

    name = "native"
    bits: int | None = None
    """8 or 4, if linear maps and experts have quantised weights."""
    invariant = True
    in_blocks = True
    fuses_adapters = True
    lanes = PANEL

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    @property
    def attention(self) -> PagedAttention:
        return NativeAttention(self.rows)

    def supports(
        self, device: torch.device, dtype: torch.dtype, model: nn.Module | None = None, *, training: bool = False
    ) -> str | None:
        if training:
            return "it computes no gradients"
        if device.type != "cpu" or instruction_set() is None:
            return "it has no kernels for this machine"
        if dtype not in TYPES:
            return f"it has no kernels for {dtype}"
        return None if model is None else unsupported_part(model)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return PanelLinear(weight, bias, bits=self.bits)(x)

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        return PanelLinear(weight, bias, bits=self.bits)

    def prepare_experts(self, gate_up: Tensor, down: Tensor) -> tuple[Matrices, Matrices] | None:
        made = [[PanelLinear(weight, None, bits=self.bits) for weight in weights] for weights in (gate_up, down)]
        return made[0], made[1]  # type: ignore[return-value]  # only the kernels read them

    def experts(self, x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
        plain = [
            [one.weight.to(x.dtype) if isinstance(one, PanelLinear) else one for one in maps]
            for maps in (gate_up, down)
        ]
        return super().experts(x, routing, *plain)

    def sample(self, logits: Tensor, metadata: SamplingMetadata) -> SamplerOutput:
        chosen = metadata.settings
        logits = adjust_logits(logits, metadata).float().contiguous()
        rows, vocab = logits.shape
        temperature = chosen.temperature.flatten()
        best = logits.argmax(-1)  # log-probabilities may tie where logits do not
        kernel("log_softmax")(logits.data_ptr(), rows, vocab, vocab, temperature.data_ptr())
        if chosen.cut is not None:
            logits = truncate_rows(logits, chosen.cut)
        ids, uniform = torch.empty_like(best), np.ascontiguousarray(metadata.uniform)
        if not chosen.all_greedy:
            kernel("draw")(logits.data_ptr(), rows, vocab, vocab, uniform.ctypes.data, ids.data_ptr())
        ids = best if chosen.all_greedy else torch.where(chosen.greedy.flatten(), best, ids)
        return SamplerOutput(ids, logits.gather(1, ids.unsqueeze(1)).squeeze(1), logits)

    def fit(self, model: nn.Module, *, cache_shapes: Iterable[tuple[int, int]], threads: int) -> FittedBackend:
        return FittedBackend(type(self)(threads), True, threads)

    def compile(self, model: nn.Module) -> StepFunction | None:
        assert isinstance(model, Decoder)
        if (reason := unsupported_part(model)) is not None:  # modules may have been replaced since `supports`
            raise ConfigError(
                f"backend=native cannot run this model: {reason}", where="engine", remedy="Use another backend."
            )
        return NativeStep(model, self.threads, bits=self.bits)


class NativeInt8(Native):
    """The backend of `backend=native dtype=int8`: linear maps, experts and the head have weights of 8 bits.

    Blocks of 32 weights share a scale (`csrc/quantized.h`). The inputs of these maps are rounded to 8 bits in the same blocks, and
    sums over blocks are fp32. The embedding, norms, routers and the per-head maps of latent attention are not rounded. Outside of
    engine steps, as in `score`, the inputs of experts are not rounded either.
    """

    name = "native dtype=int8"  # errors name what the user wrote
    bits = 8

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        self._head: tuple[Tensor, Tensor] | None = (
            None  # the parameter of the head or the tied embedding, and its values as loaded
        )

    def prepare(self, model: M, *, take: bool = False) -> M:
        """See `Backend.prepare`. With `take`, parameters that are not quantised become bfloat16. Raises NumericsError if a scale would not
        be finite."""
        assert self.bits is not None
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and not float(weight.detach().abs().max()) <= LARGEST[self.bits]:
                raise NumericsError(
                    f"the weight has NaN, infinity or a value above {LARGEST[self.bits]:.2g}",
                    where=name,
                    remedy="Load an earlier checkpoint, or use dtype=bfloat16.",
                )
        if isinstance(model, Decoder):
            weight = head_of(model).weight
            self._head = weight, weight.detach()
        if take:
            _cast_what_stays(model)
        prepared = super().prepare(model, take=take)
        self._head = None
        return prepared

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        if self._head is not None and weight is self._head[0]:
            return PanelLinear(self._head[1], bias, bits=8)
        return super().prepare_linear(weight, bias)


def _cast_what_stays(model: nn.Module) -> None:
    """Cast the parameters that are no weights of linear maps or experts to bfloat16, in place, and the maps that become derived tensors."""
    for module in model.modules():
        if type(module) is not nn.Linear and not isinstance(module, Experts):
            for own in module.parameters(recurse=False):
                own.data = own.data.bfloat16()
        if isinstance(module, Layer):
            for name in module.derived.values():
                if isinstance(child := getattr(module, name, None), nn.Module):
                    child.bfloat16()


class NativeInt4(NativeInt8):
    """The backend of `backend=native dtype=int4`: as `NativeInt8`, but linear maps and experts have weights of 4 bits, and a least weight
    for each block. The head keeps 8 bits."""

    name = "native dtype=int4"
    bits = 4


QUANTIZED = {"int8": NativeInt8.name, "int4": NativeInt4.name}
"""Backends of quantised weights, by dtype."""
