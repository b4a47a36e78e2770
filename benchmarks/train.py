"""Compare tokens per second of a complete training step with transformers' DeepseekV3ForCausalLM.

    python benchmarks/train.py --size small            # the quickstart's model
    python benchmarks/train.py --size medium           # 57M parameters
    python benchmarks/train.py --size small --compile  # also transformers with torch.compile (needs a C++ compiler)

A step is forward, cross-entropy on every token, backward and AdamW, on a new random batch, with the experts that the router chooses.
Both sides use one thread, the same weights and no MTP. The benchmark stops if the first losses differ. First each
transformers setting is timed alone, then our two types. Then the best of each side run in alternating pairs.
The result is the median, least and greatest ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from rorqual.model import Decoder, ModelConfig, account, build
from rorqual.model.ffn import MoEConfig
from rorqual.model.load import deepseek_v3
from rorqual.ops.backends import TORCH
from rorqual.recipes.models import v3_like

VOCAB = 264
ROWS = {"small": (64, 64), "medium": (8, 256), "tiny": (4, 32)}
"""Rows and length of a batch, by model size."""
BATCHED_GIB = 1.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """One configuration of one side. `attention` and `experts` are arguments of transformers; our side has neither."""

    who: str
    dtype: str
    attention: str = ""
    experts: str = ""
    compiled: bool = False

    def __str__(self) -> str:
        words = [self.who, self.dtype, self.attention, self.experts and f"experts {self.experts}"]
        return " ".join(word for word in [*words, "compiled" * self.compiled] if word)


def settings_of_transformers(compiled: bool, config: ModelConfig, tokens: int) -> list[Setting]:
    """Return every setting of transformers' CPU path. `batched_mm` is left out if it needs too much memory."""
    experts = ["eager", "grouped_mm", "batched_mm"]
    moe = config.stages[-1].ffn
    assert isinstance(moe, MoEConfig)
    copies = 4 * tokens * moe.experts_per_token() * 3 * moe.moe_intermediate_size * config.hidden_size
    gib = copies * config.stages[-1].layers / 2**30
    if gib > BATCHED_GIB:
        experts.remove("batched_mm")
        print(
            f"  skipped: experts batched_mm, which copies each token's expert weights: {gib:.1f} GiB per step in fp32"
        )
    return [
        Setting("transformers", dtype, attention, implementation, compiled)
        for dtype in DTYPES
        for attention in ("eager", "sdpa")
        for implementation in experts
    ]


def renamed(name: str) -> str:
    """Convert our tensor name to transformers' in-memory name. The layouts are the same."""
    router = {".ffn.router.gate": ".mlp.gate.weight", ".ffn.router.": ".mlp.gate."}
    for ours, theirs in {".attention.": ".self_attn.", **router, ".ffn.": ".mlp."}.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def model_of(setting: Setting, config: ModelConfig) -> tuple[nn.Module, Logits]:
    """Return the model with the weights of seed 0, and its function from tokens to logits."""
    ours = build(config, seed=0, ops=TORCH)
    if setting.who == "rorqual":
        return prepared(ours, setting, lambda model, tokens: model.logits(model(tokens).hidden))
    theirs = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **deepseek_v3.config_to_hf(config),
            attn_implementation=setting.attention,
            experts_implementation=setting.experts,
        )
    )
    theirs.load_state_dict({renamed(name): tensor for name, tensor in ours.state_dict().items()}, strict=True)
    return prepared(theirs, setting, lambda model, tokens: model(tokens, use_cache=False).logits)


def prepared(
    model: nn.Module, setting: Setting, call: Callable[[nn.Module, Tensor], Tensor]
) -> tuple[nn.Module, Logits]:
    model = model.to(DTYPES[setting.dtype]).train()
    if isinstance(model, Decoder):
        return model, lambda tokens: call(model, tokens)
    runner = torch.compile(model, dynamic=False) if setting.compiled else model
    return model, lambda tokens: call(runner, tokens)


