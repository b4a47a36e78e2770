"""The loss on a plain text, per token, per character and per byte."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.text_loss import TextLoss
from rorqual.model.decoder import Decoder
from rorqual.ops.losses import token_logprobs

FORWARD_TOKENS, LOGIT_TOKENS = 8192, 1024
"""Maximum number of tokens per forward pass, and per computation of logits. Each of these numbers is limited, because the
logits of a whole context may need gigabytes."""


@torch.no_grad()
def text_loss(model: Decoder, tokenizer: Tokenizer, text: str, *, window: int, windows: int = 0) -> TextLoss:
    """Return the mean loss on `text` over non-overlapping windows of `window` predictions.

    The first prediction of a window is made from a single token, as in training. Only the first `windows` windows are
    evaluated, or all windows if `windows` is 0. Raises DataError if the text is shorter than one window.
    """
    ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
    count = (len(ids) - 1) // window
    count = min(count, windows) if windows else count
    if count < 1:
        raise DataError(
            f"{len(ids)} tokens do not fill a window of {window} predictions", where="text", remedy="Give more text."
        )
    inputs = torch.from_numpy(ids[: count * window]).view(count, window)
    targets = torch.from_numpy(ids[1 : count * window + 1]).view(count, window)
    device = next(model.parameters()).device
    sums: list[float] = []
    batch = max(1, FORWARD_TOKENS // window)
    for x, y in zip(inputs.split(batch), targets.split(batch)):
        hidden = model(x.to(device)).hidden.flatten(0, 1)
        parts = [
            token_logprobs(model.logits(h), wanted).double()
            for h, wanted in zip(hidden.split(LOGIT_TOKENS), y.to(device).flatten().split(LOGIT_TOKENS))
        ]
        sums += torch.cat(parts).view(y.shape).sum(1).tolist()
    texts = [tokenizer.decode(passage) for passage in targets.tolist()]
    covered = tokenizer.decode(ids[1 : count * window + 1].tolist())
    return TextLoss(
        window=window,
        passages=hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16],
        losses=tuple(-total / window for total in sums),
        characters=len(covered),
        bytes=len(covered.encode()),
    )
