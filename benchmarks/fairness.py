"""Measure how many steps one tenant's short requests wait behind another tenant's 200 long ones, and what fairness costs.

    python benchmarks/fairness.py --before OTHER/src --result docs/results/fairness.json

The model is small and untrained, with 16 slots. All long requests arrive at the start, and a short one every 25 steps. The wait is the
number of steps from a request's arrival to its first token, and is deterministic. `--before` names the sources of an older
commit to measure in the same way. All answers must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import ROOT, made_by

from rorqual.core.records import write_json
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams, scheduler
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig

LONG, SHORT, EVERY = 200, 20, 25
NEVER = "after, preempting nobody for fairness"


def asked(number: int, tenant: str, new: int) -> Request:
    ids = tuple(3 + (number * 37 + i * 11) % 250 for i in range(48))
    return Request(params=SamplingParams(max_tokens=new, ignore_eos=True, seed=number), prompt_ids=ids, tenant=tenant)


def measure(slots: int, long_tokens: int) -> dict[str, Any]:
    """Run the long and the short requests to completion. Return the waits, the throughput and a hash of the answers."""
    torch.set_num_threads(1)
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    stages = (Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=128)),)
    model = build(ModelConfig(vocab_size=264, hidden_size=64, stages=stages, max_position_embeddings=1024), seed=0)
    tokenizer = Tokenizer.byte_level()
    engine = Engine.of(model, tokenizer, chat_format(tokenizer), slots=slots, reuse=True, cache_bytes=1 << 28)
    began = time.process_time()
    for number in range(LONG):
        engine.submit(asked(number, "flood", long_tokens))
    came: dict[int, int] = {}
    first: dict[int, int] = {}
    answers: dict[int, list[int]] = {}
    step = drawn = 0
    while len(answers) < LONG + SHORT:
        if step % EVERY == 1 and len(came) < SHORT:
            came[engine.submit(asked(1000 + len(came), "calm", 8))] = step
        for delta in engine.step():
            drawn += 1
            first.setdefault(delta.request_id, step)
            if delta.completion is not None:
                answers[delta.request_id] = delta.completion.token_ids
        step += 1
    waits = [first[request_id] - came[request_id] for request_id in came]
    return {
        "steps waited, most": max(waits),
        "steps waited, mean": round(statistics.mean(waits), 2),
        "steps in all": step,
        "preemptions": int(engine.stats()["preemptions"]),
        "tokens a processor second": round(drawn / (time.process_time() - began), 1),
        "answers": hash(tuple(tuple(answers[request_id]) for request_id in sorted(answers))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--long-tokens", type=int, default=393, help="tokens of a long reply")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in alternation; the fastest counts")
    parser.add_argument("--before", type=Path, help="src of an older checkout")
    parser.add_argument("--result", type=Path, help="JSON file to write")
    parser.add_argument("--never", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.never:
        scheduler.QUANTUM = sys.maxsize
    if a.one:
        print(json.dumps(measure(a.slots, a.long_tokens)))
        return
    found: dict[str, dict[str, Any]] = {}
    sides = {"after": ROOT / "src", NEVER: ROOT / "src"} | ({"before": a.before} if a.before else {})
    for _ in range(a.rounds):
        for side, source in sides.items():
            words = [sys.executable, __file__, "--one", "--slots", str(a.slots), "--long-tokens", str(a.long_tokens)]
            words += ["--never"] if side == NEVER else []
            env = {**os.environ, "PYTHONPATH": str(source)}
            row = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True, env=env).stdout)
            speed = "tokens a processor second"
            row[speed] = max(row[speed], found.get(side, row)[speed])
            found[side] = row
            print(side, row, flush=True)
    if len({row.pop("answers") for row in found.values()}) > 1:
        sys.exit("the answers of the compared versions differ")
    if a.result is not None:
        places = {a.before: "OTHER/src"} if a.before else {}
        write_json(a.result, {**found, "made by": made_by(places)})


if __name__ == "__main__":
    main()
