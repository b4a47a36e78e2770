"""Draw configurations beside those of the tests and compare logits and all gradients with transformers.

    python scripts/random_parity.py --first 100 --count 20

Families take turns. Each configuration gets another RoPE: none, YaRN with any of `mscale`, `mscale_all_dim` and `attention_factor`,
Llama 3's or linear scaling, at positions beyond the original context. The result is written to docs/results/random-parity.json.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from rorqual.core.errors import RorqualError
from rorqual.core.records import write_json
from rorqual.model import ModelConfig
from rorqual.ops.rope import Llama3Scaling, Rope, Yarn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "parity"))

from random_models import changed, inputs, loud  # noqa: E402
from test_family_parity import FAMILIES, TOLERANCE, their_gradients  # noqa: E402
from theirs import relative, their_model  # noqa: E402

RESULT = ROOT / "docs" / "results" / "random-parity.json"
SCALES = [0.0, 0.5, 0.707, 1.0, 1.3]


def random_rope(rng: random.Random) -> Rope:
    theta = rng.choice([100.0, 5000.0, 10000.0, 1e6])
    kind = rng.choice(["yarn", "yarn", "yarn", "llama3", "linear", "plain"])
    if kind == "yarn":
        return Rope(theta=theta, yarn=Yarn(
            factor=rng.choice([1.0, 2.5, 4.0, 32.0, 40.0]),
            original_max_position_embeddings=rng.choice([8, 16, 20]),
            beta_fast=rng.choice([8.0, 16.0, 32.0]),
            beta_slow=rng.choice([0.5, 1.0, 2.0]),
            mscale=rng.choice(SCALES),
            mscale_all_dim=rng.choice(SCALES),
            attention_factor=rng.choice([0.0, 0.0, 0.8, 1.3]),
        ))  # fmt: skip
    if kind == "llama3":
        low = rng.choice([1.0, 2.0])
        return Rope(theta=theta, llama3=Llama3Scaling(
            factor=rng.choice([4.0, 8.0]), low_freq_factor=low, high_freq_factor=low + rng.choice([1.0, 3.0]),
            original_max_position_embeddings=64,
        ))  # fmt: skip
    return Rope(theta=theta, linear=rng.choice([2.0, 4.5]) if kind == "linear" else 1.0)


def compare(config: ModelConfig, seed: int) -> dict[str, float]:
    """Return the largest differences of logits and of a gradient, in units of the largest value."""
    ours = loud(config, seed)
    family, theirs = their_model(ours)
    tokens, positions = inputs(config, seed)
    reply = theirs(tokens, position_ids=positions, use_cache=False)
    logits = ours.logits(ours(tokens, positions).hidden)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    (logits * weights).sum().backward()
    (reply.logits * weights).sum().backward()
    expected = their_gradients(theirs)
    gradients = [
        relative(tensor.grad, expected[name])
        for name, tensor in ours.named_parameters()
        if tensor.grad is not None and float(expected[name].abs().max()) > 1e-6
    ]
    if family.config_from_hf(theirs.config.to_dict(), "theirs") != config:
        raise AssertionError("transformers' config.json is another model")
    return {"logits": relative(logits, reply.logits), "gradients": max(gradients)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--count", type=int, default=20)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    seed = given.first
    while sum("logits" in row for row in rows) < given.count:
        name = sorted(FAMILIES)[seed % len(FAMILIES)]
        rope = random_rope(random.Random(seed))
        row: dict[str, Any] = {"seed": seed, "family": name, "rope": rope.model_dump(mode="json")}
        try:
            row |= compare(changed(FAMILIES[name](seed), "attention", rope=rope), seed)
            row["off"] = max(row["logits"], row["gradients"]) > TOLERANCE
        except RorqualError as error:  # what a family's config.json cannot say is refused, and another one is drawn
            row["refused"] = str(error)
        except AssertionError as error:
            row |= {"logits": float("inf"), "off": True, "words": str(error)}
        print(row, flush=True)
        rows.append(row)
        seed += 1
    off = sum(row.get("off", False) for row in rows)
    command = f"python scripts/random_parity.py --first {given.first} --count {given.count}"
    made = {
        "command": command,
        "transformers": transformers.__version__,
        "tolerance": TOLERANCE,
        "off": off,
        "rows": rows,
    }
    write_json(RESULT, made)
    print(f"{given.count} configurations, {off} off")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
