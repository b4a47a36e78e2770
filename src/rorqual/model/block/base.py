"""What every block kind offers: how attentions and feed-forward networks stand in the residual stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from rorqual.core.config import Kind
from rorqual.core.errors import ConfigError
from rorqual.model.attention import AttentionConfig, AttentionContext, LayerCache
from rorqual.model.cost import Cost
from rorqual.model.ffn import FFN, FFNConfig
from rorqual.ops.backends import Backend
from rorqual.ops.moe import Routing


class Block(nn.Module, ABC):
    """stream [batch, seq, ...] -> the same shape, and the routing of each of `ffns` (None where it does not route).

    `attentions`: how many the block has, as of its config. caches and replay [tokens, k] hold one entry for each attention and for each of
    `ffns`, or None: nothing is cached, or the router chooses itself.
    """

    attentions: int = 1

    @property
    @abstractmethod
    def ffns(self) -> tuple[FFN, ...]:
        """The feed-forward networks, in the order of the config's."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        caches: Sequence[LayerCache | None],
        replay: Sequence[Tensor | None],
    ) -> tuple[Tensor, tuple[Routing | None, ...]]: ...


class StreamEnd(nn.Module):
    """Where the stream begins or ends. This one passes it on: the stream is the hidden state [batch, seq, hidden]."""

    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        """Embedding to stream, or stream to hidden state."""
        return x


class BlockConfig(Kind):
    """Base of the block kinds. A kind that has more than the stage's one attention and one network says so here.

    The stream between blocks may be wider than the hidden state: `streams` of them, which `expand` makes of the embedding and `collapse`
    joins before the last norm. The stages of a model have equally many.
    """

    def build(self, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float) -> Block:
        """The module, with the stage's attention and network."""
        raise NotImplementedError

    def attentions(self, attention: AttentionConfig) -> tuple[AttentionConfig, ...]:
        """The attentions of a block, in the order in which it takes their caches, for a stage with this one."""
        return (attention,)

    def ffns(self, ffn: FFNConfig) -> tuple[FFNConfig, ...]:
        """The feed-forward networks of a block, in the order in which their choices are recorded, for a stage with this one."""
        return (ffn,)

    def cost(self, hidden_size: int) -> Cost:
        """Parameters and FLOPs a token of what a block has beside attentions and networks."""
        raise NotImplementedError

    def residual_values(self, hidden_size: int) -> int:
        """Values a token of the residual stream that training saves for the backward."""
        raise ConfigError(f"no account of what block '{self.kind}' saves", where="plan", remedy="Add it there.")

    def streams(self) -> int:
        """Residual streams of `hidden_size` between blocks."""
        return 1

    def expand(self, hidden_size: int) -> StreamEnd:
        """The module that makes the stream of the embedding [batch, seq, hidden]."""
        return StreamEnd()

    def collapse(self, hidden_size: int, eps: float) -> StreamEnd:
        """The module that makes the hidden state [batch, seq, hidden] of the stream."""
        return StreamEnd()

    def ends_cost(self, hidden_size: int) -> Cost:
        """Parameters and FLOPs a token of `expand` and `collapse`."""
        return Cost()

    def check(self) -> None:
        """Raise ValueError where the numbers contradict each other."""
