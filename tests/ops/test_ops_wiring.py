"""Each operation against a second writing, at its bounds, and in every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rorqual.core.errors import ConfigError
from rorqual.ops import grouped, invariant
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend, TorchInvariant, backend
from rorqual.ops.backends.torch import Torch
from rorqual.ops.devices import check_device
from rorqual.ops.layout import plain, prepack, times
from rorqual.ops.losses import keep_only, reverse_kl, token_logprobs
from rorqual.ops.moe import Routing, affinity, route, sequence_balance
from rorqual.ops.paged import BLOCK, attend, tiles_of
from rorqual.ops.rope import Llama3, Rope, Yarn, inverse_frequencies, mscale, rope_table, softmax_factor
from rorqual.ops.rows import WIDE, Rows, bmm, in_tiles

STEPS = TORCH.fit(nn.Linear(1, 1), cache_shapes=(), threads=1).backend
"""What an engine runs for `torch`."""
ALL = (REFERENCE, TORCH, TORCH_INVARIANT, STEPS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.detach().double() - expected.detach().double()).abs().max() / expected.detach().abs().max())


# ---- positions

EXTENDED: dict[str, tuple[Rope, dict[str, Any]]] = {
    "none": (Rope(theta=500.0), {"rope_type": "default"}),
    "linear": (Rope(linear=4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        Rope(theta=500000.0, llama3=Llama3(factor=8.0, original_max_position_embeddings=8192)),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "llama3 with other bounds": (
        Rope(llama3=Llama3(factor=32.0, low_freq_factor=2.0, high_freq_factor=9.0, original_max_position_embeddings=256)),
        {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 9.0},
    ),
    "yarn": (Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=256)), {"rope_type": "yarn", "factor": 4.0}),
    "yarn of other speeds": (
        Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=256, beta_fast=16.0, beta_slow=2.0)),
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0},
    ),
    "yarn with two mscales": (
        Rope(yarn=Yarn(factor=40.0, original_max_position_embeddings=256, mscale=1.0, mscale_all_dim=0.7)),
        {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    ),
    "yarn with one mscale": (
        Rope(yarn=Yarn(factor=40.0, original_max_position_embeddings=256, mscale=0.0, mscale_all_dim=0.7)),
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.0, "mscale_all_dim": 0.7},
    ),
    "yarn with an attention factor": (
        Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=256, mscale_all_dim=0.7, attention_factor=1.3)),
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7, "attention_factor": 1.3},
    ),
    "yarn of no extension": (
        Rope(yarn=Yarn(factor=1.0, original_max_position_embeddings=256)), {"rope_type": "yarn", "factor": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTENDED)
def test_angles_are_those_of_transformers(name: str) -> None:
    rope, theirs = EXTENDED[name]
    length = next((e.original_max_position_embeddings for e in (rope.yarn, rope.llama3) if e is not None), 256)
    theirs = theirs | {"rope_theta": rope.theta}
    if theirs["rope_type"] in ("yarn", "llama3"):
        theirs["original_max_position_embeddings"] = length
    positions = torch.tensor([0, 1, 100, 5000])
    if name == "none":
        expected, factor = rope.theta ** (-torch.arange(0, 32, 2).float() / 32), 1.0
    else:
        config = LlamaConfig(
            hidden_size=64, num_attention_heads=2, max_position_embeddings=4 * length, rope_parameters=theirs
        )
        expected, factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    assert relative(inverse_frequencies(rope, 32), expected) < 1e-6
    assert float((inverse_frequencies(rope, 32) / expected - 1).abs().max()) < 1e-5
    cos, sin = rope_table(rope, 32, positions)
    torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full((4, 16), float(factor)))
    angle = positions.unsqueeze(-1) * inverse_frequencies(rope, 32)
    torch.testing.assert_close(cos, angle.cos() * factor)
    torch.testing.assert_close(sin, angle.sin() * factor)


def test_temperatures_by_hand() -> None:
    """Peng et al. 2023, eq. 22; a context that is not longer has none."""
    assert mscale(40.0, 0.707) == pytest.approx(0.1 * 0.707 * math.log(40) + 1)
    assert mscale(1.0, 0.707) == mscale(0.5, 0.707) == 1.0 < mscale(1.01, 1.0)
    lite = Yarn(factor=40.0, original_max_position_embeddings=4096, mscale=0.707, mscale_all_dim=0.707)
    assert softmax_factor(Rope(yarn=lite)) == pytest.approx(mscale(40.0, 0.707) ** 2)
    assert softmax_factor(Rope(yarn=Yarn(factor=40.0, original_max_position_embeddings=4096))) == 1.0
    assert softmax_factor(Rope(linear=2.0)) == 1.0


def test_extensions_that_contradict_each_other_are_refused() -> None:
    yarn, llama3 = (kind(factor=4.0, original_max_position_embeddings=64) for kind in (Yarn, Llama3))
    for alone in ({"yarn": yarn}, {"llama3": llama3}, {"linear": 2.0}, {"yarn": yarn, "linear": 1.0}):
        Rope(**alone)  # type: ignore[arg-type]
    for two in ({"yarn": yarn, "llama3": llama3}, {"yarn": yarn, "linear": 2.0}, {"llama3": llama3, "linear": 0.5}):
        with pytest.raises(ValidationError, match="at most one"):
            Rope(**two)  # type: ignore[arg-type]
    for high in (1.0, 0.5):
        with pytest.raises(ValidationError, match="must be below"):
            Llama3(factor=4.0, original_max_position_embeddings=64, high_freq_factor=high)
    for theta in (1.0, math.inf, math.nan):
        with pytest.raises(ValidationError):
            Rope(theta=theta)


# ---- norms and experts


@pytest.mark.parametrize("ops", ALL, ids=lambda ops: ops.name)
@pytest.mark.parametrize("eps", [1e-6, 0.7])
def test_a_norm_equals_its_formula(ops: Backend, eps: float) -> None:
    x, weight = normal(5, 3, 48), 1 + 0.3 * normal(48, seed=1)
    wide = x.double()
    assert (
        relative(ops.rms_norm(x, weight, eps), wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight)
        < 1e-6
    )


def routing_of(tokens: int, experts: int, k: int, used: int) -> Routing:
    """Gates that differ; of the experts, the last `used` have tokens."""
    indices = torch.stack([experts - used + normal(used, seed=t).argsort()[:k] for t in range(tokens)])
    weights = 0.2 + normal(tokens, k, seed=3).abs()
    zeros = torch.zeros(tokens, experts)
    return Routing(indices, weights, zeros, indices, zeros[:, 0])


def slow_experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    out = torch.zeros_like(x, dtype=torch.float64)
    for token, (chosen, gates) in enumerate(zip(routing.indices.tolist(), routing.weights.double())):
        for expert, share in zip(chosen, gates):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            out[token] += share * (down[expert].double() @ (gate * gate.sigmoid() * up))
    return out


@pytest.mark.parametrize(
    "ops", [*ALL, TorchInvariant(Rows(4, 8)), TorchInvariant(Rows(16, 16))], ids=lambda ops: ops.name
)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("tokens", [1, 15, 16, 31, 32, 70])
def test_experts_equal_the_sum_by_loops(ops: Backend, grad: bool, tokens: int) -> None:
    """On both sides of the counts of tokens, and of experts in use, at which a backend changes its way."""
    gate_up, down = normal(9, 2 * 20, 24, seed=1), normal(9, 24, 20, seed=2)
    for used in (2, 4, 5, 9):
        x, routing = normal(tokens, 24, seed=used), routing_of(tokens, 9, 2, used)
        with torch.set_grad_enabled(grad):
            found = ops.experts(x, routing, gate_up, down)
        assert relative(found, slow_experts(x, routing, gate_up, down)) < 1e-5, used


@pytest.mark.parametrize("tokens", [1, 16, 40])
def test_experts_laid_out_each_by_itself_give_the_same(tokens: int) -> None:
    gate_up, down = normal(6, 2 * 32, 32, seed=1), normal(6, 32, 32, seed=2)
    x, routing = normal(tokens, 32), routing_of(tokens, 6, 2, 6)
    with torch.no_grad():
        for ops in (TORCH_INVARIANT, STEPS):
            found = ops.experts(x, routing, [prepack(w) for w in gate_up], [prepack(w) for w in down])
            assert relative(found, slow_experts(x, routing, gate_up, down)) < 1e-5


@pytest.mark.parametrize("ops", ALL, ids=lambda ops: ops.name)
def test_tuned_experts_have_gradients_and_the_others_none(ops: Backend) -> None:
    """The parts' gradients are the slices of the whole one's, in the order in which the experts were named."""
    stacks = normal(5, 2 * 12, 16, seed=1), normal(5, 16, 12, seed=2)
    routing, wanted = routing_of(20, 5, 2, 5), normal(20, 16, seed=4)
    whole = [stack.clone().requires_grad_() for stack in stacks]
    x = normal(20, 16).requires_grad_()
    out = REFERENCE.experts(x, routing, *whole)
    expected = torch.autograd.grad((out * wanted).sum(), [x, *whole])
    tuned = (3, 1)
    parts = [stack[e].clone().requires_grad_() for e in tuned for stack in stacks]
    again = ops.experts_tuned(x, routing, *stacks, tuned, parts)
    assert relative(again, out) < 1e-5
    found = torch.autograd.grad((again * wanted).sum(), [x, *parts])
    assert relative(found[0], expected[0]) < 1e-5
    for grad, of in zip(found[1:], [expected[1][3], expected[2][3], expected[1][1], expected[2][1]], strict=True):
        assert relative(grad, of) < 1e-5


@pytest.mark.parametrize(
    "function",
    [(invariant.silu, torch.nn.functional.silu), (invariant.sigmoid, torch.sigmoid)],
    ids=["silu", "sigmoid"],
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (3, 32), (2, 33), (1, 32768), (1, 32769), (2, 40000), (1100, 31)])
def test_an_element_by_element_function_keeps_shape_and_values(
    function: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], shape: tuple[int, int]
) -> None:
    x = normal(*shape)
    for each in (x, normal(shape[1], shape[0]).t()):
        torch.testing.assert_close(function[0](each), function[1](each))


# ---- the router


def test_a_replay_of_some_places_leaves_the_others_to_the_router() -> None:
    """Expert 0 is a choice; -1 is none."""
    logits = normal(30, 6, seed=1)
    replay = torch.full((30, 2), -1)
    replay[::3] = torch.tensor([0, 5])
    routing, free = route(logits, torch.zeros(6), k=2, replay=replay), route(logits, torch.zeros(6), k=2)
    fixed = torch.arange(30) % 3 == 0
    assert torch.equal(routing.indices[fixed], replay[fixed]) and torch.equal(
        routing.indices[~fixed], free.indices[~fixed]
    )
    assert not routing.gap[~fixed].any() and torch.equal(routing.own, free.own)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize("norm", [True, False])
def test_gates_by_hand(score: str, norm: bool) -> None:
    """In fp32 also of logits in bf16; the bias is not in them, and where it chooses experts of no affinity they are zero, not NaN."""
    logits, bias = normal(20, 8).bfloat16(), normal(8, seed=1)
    routing = route(logits, bias, k=3, score=score, norm=norm, scale=2.5)  # type: ignore[arg-type]
    wide = logits.double()
    scores = wide.sigmoid() if score == "sigmoid" else wide.exp() / wide.exp().sum(-1, keepdim=True)
    assert affinity(logits.float(), score).dtype == routing.weights.dtype == torch.float32  # type: ignore[arg-type]
    gates = scores.gather(-1, routing.indices)
    assert relative(routing.weights, 2.5 * (gates / gates.sum(-1, keepdim=True) if norm else gates)) < 1e-6
    assert [set(row) for row in routing.indices.tolist()] == [
        set(row) for row in (scores + bias).topk(3).indices.tolist()
    ]
    low = torch.full((1, 8), -1000.0)
    low[0, 0] = 1000.0
    nothing = route(low, torch.tensor([-9.0, *range(7)]), k=2, score=score, norm=norm)  # type: ignore[arg-type]
    assert nothing.weights.isfinite().all()


def test_balance_is_summed_over_sequences_of_their_own_lengths() -> None:
    """V3 eq. 17-20 by loops, with affinities that do not sum to 1; a sequence without tokens adds nothing."""
    sequence = torch.tensor([2, 0, 0, 2, 2, 0, 0])
    scores = normal(7, 5).sigmoid()
    indices = scores.topk(2).indices
    expected = 0.0
    for number in (0, 2):
        tokens = [t for t, s in enumerate(sequence.tolist()) if s == number]
        for expert in range(5):
            f = 5 / (2 * len(tokens)) * sum(expert in indices[t].tolist() for t in tokens)
            p = sum(float(scores[t, expert] / scores[t].sum()) for t in tokens) / len(tokens)
            expected += f * p
    assert float(sequence_balance(scores, indices, sequence, 3)) == pytest.approx(expected, rel=1e-5)
    assert float(sequence_balance(scores, indices, sequence, 4)) == pytest.approx(expected, rel=1e-5)


# ---- objectives


@pytest.mark.parametrize("vocab", [5, 8, 16, 19])
def test_a_kept_set_is_read_as_numpy_packs_it(vocab: int) -> None:
    kept = np.random.default_rng(0).random((6, vocab)) < 0.5
    kept[:, 0], kept[0], kept[1, :-1] = True, True, False
    kept[1, -1] = True
    logits = normal(6, vocab)
    found = keep_only(logits, torch.from_numpy(np.packbits(kept, axis=-1)))
    assert torch.equal(found, torch.where(torch.from_numpy(kept), logits, -torch.inf))


def test_log_probabilities_and_the_estimate_of_the_divergence() -> None:
    logits, targets = 3 * normal(9, 7), torch.arange(9) % 7
    exact = logits.double()
    expected = torch.stack([row[t] - row.exp().sum().log() for row, t in zip(exact, targets)])
    assert relative(token_logprobs(logits, targets), expected) < 1e-6
    now, reference = normal(50, seed=1), normal(50, seed=2)
    ratio = (reference - now).double()
    assert relative(reverse_kl(now, reference), ratio.exp() - 1 - ratio) < 1e-5
    assert (reverse_kl(now, reference) >= 0).all() and not reverse_kl(now, now).any()


# ---- layout, rows, blocks, names


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_laid_out_is_the_weight(bias: bool) -> None:
    weight, x, added = normal(24, 40), normal(2, 7, 40, seed=1), normal(24, seed=2)
    opaque = prepack(weight)
    assert torch.equal(plain(opaque), weight)
    expected = x.double() @ weight.double().T + (added.double() if bias else 0)
    assert relative(times(x, opaque, added if bias else None), expected) < 1e-6


@pytest.mark.parametrize(
    ("width", "within", "most", "sizes"),
    [
        (WIDE, 0, 4, [4, 4, 1]), (WIDE - 1, 0, 4, [9]), (WIDE - 1, WIDE, 4, [4, 4, 1]), (WIDE, 0, 9, [9]), (WIDE, 0, 8, [8, 1]),
        (WIDE, 0, 0, [9]), (WIDE, WIDE - 1, 4, [4, 4, 1]),
    ],
)  # fmt: skip
def test_no_product_of_wide_rows_has_more_than_the_most(width: int, within: int, most: int, sizes: list[int]) -> None:
    met: list[int] = []

    def product(rows: Tensor) -> Tensor:
        met.append(rows.numel() // rows.shape[-1])
        return rows[..., :3] * 2

    x = normal(3, 3, width)
    assert torch.equal(in_tiles(product, x, most, within), x[..., :3] * 2) and met == sizes
    a, b = normal(2, 9, width), normal(2, width, 5, seed=1)
    assert relative(bmm(a, b, most), a.double() @ b.double()) < 1e-5


def test_rows_of_one_are_loose() -> None:
    assert Rows(1).loose and Rows(1, 8).loose and not Rows(2).loose


@pytest.mark.parametrize("start", [0, 5, BLOCK - 1, BLOCK, 2 * BLOCK - 3])
def test_tiles_moved_on_are_those_of_the_next_position(start: int) -> None:
    """Sequences of other lengths in blocks that lie apart; within its last block each token sees one key more."""
    first = np.array([start, 3, BLOCK + 1])
    tables = np.array([[9, 1, 2], [4, 4, 4], [0, 7, 7]])
    tiles = tiles_of(first, np.ones(3, np.int64), tables, 1)
    keys, values, q = normal(10, 2, BLOCK, 8), normal(10, 2, BLOCK, 6, seed=1), normal(3, 2, 2, 8, seed=2)
    for step in range(1, 3):
        now = first + step
        if ((now // BLOCK) != (first // BLOCK)).any():
            return
        tiles.move_on(now)
        fresh = tiles_of(now, np.ones(3, np.int64), tables, 1)
        assert torch.equal(attend(q, keys, values, tiles, 0.5), attend(q, keys, values, fresh, 0.5))
        for row in range(3):
            seen = [t[tables[row][p // BLOCK], :, p % BLOCK] for t in (keys, values) for p in range(int(now[row]) + 1)]
            k, v = (torch.stack(part, 1).double() for part in (seen[: len(seen) // 2], seen[len(seen) // 2 :]))
            expected = (0.5 * q[row].double() @ k.transpose(-1, -2)).softmax(-1) @ v
            assert relative(attend(q, keys, values, tiles, 0.5)[row], expected) < 1e-5


def test_backends_and_devices_by_name() -> None:
    assert [type(backend(ops.name)) for ops in ALL[:3]] == [type(ops) for ops in ALL[:3]]
    with pytest.raises(ConfigError, match="unknown backend 'trch'") as caught:
        backend("trch")
    assert "torch" in caught.value.remedy
    check_device("cpu")
    for wrong in ("cuda:999", "nonsense"):
        with pytest.raises(ConfigError, match=f"device '{wrong}' is not available"):
            check_device(wrong)


def test_a_gated_activation_uses_the_backends_own_silu() -> None:
    class Own(Torch):
        def silu(self, x: Tensor) -> Tensor:
            return 3 * x

    gate, up = torch.randn(5, 7), torch.randn(5, 7)
    assert torch.equal(Own().act_mul(gate, up), 3 * gate * up)
    assert torch.equal(TorchInvariant().act_mul(gate, up), TorchInvariant().silu(gate) * up)


def test_grouped_products_take_only_rows_that_torch_can_align(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bytes: 8 values of bf16, in the rows of both matrices. The CPU and fp32 have no such product."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it knows no device `meta`

    def fits(width: int, intermediate: int, dtype: torch.dtype = torch.bfloat16, device: str = "meta") -> bool:
        x = torch.empty(3, width, dtype=dtype, device=device)
        return grouped.fits(x, torch.empty(2, 2 * intermediate, width, dtype=dtype, device=device))

    assert fits(16, 8) and fits(8, 16)
    assert not any((fits(12, 8), fits(16, 12), fits(16, 4), fits(16, 8, torch.float32), fits(16, 8, device="cpu")))
