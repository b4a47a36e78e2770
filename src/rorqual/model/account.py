"""Count the parameters, FLOPs and KV-cache bytes of a model from its configuration, without building the model."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rorqual.model.config import ModelConfig
from rorqual.model.cost import Cost, linear_cost, vector_cost


@dataclass(frozen=True)
class Account:
    """The parameter, FLOP and KV-cache counts of a model.

    `total` counts all parameters of the main model, and `active` counts the parameters used for one token. `total` and `active`
    include the parameters of the embedding and the head. `active_lookup` counts the same parameters as `active`, but only one
    row of an untied embedding matrix. `mtp` counts the parameters of the multi-token prediction modules, which `total` does not
    include.

    `flops` is the forward FLOPs of one token that attends to `context` keys in the main model. The FLOPs of matrix products are
    counted, with 2 FLOPs per multiply-add. All other FLOPs are not counted. `training_flops` is three times the forward FLOPs
    of the main model and the MTP modules.

    `cache_bytes` is the KV-cache bytes of one token over all layers, rounded up.
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
    """Count the parameters, FLOPs and KV-cache bytes of `config`.

    `cache_value_bytes` is the number of bytes per value in the KV cache. A cache part with its own dtype ignores
    `cache_value_bytes`.

    The parameter and FLOP counts are exact: tests compare the counts with real modules on the meta device and with torch's FLOP
    counter.
    """
    d, v = config.hidden_size, config.vocab_size
    head = linear_cost(d, v)
    embedding = Cost() if config.tie_word_embeddings else vector_cost(v * d)
    ends = config.last_block_config.boundary_cost(d)
    main = embedding + head + vector_cost(d) + ends
    for stage in config.stages:
        main += stage.cost(d, context) * stage.layers
    mtp = linear_cost(2 * d, d) + vector_cost(3 * d) + config.stages[-1].cost(d, context) + ends
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
