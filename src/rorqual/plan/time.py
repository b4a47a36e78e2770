"""Estimate training time and cost: the training FLOPs divided by the FLOP/s that the hardware achieves."""

from __future__ import annotations

from dataclasses import dataclass

from rorqual.model.account import account
from rorqual.model.config import ModelConfig


@dataclass(frozen=True)
class TrainingCost:
    """The cost of a training run: `flops`, device `hours`, wall-clock `seconds` and `usd`."""

    flops_per_token: float
    flops: float
    hours: float
    seconds: float
    usd: float


def training_flops(model: ModelConfig, context: int, *, causal: bool = True, mtp: bool = False) -> float:
    """Return the training FLOPs per token for sequences of `context` tokens. The forward and the backward pass together take
    three times the FLOPs of the forward pass.

    With `causal`, a token attends to itself and the tokens before it, on average half of the sequence. DeepSeek counts the
    training FLOPs of causal attention (250 GFLOPs per token for V3, ISCA 2025, table 2). Without `causal`, FLOPs are counted
    as if every token attended to the whole sequence, as in some other publications. With `mtp`, the FLOPs include those of
    V3's MTP modules, which published counts leave out.
    """
    counted = model if mtp else model.model_copy(update={"num_nextn_predict_layers": 0})
    no_context, full_context = (account(counted, context=keys).training_flops for keys in (0, context))
    return no_context + (full_context - no_context) * ((context + 1) / (2 * context) if causal else 1.0)


def training_cost(
    flops_per_token: float, tokens: float, *, n: int, peak: float, utilisation: float, price: float
) -> TrainingCost:
    """Return the training cost on `n` devices that each reach the share `utilisation` of `peak` FLOP/s, at `price` USD per
    device-hour.

    The cost of restarts, evaluations and earlier trials is not included.
    """
    total = flops_per_token * tokens
    seconds = total / (n * peak * utilisation)
    hours = seconds * n / 3600
    return TrainingCost(flops_per_token, total, hours, seconds, hours * price)
