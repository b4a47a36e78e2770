"""Operations for generation on the CPU: without a gradient, and so with half the operations.

A decode step has a few hundred tokens and sixteen experts: the products are small, and what surrounds them costs as much.
Nothing is kept for a backward pass here, tokens are gathered once and added back once.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops import norm
from rorqual.ops.moe import Routing
from rorqual.ops.registry import FAST, Ops


def experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """sum_k weight_k SwiGLU_k(x): x [tokens, d], gate_up [experts, 2 i, d], down [experts, d, i] -> [tokens, d].

    The gates multiply the narrow middle [tokens * k, i] instead of the wide end.
    """
    if x.dtype != torch.float32 or x.is_cuda:  # in bf16 rows are padded for oneDNN: see ops/backends/cpu.py
        return FAST.experts(x, routing, gate_up, down)
    (n, d), k = x.shape, routing.indices.shape[1]
    flat = routing.indices.reshape(-1)
    order = flat.sort(stable=True).indices
    counts = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()
    used = [expert for expert, count in enumerate(counts) if count]
    sizes = [counts[expert] for expert in used]
    token = order // k
    rows = x.index_select(0, token)  # [tokens * k, d], sorted by expert
    middle = x.new_empty(n * k, gate_up.shape[1])
    for expert, part, out in zip(used, rows.split(sizes), middle.split(sizes)):
        torch.mm(part, gate_up[expert].t(), out=out)
    gate, up = middle.chunk(2, dim=-1)
    gates = routing.weights.reshape(-1, 1).index_select(0, order)
    h = F.silu(gate).mul_(up).mul_(gates)
    for expert, part, out in zip(used, h.split(sizes), rows.split(sizes)):
        torch.mm(part, down[expert].t(), out=out)
    return x.new_zeros(n, d).index_add_(0, token, rows)


def for_generation(ops: Ops) -> Ops:
    """`ops` with what generation replaces; other backends than the default are left as their user chose them."""
    return replace(ops, name="generation", experts=experts, rms_norm=norm.rms_norm) if ops is FAST else ops
