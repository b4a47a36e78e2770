"""Operations by name: a frozen set of implementations that is handed to a model, never looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.core.errors import ConfigError, nearest
from rorqual.ops import attention, invariant, moe, norm
from rorqual.ops.backends import cpu


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
LOOSE = replace(INVARIANT, name="loose", experts=invariant.loose_experts, silu=F.silu, sigmoid=torch.sigmoid)
"""What generation runs on where the last bits may depend on the neighbours: nothing is filled up."""


def backend(name: str) -> Ops:
    """The operations called `name`; `reference` is the slow truth, `fast` is proven equal to it, `invariant` is what generation runs on."""
    known = {ops.name: ops for ops in (REFERENCE, FAST, INVARIANT, LOOSE)}
    if name not in known:
        raise ConfigError(f"unknown backend '{name}'", where="ops", remedy=nearest(name, known))
    return known[name]
