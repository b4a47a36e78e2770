"""FP8 weights are multiplied out where a model is filled, and the router's bias keeps its type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from written_run import write_run

from rorqual.core.errors import CheckpointError
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
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
WEIGHT = "layers.0.attention.o_proj.weight"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(WEIGHT + SCALE), "without scales"),
        (lambda s: s.update({"norm.weight" + SCALE: torch.ones(1, 1)}), "norm.weight"),
        (lambda s: s.update({WEIGHT + SCALE: torch.ones(1, 1)}), r"\(1, 1\)"),
        (lambda s: s.update({WEIGHT: torch.ones(136, 12)}), "with scales"),
        (lambda s: s.update({"nothing.weight" + SCALE: torch.ones(1, 1)}), "unexpected nothing"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    state = build(CONFIG, seed=0).state_dict()
    state[WEIGHT], state[WEIGHT + SCALE] = quantize_blocks(state[WEIGHT])
    save_file(state, tmp_path / "model.safetensors")
    model = Decoder(CONFIG)
    load_weights(model, tmp_path)
    assert torch.equal(model.state_dict()[WEIGHT], dequantize_blocks(state[WEIGHT], state[WEIGHT + SCALE]))
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(Decoder(CONFIG), tmp_path)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_a_run_loads_into_the_type_asked_for_and_the_bias_stays_fp32(
    stored: torch.dtype, asked: torch.dtype, tmp_path: Path
) -> None:
    """A bias in bf16 chooses other experts (transformers#42580, vllm#23640): through save, load and `.to`."""
    source = build(CONFIG, seed=3)
    for layer in source.routing_ffns():
        layer.router.e_score_correction_bias.copy_(
            torch.tensor([1.0, 1.0 + 2**-12, 1.0 - 2**-13])
        )  # one number in bf16
    state = {n: t if n.endswith("correction_bias") else t.to(stored) for n, t in source.state_dict().items()}
    model = load_run(write_run(tmp_path, CONFIG, state), dtype=asked)
    expected = {n: t if n.endswith("correction_bias") else t.to(asked) for n, t in state.items()}
    assert same(dict(model.state_dict()), expected)


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
