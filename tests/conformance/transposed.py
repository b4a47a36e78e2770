"""A backend as a user writes it, outside the package: it keeps the weights of a copy for inference transposed and the blocks of the cache
permuted, and knows float32 alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from rorqual.ops import moe
from rorqual.ops.backends import Backend
from rorqual.ops.backends.attention import PAD, AttentionMetadata, AttentionPlan, PagedAttention
from rorqual.ops.backends.reference import Matrices
from rorqual.ops.layer import LinearMap
from rorqual.ops.moe import Routing
from rorqual.ops.paged import BLOCK
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata


class TransposedLinear(LinearMap):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.columns, self.bias = weight.detach().t().contiguous(), bias

    @property
    def weight(self) -> Tensor:
        return self.columns.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.columns
        return y if self.bias is None else y + self.bias


class Columns(list[Tensor]):
    """Matrices [in, out], one for each expert."""


class Permuted(PagedAttention):
    """A pool is [blocks, rows, heads, width], and of the blocks 1 and 2 change places, 3 and 4, ...; 0 stays, as nobody's."""

    def plan(
        self, metadata: AttentionMetadata, device: torch.device, last: AttentionPlan | None = None
    ) -> AttentionPlan:
        block, offset = np.divmod(metadata.slot_mapping, BLOCK)
        slots = np.where(metadata.slot_mapping == PAD, PAD, swapped(block) * BLOCK + offset)
        table = swapped(metadata.block_table)
        return super().plan(replace(metadata, block_table=table, slot_mapping=slots), device, last)

    def shape(self, blocks: int, heads: int, rows: int, width: int) -> tuple[int, ...]:
        return (blocks + 1 - blocks % 2, rows, heads, width)

    def as_blocks(self, pool: Tensor) -> Tensor:
        return pool.transpose(1, 2)

    def prepack_blocks(self, blocks: Tensor) -> Tensor:
        pool = blocks.new_zeros(self.shape(*blocks.shape))
        pool[swapped(np.arange(len(blocks)))] = blocks.transpose(1, 2)
        return pool

    def read(self, pool: Tensor, blocks: Tensor) -> Tensor:
        return super().read(pool, torch.from_numpy(swapped(blocks.numpy())))

    def fill(self, pool: Tensor, blocks: Tensor, contents: Tensor) -> None:
        super().fill(pool, torch.from_numpy(swapped(blocks.numpy())), contents)

    def write(self, pool: Tensor, rows: Tensor, plan: AttentionPlan) -> None:
        pool.flatten(0, 1).index_copy_(0, plan.write_indices(1, BLOCK // pool.shape[1]), rows)


def swapped(blocks: np.ndarray) -> np.ndarray:
    return np.where(blocks > 0, (blocks - 1 ^ 1) + 1, 0)


class Transposed(Backend):
    name = "transposed"
    attention = Permuted()
    used: list[str] = []
    """What was called, for the tests."""

    def supports(
        self, device: torch.device, dtype: torch.dtype, model: nn.Module | None = None, *, training: bool = False
    ) -> str | None:
        return None if dtype == torch.float32 else f"it computes in float32, not in {dtype}"

    def prepares(self, model: nn.Module) -> bool:
        return True

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        return TransposedLinear(weight, bias)

    def prepare_experts(self, gate_up: Tensor, down: Tensor) -> tuple[Matrices, Matrices] | None:
        return tuple(Columns(w.detach().t().contiguous() for w in stack) for stack in (gate_up, down))  # type: ignore[return-value]

    def sample(self, logits: Tensor, asked: SamplingMetadata) -> SamplerOutput:
        self.used.append("sample")
        return super().sample(logits, asked)

    def experts(self, x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
        self.used.append("columns" if isinstance(gate_up, Columns) else "stacked")
        if isinstance(gate_up, Columns):
            gate_up, down = ([w.t() for w in columns] for columns in (gate_up, down))
        return moe.experts(x, routing, gate_up, down)
