"""Each operation against a second writing, at its bounds, and in every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rorqual.core.errors import ConfigError
from rorqual.ops import grouped
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend, TorchInvariant, backend
from rorqual.ops.backends.torch import Torch
from rorqual.ops.devices import check_device
from rorqual.ops.losses import mask_tokens_not_kept
from rorqual.ops.prepacked import prepack, prepacked_linear, to_plain_layout
from rorqual.ops.rope import Llama3Scaling, Rope, Yarn, inverse_frequencies, rope_table

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
        Rope(theta=500000.0, llama3=Llama3Scaling(factor=8.0, original_max_position_embeddings=8192)),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "llama3 with other bounds": (
        Rope(llama3=Llama3Scaling(factor=32.0, low_freq_factor=2.0, high_freq_factor=9.0, original_max_position_embeddings=256)),
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
        Rope(yarn=Yarn(factor=40.0, original_max_position_embeddings=256, mscale_all_dim=0.7)),
        {"rope_type": "yarn", "factor": 40.0, "mscale_all_dim": 0.7},
    ),
    "yarn with an attention factor": (
        Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=256, mscale=1.0, mscale_all_dim=0.7, attention_factor=1.3)),
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


def test_extensions_that_contradict_each_other_are_refused() -> None:
    yarn, llama3 = (kind(factor=4.0, original_max_position_embeddings=64) for kind in (Yarn, Llama3Scaling))
    for alone in ({"yarn": yarn}, {"llama3": llama3}, {"linear": 2.0}, {"yarn": yarn, "linear": 1.0}):
        Rope(**alone)  # type: ignore[arg-type]
    for two in ({"yarn": yarn, "llama3": llama3}, {"yarn": yarn, "linear": 2.0}, {"llama3": llama3, "linear": 0.5}):
        with pytest.raises(ValidationError, match="at most one"):
            Rope(**two)  # type: ignore[arg-type]
    for high in (1.0, 0.5):
        with pytest.raises(ValidationError, match="must be below"):
            Llama3Scaling(factor=4.0, original_max_position_embeddings=64, high_freq_factor=high)
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


# ---- the router


# ---- objectives


@pytest.mark.parametrize("vocab", [5, 8, 16, 19])
def test_a_kept_set_is_read_as_numpy_packs_it(vocab: int) -> None:
    kept = np.random.default_rng(0).random((6, vocab)) < 0.5
    kept[:, 0], kept[0], kept[1, :-1] = True, True, False
    kept[1, -1] = True
    logits = normal(6, vocab)
    found = mask_tokens_not_kept(logits, torch.from_numpy(np.packbits(kept, axis=-1)))
    assert torch.equal(found, torch.where(torch.from_numpy(kept), logits, -torch.inf))


# ---- layout, rows, blocks, names


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_laid_out_is_the_weight(bias: bool) -> None:
    weight, x, added = normal(24, 40), normal(2, 7, 40, seed=1), normal(24, seed=2)
    opaque = prepack(weight)
    assert torch.equal(to_plain_layout(opaque), weight)
    expected = x.double() @ weight.double().T + (added.double() if bias else 0)
    assert relative(prepacked_linear(x, opaque, added if bias else None), expected) < 1e-6


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
        return grouped.supports_grouped_mm(x, torch.empty(2, 2 * intermediate, width, dtype=dtype, device=device))

    assert fits(16, 8) and fits(8, 16)
    assert not any((fits(12, 8), fits(16, 12), fits(16, 4), fits(16, 8, torch.float32), fits(16, 8, device="cpu")))
