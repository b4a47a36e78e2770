"""AdamW (Loshchilov and Hutter 2019), as implemented by torch."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Literal

import torch
from torch import Tensor, nn

from rorqual.core.config import Momentum, NonNegative, Positive
from rorqual.train.optim.optimizer import OptimConfig, Optimizer, check_state


class AdamWConfig(OptimConfig):
    """Settings of AdamW. Weight decay applies only to matrices. Norms and biases do not decay."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 3e-4
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0

    def build(self, params: dict[str, nn.Parameter]) -> Optimizer:
        return AdamW(self, params)


class AdamW(Optimizer):
    """The AdamW optimizer. The state of the parameter NAME is stored in the tensors `exp_avg/NAME`, `exp_avg_sq/NAME` and
    `step/NAME`. The optimizer state is empty before the first step."""

    def __init__(self, config: AdamWConfig, params: dict[str, nn.Parameter]) -> None:
        self.config, self.params = config, params
        groups = [
            {"params": [p for p in params.values() if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in params.values() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.inner = torch.optim.AdamW(
            [g for g in groups if g["params"]] or groups[:1],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            foreach=True,
        )

    def step(self, grads: dict[str, Tensor], factor: float, pool: Executor | None = None) -> None:
        for name, parameter in self.params.items():
            parameter.grad = grads[name]
        for group in self.inner.param_groups:
            group["lr"] = self.config.lr * factor
        self.inner.step()
        for parameter in self.params.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        return {
            f"{key}/{name}": value
            for name, parameter in self.params.items()
            for key, value in self.inner.state[parameter].items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        if state:
            for name, parameter in self.params.items():
                shape = tuple(parameter.shape)
                shapes |= {f"step/{name}": (), f"exp_avg/{name}": shape, f"exp_avg_sq/{name}": shape}
        check_state(state, shapes)
        self.inner.state.clear()
        for full, value in state.items():
            key, _, name = full.partition("/")
            device = "cpu" if key == "step" else self.params[name].device  # torch keeps the step count on the CPU
            self.inner.state[self.params[name]][key] = value.to(device, copy=True)
