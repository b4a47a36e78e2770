"""Log-probabilities of given tokens, in fp32, and what objectives make of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.invariant import LANES


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target]: logits [n, vocab] fp32, targets [n] -> [n]."""
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def keep_only(logits: Tensor, kept: Tensor) -> Tensor:
    """logits [n, vocab], -inf where the set kept does not hold a token. `kept` [n, ceil(vocab / 8)] uint8, the first token in
    the highest bit of the first byte, as `numpy.packbits` writes it."""
    shifts = torch.arange(7, -1, -1, device=kept.device, dtype=torch.uint8)
    bits = (kept.unsqueeze(-1) >> shifts) & 1
    return logits.masked_fill(bits.flatten(-2)[:, : logits.shape[-1]] == 0, float("-inf"))


def filled_up(logits: Tensor) -> Tensor:
    """logits [n, vocab] with as many columns of -inf as make whole vectors: the exponentials of a rest are rounded in another way."""
    rest = -logits.shape[-1] % LANES
    return F.pad(logits, (0, rest), value=float("-inf")) if rest else logits


def reverse_kl(now: Tensor, reference: Tensor) -> Tensor:
    """k3, an estimate of KL(p || reference) that is never below 0, from log-probabilities of drawn tokens (R1 eq. 2; Schulman 2020)."""
    log_ratio = reference - now
    return log_ratio.exp() - log_ratio - 1