class Training:
    """One model in training. `run` times complete steps."""

    def __init__(self, setting: Setting, config: ModelConfig, rows: tuple[int, int]) -> None:
        self.setting, self.rows = setting, rows
        self.model, self.logits = model_of(setting, config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
        self.generator = torch.Generator().manual_seed(1)

    def step(self) -> float:
        tokens = torch.randint(VOCAB, self.rows, generator=self.generator)
        logits = self.logits(tokens)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def run(self, steps: int) -> float:
        """Return the tokens per second over `steps` steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return steps * self.rows[0] * self.rows[1] / (time.perf_counter() - start)


def alone(setting: Setting, config: ModelConfig, rows: tuple[int, int], steps: int) -> tuple[float, float]:
    """Return (first loss, tokens per second after the warm-up)."""
    training = Training(setting, config, rows)
    first = training.step()
    training.run(2)
    speed = training.run(steps)
    del training
    gc.collect()
    return first, speed


def sweep(settings: list[Setting], config: ModelConfig, rows: tuple[int, int], steps: int) -> dict[Setting, float]:
    """Time and print each setting. A setting that this machine or version cannot run is printed with the reason."""
    speeds: dict[Setting, float] = {}
    reference: float | None = None
    for setting in settings:
        try:
            first, speeds[setting] = alone(setting, config, rows, steps)
        except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
            print(f"  {setting!s:55} does not run: {str(error).splitlines()[0][:90]}")
            continue
        reference = first if reference is None else reference
        bound = 1e-4 if setting.dtype == "fp32" else 3e-2
        if abs(first - reference) > bound * abs(reference):
            sys.exit(f"{setting}: the first loss is {first:.6f}, not {reference:.6f}, so the models differ")
        print(f"  {setting!s:55} {speeds[setting]:9.0f} tokens/s", flush=True)
        torch.compiler.reset()
    return speeds


def pairs(
    ours: Setting, theirs: Setting, config: ModelConfig, rows: tuple[int, int], n: int, steps: int
) -> list[float]:
    """Return the ratios of `n` pairs. Both models stay loaded and warm, and the side that runs first alternates."""
    two = [Training(setting, config, rows) for setting in (ours, theirs)]
    for training in two:
        training.run(3)
    ratios = []
    for index in range(n):
        order = two if index % 2 == 0 else two[::-1]
        speeds = {training.setting: training.run(steps) for training in order}
        ratios.append(speeds[ours] / speeds[theirs])
    return ratios


def report(ours: Setting, theirs: Setting, ratios: list[float]) -> None:
    middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{ours} / {theirs}: {middle:.2f} times (median of {len(ratios)} pairs; {least:.2f} to {most:.2f})")
    record = {"ours": str(ours), "theirs": str(theirs), "median": middle, "min": least, "max": most}
    print(json.dumps(record | {"pairs": [round(ratio, 4) for ratio in ratios]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(ROWS), default="small")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps in each timing")
    parser.add_argument("--compile", action="store_true", help="also time transformers with torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    config = v3_like(args.size, vocab_size=VOCAB, context=ROWS[args.size][1])
    config = config.model_copy(update={"num_nextn_predict_layers": 0})
    size, rows = account(config, context=ROWS[args.size][1]), ROWS[args.size]
    print(
        f"{args.size}: {size.total / 1e6:.2f}M parameters, {size.active / 1e6:.2f}M active, {rows[0]} x {rows[1]} tokens per step"
    )
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, one thread")
    eager, compiled = (
        sweep(settings_of_transformers(flag, config, rows[0] * rows[1]), config, rows, args.steps) if wanted else {}
        for flag, wanted in ((False, True), (True, args.compile))
    )
    mine = sweep([Setting("rorqual", dtype) for dtype in DTYPES], config, rows, args.steps)
    best = max(mine, key=lambda setting: mine[setting])
    for speeds in (eager, compiled):
        if speeds:
            rival = max(speeds, key=lambda setting: speeds[setting])
            report(best, rival, pairs(best, rival, config, rows, args.pairs, args.steps))
    for dtype in DTYPES:
        same = {setting: speed for setting, speed in eager.items() if setting.dtype == dtype}
        one = Setting("rorqual", dtype)
        if same and one != best:
            rival = max(same, key=lambda setting: same[setting])
            report(one, rival, pairs(one, rival, config, rows, args.pairs, args.steps))


if __name__ == "__main__":
    main()
