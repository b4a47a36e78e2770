"""AdamW (Loshchilov and Hutter 2019), as implemented by torch."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

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
    `step/NAME`. The optimizer state is empty before the first step.

    `torch.optim.AdamW` would compute the same, but the class imports torch's compiler, which takes seconds.
    """

    def __init__(self, config: AdamWConfig, params: dict[str, nn.Parameter]) -> None:
        self.config, self.params = config, params
        self._groups = [
            ([name for name, p in params.items() if p.dim() > 1], config.weight_decay),
            ([name for name, p in params.items() if p.dim() <= 1], 0.0),
        ]
        self._state: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, grads: dict[str, Tensor], factor: float, pool: Executor | None = None) -> None:
        if not self._state:
            self._state = {
                name: {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                for name, p in self.params.items()
            }
        for names, weight_decay in self._groups:
            steps, means, squares = (
                [self._state[name][key] for name in names] for key in ("step", "exp_avg", "exp_avg_sq")
            )
            adam(
                [self.params[name] for name in names],
                [grads[name] for name in names],
                means,
                squares,
                [],
                steps,
                foreach=True,
                decoupled_weight_decay=True,
                amsgrad=False,
                beta1=self.config.betas[0],
                beta2=self.config.betas[1],
                lr=self.config.lr * factor,
                weight_decay=weight_decay,
                eps=self.config.eps,
                maximize=False,
            )

    def state(self) -> dict[str, Tensor]:
        return {f"{key}/{name}": value for name, own in self._state.items() for key, value in own.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        if state:
            for name, parameter in self.params.items():
                shape = tuple(parameter.shape)
                shapes |= {f"step/{name}": (), f"exp_avg/{name}": shape, f"exp_avg_sq/{name}": shape}
        check_state(state, shapes)
        self._state = {}
        for full, value in state.items():
            key, _, name = full.partition("/")
            device = "cpu" if key == "step" else self.params[name].device  # torch keeps the step count on the CPU
            self._state.setdefault(name, {})[key] = value.to(device, copy=True)
