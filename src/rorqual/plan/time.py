"""How long a training takes, and what it costs: FLOPs over what the hardware does of them."""

from __future__ import annotations

from dataclasses import dataclass

from rorqual.model.account import account
from rorqual.model.config import ModelConfig


@dataclass(frozen=True)
class TrainingCost:
    """`flops` of the whole training, `hours` of devices, `seconds` on the clock, `usd`."""

    flops_per_token: float
    flops: float
    hours: float
    seconds: float
    usd: float


def training_flops(model: ModelConfig, context: int, *, causal: bool = True, mtp: bool = False) -> float:
    """FLOPs to train on one token, in rows of `context`: forward and backward, three times the forward.

    `causal`: a token attends to the tokens before it, half of the row in the mean, as training FLOPs are counted by DeepSeek (250
    GFLOPs a token for V3, ISCA 2025, table 2); else to the whole row, as some count. `mtp`: with the prediction modules of V3,
    which published counts leave out.
    """
    counted = model if mtp else model.model_copy(update={"num_nextn_predict_layers": 0})
    nothing, whole = (account(counted, context=keys).training_flops for keys in (0, context))
    return nothing + (whole - nothing) * ((context + 1) / (2 * context) if causal else 1.0)


def training_cost(
    flops_per_token: float, tokens: float, *, n: int, peak: float, utilisation: float, price: float
) -> TrainingCost:
    """`n` devices that reach `utilisation` of `peak` FLOP/s, at `price` USD an hour each.

    What a training takes beside its steps (restarts, evaluations, trials before it) is not in it.
    """
    total = flops_per_token * tokens
    seconds = total / (n * peak * utilisation)
    hours = seconds * n / 3600
    return TrainingCost(flops_per_token, total, hours, seconds, hours * price)
