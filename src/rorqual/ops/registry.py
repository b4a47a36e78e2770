"""Operations by name: a frozen set of implementations that is handed to a model, never looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.core.errors import ConfigError, nearest
from rorqual.ops import attention, invariant, moe, norm
from rorqual.ops.backends import cpu
from rorqual.ops.rows import Rows, bmm


@dataclass(frozen=True)
class Ops:
    """One implementation of each operation that has a faster twin; the reference's docstrings are the contract."""

    name: str
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
    experts: Callable[[Tensor, moe.Routing, Tensor, Tensor], Tensor]
    experts_tuned: Callable[[Tensor, moe.Routing, Tensor, Tensor, Sequence[int], Sequence[Tensor]], Tensor]
    silu: Callable[[Tensor], Tensor] = F.silu
    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid
    experts_packed: Callable[[Tensor, moe.Routing, Sequence[Tensor], Sequence[Tensor]], Tensor] = invariant.experts
    """`experts` without gradients, of matrices each laid out by itself (`ops.layout`)."""
    bmm: Callable[[Tensor, Tensor], Tensor] = torch.bmm
    in_blocks: bool = False
    """Attend in blocks of keys of one fixed size (`ops.paged`), also without a cache."""


REFERENCE = Ops("reference", norm.rms_norm, attention.attend, moe.experts, moe.experts_tuned)
FAST = Ops("fast", cpu.rms_norm, cpu.attend, cpu.experts, cpu.experts_tuned)
INVARIANT = Ops(
    "invariant",
    invariant.rms_norm,
    attention.attend,
    invariant.experts,
    moe.experts_tuned,
    invariant.silu,
    invariant.sigmoid,
    in_blocks=True,
)
LOOSE = replace(
    INVARIANT,
    name="loose",
    experts=invariant.loose_experts,
    experts_packed=invariant.loose_experts,
    silu=F.silu,
    sigmoid=torch.sigmoid,
)
"""What generation runs on where the last bits may depend on the neighbours: nothing is filled up."""


@lru_cache
def invariant_in(rows: Rows) -> Ops:
    """`INVARIANT` with so many rows to a product."""
    experts = partial(invariant.experts, rows=rows)
    return replace(INVARIANT, experts=experts, experts_packed=experts, bmm=partial(bmm, most=rows.most))


def backend(name: str) -> Ops:
    """The operations called `name`; `reference` is the slow truth, `fast` is proven equal to it, `invariant` is what generation runs on."""
    known = {ops.name: ops for ops in (REFERENCE, FAST, INVARIANT, LOOSE)}
    if name not in known:
        raise ConfigError(f"unknown backend '{name}'", where="ops", remedy=nearest(name, known))
    return known[name]
