"""The account: parameters, FLOPs and cache bytes of a configuration, by formula, without building it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rorqual.model.config import ModelConfig
from rorqual.model.cost import Cost, linear, vector


@dataclass(frozen=True)
class Account:
    """`total` and `active` count embedding and head; `active_lookup` counts the embedding as a look-up (one row a token).

    `mtp`: parameters of the multi-token prediction modules, not in `total`. `flops`: forward, a token, main model, with `context` keys attended
    (multiply-add = 2, matrix products). `training_flops` is three times the forward of main model and MTP.
    `cache_bytes`: a token, all layers, at `cache_value_bytes` a value, rounded up.
    """

    total: int
    active: int
    active_lookup: int
    mtp: int
    flops: int
    training_flops: int
    cache_bytes: int
    context: int


def account(config: ModelConfig, *, context: int = 0, cache_value_bytes: int = 2) -> Account:
    """Exact: a test counts the modules on the meta device, and the FLOPs with torch's own counter."""
    d, v = config.hidden_size, config.vocab_size
    head = linear(d, v)
    embedding = Cost() if config.tie_word_embeddings else vector(v * d)
    ends = config.ends.ends_cost(d)
    main = embedding + head + vector(d) + ends
    for stage in config.stages:
        main += stage.cost(d, context) * stage.layers
    mtp = linear(2 * d, d) + vector(3 * d) + config.stages[-1].cost(d, context) + ends
    n_mtp = config.num_nextn_predict_layers
    cached = sum(attention.cache_bytes(cache_value_bytes) for attention in config.attentions)
    return Account(
        total=main.params,
        active=main.active,
        active_lookup=main.active - embedding.active + (0 if config.tie_word_embeddings else d),
        mtp=mtp.params * n_mtp,
        flops=main.flops,
        training_flops=3 * (main.flops + n_mtp * (mtp.flops + head.flops)),
        cache_bytes=ceil(cached),
        context=context,
    )
