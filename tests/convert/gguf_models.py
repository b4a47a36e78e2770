"""Small models of every architecture that GGUF is written for, as run directories, for the tests of GGUF."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from rorqual.core.records import MANIFEST_FILE, RunDir, write_json
from rorqual.data.tokenizer import N_BYTES, SpecialToken, Tokenizer
from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.rope import Llama3Scaling, Rope, Yarn

VOCAB, HIDDEN = 110, 64
GQA = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
DENSE = DenseConfig(intermediate_size=96)
MLA = MLAConfig(
    num_attention_heads=2, q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=8, v_head_dim=12
)
V3_MOE = MoEConfig(
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=32,
    n_shared_experts=1,
    routed_scaling_factor=2.5,
)


def with_router(moe: MoEConfig, **fields: Any) -> MoEConfig:
    return moe.model_copy(update={"router": moe.router.model_copy(update=fields)})


V2_MOE = with_router(V3_MOE, scoring_func="softmax", norm_topk_prob=False, group_score="max", score_bias=False)
QWEN_MOE = with_router(V2_MOE, routed_scaling_factor=1.0, norm_topk_prob=True, group_score="top2").model_copy(
    update={"n_shared_experts": 0}
)


def _model(*stages: Stage, **fields: Any) -> ModelConfig:
    known: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "max_position_embeddings": 256}
    return ModelConfig(stages=stages, **(known | fields))


def _gqa(**fields: Any) -> GQAConfig:
    return GQA.model_copy(update=fields)


def configs() -> dict[str, ModelConfig]:
    """By a name that begins with the architecture's."""
    deep = [Stage(layers=1, attention=MLA, ffn=DENSE), Stage(layers=2, attention=MLA, ffn=V3_MOE)]
    groups = with_router(V3_MOE, n_group=4, topk_group=2)
    yarn = Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707))
    far = MLA.model_copy(update={"rope": yarn, "num_attention_heads": 4})
    llama3 = Rope(theta=5e5, llama3=Llama3Scaling(factor=8.0, original_max_position_embeddings=32))
    qwen_yarn = Rope(theta=1e6, yarn=Yarn(factor=4.0, original_max_position_embeddings=32))
    biased, normed = _gqa(attention_bias=True), _gqa(qk_norm=True, head_dim=32)
    return {
        "llama": _model(Stage(layers=2, attention=_gqa(rope=Rope(theta=1e5)), ffn=DENSE), tie_word_embeddings=True),
        "llama-3.1": _model(Stage(layers=2, attention=_gqa(rope=llama3), ffn=DENSE)),
        "llama-biases": _model(Stage(layers=2, attention=_gqa(attention_bias=True, output_bias=True), ffn=DENSE)),
        "qwen2": _model(Stage(layers=2, attention=biased, ffn=DENSE)),
        "qwen2-yarn": _model(Stage(layers=2, attention=biased.model_copy(update={"rope": qwen_yarn}), ffn=DENSE)),
        "qwen3": _model(Stage(layers=2, attention=normed, ffn=DENSE), tie_word_embeddings=True),
        "qwen3moe": _model(Stage(layers=2, attention=normed, ffn=QWEN_MOE)),
        "deepseek2": _model(*deep, num_nextn_predict_layers=1),
        "deepseek2-groups": _model(deep[0], Stage(layers=2, attention=MLA, ffn=groups)),
        "deepseek2-yarn": _model(Stage(layers=2, attention=far, ffn=V3_MOE), tie_word_embeddings=True),
        "deepseek2-v2": _model(deep[0], Stage(layers=1, attention=MLA, ffn=V2_MOE)),
    }


def filled(config: ModelConfig, seed: int = 0) -> Decoder:
    """A model of random weights, biases and norms."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config)
    with torch.no_grad():
        for _, tensor in sorted(model.state_dict().items()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(tensor.shape[-1]))
    return model


def ascii_tokenizer(size: int) -> Tokenizer:
    """Our special tokens, letters and digits, and pairs of them: whatever a random model says is text."""
    data = json.loads(Tokenizer.byte_level().source)
    first = list(data["model"]["vocab"])
    letters = [
        text for text in first[len(SpecialToken) : len(SpecialToken) + N_BYTES] if text.isascii() and text.isalnum()
    ]
    pairs = [(a, b) for a in letters for b in letters]
    merges = pairs[: size - len(SpecialToken) - len(letters)]
    tokens = [*first[: len(SpecialToken)], *letters, *(a + b for a, b in merges)]
    data["model"]["vocab"] = {text: id_ for id_, text in enumerate(tokens)}
    data["model"]["merges"] = [list(pair) for pair in merges]
    return Tokenizer(json.dumps(data))


def write_run(
    path: Path,
    model: Decoder,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    stored: dict[str, Tensor] | None = None,
) -> RunDir:
    """A run directory of `model` in a type (the router's bias stays fp32, as a checkpoint has it), or of tensors as `stored`."""
    run = RunDir(path)
    folder = run.step_dir(0)
    folder.mkdir(parents=True)
    state = stored or {
        name: tensor.detach().to(torch.float32 if "e_score" in name else dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    weights = folder / "model.safetensors"
    save_file(state, weights)
    write_json(folder / MANIFEST_FILE, {weights.name: weights.stat().st_size})
    (tokenizer or ascii_tokenizer(model.config.vocab_size)).save(run.tokenizer_file)
    settings = {"recipe": "import", "chat": "deepseek", "model": model.config.model_dump(mode="json")}
    run.config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return run


def weights_of(run: RunDir) -> dict[str, Tensor]:
    """The tensors of a run's checkpoint, without those of the prediction modules."""
    state = load_file(run.checkpoint() / "model.safetensors")
    return {name: tensor for name, tensor in state.items() if not name.startswith("mtp.")}


def silent(*_: object) -> None:
    """No progress."""
