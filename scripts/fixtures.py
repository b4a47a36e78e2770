"""Train the small DeepSeek-V3.2 of tests/fixtures, and write it with what it must answer.

    python scripts/fixtures.py --work runs/fixtures        (make fixtures)

A dense model learns the package's sample of Shakespeare from random weights, `sparsify` gives it indexers, and the result is
exported as a Hugging Face checkpoint (`deepseek_v32`, fp32, under 5 MB). `expected.json` holds, for held-out text longer than
index_topk: the token ids, the loss, the logits after the last token, the greedy continuation, and the positions that each layer
selects for the last token. Training takes about ten minutes of one core. An interrupted run resumes.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from rorqual.convert.hf import export_hf, import_hf
from rorqual.core.records import RunDir, write_json
from rorqual.data.source.text import read_text_split
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.evals.perplexity import text_loss
from rorqual.evals.sparse_attention_damage import Passage, measure_damage
from rorqual.model.attention import MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig
from rorqual.model.load.run_directory import load_run
from rorqual.ops.losses import token_logprobs
from rorqual.recipes.sparsify import SparsifyConfig, sparsify
from rorqual.recipes.start import supervised_objectives
from rorqual.train.balance import BalanceConfig
from rorqual.train.loop import fit
from rorqual.train.optim import AdamWConfig, MuonConfig
from rorqual.train.run import Run
from rorqual.train.schedule import LearningRateSchedule
from rorqual.train.sources import TextConfig

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "src" / "rorqual" / "data" / "samples" / "tinyshakespeare-64k.txt"
PLACE = ROOT / "tests" / "fixtures" / "tiny-deepseek-v32"
ROW, ROWS, SPARSE_ROWS = 512, 8, 4
TOPK = 64
PROMPT, CONTINUED = 320, 48
"""Tokens of the prompt and of its continuation in `expected.json`."""
CARD = """---
license: cc0-1.0
library_name: transformers
tags: [deepseek_v32, test]
---

# A small trained DeepSeek-V3.2 for tests

A model of the architecture of DeepSeek-V3.2 (`deepseek_v32`): multi-head latent attention, a lightning indexer that selects
{topk} positions, a mixture of experts with a router bias. It has {params:,} parameters in fp32 and reads bytes. It was trained on
{tokens:,} tokens of public-domain Shakespeare, first with dense attention, then with sparse attention (`rorqual sparsify`). It is
made for tests of engines and converters: with trained weights, a wrong RoPE, scale or selection changes the answers.

| on held-out text, windows of {row} tokens | |
|---|---|
| loss, nats per byte | {loss:.3f} |
| loss after position {topk}, with sparse attention and with dense attention | {sparse:.3f} and {dense:.3f} |
| recall of the {topk} positions with most attention, lowest layer | {recall:.3f} |

`expected.json` has token ids, logits, a greedy continuation and the selected positions. Logits agree with transformers' to 1e-4
of their largest value. Ties between index scores go to the earlier position.

