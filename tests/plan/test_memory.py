"""Memory of a device against built models, and laws of layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.errors import ConfigError
from rorqual.model import Decoder
from rorqual.model.account import account
from rorqual.model.attention import AttentionConfig, GQAConfig, MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.presets import preset
from rorqual.plan.hardware import DEVICES, device
from rorqual.plan.layout import (
    RESERVE,
    TrainingDevices,
    choose_layout,
    invalid_layout_reasons,
    valid_layouts,
)
from rorqual.plan.memory import PRECISIONS, Layout, device_memory, stage_sizes

FP32, BF16, FP8 = PRECISIONS["fp32"], PRECISIONS["bf16"], PRECISIONS["fp8"]
V3 = preset("deepseek-v3")
H800 = device("h800")


def small(*, mtp: int = 0, tied: bool = False) -> ModelConfig:
    mla = MLAConfig(
        num_attention_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8
    )
    gqa = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    moe = MoEConfig(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1)
    return ModelConfig(
        vocab_size=64, hidden_size=32, num_nextn_predict_layers=mtp, tie_word_embeddings=tied,
        stages=(Stage(layers=2, attention=gqa, ffn=DenseConfig(intermediate_size=48)), Stage(layers=3, attention=mla, ffn=moe)),
    )  # fmt: skip


@pytest.mark.parametrize("model", [small(), small(mtp=1), small(tied=True)], ids=["plain", "mtp", "tied"])
def test_one_device_holds_all_parameters_of_the_built_model(model: ModelConfig) -> None:
    with torch.device("meta"):
        built = Decoder(model)
    parameters = sum(p.numel() for p in built.parameters()) + sum(b.numel() for b in built.buffers())
    memory = device_memory(model, Layout(), context=16, precision=FP32)
    assert memory.weights == 4 * parameters
    assert (memory.gradients, memory.optimizer) == (4 * parameters, 8 * parameters)


def test_saved_activations_are_what_autograd_saves_but_for_norms_and_softmax() -> None:
    """Counted with hooks on the tensors that autograd saves, each storage once; parameters are left out. The account leaves out
    statistics, masks and copies that an eager attention makes; what it counts must be of that size, and never less than half."""
    attention = GQAConfig(num_attention_heads=8, num_key_value_heads=8, head_dim=32)
    stage = Stage(layers=4, attention=attention, ffn=DenseConfig(intermediate_size=704))
    model = ModelConfig(vocab_size=8, hidden_size=256, stages=(stage,))
    built = Decoder(model)
    owned = {p.untyped_storage().data_ptr() for p in built.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, 32, dtype=torch.long)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # so that no address is used twice
        return pack(tensor)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        built(ids)
    planned = device_memory(model, Layout(recompute="none"), context=32, precision=FP32).activations
    assert 0.5 < planned / sum(seen.values()) < 1.1


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_a_pipeline_has_every_layer_once_and_is_even(layers: int, pp: int) -> None:
    sizes = stage_sizes(layers, min(pp, layers))
    assert sum(sizes) == layers and max(sizes) - min(sizes) <= 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_sharing_never_adds_and_recomputing_never_saves_more(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(sorted(valid_layouts(small(mtp=1), TrainingDevices(16, 8, 1)), key=str)))

    def size(**changed: object) -> float:
        return device_memory(small(mtp=1), replace(layout, **changed), context=512, precision=BF16).total_bytes

    assert size(zero=0) >= size(zero=1) >= size(zero=2)
    assert size(recompute="none") >= size(recompute="selective")
    assert size(microbatch=2) > size(microbatch=1)


def test_all_devices_together_hold_the_model_state_at_least_once() -> None:
    model = small(mtp=1)
    least = 8 * (account(model).total + account(model).mtp)  # AdamW's moments
    for layout in valid_layouts(model, TrainingDevices(8, 8, 1)):
        assert device_memory(model, layout, context=16, precision=FP32).optimizer * 8 >= least * (1 - 1e-9)


def test_deepseek_v3_fits_as_it_was_trained() -> None:
    """PP16 x EP64 x ZeRO-1, no tensor parallelism, on 2,048 cards of 80 GB (report, section 3.2)."""
    own = Layout(dp=128, tp=1, pp=16, ep=64, zero=1, recompute="selective")
    assert invalid_layout_reasons(V3, own, 2048) == []
    memory = device_memory(V3, own, context=4096, precision=FP8)
    assert memory.total_bytes < H800.memory * (1 - RESERVE)
    assert device_memory(V3, replace(own, recompute="none"), context=4096, precision=BF16).total_bytes > H800.memory


def test_a_layout_that_does_not_divide_is_told_why() -> None:
    wrong = Layout(dp=682, tp=3, pp=1, ep=7)
    reasons = "; ".join(invalid_layout_reasons(V3, wrong, 2048))
    for said in (
        "is 2046, but n is 2048",
        "tp=3 does not divide num_attention_heads=128",
        "ep=7 does not divide n_routed_experts=256",
    ):
        assert said in reasons
    assert "has no routed experts" in "; ".join(invalid_layout_reasons(preset("qwen3-8b"), Layout(ep=2), 1))
    assert "exceeds the model's 36 layers" in "; ".join(invalid_layout_reasons(preset("qwen3-8b"), Layout(pp=64), 64))


def test_what_is_chosen_divides_and_fits() -> None:
    room = TrainingDevices(2048, 8, H800.memory * (1 - RESERVE))
    layout, memory = choose_layout(V3, room, 4096, BF16, microbatch=2)
    assert (
        invalid_layout_reasons(V3, layout, 2048) == [] and memory.total_bytes <= room.usable and layout.microbatch == 2
    )
    assert memory == device_memory(V3, layout, context=4096, precision=BF16)


def test_what_never_fits_is_refused_with_the_usable_memory() -> None:
    with pytest.raises(ConfigError, match=r"fits in no layout of 8 devices with 73.6 GB"):
        choose_layout(V3, TrainingDevices(8, 8, H800.memory * (1 - RESERVE)), 4096, BF16)


def test_every_row_of_hardware_has_its_sources_and_sensible_figures() -> None:
    assert len({row.name for row in DEVICES}) == len(DEVICES)
    for row in DEVICES:
        assert row.source and row.price_source and row.memory > 1e9 and row.bandwidth >= row.link
        peaks = [row.peak[name] for name in ("fp32", "bf16", "fp8") if name in row.peak]
        assert peaks == sorted(peaks)
    with pytest.raises(ConfigError, match=r"unknown hardware 'h880'.*\n.*'h800'"):
        device("h880")
    assert device("RTX-4090").name == "rtx4090"


@pytest.mark.parametrize(
    ("kind", "selective", "everything"),
    [
        # hidden 100: q 4 x 8, k and v 2 x 8 each; what enters and leaves attention, then the normed input
        (GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8), 32 + 16 + 16 + 32, 96 + 100),
        # latents of q and kv, the shared key, the output 3 x 6; then the input and the expanded q, k 3 x 12 and v 3 x 6
        (
            MLAConfig(
                num_attention_heads=3,
                q_lora_rank=20,
                kv_lora_rank=10,
                qk_nope_head_dim=8,
                qk_rope_head_dim=4,
                v_head_dim=6,
            ),
            20 + 10 + 4 + 18,
            52 + 100 + 36 + 36 + 18,
        ),
        (DenseConfig(intermediate_size=70), 70 + 70, 210 + 100),
        # two chosen experts, each a copy of the input, gate and up; the shared one gate and up; then products and normed inputs
        (
            MoEConfig(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=30, n_shared_experts=1),
            2 * (100 + 60) + 60,
            2 * (200 + 90) + 90 + 100,
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_a_layer_saves_by_hand(kind: AttentionConfig | FFNConfig, selective: int, everything: int) -> None:
    assert kind.saved_activations(100, without_recomputation=False) == selective
    assert kind.saved_activations(100, without_recomputation=True) == everything
