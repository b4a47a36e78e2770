"""Held-out loss of plain text: per token, per character, per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.decoder import Decoder
from rorqual.ops.losses import token_logprobs

FORWARD_TOKENS, LOGIT_TOKENS = 8192, 1024
"""Tokens in one forward, and in one product with the vocabulary: a real model's context times its vocabulary is gigabytes."""


@dataclass(frozen=True)
class TextLoss:
    """In nats; `bits_per_byte` in bits. `tokens` were predicted, each once, from at most `window` tokens before it."""

    per_token: float
    per_character: float
    bits_per_byte: float
    tokens: int
    characters: int
    window: int

    @property
    def perplexity(self) -> float:
        """exp of the loss a token."""
        return math.exp(self.per_token)


@torch.no_grad()
def text_loss(model: Decoder, tokenizer: Tokenizer, text: str, *, window: int, windows: int = 0) -> TextLoss:
    """Mean loss over non-overlapping windows of `window` predictions: the first of each sees one token only, as in training.

    `windows`: the first so many of the text; 0 for all.
    """
    ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
    count = (len(ids) - 1) // window
    count = min(count, windows) if windows else count
    if count < 1:
        raise DataError(f"{len(ids)} tokens are no window of {window}", where="text", remedy="Give more text.")
    inputs = torch.from_numpy(ids[: count * window]).view(count, window)
    targets = torch.from_numpy(ids[1 : count * window + 1]).view(count, window)
    device = next(model.parameters()).device
    total = 0.0
    batch = max(1, FORWARD_TOKENS // window)
    for x, y in zip(inputs.split(batch), targets.split(batch)):
        hidden = model(x.to(device)).hidden.flatten(0, 1)
        for h, wanted in zip(hidden.split(LOGIT_TOKENS), y.to(device).flatten().split(LOGIT_TOKENS)):
            total -= float(token_logprobs(model.logits(h), wanted).double().sum())
    covered = tokenizer.decode(ids[1 : count * window + 1].tolist())
    predicted = count * window
    return TextLoss(
        per_token=total / predicted,
        per_character=total / len(covered),
        bits_per_byte=total / np.log(2) / len(covered.encode()),
        tokens=predicted,
        characters=len(covered),
        window=window,
    )
