"""Checkpoint folders as others publish them: written by the safetensors library and by transformers, never by our writer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.attention import DSAConfig, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.load.find import family_for
from rorqual.ops.backends import REFERENCE

BLOCK = 128


def deepseek(mtp: int = 1, *, whole_blocks: bool = False, sparse: bool = False, **fields: Any) -> ModelConfig:
    """A tiny V3 whose matrices are no multiples of 128; with `whole_blocks` each side is one, or is shorter than a block.
    With `sparse` it is a V3.2, which selects 5 positions."""
    hidden, experts, nope, v = (256, 128, 60, 4) if whole_blocks else (136, 136, 68, 6)
    attention = MLAConfig(
        num_attention_heads=2, q_lora_rank=12, kv_lora_rank=20, qk_nope_head_dim=nope, qk_rope_head_dim=4, v_head_dim=v
    )
    if sparse:
        index = {"kind": "dsa", "index_n_heads": 16, "index_head_dim": 10, "index_topk": 5}
        attention = DSAConfig(**dict(attention) | index)
    moe = MoEConfig(
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=experts,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
    )
    stages = (
        Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=20)),
        Stage(layers=1, attention=attention, ffn=moe),
    )
    return ModelConfig(
        vocab_size=BASE_VOCAB, hidden_size=hidden, stages=stages, num_nextn_predict_layers=mtp,
        max_position_embeddings=64, **fields,
    )  # fmt: skip


def qwen3(**fields: Any) -> ModelConfig:
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, qk_norm=True)
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=20))
    return ModelConfig(vocab_size=BASE_VOCAB, hidden_size=16, stages=(stage,), max_position_embeddings=64, **fields)


@torch.no_grad()
def loud(config: ModelConfig, seed: int = 0) -> Decoder:
    """As after training: attention is peaked, logits have a spread of 1, norms and the router's bias are no constants."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config, REFERENCE)
    for name, tensor in sorted(model.state_dict().items()):
        value = torch.randn(tensor.shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            value = 0.1 * value
        elif tensor.dim() == 1:
            value = (1 + 0.2 * value) * (5 if "attention.q_norm" in name else 1)
        elif name != "embed_tokens.weight":
            value = value * (5 if "q_b_proj" in name else 1) / math.sqrt(tensor.shape[-1])
        tensor.copy_(value)
    tokens = torch.arange(24)[None] * 7 % config.vocab_size
    model.norm.weight.div_(model.logits(model(tokens).hidden).std())
    return model


def in_fp8(hub: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As DeepSeek publishes V3: projections in FP8 with a scale for each 128 x 128 values; written out block by block."""
    out: dict[str, Tensor] = {}
    for name, tensor in hub.items():
        if not any(part in name for part in ("_proj", ".indexer.w")) or any(
            part in name for part in ("eh_proj", "weights_proj")
        ):
            out[name] = tensor.clone() if name.endswith("correction_bias") else tensor.bfloat16()
            continue
        rows, columns = tensor.shape
        value = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
        scale = torch.empty(math.ceil(rows / BLOCK), math.ceil(columns / BLOCK))
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                place = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
                scale[i, j] = tensor[place].abs().max() / 448
                value[place] = (tensor[place] / scale[i, j]).to(torch.float8_e4m3fn)
        out |= {name: value, f"{name}_scale_inv": scale}
    return out


def from_fp8(hub: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values, in fp32, of what `in_fp8` wrote; multiplied one by one."""
    out = {}
    for name, tensor in hub.items():
        if name.endswith("_scale_inv"):
            continue
        out[name] = tensor.float()
        if tensor.dtype == torch.float8_e4m3fn:
            scale = hub[f"{name}_scale_inv"]
            at = [torch.arange(n) // BLOCK for n in tensor.shape]
            out[name] = tensor.float() * scale[at[0][:, None], at[1][None]]
    return out


def published(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a loud model, as published, without what a tied model repeats."""
    hub = family_for(config).name_map(config).to_hf(loud(config, seed).state_dict())
    if config.tie_word_embeddings:
        del hub["lm_head.weight"]
    return hub


def write_folder(folder: Path, config: ModelConfig, hub: Mapping[str, Tensor], *, shards: int = 1, **keys: Any) -> Path:
    """A folder as on the hub; `keys` are added to config.json. With more than one shard, names are dealt to them in turn."""
    folder.mkdir(parents=True)
    data = family_for(config).config_to_hf(config) | {"bos_token_id": 0, "eos_token_id": 1} | keys
    write_json(folder / "config.json", data)
    write_json(folder / "generation_config.json", {"eos_token_id": [1], "temperature": 0.6, "top_p": 0.95})
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<｜end▁of▁sentence｜>"},
    )
    Tokenizer.byte_level().save(folder / "tokenizer.json")
    if shards == 1:
        save_file(dict(hub), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    places = {name: names[number % shards] for number, name in enumerate(hub)}
    for file in names:
        part = {name: tensor for name, tensor in hub.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return folder


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor of a folder, through the safetensors library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dictionary)
                tensor = opened.get_tensor(name)
                assert name not in found
                data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                found[name] = (str(tensor.dtype), tuple(tensor.shape), data)
    return found


def values(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, through the safetensors library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with a hash of its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }
