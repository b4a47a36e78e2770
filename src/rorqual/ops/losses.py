"""Log-probabilities of tokens in fp32, and loss terms computed from the log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target token [n], given logits [n, vocab] in fp32 and target token ids [n]."""
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def mask_tokens_not_kept(logits: Tensor, kept: Tensor) -> Tensor:
    """Set the logits [n, vocab] of tokens that are not in `kept` to -inf.

    `kept` [n, ceil(vocab / 8)] is uint8 in the format of `numpy.packbits`: the first token is the highest bit of the
    first byte.
    """
    shifts = torch.arange(7, -1, -1, device=kept.device, dtype=torch.uint8)
    bits = (kept.unsqueeze(-1) >> shifts) & 1
    return logits.masked_fill(bits.flatten(-2)[:, : logits.shape[-1]] == 0, float("-inf"))


def reverse_kl(now: Tensor, reference: Tensor) -> Tensor:
    """Return the k3 estimate of KL(p || reference) for each token sampled from p. The k3 estimate is never negative.

    `now` are the log-probabilities of the sampled tokens under p, and `reference` under the reference model. Source: R1 eq. 2;
    Schulman 2020.
    """
    log_ratio = reference - now
    return log_ratio.exp() - log_ratio - 1
