"""Whether the promise of the same bits is said to hold where it does, and not where it does not."""

from __future__ import annotations

import pytest

from rorqual.engine.probe import rounds_alike
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig


@pytest.mark.parametrize(("head_dim", "kept"), [(16, True), (20, True), (18, False), (22, False)])
def test_heads_of_odd_widths_are_promised_nothing(head_dim: int, kept: bool) -> None:
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim)
    stage = Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=48))
    model = build(ModelConfig(vocab_size=264, hidden_size=32, stages=(stage,), max_position_embeddings=128), seed=1)
    assert rounds_alike(model) is kept
