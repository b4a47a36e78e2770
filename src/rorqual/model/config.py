"""Model configuration: stages of identical blocks, each with a block kind, an attention kind and a feed-forward kind."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, SerializeAsAny, model_validator

from rorqual.core.config import MOST, Config, Count, Natural, NonNegative, Positive, one_of
from rorqual.model.attention import AttentionConfig
from rorqual.model.block import Block, BlockConfig, PreNormConfig
from rorqual.model.cost import Cost
from rorqual.model.ffn import FFNConfig


class Stage(Config):
    """A stage: `Stage(n, ...)` is n consecutive identical blocks. DeepSeek-V3 is `Stage(3, mla, dense)` followed by `Stage(58,
    mla, moe)`."""

    layers: Count
    attention: Annotated[SerializeAsAny[AttentionConfig], one_of(AttentionConfig)]
    ffn: Annotated[SerializeAsAny[FFNConfig], one_of(FFNConfig)]
    block: Annotated[SerializeAsAny[BlockConfig], one_of(BlockConfig)] = PreNormConfig()

    @property
    def attentions(self) -> tuple[AttentionConfig, ...]:
        """The attention configs of one block of the stage."""
        return self.block.attentions(self.attention)

    @property
    def ffns(self) -> tuple[FFNConfig, ...]:
        """The feed-forward configs of one block of the stage."""
        return self.block.ffns(self.ffn)

    @property
    def attention_and_ffn_configs(self) -> tuple[AttentionConfig | FFNConfig, ...]:
        """The attention configs and then the feed-forward configs of one block of the stage."""
        return (*self.attentions, *self.ffns)

    def cost(self, hidden_size: int, context: int) -> Cost:
        """Return the parameter count and the forward FLOPs per token of one block, if each token attends to `context` keys."""
        parts = [a.cost(hidden_size, context) for a in self.attentions] + [f.cost(hidden_size) for f in self.ffns]
        return sum(parts, self.block.cost(hidden_size))

    def build(self, hidden_size: int, eps: float) -> Block:
        """Build one block of the stage.

        Raises ValueError if the built block and its config differ in the number of attention modules or in the experts per
        token. If the built block and its config differed, replay could use recorded expert choices in the wrong layers.
        """
        block = self.block.build(self.attention, self.ffn, hidden_size, eps)
        declared = len(self.attentions), [ffn.experts_per_token() for ffn in self.ffns]
        built = block.attentions, [ffn.experts_per_token for ffn in block.ffns]
        if declared != built:
            raise ValueError(
                f"block kind '{self.block.kind}' built {built[0]} attention modules and feed-forward networks with {built[1]} "
                f"experts per token; its config declares {declared[0]} attention modules and {declared[1]} experts per token"
            )
        return block


class ModelConfig(Config):
    """The configuration of a decoder.

    Each of the `num_nextn_predict_layers` multi-token prediction modules (V3 eq. 21-25) contains one block. The block of an MTP
    module is built like the blocks of the last stage.
    """

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
        """The stage of each layer, in layer order."""
        return tuple(stage for stage in self.stages for _ in range(stage.layers))

    @property
    def attentions(self) -> tuple[AttentionConfig, ...]:
        """The config of every attention module in the main model. The index of `Cache.layer` follows the order of
        `attentions`."""
        return tuple(attention for stage in self.layers for attention in stage.attentions)

    @property
    def ffns(self) -> tuple[FFNConfig, ...]:
        """The config of every feed-forward network in the main model. Expert choices are recorded in the order of these
        networks."""
        return tuple(ffn for stage in self.layers for ffn in stage.ffns)

    @property
    def last_block_config(self) -> BlockConfig:
        """The block config of the last stage, which defines how the residual stream begins and ends."""
        return self.stages[-1].block

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        for stage in self.stages:
            stage.block.check()
            for part in stage.attention_and_ffn_configs:
                part.check()
            for attention in stage.attentions:
                attention.cache_layout()
            for ffn in stage.ffns:
                if ffn.experts_per_token() and not ffn.n_router_choices():
                    raise ValueError(
                        f"feed-forward kind '{ffn.kind}' routes tokens, but its `n_experts()` returns 0; return the number of experts"
                    )
        if len(streams := {stage.block.streams() for stage in self.stages}) > 1:
            raise ValueError(f"stages have {sorted(streams)} residual streams; all stages must have the same number")
        return self
