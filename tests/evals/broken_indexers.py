"""Faults of an indexer that other engines have had. Each is put into the running code for a `with` block.

The last one needs a model that caches index keys in FP8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from rorqual.model.attention.dsa import Indexer
from rorqual.ops import paged
from rorqual.ops.paged import BLOCK, QueryTiles

CHUNK = 128
"""Tokens of a prefill chunk, for the fault that forgets earlier chunks."""


class _Interleaved:
    """A context that rotates pairs of neighbours, as latent attention does, instead of halves."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.ops = inner, self

    def rope(self, *arguments: Any, interleaved: bool) -> Any:
        if len(arguments) == 2:
            return self.inner.rope(*arguments, interleaved=True)
        return self.inner.ops.rope(*arguments, interleaved=True)


@contextmanager
def rope_layout() -> Iterator[None]:
    """The indexer rotates interleaved pairs (ports of V3.2 before November 2025)."""
    forward = Indexer.forward

    def wrong(self: Indexer, x: Tensor, q_latent: Tensor, context: Any) -> tuple[Tensor, Tensor, Tensor]:
        return forward(self, x, q_latent, _Interleaved(context))  # type: ignore[arg-type]

    with patch.object(Indexer, "forward", wrong):
        yield


@contextmanager
def scores(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Change index scores. `change` gets scores, query positions and key positions, [pairs, queries, rows] each."""
    original = paged.index_scores

    def wrong(q: Tensor, weights: Tensor, keys: Tensor, tiles: QueryTiles, scales: Tensor | None) -> Tensor:
        found = original(q, weights, keys, tiles, scales)
        at = torch.from_numpy(tiles.position)
        at = (at if tiles.gather is None else at[tiles.gather]).view(-1, tiles.queries)[tiles.tile].unsqueeze(2)
        key = (tiles.place.unsqueeze(1) * BLOCK + torch.arange(BLOCK)).unsqueeze(1)
        return change(found, at.expand_as(found), key.expand_as(found))

    with patch.object(paged, "index_scores", wrong):
        yield


def head_sum() -> Any:
    """The sum over heads is zero (mlx-lm#1454), so the earliest positions are selected."""
    return scores(lambda found, at, key: found.masked_fill(found > -torch.inf, 0.0))


def chunk_history() -> Any:
    """Index keys of earlier prefill chunks are lost (krasis#29): their scores are zero."""
    return scores(lambda found, at, key: found.masked_fill((key < at // CHUNK * CHUNK) & (found > -torch.inf), 0.0))


def late_mask() -> Any:
    """The causal mask is late by one: a query does not see its own index key."""
    return scores(lambda found, at, key: found.masked_fill(key == at, -torch.inf))


def key_scales() -> Any:
    """The scales of FP8 index keys are dropped."""
    original = paged.index_scores
    return patch.object(paged, "index_scores", lambda q, weights, keys, tiles, _: original(q, weights, keys, tiles))


FAULTS: Mapping[str, Callable[[], Any]] = {
    "wrong RoPE layout": rope_layout,
    "head sum zeroed": head_sum,
    "chunk history lost": chunk_history,
    "causal mask late by one": late_mask,
    "FP8 key scales dropped": key_scales,
}
