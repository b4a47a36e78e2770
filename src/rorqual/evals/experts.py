"""Which expert serves which family, layer by layer, counted from the engine's own record of its choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rorqual.engine.request import Generator, Request, SamplingParams
from rorqual.evals.run import pick
from rorqual.tasks.base import Task


def expert_use(
    generator: Generator, task: Task, n_experts: int, *, count: int, seed: int, params: SamplingParams
) -> dict[str, Any]:
    """Greedy answers to `count` development problems of each family and level; over every position fed:

    share [layer][family][expert], the part of a family's choices that went to each expert; load [layer][expert] over all.
    """
    problems = pick(task, "dev", count, seed, True)
    answers = generator.generate([Request(p.messages, params) for p in problems])
    families = list(dict.fromkeys(p.family for p in problems))
    chosen: dict[str, list[Any]] = {family: [] for family in families}
    for problem, group in zip(problems, answers, strict=True):
        chosen[problem.family] += [c.experts for c in group if c.experts is not None]
    if not any(chosen.values()):
        return {"layers": [], "families": families, "share": [], "load": []}
    counts = np.stack([_count(chosen[family], n_experts) for family in families], axis=1)  # [layer, family, expert]
    load = counts.sum(1)
    return {
        "layers": list(range(counts.shape[0])),
        "families": families,
        "share": (counts / counts.sum(-1, keepdims=True)).tolist(),
        "load": (load / load.sum(-1, keepdims=True)).tolist(),
    }


def _count(experts: Sequence[Any], n_experts: int) -> Any:
    layers = experts[0].shape[1]
    flat = np.concatenate([np.asarray(e).reshape(e.shape[0], layers, -1) for e in experts])  # [positions, layers, k]
    return np.stack([np.bincount(flat[:, layer].ravel(), minlength=n_experts) for layer in range(layers)])
