"""Experts by grouped products. No shape depends on the routing, so the host never waits for an accelerator.

torch has grouped products in bf16 (torch 2.10; one kernel from CUDA's sm90 on). Other dtypes loop over experts, which
synchronises with the device in each layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.moe import Routing

ALIGNED = 8
"""Alignment of the rows of torch's grouped products, in bf16 values."""


def fits(x: Tensor, gate_up: Tensor) -> bool:
    """Return True if `experts` below supports these tensors: bf16, aligned, and not on the CPU."""
    _, twice, width = gate_up.shape
    aligned = width % ALIGNED == 0 and twice % (2 * ALIGNED) == 0
    return x.device.type != "cpu" and aligned and _type(x) == torch.bfloat16


def _type(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """Compute sum_k weight_k SwiGLU_k(x) by two grouped products over tokens sorted by expert.

    x [tokens, d], gate_up [experts, 2 i, d] (gate first), down [experts, d, i] -> [tokens, d]. A token's experts are
    added in the order in which they were chosen.
    """
    tokens, k = routing.indices.shape
    x, gate_up, down = (tensor.to(_type(x)) for tensor in (x, gate_up, down))
    flat = routing.indices.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.zeros(len(gate_up), dtype=torch.int32, device=x.device)
    ends = counts.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32)).cumsum(0, dtype=torch.int32)
    taken = x.index_select(0, order // k)
    gate, up = F.grouped_mm(taken, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    back = torch.empty_like(order).scatter(0, order, torch.arange(tokens * k, device=x.device))
    each = out.index_select(0, back).view(tokens, k, -1)
    return torch.bmm(routing.weights.unsqueeze(1), each.to(routing.weights.dtype)).squeeze(1).to(x.dtype)
