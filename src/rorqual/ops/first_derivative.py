"""Refusal of second derivatives by fused operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


def first_derivative_only(backward: Backward) -> Backward:
    """Wrap the `backward` of an autograd function, so that a second derivative raises RuntimeError.

    torch's `once_differentiable` raises only if an incoming gradient requires a gradient. Otherwise `once_differentiable` returns
    constants, and second derivatives are wrong without an error.
    """

    @wraps(backward)
    def refuse(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only with `create_graph=True`
            raise RuntimeError("a fused operation has no second derivative: compute it with backend=reference")
        return backward(ctx, *grads)

    return refuse
