"""Mixture of experts with grouped matrix products. No shape depends on the routing, so the host never waits for the GPU.

In torch 2.10, `grouped_mm` supports bf16, and runs as one kernel on CUDA GPUs from sm90 on. For dtypes other than bf16,
backends loop over experts. The loop synchronizes host and device in each layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.moe import Routing

ALIGNED = 8
"""Required alignment of matrix rows in `grouped_mm`, as a number of bf16 values."""


def fits(x: Tensor, gate_up: Tensor) -> bool:
    """Return whether `experts` supports these tensors: bf16, aligned, and not on the CPU."""
    _, twice, width = gate_up.shape
    aligned = width % ALIGNED == 0 and twice % (2 * ALIGNED) == 0
    return x.device.type != "cpu" and aligned and _compute_dtype(x) == torch.bfloat16


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """Compute sum_k weight_k SwiGLU_k(x) with two grouped products over tokens sorted by expert.

    x [tokens, d], gate_up [experts, 2 i, d] (gate first), down [experts, d, i] -> [tokens, d]. The outputs
    of a token's experts are added in the order of `routing.indices`.
    """
    tokens, k = routing.indices.shape
    x, gate_up, down = (tensor.to(_compute_dtype(x)) for tensor in (x, gate_up, down))
    flat = routing.indices.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.zeros(len(gate_up), dtype=torch.int32, device=x.device)
    ends = counts.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32)).cumsum(0, dtype=torch.int32)
    sorted_x = x.index_select(0, order // k)
    gate, up = F.grouped_mm(sorted_x, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    unsort = torch.empty_like(order).scatter(0, order, torch.arange(tokens * k, device=x.device))
    each = out.index_select(0, unsort).view(tokens, k, -1)
    return torch.bmm(routing.weights.unsqueeze(1), each.to(routing.weights.dtype)).squeeze(1).to(x.dtype)