Made by `make fixtures` of Rorqual. The weights and the text are in the public domain (CC0).
"""


def model_config() -> ModelConfig:
    """Return the dense model: one dense layer and two MoE layers."""
    mla = MLAConfig(
        num_attention_heads=4,
        q_lora_rank=48,
        kv_lora_rank=48,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=24,
    )
    router = GroupedTopKConfig(n_routed_experts=8, num_experts_per_tok=2)
    moe = MoEConfig(router=router, moe_intermediate_size=48, n_shared_experts=1)
    return ModelConfig(
        vocab_size=BASE_VOCAB,
        hidden_size=96,
        stages=(
            Stage(layers=1, attention=mla, ffn=DenseConfig(intermediate_size=192)),
            Stage(layers=2, attention=mla, ffn=moe),
        ),
        max_position_embeddings=1024,
        initializer_range=0.05,
    )


def train(work: Path, seed: int, steps: int, sparse_steps: int) -> RunDir:
    """Train the model in the folder `work`, and return the run with sparse attention."""
    model = model_config()
    run = Run(
        recipe="fixture",
        seed=seed,
        steps=steps,
        model=model,
        source=TextConfig(data=str(TEXT), rows=ROWS, row=ROW),
        objectives=supervised_objectives(model),
        optim=MuonConfig(
            lr=0.02, adamw=AdamWConfig(lr=2e-3, betas=(0.9, 0.98)), schedule=LearningRateSchedule(warmup=30, decay=0.4)
        ),
        balance=BalanceConfig(gamma=0.01),
    )
    fit(run, work / "dense", threads=1, extend=False)
    settings = SparsifyConfig(
        index_topk=TOPK,
        index_n_heads=16,
        index_head_dim=32,
        warmup=4 * sparse_steps,
        steps=sparse_steps,
        lr=1e-3,
        rows=SPARSE_ROWS,
        row=ROW,
        seed=seed,
    )
    return sparsify(RunDir(work / "dense"), work / "sparsified", settings)


@torch.no_grad()
def expected(run: RunDir, text: str) -> dict[str, Any]:
    """Return what the model computes for the first `PROMPT` tokens of `text`."""
    model, tokenizer = load_run(run), Tokenizer.load(run.tokenizer_file)
    ids = tokenizer.encode(text)[:PROMPT]
    tokens = torch.tensor([ids])
    output = model(tokens, record=("selected",))
    logits = model.logits(output.hidden[0])
    continued = list(ids)
    for _ in range(CONTINUED):
        continued.append(int(model.logits(model(torch.tensor([continued])).hidden[0, -1]).argmax()))
    return {
        "prompt": tokenizer.decode(ids),
        "ids": ids,
        "loss": round(float(-token_logprobs(logits[:-1], tokens[0, 1:]).mean()), 6),
        "logits": [round(value, 5) for value in logits[-1].tolist()],
        "continuation": continued[PROMPT:],
        "continuation_text": tokenizer.decode(continued[PROMPT:]),
        "selected": [sorted(layer[-1].tolist()) for layer in output.recorded["selected"]],
    }


def main() -> None:
    """Train, export, and write the card and the expected outputs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/fixtures"))
    parser.add_argument("--seed", type=int, default=0, help="another seed than 0 leaves tests/fixtures as they are")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--sparse-steps", type=int, default=50)
    a = parser.parse_args()
    torch.set_num_threads(1)
    run = train(a.work, a.seed, a.steps, a.sparse_steps)
    exported, imported = a.work / "exported", a.work / "imported"
    for folder in (exported, imported):
        shutil.rmtree(folder, ignore_errors=True)
    export_hf(run, exported)
    import_hf(exported, imported)
    text = read_text_split(TEXT).validation
    model = load_run(RunDir(imported))
    tokenizer = Tokenizer.load(RunDir(imported).tokenizer_file)
    ids = tokenizer.encode(text)
    sparse = range(TOPK, ROW)
    windows = [
        Passage(tuple(ids[at : at + ROW + 1]), sparse, sparse, range(ROW)) for at in range(0, len(ids) - ROW, ROW)
    ]
    passages, layers = measure_damage(model, windows, TOPK)
    write_json(exported / "expected.json", expected(RunDir(imported), text))
    card = CARD.format(
        topk=TOPK,
        params=sum(parameter.numel() for parameter in model.parameters()),
        tokens=(a.steps * ROWS + 5 * a.sparse_steps * SPARSE_ROWS) * ROW,
        row=ROW,
        loss=text_loss(model, tokenizer, text, window=ROW).per_token,
        sparse=fmean(one.loss for one in passages),
        dense=fmean(one.loss_before for one in passages),
        recall=min(layer.recall for layer in layers),
    )
    (exported / "README.md").write_text(card, encoding="utf-8")
    print(f"recall by layer: {[round(m.recall, 3) for m in layers]}")
    if a.seed == 0:
        shutil.rmtree(PLACE, ignore_errors=True)
        shutil.copytree(exported, PLACE)
        size = sum(file.stat().st_size for file in PLACE.iterdir())
        print(f"{PLACE.relative_to(ROOT)}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
