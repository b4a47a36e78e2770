"""Log-probabilities of given tokens in fp32, and the loss terms that objectives compute from them."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(logits)[target], of shape [n], for logits [n, vocab] in fp32 and targets [n]."""
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def keep_only(logits: Tensor, kept: Tensor) -> Tensor:
    """Set the logits [n, vocab] of tokens outside the set `kept` to -inf.

    `kept` [n, ceil(vocab / 8)] is uint8 in the format of `numpy.packbits`: the first token is the highest bit of the
    first byte.
    """
    shifts = torch.arange(7, -1, -1, device=kept.device, dtype=torch.uint8)
    bits = (kept.unsqueeze(-1) >> shifts) & 1
    return logits.masked_fill(bits.flatten(-2)[:, : logits.shape[-1]] == 0, float("-inf"))


def reverse_kl(now: Tensor, reference: Tensor) -> Tensor:
    """Return k3, an estimate of KL(p || reference) that is never negative, from log-probabilities of sampled tokens.

    Source: R1 eq. 2; Schulman 2020.
    """
    log_ratio = reference - now
    return log_ratio.exp() - log_ratio - 1
