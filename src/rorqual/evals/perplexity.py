"""Held-out loss of plain text: per token, per character, per byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.decoder import Decoder
from rorqual.ops.losses import token_logprobs


@dataclass(frozen=True)
class TextLoss:
    """In nats; `bits_per_byte` in bits. `tokens` were predicted, each once, from at most `window` tokens before it."""

    per_token: float
    per_character: float
    bits_per_byte: float
    tokens: int
    characters: int
    window: int


@torch.no_grad()
def text_loss(model: Decoder, tokenizer: Tokenizer, text: str, *, window: int, batch: int = 32) -> TextLoss:
    """Mean loss over non-overlapping windows of `window` predictions: the first of each sees one token only, as in training."""
    ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
    count = (len(ids) - 1) // window
    if count < 1:
        raise DataError(f"{len(ids)} tokens are no window of {window}", where="text", remedy="Give more text.")
    inputs = torch.from_numpy(ids[: count * window]).view(count, window)
    targets = torch.from_numpy(ids[1 : count * window + 1]).view(count, window)
    device = next(model.parameters()).device
    total = 0.0
    for x, y in zip(inputs.split(batch), targets.split(batch)):
        logits = model.logits(model(x.to(device)).hidden).flatten(0, 1)
        total -= float(token_logprobs(logits, y.to(device).flatten()).double().sum())
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
