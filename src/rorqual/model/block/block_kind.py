"""Base classes of the block kinds. A block adds the outputs of attention and feed-forward networks to the residual stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from rorqual.core.config import KindConfig
from rorqual.core.errors import ConfigError
from rorqual.model.attention import AttentionConfig, AttentionContext, LayerCache
from rorqual.model.cost import Cost
from rorqual.model.ffn import FFN, FFNConfig
from rorqual.ops.backends import Backend
from rorqual.ops.moe import Routing


class Block(nn.Module, ABC):
    """A block module. The input and the output of a block are the residual stream [batch, seq, ...].

    `forward` also returns the routing of each feed-forward network in `ffns`, or None for a network without a router. `caches`
    has the KV cache of each attention module. In a forward pass without a KV cache, every entry of `caches` is None. `replay`
    has, for each feed-forward network, the experts [tokens, k], or None to let the router choose experts. `attentions` is the
    number of attention modules in the block.
    """

    attentions: int = 1

    @property
    @abstractmethod
    def ffns(self) -> tuple[FFN, ...]:
        """The feed-forward networks of the block, in the order of `BlockConfig.ffns`."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        caches: Sequence[LayerCache | None],
        replay: Sequence[Tensor | None],
    ) -> tuple[Tensor, tuple[Routing | None, ...]]: ...


class ResidualBoundary(nn.Module):
    """A module at the start or end of the residual stream.

    The base class `ResidualBoundary` is the identity, for blocks whose residual stream has the width of the hidden state.
    """

    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        """Map the embedding to the residual stream, or the residual stream to the hidden state."""
        return x


class BlockConfig(KindConfig):
    """Base class of the block kinds' configs.

    A block kind with several attention modules or feed-forward networks per block overrides `attentions` or `ffns`.

    The residual stream between blocks may be wider than the hidden state. The residual stream consists of `streams` parts of
    width `hidden_size`. `expand` creates the parts of the residual stream from the embedding, and `collapse` combines the parts
    before the final norm. All stages of a model must have the same number of streams.
    """

    def build(self, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float) -> Block:
        """Build the block from the attention and feed-forward configs of its stage."""
        raise NotImplementedError

    def attentions(self, attention: AttentionConfig) -> tuple[AttentionConfig, ...]:
        """Return the configs of the block's attention modules, in the order of their KV caches.

        `attention` is the stage's attention config.
        """
        return (attention,)

    def ffns(self, ffn: FFNConfig) -> tuple[FFNConfig, ...]:
        """Return the configs of the block's feed-forward networks, in the order of `DecoderOutput.routing`.

        `ffn` is the stage's feed-forward config.
        """
        return (ffn,)

    def cost(self, hidden_size: int) -> Cost:
        """Return the parameter count and forward FLOPs per token of the block, excluding its attention modules and
        feed-forward networks."""
        raise NotImplementedError

    def residual_values(self, hidden_size: int) -> int:
        """Return the number of residual-stream values per token that training saves for the backward pass."""
        raise ConfigError(
            f"block kind '{self.kind}' does not report the values it saves for the backward pass",
            where="plan",
            remedy="Implement `residual_values` in its config.",
        )

    def streams(self) -> int:
        """Return the number of residual streams of width `hidden_size` between blocks."""
        return 1

    def expand(self, hidden_size: int) -> ResidualBoundary:
        """Build the module that maps the embedding [batch, seq, hidden] to the residual stream."""
        return ResidualBoundary()

    def collapse(self, hidden_size: int, eps: float) -> ResidualBoundary:
        """Build the module that maps the residual stream to the hidden state [batch, seq, hidden]."""
        return ResidualBoundary()

    def boundary_cost(self, hidden_size: int) -> Cost:
        """Return the parameter count and the forward FLOPs per token of `expand` and `collapse`."""
        return Cost()

    def check(self) -> None:
        """Raise ValueError if fields of the config contradict each other."""
