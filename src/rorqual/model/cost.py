"""Parameters, active parameters and FLOPs per token, the unit of `Account`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """An additive cost.

    `active` counts the parameters used for one token. `flops` is the forward cost of one token, with attention over all
    `context` keys. It counts matrix products only (norms, softmax and gates are below one percent), and a multiply-add
    as two.
    """

    params: int = 0
    active: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.active + other.active, self.flops + other.flops)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.params * times, self.active * times, self.flops * times)


def linear(inputs: int, outputs: int, *, bias: bool = False) -> Cost:
    """Return the cost of a dense product for one token."""
    params = inputs * outputs + (outputs if bias else 0)
    return Cost(params, params, 2 * inputs * outputs)


def vector(size: int) -> Cost:
    """Return the cost of parameters that take part in no matrix product, such as a norm's weight."""
    return Cost(size, size, 0)
