"""Log-probabilities of given tokens, in fp32, and what objectives make of them."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target]: logits [n, vocab] fp32, targets [n] -> [n]."""
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def keep_only(logits: Tensor, kept: Tensor) -> Tensor:
    """logits [n, vocab], -inf where the set kept does not hold a token. `kept` [n, ceil(vocab / 8)] uint8, the first token in
    the highest bit of the first byte, as `numpy.packbits` writes it."""
    shifts = torch.arange(7, -1, -1, device=kept.device, dtype=torch.uint8)
    bits = (kept.unsqueeze(-1) >> shifts) & 1
    return logits.masked_fill(bits.flatten(-2)[:, : logits.shape[-1]] == 0, float("-inf"))


def reverse_kl(now: Tensor, reference: Tensor) -> Tensor:
    """k3, an estimate of KL(p || reference) that is never below 0, from log-probabilities of drawn tokens (R1 eq. 2; Schulman 2020)."""
    log_ratio = reference - now
    return log_ratio.exp() - log_ratio - 1
