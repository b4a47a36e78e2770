"""DeepSeek-V3.2's selected positions equal transformers', and each known mistake in the indexer moves them.

Parity of logits is in test_family_parity. There, too, `index_topk` is below the length, or a wrong indexer could not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from random_models import BATCH, LONG, deepseek_v32_config, inputs, loud
from theirs import their_model
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.model import Decoder
from rorqual.model.attention import (
    DSA,
    AttentionConfig,
    BlockSelectionConfig,
    DSAConfig,
    MLAConfig,
    SlidingWindowConfig,
)
from rorqual.model.load import deepseek_v3
from rorqual.model.load.find import family_for
from rorqual.model.presets import preset
from rorqual.ops.backends import REFERENCE, TORCH

SEEDS = range(10)
TIE = 1e-6
MOST_TIES = 1e-3


def chosen(model: Decoder, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Of each layer, which positions each query selects [batch, queries, positions], and the scores of the selected, elsewhere -inf."""
    tokens, positions = inputs(model.config, seed)
    recorded = model(tokens, positions, record=("selected", "index_scores")).recorded
    masks, scores = [], []
    for rows, values in zip(recorded["selected"], recorded["index_scores"], strict=True):
        at = rows.where(rows >= 0, LONG)
        masks.append(torch.zeros(BATCH * LONG, LONG + 1).scatter_(1, at, 1)[:, :LONG].bool().view(BATCH, LONG, LONG))
        scores.append(
            torch.full((BATCH * LONG, LONG + 1), -torch.inf).scatter_(1, at, values)[:, :LONG].view(BATCH, LONG, LONG)
        )
    return masks, scores


def theirs_of(model: Decoder, seed: int) -> list[Tensor]:
    """What transformers selects, in the form of `chosen`. It fills the budget of early queries with positions after them: left out."""
    _, theirs = their_model(model)
    found: list[Tensor] = []
    for layer in theirs.model.layers:
        layer.self_attn.indexer.register_forward_hook(lambda _module, _given, rows: found.append(rows.long()))
    tokens, positions = inputs(model.config, seed)
    theirs(tokens, position_ids=positions, use_cache=False)
    causal = torch.ones(LONG, LONG, dtype=torch.bool).tril()
    return [torch.zeros(BATCH, LONG, LONG).scatter_(2, rows, 1).bool() & causal for rows in found]


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_selected_sets_equal_transformers(seed: int) -> None:
    ours = loud(deepseek_v32_config(seed), seed, ops=(REFERENCE, TORCH)[seed % 2])
    masks, scores = chosen(ours, seed)
    ties = 0
    for mine, values, expected in zip(masks, scores, theirs_of(ours, seed), strict=True):
        budget = ours.config.stages[0].attention.index_topk  # type: ignore[attr-defined]
        assert torch.equal(mine.sum(2), torch.arange(1, LONG + 1).clamp(max=budget).expand(BATCH, LONG))
        last = values.masked_fill(~mine, torch.inf).amin(2)  # the lowest score that was selected
        for b, t in (mine != expected).any(2).nonzero().tolist():
            swapped = values[b, t][mine[b, t] & ~expected[b, t]]
            assert bool((swapped - last[b, t] <= TIE * values[b, t][mine[b, t]].abs().amax()).all())
            ties += len(swapped)
    assert ties <= MOST_TIES * sum(int(mine.sum()) for mine in masks)


def indexers(model: Decoder) -> Iterator[Any]:
    return (layer.attention.indexer for layer in model.layers if isinstance(layer.attention, DSA))


def interleaved(model: Decoder) -> None:
    """Pairs of neighbours rotate, as in MLA."""
    for indexer in indexers(model):
        rope = model.config.stages[0].attention.qk_rope_head_dim  # type: ignore[attr-defined]
        order = (
            torch.arange(rope).view(-1, 2).T.flatten()
        )  # half-split over this order is interleaved over the given one
        for linear, width in (
            (indexer.wq_b, indexer.config.index_head_dim),
            (indexer.wk, indexer.config.index_head_dim),
        ):
            rows = linear.weight.view(-1, width, linear.weight.shape[1])
            rows[:, :rope] = rows[:, order].clone()
        for weight in (indexer.k_norm.weight, indexer.k_norm.bias):
            weight[:rope] = weight[order].clone()


def without_norm_bias(model: Decoder) -> None:
    for indexer in indexers(model):
        indexer.k_norm.bias.zero_()


def heads_alike(model: Decoder) -> None:
    for indexer in indexers(model):
        indexer.weights_proj.weight.copy_(indexer.weights_proj.weight[:1].expand_as(indexer.weights_proj.weight))


