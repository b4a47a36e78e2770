"""The decoder-only language model. Training, rollouts and serving all use the class `Decoder`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice, repeat
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from rorqual.model.attention import Attention, AttentionConfig, AttentionContext, LayerCache, RMSNorm
from rorqual.model.block import Block
from rorqual.model.config import ModelConfig
from rorqual.model.ffn import FFN
from rorqual.model.mtp import MTP
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.attention import document_mask
from rorqual.ops.backends import TORCH, Backend
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing
from rorqual.ops.rope import Rope


class Cache(Protocol):
    """The KV cache during one forward pass. The `Cache` also decides to which tokens each token attends."""

    def layer(self, index: int) -> LayerCache:
        """Return the KV cache of the attention module with the index `index` in `ModelConfig.attentions`."""

    def rope_cos_sin(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """Return the result of `rope_table`, cos and sin [positions, dim / 2], for positions 0 to the highest position in use."""


@dataclass(frozen=True)
class DecoderOutput:
    """The result of a forward pass of a `Decoder`.

    `hidden` [batch, seq, d] is the hidden state after the final norm. `routing` has the routing of each feed-forward network
    that routes tokens. Each `Routing` covers all batch * seq tokens. `recorded` maps each requested name to the tensors that
    attention modules recorded, in layer order.
    """

    hidden: Tensor
    routing: tuple[Routing, ...]
    recorded: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


class Decoder(Layer):
    """A decoder with embedding, blocks, final norm, head and MTP modules. `ops` is the backend that runs the decoder's operations."""

    lm_head: nn.Module | None

    def __init__(self, config: ModelConfig, ops: Backend = TORCH) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.expand = config.last_block_config.expand(config.hidden_size)
        self.layers = nn.ModuleList(s.build(config.hidden_size, config.rms_norm_eps) for s in config.layers)
        self.collapse = config.last_block_config.collapse(config.hidden_size, config.rms_norm_eps)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.tied = {"lm_head": "embed_tokens"} if config.tie_word_embeddings else {}
        head = None if self.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_module("lm_head", head)  # `self.lm_head = None` would shadow the head that `Backend.prepare` adds
        self.mtp = nn.ModuleList(MTP(config) for _ in range(config.num_nextn_predict_layers))
        # The engine rounds cached values to `CachePart.dtype`. The trainer's forward pass needs a cache to round values
        # as the engine does.
        rounded = any(part.dtype is not None for kind in config.attentions for part in kind.cache_spec())
        self.needs_cache = rounded or any(isinstance(m, Attention) and m.needs_cache for m in self.modules())

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., d] of token ids [...]. `forward` accepts embeddings in `inputs_embeds`."""
        embeddings: Tensor = self.embed_tokens(tokens)
        return embeddings

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        *,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        replay: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        record: Collection[str] = (),
    ) -> DecoderOutput:
        """Run the model on `tokens` [batch, seq].

        - `positions` [batch, seq] are the token positions, by default 0, 1, ... in each row.
        - `segments` [batch, seq] are document numbers. A token attends only to tokens of the same document.
        - `cache` is the KV cache. Each token attends to the cached positions of its sequence, up to its own position.
        - `replay` [batch, seq, routers, k] fixes the experts of each token instead of letting the routers choose.
        - `inputs_embeds` [batch, seq, d] replaces `embed(tokens)`.
        - `record` lists the names of the tensors to return in `DecoderOutput.recorded` (see `AttentionContext.record`).

        Raises ValueError if no layer records a name in `record`.
        """
        batch, seq = tokens.shape
        if positions is None:
            positions = torch.arange(seq, device=tokens.device).expand(batch, seq)
        if cache is None and (self.ops.in_blocks or self.needs_cache):
            cache = self._packed_cache(positions, segments, self.config.attentions)
        mask = document_mask(torch.zeros_like(tokens) if segments is None else segments) if cache is None else None
        context = AttentionContext(positions, mask, self.ops, None if cache is None else cache.rope_cos_sin, record)
        x = self.expand(self._input_embeddings(tokens, inputs_embeds), self.ops)
        caches = (None if cache is None else cache.layer(index) for index in count())
        choices = repeat(None) if replay is None else iter(replay.flatten(0, 1).unbind(1))
        routing: list[Routing] = []
        blocks = cast("Iterable[Block]", self.layers)  # a wrapped block, as for checkpointing, is no `Block`
        for block in blocks:
            chosen = [next(choices) if ffn.experts_per_token else None for ffn in block.ffns]
            x, block_routing = block(x, context, list(islice(caches, block.attentions)), chosen)
            routing += [entry for entry in block_routing if entry is not None]
        if unknown := set(record) - set(context.recorded):
            raise ValueError(f"record={sorted(unknown)}: no layer of this model records these names")
        recorded = {name: tuple(tensors) for name, tensors in context.recorded.items()}
        return DecoderOutput(self.norm(self.collapse(x, self.ops), self.ops), tuple(routing), recorded)

    def predict_with_mtp(
        self,
        hidden: Tensor,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        record: Collection[str] = (),
    ) -> list[DecoderOutput]:
        """Run the MTP modules over whole sequences. The hidden state at position i of module k predicts token t_{i+2+k}.

        `hidden` [batch, seq, d] is the output of `forward`, and all other arguments are as in `forward`. Module k returns
        hidden states [batch, seq - 1 - k, d]. The caller must mask positions whose predicted token belongs to another document.
        """
        outputs: list[DecoderOutput] = []
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        segments = torch.zeros_like(tokens) if segments is None else segments
        for module in self.mtp:
            tokens, hidden = tokens[:, 1:], hidden[:, :-1]
            positions, segments = positions[:, :-1], segments[:, :-1]
            context = AttentionContext(positions, document_mask(segments), self.ops, wanted=record)
            inputs_embeds = None if inputs_embeds is None else inputs_embeds[:, 1:]
            attentions = self.config.stages[-1].attentions
            caches: list[LayerCache | None] = [None] * len(attentions)
            if self.needs_cache:
                packed = self._packed_cache(positions, segments, attentions)
                context.mask, context.table = None, packed.rope_cos_sin
                caches = [packed.layer(index) for index in range(len(attentions))]
            hidden, routing = module(hidden, self._input_embeddings(tokens, inputs_embeds), context, caches)
            recorded = {name: tuple(tensors) for name, tensors in context.recorded.items()}
            outputs.append(DecoderOutput(hidden, tuple(entry for entry in routing if entry is not None), recorded))
        return outputs

    def _packed_cache(
        self, positions: Tensor, segments: Tensor | None, attentions: Sequence[AttentionConfig]
    ) -> PackedBatchCache:
        return PackedBatchCache(
            positions, segments, [attention.cache_layout() for attention in attentions], self.ops.attention
        )

    def _input_embeddings(self, tokens: Tensor, inputs_embeds: Tensor | None) -> Tensor:
        if inputs_embeds is None:
            return self.embed(tokens)
        if inputs_embeds.shape != (expected := (*tokens.shape, self.config.hidden_size)):
            raise ValueError(f"inputs_embeds has shape {list(inputs_embeds.shape)}; these tokens need {list(expected)}")
        return inputs_embeds

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab] in fp32 of hidden states [..., d]."""
        if self.lm_head is None:
            return self.ops.linear(hidden, self.embed_tokens.weight).float()
        scores: Tensor = self.lm_head(hidden)
        return scores.float()

    def routing_ffns(self) -> list[FFN]:
        """Return every feed-forward network that routes tokens, in layer order. Feed-forward networks of the main model come
        first, and feed-forward networks of the MTP modules come last."""
        blocks = [*self.layers, *(module.block for module in self.mtp)]
        return [ffn for block in blocks for ffn in block.ffns if ffn.experts_per_token]
