"""Compare tokens per second of batched generation: our engine against transformers' DeepseekV3ForCausalLM.generate.

    python benchmarks/rollout.py                        # 64 and 384 sequences at the quickstart's size
    python benchmarks/rollout.py --size medium --sequences 64

Each side continues distinct prompts of 32 tokens greedily by 64 tokens, ignoring the end of turn, in fp32 on all cores with the same
weights. The benchmark stops if a reply differs from ours for another reason than rounding. Only our side records log-probabilities and
expert choices. First each transformers setting is timed alone. Then the best one and ours run in alternating pairs.
The result is the median, least and greatest ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GenerationConfig

from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.model import Decoder, ModelConfig, account, build
from rorqual.model.load import deepseek_v3
from rorqual.recipes.models import v3_like

VOCAB, PROMPT, NEW = 264, 32, 64
TIE = 1e-3
"""Greedy replies may diverge where the two best logits differ by less than this."""

Replies = list[list[int]]
Generate = Callable[[Replies], Replies]


@dataclass(frozen=True)
class Setting:
    """One configuration of transformers, by the names of its arguments."""

    attention: str
    experts: str
    cache: str

    def __str__(self) -> str:
        return f"{self.attention}, experts {self.experts}, {self.cache} cache"


SETTINGS = [
    Setting(*names)
    for names in itertools.product(("sdpa", "eager"), ("eager", "grouped_mm", "batched_mm"), ("dynamic", "static"))
]


def renamed(name: str) -> str:
    """Convert our tensor name to transformers' in-memory name. The layouts are the same."""
    router = {".ffn.router.gate": ".mlp.gate.weight", ".ffn.router.": ".mlp.gate."}
    for ours, theirs in {".attention.": ".self_attn.", **router, ".ffn.": ".mlp."}.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def theirs(model: Decoder, setting: Setting, threads: int) -> Generate:
    config = DeepseekV3Config(
        **deepseek_v3.config_to_hf(model.config),
        attn_implementation=setting.attention,
        experts_implementation=setting.experts,
        eos_token_id=None,  # the default would end replies early, and `min_new_tokens` would mask the token
        bos_token_id=None,
    )
    twin = DeepseekV3ForCausalLM(config).eval()
    twin.load_state_dict({renamed(name): tensor for name, tensor in model.state_dict().items()}, strict=True)
    how = twin.generation_config = GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        cache_implementation=None if setting.cache == "dynamic" else setting.cache,
        disable_compile=True,
    )

    def run(prompts: Replies) -> Replies:
        torch.set_num_threads(threads)
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = twin.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
        return [list(map(int, row)) for row in out[:, PROMPT:].tolist()]

    return run


def ours(model: Decoder, threads: int) -> Generate:
    tokenizer = Tokenizer.byte_level()
    engine = Engine.of(model, tokenizer, chat_format(tokenizer), threads=threads)
    params = SamplingParams(max_tokens=NEW, ignore_eos=True)

    def run(prompts: Replies) -> Replies:
        results = engine.generate([Request(prompt_ids=tuple(prompt), params=params) for prompt in prompts])
        return [group[0].token_ids for group in results]

    return run


def speed(generate: Generate, prompts: Replies) -> tuple[float, Replies]:
    """Return (new tokens per second, replies)."""
    start = time.perf_counter()
    replies = generate(prompts)
    return len(prompts) * NEW / (time.perf_counter() - start), replies


def check(model: Decoder, prompts: Replies, replies: Replies, wanted: Replies, who: str) -> None:
    """Exit unless the replies diverge only at near-ties. Tokens after a divergence may differ."""
    for prompt, reply, mine in zip(prompts, replies, wanted):
        if len(reply) != NEW:
            sys.exit(f"{who}: a reply has {len(reply)} tokens instead of {NEW}, so the work differs")
        if reply == mine:
            continue
        at = next(index for index in range(NEW) if reply[index] != mine[index])
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([[*prompt, *mine[:at]]])).hidden[0, -1])
        if logits[mine[at]] - logits[reply[at]] > TIE:
            sys.exit(f"{who}: a reply diverges from ours at token {at}, not by rounding, so the models differ")


def sweep(model: Decoder, prompts: Replies, wanted: Replies, threads: int) -> tuple[Setting, Generate]:
    """Time and print each transformers setting. Return the fastest."""
    best: tuple[float, Setting, Generate] | None = None
    for setting in SETTINGS:
        try:
            generate = theirs(model, setting, threads)
            generate(prompts[:8])
            rate, replies = speed(generate, prompts)
        except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
            print(f"  {setting!s:45} does not run: {str(error).splitlines()[0][:90]}")
            continue
        check(model, prompts, replies, wanted, str(setting))
        print(f"  {setting!s:45} {rate:9.0f} tokens/s", flush=True)
        if best is None or rate > best[0]:
            best = rate, setting, generate
    if best is None:
        sys.exit("no transformers setting runs")
    return best[1], best[2]


def compare(config: ModelConfig, sequences: int, n: int, threads: int) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(7, VOCAB) for _ in range(PROMPT)] for _ in range(sequences)]
    model = build(config, seed=0)
    mine = ours(model, threads)
    mine(prompts[:8])
    wanted = mine(prompts)
    print(f"{sequences} sequences, {PROMPT} + {NEW} tokens:")
    setting, rival = sweep(model, prompts, wanted, threads)
    ratios, rates = [], []
    for index in range(n):
        order = (mine, rival) if index % 2 == 0 else (rival, mine)
        got = {generate: speed(generate, prompts)[0] for generate in order}
        ratios.append(got[mine] / got[rival])
        rates.append(got[mine])
    middle = statistics.median(ratios)
    print(f"  rorqual {'':37} {statistics.median(rates):9.0f} tokens/s")
    print(f"  ours / {setting}: {middle:.2f} times (median of {n} pairs; {min(ratios):.2f} to {max(ratios):.2f})")
    record = {"sequences": sequences, "theirs": str(setting), "median": middle, "ours_per_s": statistics.median(rates)}
    print(json.dumps(record | {"pairs": [round(ratio, 3) for ratio in ratios]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "medium"), default="small")
    parser.add_argument("--sequences", type=int, nargs="+", default=[64, 384])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    config = v3_like(args.size, vocab_size=VOCAB, context=128)
    # Large weights spread the logits. With near-ties, rounding would decide the tokens.
    config = config.model_copy(update={"num_nextn_predict_layers": 0, "initializer_range": 0.15})
    size = account(config, context=PROMPT + NEW)
    print(
        f"{args.size}: {size.total / 1e6:.2f}M parameters, {size.active / 1e6:.2f}M active; fp32, {args.threads} threads"
    )
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for sequences in args.sequences:
        compare(config, sequences, args.pairs, args.threads)


if __name__ == "__main__":
    main()
