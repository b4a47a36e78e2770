"""FP8 checkpoints: kept as they are through the names, multiplied out where a model is filled; and what keeps its type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from written_run import write_run

from rorqual.core.errors import CheckpointError
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.load import deepseek_v3
from rorqual.model.load.names import SCALE
from rorqual.model.load.run_directory import load_run, load_weights
from rorqual.ops.quant import dequantize_blocks, quantize_blocks

EXPERT = 132  # not whole blocks: gate and up each have two, of 128 and 4 rows, and the pair has four and not three
CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=136,
    stages=(
        Stage(
            layers=1,
            attention=(
                attention := MLAConfig(
                    num_attention_heads=2,
                    q_lora_rank=12,
                    kv_lora_rank=8,
                    qk_nope_head_dim=6,
                    qk_rope_head_dim=4,
                    v_head_dim=6,
                )
            ),
            ffn=DenseConfig(intermediate_size=150),
        ),
        Stage(
            layers=1,
            attention=attention,
            ffn=MoEConfig(n_routed_experts=3, num_experts_per_tok=2, moe_intermediate_size=EXPERT, n_shared_experts=1),
        ),
    ),
    num_nextn_predict_layers=1,
)
NAMES = deepseek_v3.name_map(CONFIG)
KEPT = ("embed_tokens", "lm_head", "head", "gate", "eh_proj")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A tiny V3 with its MTP layer, in FP8 as V3 is: projections in blocks, everything else bf16, the router's bias fp32."""
    state = build(CONFIG, seed=0).state_dict()
    generator = torch.Generator().manual_seed(1)
    out: dict[str, Tensor] = {}
    for name, tensor in NAMES.to_hf(state).items():
        if name.endswith("e_score_correction_bias"):
            out[name] = torch.randn(tensor.shape, generator=generator)
        elif tensor.dim() == 2 and name.split(".")[-2] not in KEPT:
            rows = torch.rand(tensor.shape[0], 1, generator=generator) + torch.arange(tensor.shape[0])[:, None] / 50
            out[name], out[name + SCALE] = quantize_blocks(tensor * rows)  # blocks with scales that differ
        else:
            out[name] = tensor.bfloat16()
    return out


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> bytes:
        return tensor.contiguous().view(torch.uint8).numpy().tobytes()

    return set(one) == set(other) and all(
        one[n].dtype == other[n].dtype and bits(one[n]) == bits(other[n]) for n in one
    )


def by_hand(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every published tensor multiplied out on its own, and only then joined."""
    plain = {
        name: dequantize_blocks(tensor, published[name + SCALE]) if name + SCALE in published else tensor.float()
        for name, tensor in published.items()
        if not name.endswith(SCALE)
    }
    return NAMES.from_hf(plain)


def test_three_trips_change_no_byte(published: dict[str, Tensor]) -> None:
    hub = published
    ours = NAMES.from_hf(hub)
    assert ours["layers.1.ffn.experts.gate_up_proj"].dtype == torch.float8_e4m3fn
    assert ours["layers.1.ffn.experts.gate_up_proj_scale_inv"].shape == (3, 4, 2)
    assert ours["mtp.0.block.ffn.experts.down_proj_scale_inv"].shape == (3, 2, 2)
    for _ in range(3):
        ours = NAMES.from_hf(hub)
        hub = NAMES.to_hf(ours)
        assert same(hub, published)
        assert same(NAMES.from_hf(hub), ours)


def test_pieces_in_their_order_are_the_bytes_of_the_whole(published: dict[str, Tensor]) -> None:
    """What streams: theirs written one after another in `order` are ours; `piece` is theirs, by a view of ours."""
    ours = NAMES.from_hf(published)
    for entry in NAMES.scaled(published).entries:
        whole = ours[entry.internal]
        parts = [published[name] for name in entry.published]
        raw = b"".join(parts[index].contiguous().view(torch.uint8).numpy().tobytes() for index in entry.order())
        assert raw == whole.contiguous().view(torch.uint8).numpy().tobytes()
        assert entry.shape([tuple(part.shape) for part in parts]) == tuple(whole.shape)
        for index, part in enumerate(parts):
            view = entry.piece(whole, index)
            assert torch.equal(view.view(torch.uint8), part.view(torch.uint8))
            assert view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_a_model_is_filled_with_the_products(published: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(NAMES.from_hf(published), tmp_path / "model.safetensors")
    expected = by_hand(published)
    model = Decoder(CONFIG)
    load_weights(model, tmp_path)
    assert same(dict(model.state_dict()), expected)
    half = Decoder(CONFIG).bfloat16()
    load_weights(half, tmp_path)
    rounded = {n: t if n.endswith("correction_bias") else t.bfloat16() for n, t in expected.items()}
    assert same(dict(half.state_dict()), rounded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layers.0.attention.o_proj.weight" + SCALE), "without scales"),
        (lambda s: s.update({"norm.weight" + SCALE: torch.ones(1, 1)}), "norm.weight"),
        (lambda s: s.update({"layers.0.attention.o_proj.weight" + SCALE: torch.ones(1, 1)}), r"\(1, 1\)"),
        (lambda s: s.update({"layers.0.attention.o_proj.weight": torch.ones(136, 12)}), "with scales"),
        (lambda s: s.update({"nothing.weight" + SCALE: torch.ones(1, 1)}), "unexpected nothing"),
    ],
)
def test_scales_that_do_not_fit_are_refused(published, change, message, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = NAMES.from_hf(published)
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(Decoder(CONFIG), tmp_path)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_a_run_loads_into_the_type_asked_for_and_the_bias_stays_fp32(
    stored: torch.dtype, asked: torch.dtype, tmp_path: Path
) -> None:
    """A bias in bf16 chooses other experts (transformers#42580, vllm#23640): through save, load, `.to`, names and back."""
    source = build(CONFIG, seed=3)
    for layer in source.routers():
        layer.router.e_score_correction_bias.copy_(
            torch.tensor([1.0, 1.0 + 2**-12, 1.0 - 2**-13])
        )  # one number in bf16
    state = {n: t if n.endswith("correction_bias") else t.to(stored) for n, t in source.state_dict().items()}
    model = load_run(write_run(tmp_path, CONFIG, NAMES.from_hf(NAMES.to_hf(state))), dtype=asked)
    expected = {n: t if n.endswith("correction_bias") else t.to(asked) for n, t in state.items()}
    assert same(dict(model.state_dict()), expected)
    exported = NAMES.to_hf(model.to(torch.bfloat16).state_dict())
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(exported[bias], source.routers()[0].router.e_score_correction_bias)
    save_file(exported, tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")[bias].dtype == torch.float32


def test_a_router_without_a_bias_chooses_by_the_scores_alone_when_loaded(tmp_path: Path) -> None:
    """Nothing of a bias is in a file: memory that nobody filled would choose the experts."""
    stage = CONFIG.stages[1]
    assert isinstance(stage.ffn, MoEConfig)
    router = stage.ffn.router.model_copy(update={"score_bias": False, "scoring_func": "softmax"})
    ffn = stage.ffn.model_copy(update={"router": router})
    config = CONFIG.model_copy(
        update={"stages": (stage.model_copy(update={"ffn": ffn}),), "num_nextn_predict_layers": 0}
    )
    model = build(config, seed=0)
    loaded = load_run(write_run(tmp_path, config, model.state_dict()))
    tokens = torch.arange(20).view(2, 10)
    assert torch.equal(loaded(tokens).hidden, model(tokens).hidden)
