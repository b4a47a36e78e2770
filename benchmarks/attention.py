"""Compare sparse with dense attention at the proportions of DeepSeek-V3.2, decode and prefill, on one thread.

    python benchmarks/attention.py --pairs 5

The work is the attention of one layer on a cache in fp32, in the absorbed form: 128 heads over latents of 512 + 64 values, an
indexer with 64 heads of width 128, and index_topk=2048. Projections are left out, because both kinds have the same ones; the
index queries and keys are computed before. Index work is then 5.9 % of dense attention.

- decode: one query at the end of a sequence.
- prefill: 32 consecutive queries at the end of a sequence. A prompt costs the sum over its queries.

Dense attention is timed in three forms: the engine's paged attention, one matrix product with a softmax over the whole sequence,
and torch's scaled_dot_product_attention. The fastest form is compared. Each round runs all forms in turn, in another order. The
predicted ratio is that of the FLOPs which the kinds report (`decode_flops`). The share of the predicted gain is (measured - 1) /
(predicted - 1).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import made_by
from torch import Tensor

from rorqual.core.records import write_json
from rorqual.model.attention import DSAConfig, MLAConfig
from rorqual.model.presets import preset
from rorqual.ops.backends import TORCH_INVARIANT
from rorqual.ops.backends.attention import AttentionMetadata, AttentionPlan, PagedAttention
from rorqual.ops.paged import BLOCK

PREFILL = 32
"""Queries of a prefill step: one query tile."""


def kinds() -> tuple[MLAConfig, DSAConfig]:
    """Return the attention of V3 and of V3.2."""
    dense, sparse = preset("deepseek-v3").attentions[0], preset("deepseek-v3.2").attentions[0]
    assert isinstance(dense, MLAConfig) and isinstance(sparse, DSAConfig)
    return dense, sparse


class Case:
    """Queries at the end of a sequence of `length` positions, and its cache."""

    def __init__(self, length: int, queries: int, topk: int) -> None:
        generator = torch.Generator().manual_seed(length)

        def some(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        _, c = kinds()
        width = c.kv_lora_rank + c.qk_rope_head_dim
        blocks = -(-length // BLOCK)
        self.latent = some(1 + blocks, 1, BLOCK, width)
        self.index_key = some(1 + blocks, 1, BLOCK, c.index_head_dim)
        self.q = some(queries, 1, c.num_attention_heads, width)
        self.index_q = some(queries, 1, c.index_n_heads, c.index_head_dim)
        self.weights = some(queries, 1, c.index_n_heads).abs()
        self.scale, self.value_width, self.topk, self.length = width**-0.5, c.kv_lora_rank, topk, length
        self.metadata = AttentionMetadata(
            np.array([0, queries]),
            np.array([length]),
            np.arange(1, 1 + blocks)[None],
            np.arange(length - queries, length) + BLOCK,
        )
        self.attention = PagedAttention(TORCH_INVARIANT.attention.rows)

    def plan(self) -> AttentionPlan:
        return self.attention.plan(self.metadata, torch.device("cpu"))

    def paged(self) -> Tensor:
        """Dense attention of the engine."""
        return self.attention.attend(self.q, self.latent, self.latent, self.plan(), self.scale, self.value_width)

    def keys(self) -> Tensor:
        """The latents of the sequence [length, width]: its blocks are consecutive here, so this is a view."""
        return self.latent[1:].flatten(0, 2)[: self.length]

    def whole(self) -> Tensor:
        """Dense attention with one product over all keys."""
        keys, n = self.keys(), len(self.q)
        scores = (self.q.flatten(0, 2) @ keys.T).view(n, -1, self.length).mul_(self.scale)
        for query in range(n - 1):
            scores[query, :, self.length - n + query + 1 :] = -torch.inf
        return (scores.softmax(-1).flatten(0, 1) @ keys[:, : self.value_width]).view(n, 1, -1, self.value_width)

    def sdpa(self) -> Tensor:
        """Dense attention by torch, with heads as rows of one matrix of queries."""
        keys, n = self.keys(), len(self.q)
        mask = None
        if n > 1:
            last = torch.arange(self.length - n, self.length).repeat_interleave(self.q.shape[2])
            mask = torch.arange(self.length) <= last.unsqueeze(1)
        args = self.q.flatten(0, 2), keys, keys[:, : self.value_width]
        out = F.scaled_dot_product_attention(*(t[None, None] for t in args), attn_mask=mask, scale=self.scale)
        return out.view(n, 1, -1, self.value_width)

    def sparse(self) -> Tensor:
        """Selection by the indexer, and attention to the selected rows."""
        plan = self.plan()
        rows = self.attention.select(self.index_q, self.weights, self.index_key, plan, self.topk).rows
        return self.attention.attend_with_lse(
            self.q, self.latent, self.latent, plan, self.scale, self.value_width, selected=rows
        )[0]


DENSE = ("paged", "whole", "sdpa")


def seconds(work: Callable[[], Tensor], least: float) -> float:
    """Return the processor time of one run: the mean over as many runs as take `least` seconds."""
    begun, runs = time.process_time(), 0
    while (used := time.process_time() - begun) < least:
        work()
        runs += 1
    return used / runs


def measure(length: int, queries: int, topk: int, pairs: int, least: float) -> dict[str, Any]:
    """Time all forms in turn, and return the ratio of the fastest dense form to sparse attention."""
    case, (dense, sparse) = Case(length, queries, topk), kinds()
    outs = {name: getattr(case, name)() for name in DENSE}
    for name, out in outs.items():
        if (out - outs["paged"]).abs().max() > 1e-4 * outs["paged"].abs().max():
            raise SystemExit(f"the dense form {name} computes something else")
    rng, times = random.Random(length + queries), {name: list[float]() for name in (*DENSE, "sparse")}
    for _ in range(pairs):
        order = [*times]
        rng.shuffle(order)
        for name in order:
            times[name].append(seconds(getattr(case, name), least))
    best = min(DENSE, key=lambda name: statistics.median(times[name]))
    ratios = sorted(a / b for a, b in zip(times[best], times["sparse"]))
    update = {"index_topk": topk}
    context = length - (queries - 1) / 2
    predicted = dense.decode_flops(7168, context) / sparse.model_copy(update=update).decode_flops(7168, context)
    ratio = statistics.median(ratios)
    return {
        "length": length,
        "queries": queries,
        "index_topk": topk,
        "milliseconds": {name: round(1000 * statistics.median(t), 2) for name, t in times.items()},
        "best dense": best,
        "ratio": ratio,
        "range": [ratios[0], ratios[-1]],
        "predicted": predicted,
        "share of the gain": (ratio - 1) / (predicted - 1) if predicted > 1 else None,
    }


@torch.no_grad()
def main() -> None:
    """Measure decode and prefill at several lengths."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--topk", type=int, default=2048)
    parser.add_argument("--least", type=float, default=0.3, help="seconds of processor time per timing")
    parser.add_argument("--result", type=Path, default=Path("docs/results/attention.json"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for queries in (1, PREFILL):
        print(f"{'decode' if queries == 1 else 'prefill'}: {queries} queries, index_topk={a.topk}")
        for length in a.lengths:
            row = measure(length, queries, a.topk, a.pairs, a.least)
            rows.append(row)
            low, high = row["range"]
            print(
                f"{length:>6}  {row['best dense']} {row['milliseconds'][row['best dense']]} ms  sparse {row['milliseconds']['sparse']} ms  "
                f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f}), predicted {row['predicted']:.2f}",
                flush=True,
            )
            write_json(a.result, {"made by": made_by({}), "rows": rows})


if __name__ == "__main__":
    main()
