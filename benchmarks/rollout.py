"""Tokens per second of batched generation, our engine against transformers' DeepseekV3ForCausalLM.generate.

    python benchmarks/rollout.py                        # 64 and 384 sequences at the quickstart's size
    python benchmarks/rollout.py --size medium --sequences 64

The work: so many distinct prompts of 32 tokens, each continued greedily by 64 tokens with no end of turn, in fp32, with
the same weights and all cores on both sides; a reply that leaves ours where rounding does not decide ends the benchmark.
Ours also records log-probabilities and expert choices; theirs does not. First each of their settings is timed alone, then
the best meets ours in alternating pairs, and the ratio is given as median, least and greatest.
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
"""Greedy replies may part where the two best logits lie closer than this."""

Replies = list[list[int]]
Generate = Callable[[Replies], Replies]


@dataclass(frozen=True)
class Setting:
    """One way to run theirs, by transformers' names."""

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
    """Our name as transformers has it in memory; the layouts are the same."""
    router = {".ffn.router.gate": ".mlp.gate.weight", ".ffn.router.": ".mlp.gate."}
    for ours, theirs in {".attention.": ".self_attn.", **router, ".ffn.": ".mlp."}.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def theirs(model: Decoder, setting: Setting, threads: int) -> Generate:
    config = DeepseekV3Config(
        **deepseek_v3.config_to_hf(model.config),
        attn_implementation=setting.attention,
        experts_implementation=setting.experts,
        eos_token_id=None,  # a default would end replies, and `min_new_tokens` would forbid the token
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
    """(new tokens a second, replies)."""
    start = time.perf_counter()
    replies = generate(prompts)
    return len(prompts) * NEW / (time.perf_counter() - start), replies


def check(model: Decoder, prompts: Replies, replies: Replies, wanted: Replies, who: str) -> None:
    """The two parted only at near-ties; after that they say different things by right."""
    for prompt, reply, mine in zip(prompts, replies, wanted):
        if len(reply) != NEW:
            sys.exit(f"{who}: a reply of {len(reply)} tokens, not {NEW}: not the same work")
        if reply == mine:
            continue
        at = next(index for index in range(NEW) if reply[index] != mine[index])
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([[*prompt, *mine[:at]]])).hidden[0, -1])
        if logits[mine[at]] - logits[reply[at]] > TIE:
            sys.exit(f"{who}: a reply leaves ours at token {at}, and not by rounding: not the same model")


def sweep(model: Decoder, prompts: Replies, wanted: Replies, threads: int) -> tuple[Setting, Generate]:
    """Each of their settings, printed; the fastest."""
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
        sys.exit("none of their settings runs")
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
    # Weights large enough that logits have a spread: near-ties would let rounding choose the tokens.
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
