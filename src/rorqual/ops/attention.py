"""Reference implementation of scaled dot-product attention (Vaswani et al. 2017, eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Compute softmax(scale q k^T) v over the keys for which `mask` is True.

    q [batch, heads, queries, d], k [batch, heads, keys, d], v [batch, heads, keys, d_v], mask [batch, 1, queries, keys]. Every
    query must have at least one visible key. The softmax over keys is computed in fp32.
    """
    scores = (q @ k.transpose(-1, -2)).float() * scale
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


def document_mask(segments: Tensor) -> Tensor:
    """Return a causal mask [batch, 1, seq, seq]. The mask is True where a query may see a key: both are in the same document,
    and the key is not after the query.

    `segments` [batch, seq] are the document numbers of the tokens.
    """
    seq = segments.shape[1]
    causal = torch.ones(seq, seq, dtype=torch.bool, device=segments.device).tril()
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    return (same & causal).unsqueeze(1)
