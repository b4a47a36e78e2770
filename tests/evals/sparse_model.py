"""A small model with sparse attention and random weights, its run directory, and its dense attention, written plainly."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rorqual.core.config import to_yaml
from rorqual.core.records import RunDir, write_json
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.attention import DSA, AttentionContext, DSAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig
from rorqual.ops.backends import REFERENCE

BUDGET, VOCAB = 8, 30
BYTES = Tokenizer.byte_level()
"""One token per byte."""


def model_of(budget: int = BUDGET, *, kind: str = "dsa", vocab: int = VOCAB, context: int = 4096) -> Decoder:
    """Peaked attention, and an indexer that has learnt nothing."""
    mla = MLAConfig(
        num_attention_heads=3, q_lora_rank=10, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5
    )
    index = {"kind": "dsa", "index_n_heads": 16, "index_head_dim": 10, "index_topk": budget}
    attention = DSAConfig(**dict(mla) | index) if kind == "dsa" else mla
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=20))
    config = ModelConfig(vocab_size=vocab, hidden_size=16, stages=(stage,), max_position_embeddings=context)
    model = Decoder(config, REFERENCE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            scale = 4.0 if "q_b_proj" in name else 1.0
            noise = torch.randn(tensor.shape, generator=generator) * scale
            tensor.copy_(noise * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 1 + 0.2 * noise)
    return model


def dense_weights(layer: DSA, x: Tensor, model: Decoder) -> tuple[Tensor, Tensor]:
    """The dense attention weights of x [n, hidden], [heads, n, n], and the module's dense output [n, hidden]."""
    context = AttentionContext(torch.arange(len(x))[None], None, model.ops)
    _, q_nope, q_rope, latent, k_rope = (t[0] for t in layer.project(x[None], context))
    kv = (latent @ layer.kv_b_proj.weight.T).view(len(x), 3, 11)
    k = torch.cat((kv[..., :6], k_rope.unsqueeze(1).expand(-1, 3, -1)), -1)
    scores = torch.einsum("thd,shd->hts", torch.cat((q_nope, q_rope), -1), k) * 10**-0.5
    scores = scores.masked_fill(~torch.ones(len(x), len(x), dtype=torch.bool).tril(), -torch.inf)
    weights = scores.softmax(-1)
    out = torch.einsum("hts,shd->thd", weights, kv[..., 6:]).flatten(1) @ layer.o_proj.weight.T
    return weights, out


def attention_inputs(model: Decoder, tokens: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """By layer: what the attention reads and gives [n, hidden], and the selected positions [n, k], for tokens [n]."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    hooks = [
        layer.attention.register_forward_hook(  # type: ignore[union-attr]
            lambda _module, given, out: (inputs.append(given[0][0]), outputs.append(out[0]), None)[-1]
        )
        for layer in model.layers
    ]
    selected = model(tokens[None], record=("selected",)).recorded["selected"]
    for hook in hooks:
        hook.remove()
    return inputs, outputs, list(selected)


def write_run(path: Path, model: Decoder) -> Path:
    """Write a run directory of `model`, with one token per byte."""
    run = RunDir(path)
    step = run.step_dir(1)
    step.mkdir(parents=True)
    lines = to_yaml(model.config).splitlines()
    run.config_file.write_text("model:\n" + "".join(f"  {line}\n" for line in lines), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, step / "model.safetensors")
    write_json(step / "whole.json", {"model.safetensors": (step / "model.safetensors").stat().st_size})
    BYTES.save(run.tokenizer_file)
    return path
