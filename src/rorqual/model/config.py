"""What a model is: stages of identical blocks, each an attention kind and a feed-forward kind."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, SerializeAsAny, model_validator

from rorqual.core.config import MOST, Config, Count, Natural, NonNegative, Positive, one_of
from rorqual.model.attention import AttentionConfig, CacheLayout
from rorqual.model.ffn import FFNConfig


class Stage(Config):
    """`layers` blocks in a row with the same shape. V3 is Stage(3, mla, dense) and then Stage(58, mla, moe)."""

    layers: Count
    attention: Annotated[SerializeAsAny[AttentionConfig], one_of(AttentionConfig)]
    ffn: Annotated[SerializeAsAny[FFNConfig], one_of(FFNConfig)]


class ModelConfig(Config):
    """A decoder. `num_nextn_predict_layers` multi-token prediction modules (V3 eq. 21-25) take the last stage's block."""

    vocab_size: int = Field(ge=2, le=MOST)
    hidden_size: Count
    stages: tuple[Stage, ...] = Field(min_length=1)
    max_position_embeddings: Count = 4096
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: Natural = 0
    initializer_range: NonNegative = 0.02

    @property
    def layers(self) -> tuple[Stage, ...]:
        """The stage of each layer, in order."""
        return tuple(stage for stage in self.stages for _ in range(stage.layers))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for stage in self.stages:
            stage.attention.check()
            CacheLayout.of(stage.attention)
            stage.ffn.check()
        return self
