"""Base classes of the block kinds. A block connects attentions and feed-forward networks to the residual stream."""

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
    """A block: stream [batch, seq, ...] -> the same shape, and the routing of each of `ffns` (None for one that does not route).

    `attentions` is the number of attentions, as in the config. `caches` has one entry per attention, or None without a
    cache. `replay` has one entry [tokens, k] per network, or None to let the router choose.
    """

    attentions: int = 1

    @property
    @abstractmethod
    def ffns(self) -> tuple[FFN, ...]:
        """The feed-forward networks, in the config's order."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        caches: Sequence[LayerCache | None],
        replay: Sequence[Tensor | None],
    ) -> tuple[Tensor, tuple[Routing | None, ...]]: ...


class StreamEnd(nn.Module):
    """The start or end of the residual stream. This base class is the identity: the stream is the hidden state [batch, seq, hidden]."""

    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        """Map the embedding to the stream, or the stream to the hidden state."""
        return x


class BlockConfig(Kind):
    """Base class of the block kinds' configs. A kind with more than one attention or network overrides `attentions` or `ffns`.

    The stream between blocks may be wider than the hidden state. It has `streams` parts: `expand` makes them from the
    embedding, and `collapse` joins them before the last norm. All stages of a model have the same number.
    """

    def build(self, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float) -> Block:
        """Build the module with the stage's attention and network."""
        raise NotImplementedError

    def attentions(self, attention: AttentionConfig) -> tuple[AttentionConfig, ...]:
        """Return the attentions of a block whose stage has `attention`, in the order of their caches."""
        return (attention,)

    def ffns(self, ffn: FFNConfig) -> tuple[FFNConfig, ...]:
        """Return the networks of a block whose stage has `ffn`, in the order in which their choices are recorded."""
        return (ffn,)

    def cost(self, hidden_size: int) -> Cost:
        """Return the block's parameters and FLOPs per token, excluding its attention and FFN modules."""
        raise NotImplementedError

    def residual_values(self, hidden_size: int) -> int:
        """Return the values per token of the residual stream that training saves for the backward pass."""
        raise ConfigError(
            f"block kind '{self.kind}' does not report the values it saves for the backward pass",
            where="plan",
            remedy="Implement `residual_values` in its config.",
        )

    def streams(self) -> int:
        """Return the number of residual streams of width `hidden_size` between blocks."""
        return 1

    def expand(self, hidden_size: int) -> StreamEnd:
        """Return the module that maps the embedding [batch, seq, hidden] to the stream."""
        return StreamEnd()

    def collapse(self, hidden_size: int, eps: float) -> StreamEnd:
        """Return the module that maps the stream to the hidden state [batch, seq, hidden]."""
        return StreamEnd()

    def ends_cost(self, hidden_size: int) -> Cost:
        """Return the parameters and FLOPs per token of `expand` and `collapse`."""
        return Cost()

    def check(self) -> None:
        """Raise ValueError if the numbers contradict each other."""
