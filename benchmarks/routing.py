"""Count which experts the tokens of each question are routed to, to test whether one expert serves a whole question.

    python benchmarks/routing.py runs/quickstart/teacher

For each layer, over a question and its answer, the benchmark counts the routed experts that serve at least one token, and those that
serve at least half. An "expert for the question" would serve all. It also counts how often two adjacent tokens share an expert,
compared with two tokens of different questions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from record import made_by

from rorqual.core.records import RunDir, write_json
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.evals.evaluating import pick_problems
from rorqual.model.load.run_directory import read_model_config
from rorqual.tasks.find import load_task


def main() -> None:
    """Answer problems of the dev split greedily and count the experts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--task", default="families")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=Path("docs/results/routing.json"))
    a = parser.parse_args()
    experts = max(ffn.n_router_choices() for ffn in read_model_config(RunDir(a.run)).ffns)
    if not experts:
        raise SystemExit(f"{a.run}: the model has no experts")
    problems = pick_problems(load_task(a.task), "dev", a.count, 0, False)
    params = SamplingParams(max_tokens=a.max_tokens)
    answers = Engine(a.run, threads=a.threads).generate([Request(p.messages, params) for p in problems])
    chosen = [np.asarray(group[0].experts) for group in answers]  # each [positions, layers, k]
    layers = [layer([one[:, number] for one in chosen], experts) for number in range(chosen[0].shape[1])]
    for found in layers:
        print(found)
    document = {
        "what": "experts that the tokens of one question met (means over questions), layer by layer",
        "made by": made_by({a.run: "runs/quickstart/teacher"}),
        "questions": len(problems),
        "tokens of a question and its answer": float(np.mean([len(one) for one in chosen])),
        "routed experts": experts,
        "active for a token": int(chosen[0].shape[-1]),
        "layers": layers,
    }
    write_json(a.result, document)


def layer(chosen: list[Any], experts: int) -> dict[str, float]:
    """Return the statistics of one layer. `chosen` holds the expert ids of each question [positions, k]."""
    served = [np.array([(one == e).any(-1).mean() for e in range(experts)]) for one in chosen]  # share of tokens
    near = [shared(one[:-1], one[1:]) for one in chosen if len(one) > 1]
    rng = np.random.default_rng(0)
    tokens = np.concatenate(chosen)
    return {
        "experts that served any token": float(np.mean([(s > 0).sum() for s in served])),
        "experts that served at least half": float(np.mean([(s >= 0.5).sum() for s in served])),
        "largest share of its tokens that one expert served": float(np.mean([s.max() for s in served])),
        "neighbours with an expert in common": float(np.mean(near)),
        "any two tokens with an expert in common": shared(tokens, tokens[rng.permutation(len(tokens))]),
    }


def shared(left: Any, right: Any) -> float:
    """Return the share of token pairs that have at least one expert in common. Both arguments are [n, k]."""
    return float((left[:, :, None] == right[:, None, :]).any((1, 2)).mean())


if __name__ == "__main__":
    main()
