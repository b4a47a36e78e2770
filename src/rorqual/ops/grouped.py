"""Mixture of experts on GPUs. No tensor shape depends on the routing, so the host never waits for the GPU.

In torch 2.10, `grouped_mm` runs as one kernel for bf16 on CUDA GPUs from sm90 on. For other dtypes, the tokens of each expert
are padded to blocks of equal size, and one batched product multiplies each block by a copy of its expert's matrix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.moe import Routing

ALIGNED = 8
"""Required alignment of matrix rows in `grouped_mm`, in bf16 values."""


def supports_grouped_mm(x: Tensor, gate_up: Tensor) -> bool:
    """Return whether `grouped_mm` supports `x` and `gate_up`: both tensors must be bf16, aligned, and not on the CPU."""
    return x.device.type != "cpu" and _is_aligned(_compute_dtype(x), gate_up)


def _is_aligned(dtype: torch.dtype, gate_up: Tensor) -> bool:
    _, twice, width = gate_up.shape
    return dtype == torch.bfloat16 and width % ALIGNED == 0 and twice % (2 * ALIGNED) == 0


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """Compute sum_k weight_k SwiGLU_k(x) with two products over tokens grouped by expert.

    x [tokens, d], gate_up [experts, 2 i, d] (gate first), down [experts, d, i] -> [tokens, d]. The outputs of a token's experts
    are added in the order in which `routing.indices` lists the experts.
    """
    tokens, k = routing.indices.shape
    x, gate_up, down = (tensor.to(_compute_dtype(x)) for tensor in (x, gate_up, down))
    compute = _experts_by_grouped_mm if _is_aligned(x.dtype, gate_up) else _experts_by_blocks
    each = compute(x, routing.indices, gate_up.transpose(1, 2), down.transpose(1, 2)).view(tokens, k, down.shape[1])
    return torch.bmm(routing.weights.unsqueeze(1), each.to(routing.weights.dtype)).squeeze(1).to(x.dtype)


def _experts_by_grouped_mm(x: Tensor, indices: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return SwiGLU_expert(x) [tokens * k, d] of each token and each of the token's experts, computed with `grouped_mm`."""
    order, pairs = _sort_by_expert(indices)
    ends = _expert_counts(indices, len(gate_up)).cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(x.index_select(0, order // indices.shape[1]), gate_up, offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up, down, offs=ends)
    return out.index_select(0, torch.empty_like(order).scatter(0, order, pairs))


def _experts_by_blocks(x: Tensor, indices: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Compute the result of `_experts_by_grouped_mm` with batched products over blocks of rows that share an expert.

    The number of blocks is the largest number of blocks that any routing needs. The number of blocks is at most twice the
    number of experts. The batched products therefore use at most twice the rows, and two copies of all expert matrices.
    """
    order, pairs = _sort_by_expert(indices)
    n, n_experts = len(pairs), len(gate_up)
    rows = max(1, -(-n // n_experts))
    blocks = (n + min(n, n_experts) * (rows - 1)) // rows
    counts = _expert_counts(indices, n_experts)
    needed = (counts + rows - 1) // rows
    block_ends = needed.cumsum(0)
    shift = (block_ends - needed) * rows - (
        counts.cumsum(0) - counts
    )  # from an expert's first sorted row to its first block
    shift = shift.index_select(0, indices.reshape(-1).index_select(0, order))
    place = torch.empty_like(order).scatter(0, order, pairs + shift)
    used = torch.searchsorted(block_ends, torch.arange(blocks, device=x.device), right=True).clamp_max(n_experts - 1)
    padded = x.new_zeros(blocks * rows, x.shape[1]).index_copy(0, place, x.repeat_interleave(indices.shape[1], dim=0))
    gate, up = torch.bmm(padded.view(blocks, rows, x.shape[1]), gate_up.index_select(0, used)).chunk(2, dim=-1)
    return torch.bmm(F.silu(gate) * up, down.index_select(0, used)).flatten(0, 1).index_select(0, place)


def _sort_by_expert(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices [pairs] that sort the (token, expert) pairs stably by expert, and the indices 0 to pairs - 1 in order."""
    order = indices.reshape(-1).argsort(stable=True)
    return order, torch.arange(len(order), device=order.device)


def _expert_counts(indices: Tensor, n_experts: int) -> Tensor:
    flat = indices.reshape(-1)
    return torch.zeros(n_experts, dtype=torch.int64, device=flat.device).scatter_add(0, flat, torch.ones_like(flat))
