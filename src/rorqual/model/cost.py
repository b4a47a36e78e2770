"""The unit of account: parameters, active parameters and FLOPs a token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Additive. `active`: parameters that take part in one token. `flops`: forward FLOPs a token, a multiply-add counted as
    two, matrix products only (norms, softmax and gates are below a percent), attention over the full `context` keys."""

    params: int = 0
    active: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.active + other.active, self.flops + other.flops)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.params * times, self.active * times, self.flops * times)


def linear(inputs: int, outputs: int, *, bias: bool = False) -> Cost:
    """A dense product of one token."""
    params = inputs * outputs + (outputs if bias else 0)
    return Cost(params, params, 2 * inputs * outputs)


def vector(size: int) -> Cost:
    """Parameters that enter no product, such as a norm's."""
    return Cost(size, size, 0)
