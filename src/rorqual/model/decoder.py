"""The decoder. One definition trains, generates rollouts and serves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice, repeat
from typing import Protocol

import torch
from torch import Tensor, nn

from rorqual.model.attention import Attention, AttentionConfig, AttentionContext, CacheLayout, LayerCache, RMSNorm
from rorqual.model.block import Block
from rorqual.model.config import ModelConfig
from rorqual.model.ffn import FFN
from rorqual.model.mtp import MTP
from rorqual.model.packed_batch import PackedBatchCache
from rorqual.ops.attention import document_mask
from rorqual.ops.backends import TORCH, Backend
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing
from rorqual.ops.rope import Rope


class Cache(Protocol):
    """The KV cache of the tokens of one forward pass. It also defines which tokens each token sees."""

    def layer(self, index: int) -> LayerCache:
        """Return the cache of attention number `index` (the order of `ModelConfig.attentions`)."""

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin [positions, dim / 2] for every position that may occur, as `rope_table` computes them for 0, 1, ..."""


@dataclass(frozen=True)
class Output:
    """The result of a forward pass.

    hidden [batch, seq, d] is taken after the final norm. `routing` holds one entry per routing network, over the batch
    * seq tokens. `recorded` maps each requested name to the tensors of the attentions that recorded it, in order.
    """

    hidden: Tensor
    routing: tuple[Routing, ...]
    recorded: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


class Decoder(Layer):
    """Embedding, blocks, final norm and head. `ops` is the backend; `config` defines everything else."""

    lm_head: nn.Module | None

    def __init__(self, config: ModelConfig, ops: Backend = TORCH) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.expand = config.ends.expand(config.hidden_size)
        self.layers = nn.ModuleList(s.build(config.hidden_size, config.rms_norm_eps) for s in config.layers)
        self.collapse = config.ends.collapse(config.hidden_size, config.rms_norm_eps)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.tied = {"lm_head": "embed_tokens"} if config.tie_word_embeddings else {}
        head = None if self.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_module("lm_head", head)  # an attribute that is None would hide the head of a prepared copy
        self.mtp = nn.ModuleList(MTP(config) for _ in range(config.num_nextn_predict_layers))
        # Without a cache, the trainer would not round what the engine stores in another type.
        rounded = any(part.dtype is not None for kind in config.attentions for part in kind.cache_spec())
        self.needs_cache = rounded or any(isinstance(m, Attention) and m.needs_cache for m in self.modules())

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., d] of token ids [...], in the form that `forward` reads."""
        found: Tensor = self.embed_tokens(tokens)
        return found

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
    ) -> Output:
        """Run the model on tokens [batch, seq].

        - `positions` [batch, seq] default to 0, 1, ...
        - `segments` [batch, seq] are document numbers; attention does not cross documents.
        - `cache`: a token attends to all cached positions of its sequence up to its own.
        - `replay` [batch, seq, routers, k] fixes the expert choices.
        - `inputs_embeds` [batch, seq, d] replaces `embed(tokens)`.
        - `record` names the tensors that attentions record (`AttentionContext.record`).

        Raises ValueError if no layer records a name in `record`.
        """
        batch, seq = tokens.shape
        if positions is None:
            positions = torch.arange(seq, device=tokens.device).expand(batch, seq)
        if cache is None and (self.ops.in_blocks or self.needs_cache):
            cache = self._sheet(positions, segments, self.config.attentions)
        mask = document_mask(torch.zeros_like(tokens) if segments is None else segments) if cache is None else None
        context = AttentionContext(positions, mask, self.ops, None if cache is None else cache.table, record)
        x = self.expand(self._embedded(tokens, inputs_embeds), self.ops)
        caches = (None if cache is None else cache.layer(index) for index in count())
        choices = repeat(None) if replay is None else iter(replay.flatten(0, 1).unbind(1))
        routing: list[Routing] = []
        for block in self.layers:
            assert isinstance(block, Block)
            chosen = [next(choices) if ffn.experts_per_token else None for ffn in block.ffns]
            x, where = block(x, context, list(islice(caches, block.attentions)), chosen)
            routing += [one for one in where if one is not None]
        if unknown := set(record) - set(context.recorded):
            raise ValueError(f"record={sorted(unknown)}: no layer of this model records these names")
        recorded = {name: tuple(tensors) for name, tensors in context.recorded.items()}
        return Output(self.norm(self.collapse(x, self.ops), self.ops), tuple(routing), recorded)

    def predict_further(
        self,
        hidden: Tensor,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> list[Output]:
        """Run the MTP modules over a whole sequence. Row i of module k holds the hidden state that predicts t_{i+2+k}.

        hidden [batch, seq, d] is the output of `forward`, and inputs_embeds are those given to `forward`. Module k
        returns [batch, seq - 1 - k, d]. The caller must mask rows whose document ends before the token to predict.
        """
        outputs: list[Output] = []
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        segments = torch.zeros_like(tokens) if segments is None else segments
        for module in self.mtp:
            tokens, hidden = tokens[:, 1:], hidden[:, :-1]
            positions, segments = positions[:, :-1], segments[:, :-1]
            context = AttentionContext(positions, document_mask(segments), self.ops)
            inputs_embeds = None if inputs_embeds is None else inputs_embeds[:, 1:]
            attentions = self.config.stages[-1].attentions
            caches: list[LayerCache | None] = [None] * len(attentions)
            if self.needs_cache:
                sheet = self._sheet(positions, segments, attentions)
                context.mask, context.table = None, sheet.table
                caches = [sheet.layer(index) for index in range(len(attentions))]
            hidden, routing = module(hidden, self._embedded(tokens, inputs_embeds), context, caches)
            outputs.append(Output(hidden, tuple(one for one in routing if one is not None)))
        return outputs

    def _sheet(
        self, positions: Tensor, segments: Tensor | None, attentions: Sequence[AttentionConfig]
    ) -> PackedBatchCache:
        return PackedBatchCache(positions, segments, [CacheLayout.of(one) for one in attentions], self.ops.attention)

    def _embedded(self, tokens: Tensor, inputs_embeds: Tensor | None) -> Tensor:
        if inputs_embeds is None:
            return self.embed(tokens)
        if inputs_embeds.shape != (wanted := (*tokens.shape, self.config.hidden_size)):
            raise ValueError(f"inputs_embeds has shape {list(inputs_embeds.shape)}; these tokens need {list(wanted)}")
        return inputs_embeds

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab] in fp32 of hidden [..., d]."""
        if self.lm_head is None:
            return self.ops.linear(hidden, self.embed_tokens.weight).float()
        scores: Tensor = self.lm_head(hidden)
        return scores.float()

    def routers(self) -> list[FFN]:
        """Return every feed-forward network that routes, in the order of a training step's routing: main model, then MTP."""
        blocks = [*self.layers, *(module.block for module in self.mtp)]
        return [ffn for block in blocks for ffn in block.ffns if ffn.experts_per_token]
