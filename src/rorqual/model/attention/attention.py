"""Base classes of the attention kinds. The config of an attention kind builds the attention module and describes the module's
cost and KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from rorqual.core.config import KindConfig
from rorqual.core.errors import ConfigError
from rorqual.model.attention.cache import CacheLayout, CachePart, LayerCache
from rorqual.model.cost import Cost
from rorqual.ops.backends import Backend
from rorqual.ops.layer import Layer
from rorqual.ops.rope import Rope, expand_cos_sin, rope_table


@dataclass
class AttentionContext:
    """State shared by all layers of one forward pass.

    `positions` [batch, seq] are the positions of the tokens. `mask` is [batch, 1, queries, keys], or None in a forward pass
    with a KV cache, because the KV cache then decides which keys are visible. `ops` is the backend that computes the
    operations. `table(rope, dim)` returns precomputed RoPE cosines and sines [positions, dim / 2]. If `table` is None, the
    forward pass computes the RoPE cosines and sines. `wanted` contains the names of the tensors to record. `recorded` contains
    the tensors recorded so far, by name.
    """

    positions: Tensor
    mask: Tensor | None
    ops: Backend
    table: Callable[[Rope, int], tuple[Tensor, Tensor]] | None = None
    wanted: Collection[str] = ()
    recorded: dict[str, list[Tensor]] = field(default_factory=dict)
    _angles: dict[tuple[Rope, int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rope(self, rope: Rope, dim: int, *, interleaved: bool) -> tuple[Tensor, Tensor]:
        """Return the RoPE angles as cos and sin [batch, seq, 1, dim], in the form that `Backend.rope` reads."""
        key = (rope, dim, interleaved)
        if key not in self._angles:
            if self.table is None:
                cos, sin = rope_table(rope, dim, self.positions)
            else:
                cos, sin = (t[self.positions] for t in self.table(rope, dim))
            self._angles[key] = expand_cos_sin(cos.unsqueeze(2), sin.unsqueeze(2), interleaved=interleaved)
        return self._angles[key]

    def record(self, name: str, tensor: Tensor) -> None:
        """Append `tensor` to `DecoderOutput.recorded[name]` if the caller of `forward` requested `name`."""
        if name in self.wanted:
            self.recorded.setdefault(name, []).append(tensor)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Compute attention without a KV cache. `q` is [batch, heads, queries, d], `k` is [batch, heads, keys, d] and `v` is
        [batch, heads, keys, d_v]."""
        assert self.mask is not None
        return self.ops.attend(q, k, v, self.mask, scale)


class Attention(Layer, ABC):
    """An attention module: x [batch, seq, hidden] -> [batch, seq, hidden].

    An attention module that sets `needs_cache` always receives a `LayerCache`. In training, `Decoder` builds the `LayerCache`.
    """

    needs_cache = False

    @abstractmethod
    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor: ...


class AttentionConfig(KindConfig):
    """Base class of the attention kinds' configs.

    The objectives `sparse` and `indexer_warmup`, and `tune.kind=indexer`, train attention kinds with `has_indexer`. The
    attention module of a kind with `has_indexer` has a submodule `indexer`, and records `index_kl` and `dense_index_kl` (see
    `LayerCache.index_kl`). While `dense_index_kl` is recorded, attention is dense. An attention kind that is trained with a
    separate objective needs no `has_indexer`.
    """

    has_indexer: ClassVar[bool] = False

    def build(self, hidden_size: int, eps: float) -> Attention:
        """Build the attention module."""
        raise NotImplementedError

    def cost(self, hidden_size: int, context: int) -> Cost:
        """Return the parameter count of the attention module, and its forward FLOPs per token in training if each token attends
        to `context` keys."""
        raise NotImplementedError

    def decode_flops(self, hidden_size: int, context: float) -> float:
        """Return the FLOPs of attending to `context` cached keys when one token is decoded."""
        return self.cost(hidden_size, round(context)).flops - self.cost(hidden_size, 0).flops

    def saved_activations(self, hidden_size: int, *, without_recomputation: bool) -> int:
        """Return the number of activations per token that training saves for the backward pass, excluding the residual stream.

        With selective recomputation, training saves the inputs and the output of attention. `without_recomputation` counts the
        activations saved without recomputation, which include the normed input. Raises ConfigError if the attention kind does
        not implement `saved_activations`.
        """
        raise ConfigError(
            f"attention kind '{self.kind}' does not report the values it saves for the backward pass",
            where="plan",
            remedy="Plan serving without training, or implement `saved_activations` in its config.",
        )

    def split_by_tp(self) -> dict[str, int]:
        """Return the config fields whose values tensor parallelism divides among GPUs, by name."""
        return {}

    def cache_spec(self) -> tuple[CachePart, ...]:
        """Return the parts of the KV cache of one attention module. The names of cache parts must be unique."""
        raise NotImplementedError

    def cache_layout(self) -> CacheLayout:
        """Return the parts of the KV cache by name. Raises ValueError if the cache parts contradict each other."""
        return CacheLayout.of(self.kind, self.cache_spec())

    def cache_width(self) -> float:
        """Return the number of values that one attention module caches per token."""
        return sum(part.values_per_token for part in self.cache_spec())

    def cache_bytes(self, value_bytes: float) -> float:
        """Return the bytes that one attention module caches per token.

        Each value of a cache part without its own dtype takes `value_bytes` bytes.
        """
        return sum(
            p.values_per_token * (value_bytes if p.dtype is None else p.dtype.itemsize) for p in self.cache_spec()
        )

    def check(self) -> None:
        """Raise ValueError if fields of the config contradict each other."""


class RMSNorm(nn.Module):
    """RMS normalization with a learned weight [dim]."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)
