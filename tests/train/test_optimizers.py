"""Optimizers against slow references, and their states through a file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rorqual.core.errors import CheckpointError, NumericsError
from rorqual.train.loop import clip
from rorqual.train.optim import AdamWConfig, MuonConfig, OptimConfig, Optimizer
from rorqual.train.schedule import Schedule
from rorqual.train.workers import workers

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
HIDDEN = [name for name in SHAPES if "proj" in name]


def fresh(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def grads(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def slow_adamw(p: Tensor, gs: list[Tensor], factors: list[float], c: AdamWConfig) -> Tensor:
    """Loshchilov and Hutter 2019, algorithm 2, in double precision."""
    p = p.detach().double().clone()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    decay = c.weight_decay if p.dim() > 1 else 0.0
    for t, (g, factor) in enumerate(zip(gs, factors), start=1):
        g, lr = g.double(), c.lr * factor
        m = c.betas[0] * m + (1 - c.betas[0]) * g
        v = c.betas[1] * v + (1 - c.betas[1]) * g * g
        p = p - lr * decay * p
        p = p - lr * (m / (1 - c.betas[0] ** t)) / (torch.sqrt(v / (1 - c.betas[1] ** t)) + c.eps)
    return p


def slow_muon(p: Tensor, gs: list[Tensor], factors: list[float], c: MuonConfig) -> Tensor:
    """One matrix: momentum, Nesterov, five quintic steps on each singular value, decoupled decay."""
    p = p.detach().double().clone()
    m = torch.zeros_like(p)
    for g, factor in zip(gs, factors):
        g, lr = g.double(), c.lr * factor
        m = c.momentum * m + (1 - c.momentum) * g
        u, s, vt = torch.linalg.svd((1 - c.momentum) * g + c.momentum * m, full_matrices=False)
        s = s / math.sqrt(float((s * s).sum()))
        for _ in range(5):  # an odd polynomial of a matrix acts on its singular values
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        rows, columns = p.shape
        p = p * (1 - lr * c.weight_decay) - lr * math.sqrt(max(1.0, rows / columns)) * (u * s) @ vt
    return p


FACTORS = [0.5, 1.0, 1.0, 0.25]


def run(
    config: OptimConfig, params: dict[str, nn.Parameter], steps: range, optimizer: Optimizer | None = None
) -> Optimizer:
    optimizer = optimizer or config.build(params)
    for step in steps:
        optimizer.step(grads(step), FACTORS[step])
    return optimizer


def test_adamw() -> None:
    params, before = fresh(), fresh()
    run(ADAMW, params, range(4))
    for name in SHAPES:
        expected = slow_adamw(before[name], [grads(i)[name] for i in range(4)], FACTORS, ADAMW)
        torch.testing.assert_close(params[name].detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [0, 2])
def test_muon_matrix_by_matrix(threads: int) -> None:
    params, before = fresh(), fresh()
    optimizer = MUON.build(params)
    with workers(max(threads, 1)) as pool:
        for step in range(4):
            optimizer.step(grads(step), FACTORS[step], pool if threads else None)

    def matrix(name: str, expert: int, half: int | None = None) -> Tensor:
        """An expert's matrix, or half of it."""
        every = [before[name], *(grads(i)[name] for i in range(4))]
        one, *gs = [t[expert] if half is None else t[expert].chunk(2)[half] for t in every]
        return slow_muon(one, gs, FACTORS, MUON)

    for name in SHAPES:
        gs = [grads(i)[name] for i in range(4)]
        if name not in HIDDEN:
            expected = slow_adamw(before[name], gs, FACTORS, MUON.adamw)
        elif name.endswith("gate_up_proj"):  # gate and up of each expert are matrices of their own
            expected = torch.stack([torch.cat([matrix(name, e, half) for half in (0, 1)]) for e in range(5)])
        elif before[name].dim() == 3:
            expected = torch.stack([matrix(name, e) for e in range(5)])
        else:
            expected = slow_muon(before[name], gs, FACTORS, MUON)
        torch.testing.assert_close(params[name].detach().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_state_through_a_file_changes_no_bit(config: OptimConfig, tmp_path: Path) -> None:
    straight = fresh()
    run(config, straight, range(4))
    params = fresh()
    save_file({n: t.contiguous() for n, t in run(config, params, range(2)).state().items()}, tmp_path / "optim")
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    optimizer = config.build(resumed)
    optimizer.load(load_file(tmp_path / "optim"))
    again = optimizer.state()
    run(config, resumed, range(2, 4), optimizer)
    assert again.keys() == optimizer.state().keys()
    for name in SHAPES:
        assert torch.equal(straight[name], resumed[name]), name


@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("how", ["missing", "unexpected", "shape"])
def test_a_state_of_another_shape_is_refused_and_changes_nothing(config: OptimConfig, how: str) -> None:
    params = fresh()
    optimizer = run(config, params, range(2))
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    name = next(n for n in reversed(state) if state[n].dim() == (2 if how != "unexpected" else 1))
    if how == "missing":
        del state[name]
    elif how == "unexpected":
        state[name.replace("norm", "another")] = state[name]
    else:
        state[name] = state[name][:-1]
    before = {n: t.clone() for n, t in optimizer.state().items()}
    with pytest.raises(CheckpointError, match=how if how != "shape" else "has shape .* not"):
        optimizer.load(state)
    assert all(torch.equal(before[n], t) for n, t in optimizer.state().items())


def test_a_state_before_the_first_step_is_empty_and_loads() -> None:
    optimizer = ADAMW.build(fresh())
    assert optimizer.state() == {}
    optimizer.load({})


def test_schedule() -> None:
    schedule = Schedule(warmup=4, decay=0.5, final=0.2)
    factors = [schedule.at(step, 20) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:10] == [1.0] * 6
    assert factors[10:] == pytest.approx([1 - 0.08 * (i + 1) for i in range(10)])
    assert [Schedule().at(step, 3) for step in range(3)] == [1.0, 1.0, 1.0]
    assert Schedule(decay=1.0).at(0, 4) == 0.75


def test_clip_scales_all_to_one_norm_and_leaves_small_ones() -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])
    assert clip([a, b], 1.0) == pytest.approx(5.0)
    assert a.tolist() == pytest.approx([0.6, 0.0]) and b.flatten().tolist() == pytest.approx([0.0, 0.8])
    assert clip([a, b], 1.1) == pytest.approx(1.0) and a.tolist() == pytest.approx([0.6, 0.0])
    big = torch.tensor([7.0])
    assert clip([big], 0.0) == 7.0 and big.tolist() == [7.0]
    with pytest.raises(NumericsError, match="nan"):
        clip([torch.tensor([math.nan]), a], 1.0)
