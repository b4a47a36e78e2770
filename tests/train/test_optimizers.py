"""Optimizers against the plain loop's, and their states through a file."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rorqual.core.errors import CheckpointError, NumericsError
from rorqual.train.loop import clip
from rorqual.train.optim import AdamWConfig, MuonConfig, OptimConfig, Optimizer
from rorqual.train.schedule import LearningRateSchedule

SHAPES = {
    "embed_tokens.weight": (11, 6),
    "layers.0.attention.o_proj.weight": (6, 8),
    "layers.1.attention.o_proj.weight": (6, 8),
    "layers.0.attention.kv_b_proj.weight": (20, 4),
    "layers.1.ffn.router.gate": (5, 6),
    "layers.1.ffn.experts.gate_up_proj": (5, 8, 6),
    "layers.1.ffn.experts.down_proj": (5, 6, 4),
    "norm.weight": (6,),
    "lm_head.weight": (11, 6),
}
ADAMW = AdamWConfig(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
MUON = MuonConfig(lr=0.05, momentum=0.9, weight_decay=0.02, adamw=AdamWConfig(lr=0.01, betas=(0.9, 0.98)))
CONFIGS = pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
FACTORS = [0.5, 1.0, 1.0, 0.25]


def fresh(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def grads(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def run(optimizer: Optimizer, steps: range) -> Optimizer:
    for step in steps:
        optimizer.step(grads(step), FACTORS[step])
    return optimizer


@CONFIGS
@pytest.mark.parametrize("how", ["missing", "unexpected", "shape"])
def test_a_state_of_another_shape_is_refused_and_changes_nothing(config: OptimConfig, how: str) -> None:
    optimizer = run(config.build(fresh()), range(2))
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    name = next(n for n in reversed(state) if state[n].dim() == (2 if how != "unexpected" else 1))
    tensor = state.pop(name)
    if how == "unexpected":
        state |= {name: tensor, name.replace("norm", "another"): tensor}
    elif how == "shape":
        state[name] = tensor[:-1]
    before = {n: t.clone() for n, t in optimizer.state().items()}
    with pytest.raises(CheckpointError, match=how if how != "shape" else "has shape .* not"):
        optimizer.load(state)
    assert all(torch.equal(before[n], t) for n, t in optimizer.state().items())


def test_a_state_before_the_first_step_is_empty_and_loads() -> None:
    optimizer = ADAMW.build(fresh())
    assert optimizer.state() == {}
    optimizer.load({})


def test_schedule() -> None:
    schedule = LearningRateSchedule(warmup=4, decay=0.5, final=0.2)
    factors = [schedule.factor_at(step, 20) for step in range(20)]
    assert factors[:10] == [0.25, 0.5, 0.75, *[1.0] * 7]
    assert factors[10:] == pytest.approx([1 - 0.08 * (i + 1) for i in range(10)])
    assert [LearningRateSchedule().factor_at(step, 3) for step in range(3)] == [1.0, 1.0, 1.0]
    assert LearningRateSchedule(decay=1.0).factor_at(0, 4) == 0.75


def test_clip_scales_all_to_one_norm_and_leaves_small_ones() -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])
    assert clip([a, b], 1.0) == pytest.approx(5.0)
    assert a.tolist() == pytest.approx([0.6, 0.0]) and b.flatten().tolist() == pytest.approx([0.0, 0.8])
    assert clip([a, b], 1.1) == pytest.approx(1.0) and a.tolist() == pytest.approx([0.6, 0.0])
    big = torch.tensor([7.0])
    assert clip([big], 0.0) == 7.0 and big.tolist() == [7.0]
    with pytest.raises(NumericsError, match="nan"):
        clip([torch.tensor([math.nan]), a], 1.0)
