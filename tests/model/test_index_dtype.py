"""Index keys in FP8: what they take, what a checkpoint says of them, and that their scales are used wherever keys are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import DSAConfig
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.deepseek_v3 import config_from_hf, config_to_hf
from rorqual.model.presets import preset
from rorqual.ops import paged

V32 = preset("deepseek-v3.2")
FP8 = "float8_e4m3fn"


def with_dtype(model: Any, dtype: str | None) -> Any:
    stages = (
        s.model_copy(update={"attention": s.attention.model_copy(update={"index_dtype": dtype})}) for s in model.stages
    )
    return model.model_copy(update={"stages": tuple(stages)})


def test_a_checkpoint_says_it_and_others_do_not_have_the_key() -> None:
    assert "index_dtype" not in config_to_hf(V32)
    told = config_to_hf(with_dtype(V32, FP8))
    assert told.get("index_dtype") == FP8
    assert config_from_hf(told) == with_dtype(V32, FP8)
    assert config_from_hf(told | {"index_dtype": None}) == V32
    with pytest.raises(ConfigError, match=r"(?s)config.json.*index_dtype.*float8_e4m3fn"):
        config_from_hf(told | {"index_dtype": "float8"})


def test_scores_are_those_of_the_scaled_keys_wherever_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In selection and in the indexer's losses, which read the cache for themselves."""
    attention = DSAConfig(
        num_attention_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4,
        index_n_heads=12, index_head_dim=8, index_topk=6, index_dtype=FP8,
    )  # fmt: skip
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=16))
    model = build(ModelConfig(vocab_size=50, hidden_size=16, stages=(stage,), initializer_range=0.3), seed=0)
    for name, parameter in model.named_parameters():  # keys of very different sizes
        if name.endswith("k_norm.bias"):
            parameter.data.normal_(0, 2, generator=torch.Generator().manual_seed(1))
    calls: list[tuple[Tensor, Tensor]] = []
    original = paged.index_scores

    def noted(
        q: Tensor, weights: Tensor, keys: Tensor, tiles: paged.QueryTiles, scales: Tensor | None = None
    ) -> Tensor:
        assert scales is not None
        calls.append((keys, scales))
        return original(q, weights, keys, tiles, scales)

    monkeypatch.setattr(paged, "index_scores", noted)
    tokens = torch.randint(50, (1, 40), generator=torch.Generator().manual_seed(0))
    wanted = ("selected", "index_kl")
    with torch.no_grad():
        model(tokens, record=wanted)
        assert len(calls) == 2 * 2
        model(tokens, record=("dense_index_kl",))
    assert len(calls) == 2 * 3
    for keys, scales in calls:
        used = keys[keys.abs().amax(-1) > 0]
        assert float(used.abs().amax(-1).min()) >= 224 and float(used.abs().max()) <= 448
        assert len(scales[scales > 0].unique()) > 1
