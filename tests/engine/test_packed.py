"""A model laid out for reading is the model that it was made from, in every arithmetic that it can take the place of."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.backends import TORCH, TORCH_INVARIANT
from rorqual.ops.backends.reference import PreparedExperts
from rorqual.ops.prepacked import prepack

STEPS = TORCH.fit(nn.Linear(1, 1), cache_shapes=(), threads=1).backend
MLA = MLAConfig(
    num_attention_heads=3, q_lora_rank=20, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12
)
GQA = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=12, qk_norm=True, attention_bias=True)
ATTENTION = {
    "latent": MLA,
    "latent, queries direct": MLA.model_copy(update={"q_lora_rank": 0}),
    "grouped, biases and norms": GQA,
    "grouped, plain": GQA.model_copy(update={"qk_norm": False, "attention_bias": False}),
}
TOKENS = torch.randint(60, (2, 70), generator=torch.Generator().manual_seed(0))


def model_of(attention: str, width: int = 64) -> Decoder:
    moe = MoEConfig(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, n_shared_experts=1)
    stages = tuple(
        Stage(layers=1, attention=ATTENTION[attention], ffn=f) for f in (DenseConfig(intermediate_size=width), moe)
    )
    model = build(ModelConfig(vocab_size=60, hidden_size=36, stages=stages, initializer_range=0.3), seed=1)
    for name, parameter in model.named_parameters():  # biases and norms begin as zeros and ones, which hide a mistake
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("smallest", [1, 1 << 16], ids=["all packed", "none packed"])
@pytest.mark.parametrize("width", [64, 50], ids=["gate and up fill vectors", "they do not"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_it_is_the_same_model(attention: str, width: int, smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rorqual.ops.backends.packed.SMALLEST", smallest)
    model = model_of(attention, width)
    other = TORCH.prepare(model)
    names = {name.rpartition(".")[2] for name, _ in other.named_modules()}
    fused = [m for m in other.modules() if getattr(m, "fused", None) is not None]
    assert len(fused) == 4, "two attentions, a dense network and the shared experts"
    assert not names & {"k_proj", "kv_a_proj_with_mqa", "kv_b_proj", "gate_proj"}, "what was laid out is kept twice"
    assert any(isinstance(module, PreparedExperts) for module in other.modules()) == (smallest == 1)
    for ops in (TORCH, TORCH_INVARIANT, STEPS):
        model.ops = other.ops = ops
        expected, got = (m.logits(m(TOKENS).hidden) for m in (model, other))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@torch.inference_mode()
@pytest.mark.parametrize("attention", ATTENTION)
def test_in_bf16_packing_changes_no_bit(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rorqual.ops.backends.packed.SMALLEST", 1)
    model = model_of(attention).bfloat16()
    other = TORCH.prepare(model)
    for ops in (TORCH_INVARIANT, STEPS):
        model.ops = other.ops = ops
        assert torch.equal(*(m.logits(m(TOKENS).hidden) for m in (model, other)))


@torch.inference_mode()
def test_a_model_that_is_taken_apart_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor while it is taken apart: whenever a weight is laid out, those of the layers before it are gone."""
    monkeypatch.setattr("rorqual.ops.backends.packed.SMALLEST", 1)
    model = model_of("latent")
    kept = copy.deepcopy(model)
    expected = TORCH.prepare(kept)(TOKENS).hidden
    first, second = (
        [weakref.ref(weight) for weight in block.parameters() if weight.ndim > 1] for block in model.layers
    )
    alive: list[tuple[int, int]] = []

    def counted(weight: Tensor) -> Tensor:
        alive.append((sum(ref() is not None for ref in first), sum(ref() is not None for ref in second)))
        return prepack(weight)

    monkeypatch.setattr("rorqual.ops.backends.packed.prepack", counted)
    other = TORCH.prepare(model, take=True)
    assert all(one == 0 for one, other in alive if other < len(second)), "the first layer went before the second"
    assert alive[-1] == (0, 0), "both went before the head's"
    assert not list(model.parameters())
    assert list(kept.parameters()) and torch.equal(other(TOKENS).hidden, expected)
