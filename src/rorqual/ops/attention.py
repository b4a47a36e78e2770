"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1), plain."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v where `mask` allows it.

    q [batch, heads, queries, d], k [batch, heads, keys, d], v [batch, heads, keys, d_v], mask [batch, 1, queries, keys]
    (True: may look). A query that may look nowhere is the caller's error. The softmax runs in fp32.
    """
    scores = (q @ k.transpose(-1, -2)).float() * scale
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


def document_mask(segments: Tensor) -> Tensor:
    """Causal and within a document: segments [batch, seq] (document number) -> [batch, 1, seq, seq], True: may look."""
    seq = segments.shape[1]
    causal = torch.ones(seq, seq, dtype=torch.bool, device=segments.device).tril()
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    return (same & causal).unsqueeze(1)