MISTAKES: dict[str, Callable[[Decoder], None]] = {
    "interleaved rope": interleaved,
    "no bias of the norm": without_norm_bias,
    "heads weigh alike": heads_alike,
}


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_a_mistake_moves_the_selection(mistake: str) -> None:
    model = loud(deepseek_v32_config(3), 3)
    right = chosen(model, 3)[0]
    MISTAKES[mistake](model)
    wrong = chosen(model, 3)[0]
    moved = [float((a != b).float().sum() / a.float().sum()) for a, b in zip(right, wrong, strict=True)]
    assert min(moved) > 100 * MOST_TIES


def test_a_tie_goes_to_the_earlier_position() -> None:
    """Where every head's products are negative all scores are 0, and the first `index_topk` positions are selected."""
    config = deepseek_v32_config(2)
    model = loud(config, 2)
    for indexer in indexers(model):
        with torch.no_grad():
            indexer.weights_proj.weight.zero_()
    masks, _ = chosen(model, 2)
    budget = config.stages[0].attention.index_topk  # type: ignore[attr-defined]
    expected = torch.ones(LONG, LONG, dtype=torch.bool).tril()
    expected[:, budget:] = False
    assert all(torch.equal(mask, expected.expand_as(mask)) for mask in masks)


def test_the_cost_of_a_decoded_token_counts_the_indexer_and_the_selected_positions() -> None:
    """V3.2 (section 2.3): the indexer reads every position, attention at most 2,048. Its work is 5.9 % of absorbed attention's."""
    sparse, dense = (preset(name).stages[0].attention for name in ("deepseek-v3.2", "deepseek-v3"))
    index, attended = 2 * 64 * 128, 2 * 128 * (576 + 512)
    for context in (1, 2048, 131072):
        assert dense.decode_flops(7168, context) == attended * context
        assert sparse.decode_flops(7168, context) == index * context + attended * min(context, 2048)
        more = sparse.cost(7168, context).flops - sparse.cost(7168, 0).flops
        assert more == index * context + attended * min(context, 2048)
    assert round(index / attended, 3) == 0.059
    added = sparse.cost(7168, 0).params - dense.cost(7168, 0).params
    assert added == 1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64
    assert sparse.cache_width() == 576 + 128 and sparse.split_by_tp() == {"num_attention_heads": 128}
    assert (
        sparse.saved_activations(7168, without_recomputation=True)
        - dense.saved_activations(7168, without_recomputation=True)
        == 64 * 128 + 128 + 64
    )
    assert sparse.saved_activations(7168, without_recomputation=False) == dense.saved_activations(
        7168, without_recomputation=False
    )


def test_v2_has_no_indexer() -> None:
    v2 = preset("deepseek-v2")
    index = {"kind": "dsa", "index_n_heads": 2, "index_head_dim": 64, "index_topk": 4}
    stages = tuple(s.model_copy(update={"attention": DSAConfig(**dict(s.attention) | index)}) for s in v2.stages)
    with pytest.raises(ConfigError, match="V2 has no indexer"):
        family_for(v2.model_copy(update={"stages": stages}))
    family_for(v2)


def test_an_interleaved_indexer_is_refused_as_is_another_kind_of_layer() -> None:
    data = deepseek_v3.config_to_hf(preset("deepseek-v3.2"))
    assert deepseek_v3.config_from_hf(data | {"indexer_rope_interleave": False}) == preset("deepseek-v3.2")
    for key, value in (("indexer_rope_interleave", True), ("layer_types", ["full_attention"] * 61), ("index_topk", 0)):
        with pytest.raises(ConfigError, match=key):
            deepseek_v3.config_from_hf(data | {key: value})
    with pytest.raises(ConfigError, match="'index_n_heads' is missing"):
        deepseek_v3.config_from_hf({name: value for name, value in data.items() if name != "index_n_heads"})


def test_kinds_that_share_the_weights_of_mla_are_not_written_as_mla() -> None:
    config = deepseek_v32_config(1)
    sparse = config.stages[0].attention
    fields = {name: value for name, value in dict(sparse).items() if "index" not in name and name != "kind"}
    mla = MLAConfig(**fields)

    def exported(attention: AttentionConfig) -> str:
        stages = tuple(s.model_copy(update={"attention": attention}) for s in config.stages)
        return str(deepseek_v3.config_to_hf(config.model_copy(update={"stages": stages}))["model_type"])

    assert exported(mla) == "deepseek_v3" and exported(sparse) == "deepseek_v32"
    for attention in (SlidingWindowConfig(**fields, window=4), BlockSelectionConfig(**fields, block_topk=1)):
        with pytest.raises(ConfigError, match="does not have DeepSeek-V3's layout"):
            exported(attention)
    with pytest.raises(ConfigError, match="deepseek_v32 has no index_top_p"):
        exported(sparse.model_copy(update={"index_top_p": 0.9}))
