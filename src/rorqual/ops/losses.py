"""Log-probabilities of given tokens, in fp32."""

from __future__ import annotations

from torch import Tensor


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target]: logits [n, vocab] fp32, targets [n] -> [n]."""
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
