"""Muon (Jordan et al. 2024): orthogonalize the momentum of each hidden matrix.

AdamW updates all parameters that are not hidden matrices.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Literal

import torch
from torch import Tensor, nn

from rorqual.core.config import Momentum, NonNegative, Positive
from rorqual.train.optim.adamw import AdamW, AdamWConfig
from rorqual.train.optim.optimizer import OptimConfig, Optimizer, check_state

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's quintic Newton-Schulz iteration, which brings singular values into the range 0.7 to 1.2."""


class MuonConfig(OptimConfig):
    """Settings of Muon. `adamw` updates embedding, head, routers, norms and biases. Weight decay is decoupled and scaled by `lr`."""

    kind: Literal["muon"] = "muon"
    lr: Positive = 0.02
    momentum: Momentum = 0.95
    weight_decay: NonNegative = 0.01
    adamw: AdamWConfig = AdamWConfig(lr=2e-3, betas=(0.9, 0.98))

    def build(self, params: dict[str, nn.Parameter]) -> Optimizer:
        return Muon(self, params)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether Muon updates a parameter. Muon updates all matrices and stacks of matrices except embedding, head and
    routers."""
    excluded = name.endswith(("embed_tokens.weight", "lm_head.weight")) or ".router." in name
    return parameter.dim() >= 2 and not excluded


def matrix_shape(name: str, parameter: Tensor) -> tuple[int, int]:
    """Return the rows and columns of each matrix in a parameter. A fused gate and up projection counts as two matrices."""
    rows, columns = parameter.shape[-2:]
    return (rows // 2 if name.endswith("gate_up_proj") else rows, columns)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate, for each matrix [..., rows, columns], the nearest semi-orthogonal matrix by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    x = matrix.transpose(-1, -2) if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-1, -2) if matrix.shape[-2] > matrix.shape[-1] else x


class Muon(Optimizer):
    """The Muon optimizer. Matrices of equal shape are orthogonalized in one batch.

    The state of the matrix NAME is stored in the tensor `momentum/NAME`. Names of AdamW's state tensors begin with `adamw/`.
    """

    def __init__(self, config: MuonConfig, params: dict[str, nn.Parameter]) -> None:
        self.config = config
        self.hidden = {n: p for n, p in params.items() if is_hidden_matrix(n, p)}
        self.others = AdamW(config.adamw, {n: p for n, p in params.items() if n not in self.hidden})
        self.momentum = {name: torch.zeros_like(p) for name, p in self.hidden.items()}
        shapes: dict[tuple[int, int], list[str]] = {}
        for name, p in self.hidden.items():
            shapes.setdefault(matrix_shape(name, p), []).append(name)
        # The largest groups of matrices come first, so that all threads finish at about the same time.
        self.groups = sorted(
            shapes.items(), key=lambda item: -sum(self.hidden[n].numel() * min(item[0]) for n in item[1])
        )

    @torch.no_grad()
    def step(self, grads: dict[str, Tensor], factor: float, pool: Executor | None = None) -> None:
        jobs = [(shape, names, grads, factor) for shape, names in self.groups]
        if pool is None:
            for job in jobs:
                self._update(*job)
        else:
            for done in [pool.submit(self._update, *job) for job in jobs]:
                done.result()
        self.others.step(grads, factor)

    @torch.no_grad()  # grad mode is per thread; pool threads do not inherit it
    def _update(self, shape: tuple[int, int], names: list[str], grads: dict[str, Tensor], factor: float) -> None:
        c = self.config
        directions = [self._direction(name, grads[name]).reshape(-1, *shape) for name in names]
        updates = orthogonalise(torch.cat(directions)).split([len(d) for d in directions])
        scale = c.lr * factor * max(1.0, shape[0] / shape[1]) ** 0.5
        for name, update in zip(names, updates):
            p = self.hidden[name]
            p.mul_(1 - c.lr * factor * c.weight_decay).add_(update.reshape(p.shape), alpha=-scale)

    def _direction(self, name: str, grad: Tensor) -> Tensor:
        m = self.momentum[name].lerp_(grad, 1 - self.config.momentum)
        return grad.lerp(m, self.config.momentum)  # Nesterov

    def state(self) -> dict[str, Tensor]:
        own = {f"momentum/{name}": value for name, value in self.momentum.items()}
        return own | {f"adamw/{name}": value for name, value in self.others.state().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        own = {name: value for name, value in state.items() if not name.startswith("adamw/")}
        check_state(own, {f"momentum/{name}": tuple(m.shape) for name, m in self.momentum.items()})
        self.others.load({n.removeprefix("adamw/"): v for n, v in state.items() if n.startswith("adamw/")})
        for name, momentum in self.momentum.items():
            momentum.copy_(own[f"momentum/{name}"])
