"""The cost of a module: parameters, active parameters and FLOPs per token. `Account` sums the costs of a model's modules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """The cost of a module. `Cost` objects can be added, and multiplied by an integer.

    `active` is the number of parameters used for one token. `flops` is the forward FLOPs of one token, including attention to
    all `context` keys. Only the FLOPs of matrix products are counted, with 2 FLOPs per multiply-add. Norms, softmax and gates
    take less than one percent of the FLOPs.
    """

    params: int = 0
    active: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.active + other.active, self.flops + other.flops)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.params * times, self.active * times, self.flops * times)


def linear_cost(inputs: int, outputs: int, *, bias: bool = False) -> Cost:
    """Return the cost of a linear map from `inputs` to `outputs` values."""
    params = inputs * outputs + (outputs if bias else 0)
    return Cost(params, params, 2 * inputs * outputs)


def vector_cost(size: int) -> Cost:
    """Return the cost of `size` parameters outside matrix products, such as the weight of a norm."""
    return Cost(size, size, 0)
