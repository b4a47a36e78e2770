"""Kinds as a user writes them, outside the package: attentions with three cached parts, with an indexer, and with compressed entries beside a
window; a network that may leave a token to nobody, a router with identity experts, a block with two attentions, a block with two residual
streams; and an objective that trains the indexer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rorqual.model.attention import Attention, AttentionConfig, AttentionContext, CachePart, LayerCache, RMSNorm
from rorqual.model.block import Block, BlockConfig, ResidualBoundary
from rorqual.model.cost import Cost, linear_cost, vector_cost
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.model.ffn import FFN, DenseConfig, FFNConfig
from rorqual.model.ffn.router import Router, ZeroExperts, ZeroExpertsConfig
from rorqual.ops.backends import Backend, Experts
from rorqual.ops.moe import CHOOSE, SKIP, Routing
from rorqual.ops.paged import merge_attention
from rorqual.ops.rope import Rope, rotate
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective

WIDTH = 8


class TwoKeysConfig(AttentionConfig):
    """Two heads attend by one set of keys, two by another, with the same values; positions have no say. Values stand first in the cache."""

    kind: Literal["two_keys"] = "two_keys"

    def build(self, hidden_size: int, eps: float) -> Attention:
        return TwoKeys(hidden_size)

    def cost(self, hidden_size: int, context: int) -> Cost:
        maps = (
            linear_cost(hidden_size, 4 * WIDTH)
            + linear_cost(hidden_size, 6 * WIDTH)
            + linear_cost(4 * WIDTH, hidden_size)
        )
        return maps + Cost(flops=4 * 4 * WIDTH * context)

    def cache_spec(self) -> tuple[CachePart, ...]:
        return tuple(CachePart(name, 2, WIDTH) for name in ("value", "other_key", "key"))


class TwoKeys(Attention):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(hidden_size, 4 * WIDTH, bias=False)
        self.kv_proj = nn.Linear(hidden_size, 6 * WIDTH, bias=False)
        self.o_proj = nn.Linear(4 * WIDTH, hidden_size, bias=False)

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        queries = self.q_proj(x).unflatten(-1, (4, WIDTH)).split(2, dim=2)  # two of [batch, seq, 2, width]
        value, other, key = self.kv_proj(x).unflatten(-1, (6, WIDTH)).split(2, dim=2)
        keys = {"key": key, "other_key": other}
        if cache is None:
            outs = [
                context.attend(q.transpose(1, 2), k.transpose(1, 2), value.transpose(1, 2), WIDTH**-0.5).transpose(1, 2)
                for q, k in zip(queries, keys.values())
            ]
        else:
            cache.write({name: part.flatten(0, 1) for name, part in {"value": value, **keys}.items()})
            outs = [
                cache.attend(q.flatten(0, 1).unsqueeze(2), name, "value", WIDTH**-0.5).view(q.shape)
                for q, name in zip(queries, keys)
            ]
        return self.o_proj(torch.cat(outs, dim=2).flatten(-2))


def projected(module: Indexed | Compressed, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
    """Of all tokens: four queries, rotated, in two groups [tokens, 2, 2, WIDTH]; two keys, rotated, and two values [tokens, 2, WIDTH]."""
    q, kv = module.q_proj(x).unflatten(-1, (4, WIDTH)), module.kv_proj(x).unflatten(-1, (4, WIDTH))
    k, v = kv.split(2, dim=2)
    cos, sin = context.rope(Rope(theta=100.0), WIDTH, interleaved=False)
    q, k = (rotate(t, cos, sin, interleaved=False).flatten(0, 1) for t in (q, k))
    return q.unflatten(1, (2, 2)), k, v.flatten(0, 1)


class IndexedConfig(AttentionConfig):
    """Grouped-query attention to the `budget` tokens that score highest by an indexer of three heads, which has keys of its own."""

    kind: Literal["indexed"] = "indexed"
    has_indexer: ClassVar[bool] = True
    budget: int = 6

    def build(self, hidden_size: int, eps: float) -> Attention:
        return Indexed(self, hidden_size)

    def cost(self, hidden_size: int, context: int) -> Cost:
        maps = linear_cost(hidden_size, 4 * WIDTH) * 2 + linear_cost(4 * WIDTH, hidden_size)
        index = linear_cost(hidden_size, 3 * WIDTH) + linear_cost(hidden_size, WIDTH) + linear_cost(hidden_size, 3)
        attended = 4 * 4 * WIDTH * min(context, self.budget)
        return maps + index + Cost(flops=2 * 3 * WIDTH * context + attended)

    def cache_spec(self) -> tuple[CachePart, ...]:
        return CachePart("index_key", 1, WIDTH), CachePart("key", 2, WIDTH), CachePart("value", 2, WIDTH)


class Indexed(Attention):
    needs_cache = True

    def __init__(self, config: IndexedConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(hidden_size, 4 * WIDTH, bias=False)
        self.kv_proj = nn.Linear(hidden_size, 4 * WIDTH, bias=False)
        widths = {"q": 3 * WIDTH, "k": WIDTH, "weight": 3}
        self.indexer = nn.ModuleDict({n: nn.Linear(hidden_size, width, bias=False) for n, width in widths.items()})
        self.o_proj = nn.Linear(4 * WIDTH, hidden_size, bias=False)

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        assert cache is not None
        q, key, value = projected(self, x, context)
        alone = x.detach()  # the indexer learns from its own loss alone, and nothing else from that
        index_key = self.indexer["k"](alone).view(-1, 1, WIDTH)
        cache.write({"index_key": index_key, "key": key, "value": value})
        index_q = self.indexer["q"](alone).view(-1, 1, 3, WIDTH)
        weight = self.indexer["weight"](alone).view(-1, 1, 3)
        index = (q.detach(), "key", WIDTH**-0.5, index_q, weight, "index_key")
        if "dense_index_kl" in context.wanted:
            context.record("dense_index_kl", cache.index_kl(*index))
            return self.o_proj(cache.attend(q, "key", "value", WIDTH**-0.5).flatten(1).view(*x.shape[:2], -1))
        chosen = cache.select(index_q, weight, "index_key", self.config.budget)
        if "index_kl" in context.wanted:
            context.record("index_kl", cache.index_kl(*index, chosen))
        out = cache.attend(q, "key", "value", WIDTH**-0.5, selected=chosen)
        context.record("selected", chosen.rows)
        context.record("index_scores", chosen.scores)
        if "attended" in context.wanted:
            keys = cache.gather("key", chosen)  # [tokens, budget, 2, WIDTH]
            scores = torch.einsum("tgrd,tkgd->tgrk", q, keys) * WIDTH**-0.5
            scores = scores.masked_fill((chosen.rows < 0)[:, None, None], -torch.inf)
            context.record("attended", scores.softmax(-1).mean((1, 2)))
        return self.o_proj(out.flatten(1).view(*x.shape[:2], -1))


class IndexKL(Objective):
    """What trains the indexer (DeepSeek-V3.2-Exp, eq. 4): its scores of the selected tokens shall be distributed as attention is among them."""

    kind: Literal["index_kl"] = "index_kl"

    def recorded_tensors(self) -> frozenset[str]:
        return frozenset({"index_scores", "attended"})

    def weight(self, batch: TrainBatch) -> float:
        return float((batch.segments >= 0).sum())

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        valid = batch.segments.flatten() >= 0
        total = output.hidden.new_zeros(())
        for scores, attended in zip(output.recorded["index_scores"], output.recorded["attended"], strict=True):
            scores, attended = scores[valid], attended[valid].detach()
            log_q = scores.log_softmax(-1).masked_fill(scores == -torch.inf, 0)
            total = total + (torch.special.xlogy(attended, attended) - attended * log_q).sum()
        return LossTerm(total)


class CompressedConfig(AttentionConfig):
    """Attention to the last `window` tokens, to one compressed entry for every four tokens, and to a sink, in one softmax."""

    kind: Literal["compressed"] = "compressed"
    window: int = 5

    def build(self, hidden_size: int, eps: float) -> Attention:
        return Compressed(self, hidden_size)

    def cost(self, hidden_size: int, context: int) -> Cost:
        maps = (
            linear_cost(hidden_size, 4 * WIDTH) * 2 + linear_cost(4 * WIDTH, hidden_size) + linear_cost(hidden_size, 4)
        )
        entries = linear_cost(2 * WIDTH, 2 * WIDTH) + vector_cost(4)
        return maps + entries + Cost(flops=4 * 4 * WIDTH * (min(context, self.window) + context // 4))

    def cache_spec(self) -> tuple[CachePart, ...]:
        rows = [CachePart(name, 2, WIDTH) for name in ("key", "value")]
        entries = [CachePart(name, 2, WIDTH, every=4) for name in ("entry_key", "entry_value")]
        return (entries[0], *rows, CachePart("gate", 1, 4), entries[1])


class Compressed(Attention):
    needs_cache = True

    def __init__(self, config: CompressedConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(hidden_size, 4 * WIDTH, bias=False)
        self.kv_proj = nn.Linear(hidden_size, 4 * WIDTH, bias=False)
        self.gate_proj = nn.Linear(hidden_size, 4, bias=False)  # one for each of two keys and two values
        self.entry_proj = nn.Linear(2 * WIDTH, 2 * WIDTH, bias=False)
        self.sink = nn.Parameter(torch.ones(4))
        self.o_proj = nn.Linear(4 * WIDTH, hidden_size, bias=False)

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        assert cache is not None
        q, key, value = projected(self, x, context)
        cache.write({"key": key, "value": value, "gate": self.gate_proj(x).view(-1, 1, 4)})
        cache.write(self._entries(cache))
        scale = WIDTH**-0.5
        near, near_lse = cache.attend_with_lse(q, "key", "value", scale, window=self.config.window)
        far, far_lse = cache.attend_with_lse(q, "entry_key", "entry_value", scale)
        sink = self.sink.view(2, 2).expand_as(near_lse)
        out = merge_attention((near, far), (near_lse, far_lse, sink))
        context.record("window_lse", near_lse)
        return self.o_proj(out.flatten(1).view(*x.shape[:2], -1))

    def _entries(self, cache: LayerCache) -> dict[str, Tensor]:
        """Of each group of four tokens, a weighted mean of the keys, mapped, and one of the values."""
        key, value, gate = (cache.groups(part, 4)[0] for part in ("key", "value", "gate"))
        weight = gate.squeeze(2).transpose(1, 2).softmax(-1).transpose(1, 2).unsqueeze(-1)  # [groups, 4, 4, 1]
        keys, values = ((weight[:, :, i : i + 2] * part).sum(1) for i, part in ((0, key), (2, value)))
        return {"entry_key": self.entry_proj(keys.flatten(1)).view(-1, 2, WIDTH), "entry_value": values}


def narrow(spec: Sequence[CachePart]) -> tuple[CachePart, ...]:
    """The same parts, kept in fp16."""
    return tuple(replace(part, dtype=torch.float16) for part in spec)


class NarrowIndexedConfig(IndexedConfig):
    """Selects, attends and gathers from rows in fp16."""

    kind: Literal["narrow_indexed"] = "narrow_indexed"  # type: ignore[assignment]

    def cache_spec(self) -> tuple[CachePart, ...]:
        return narrow(super().cache_spec())


class NarrowCompressedConfig(CompressedConfig):
    """Groups and attends to rows in fp16."""

    kind: Literal["narrow_compressed"] = "narrow_compressed"  # type: ignore[assignment]

    def cache_spec(self) -> tuple[CachePart, ...]:
        return narrow(super().cache_spec())


class NarrowKeysConfig(TwoKeysConfig):
    """Needs no cache in training but for the rounding."""

    kind: Literal["narrow_keys"] = "narrow_keys"  # type: ignore[assignment]

    def cache_spec(self) -> tuple[CachePart, ...]:
        return narrow(super().cache_spec())


class SkippingConfig(FFNConfig):
    """Each token goes to one of `experts` experts, or to none, as the likeliest of a softmax; who goes to none keeps a share of itself."""

    kind: Literal["skipping"] = "skipping"
    experts: int = 5

    def build(self, hidden_size: int) -> FFN:
        return Skipping(self, hidden_size)

    def cost(self, hidden_size: int) -> Cost:
        expert = linear_cost(hidden_size, WIDTH) * 3
        return Cost(expert.params * self.experts, expert.active, expert.flops) + linear_cost(
            hidden_size, self.experts + 1
        )

    def experts_per_token(self) -> int:
        return 1

    def n_experts(self) -> int:
        return self.experts


class Skipping(FFN):
    experts_per_token = 1

    def __init__(self, config: SkippingConfig, hidden_size: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(config.experts + 1, hidden_size))
        self.experts = Experts(config.experts, hidden_size, WIDTH)

    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> tuple[Tensor, Routing | None]:
        scores = nn.functional.linear(x.float(), self.gate.float()).softmax(-1)  # the last of them: nobody
        nobody = scores.shape[1] - 1
        own = scores.argmax(-1, keepdim=True)
        chosen = own
        if replay is not None:
            chosen = torch.where(replay == CHOOSE, own, torch.where(replay == SKIP, nobody, replay.long()))
        weights = scores.gather(-1, chosen)
        named, mine = (torch.where(one == nobody, SKIP, one) for one in (chosen, own))
        routing = Routing(named, weights, scores[:, :nobody], mine, torch.zeros_like(scores[:, 0]))
        y: Tensor = self.experts(x, routing.routed_only(nobody), ops)
        return y + torch.where(named == SKIP, weights, 0).to(x.dtype) * x, routing


class ZeroComputationConfig(ZeroExpertsConfig):
    """The package's router with identity experts, whose bias moves by the sign of its error, as V3's does."""

    kind: Literal["zero_computation"] = "zero_computation"  # type: ignore[assignment]
    n_routed_experts: int = 5
    zero_expert_num: int = 4
    num_experts_per_tok: int = 3
    expected_experts: float = 1.5
    routed_scaling_factor: float = 3.0

    def build(self, hidden_size: int) -> Router:
        return ZeroComputation(self, hidden_size)


class ZeroComputation(ZeroExperts):
    @torch.no_grad()
    def balance(self, load: Tensor, gamma: float) -> None:
        n = self.config.n_routed_experts
        self.e_score_correction_bias[:n] += gamma * self.load_error(load)[:n].sign()


class ShortcutConfig(BlockConfig):
    """LongCat-Flash's layer (2509.01322, figure 2): two attentions and two dense networks in turn, and the stage's network beside them. It
    reads what follows the first attention; what it gives is added at the end."""

    kind: Literal["shortcut"] = "shortcut"
    dense: DenseConfig = DenseConfig(intermediate_size=20)

    def build(self, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float) -> Block:
        return Shortcut(self, attention, ffn, hidden_size, eps)

    def attentions(self, attention: AttentionConfig) -> tuple[AttentionConfig, ...]:
        return (attention, attention)

    def ffns(self, ffn: FFNConfig) -> tuple[FFNConfig, ...]:
        return (ffn, self.dense, self.dense)

    def cost(self, hidden_size: int) -> Cost:
        return vector_cost(4 * hidden_size)

    def residual_values(self, hidden_size: int) -> int:
        return 4 * hidden_size


class Shortcut(Block):
    attentions = 2

    def __init__(
        self, config: ShortcutConfig, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float
    ) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(attention.build(hidden_size, eps) for _ in range(2))
        self.ffn = ffn.build(hidden_size)
        self.dense = nn.ModuleList(config.dense.build(hidden_size) for _ in range(2))
        self.before, self.after = (nn.ModuleList(RMSNorm(hidden_size, eps) for _ in range(2)) for _ in range(2))

    @property
    def ffns(self) -> tuple[FFN, ...]:
        return (self.ffn, *self.dense)  # type: ignore[return-value]

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        caches: Sequence[LayerCache | None],
        replay: Sequence[Tensor | None],
    ) -> tuple[Tensor, tuple[Routing | None, ...]]:
        later, routing = x, None
        for turn, cache in enumerate(caches):
            x = x + self.mixers[turn](self.before[turn](x, context.ops), context, cache)
            flat = self.after[turn](x, context.ops).flatten(0, 1)
            if turn == 0:
                later, routing = self.ffn(flat, context.ops, replay[0])
            x = x + self.dense[turn](flat, context.ops, None)[0].view_as(x)
        return x + later.view_as(x), (routing, None, None)


STREAMS = 2


class StreamsConfig(BlockConfig):
    """Hyper-connections (2409.19606) in small: `STREAMS` residual streams [batch, seq, streams, hidden]. What attention and network read is a
    learned mixture of the normed streams; what they give is added to each stream with a weight of its own, after the streams were mixed."""

    kind: Literal["streams"] = "streams"

    def build(self, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float) -> Block:
        return Streams(attention, ffn, hidden_size, eps)

    def cost(self, hidden_size: int) -> Cost:
        mixing = Cost(flops=2 * 2 * STREAMS * (STREAMS + 1) * hidden_size)  # of each of two turns: read, and mix
        return vector_cost(2 * hidden_size + 2 * STREAMS * (STREAMS + 2)) + mixing

    def residual_values(self, hidden_size: int) -> int:
        return 2 * STREAMS * hidden_size

    def streams(self) -> int:
        return STREAMS

    def expand(self, hidden_size: int) -> ResidualBoundary:
        return Copies()

    def collapse(self, hidden_size: int, eps: float) -> ResidualBoundary:
        return Joined()

    def boundary_cost(self, hidden_size: int) -> Cost:
        return vector_cost(STREAMS) + Cost(flops=2 * STREAMS * hidden_size)


class Copies(ResidualBoundary):
    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        return x.unsqueeze(2).expand(-1, -1, STREAMS, -1)


class Joined(ResidualBoundary):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(STREAMS))

    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        return torch.einsum("bsnd,n->bsd", x, self.weight.to(x.dtype))


class Streams(Block):
    def __init__(self, attention: AttentionConfig, ffn: FFNConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.attention, self.ffn = attention.build(hidden_size, eps), ffn.build(hidden_size)
        self.norms = nn.ModuleList(RMSNorm(hidden_size, eps) for _ in range(2))
        self.read = nn.ParameterList(torch.ones(STREAMS) for _ in range(2))
        self.write = nn.ParameterList(torch.ones(STREAMS) for _ in range(2))
        self.mix = nn.ParameterList(torch.empty(STREAMS, STREAMS) for _ in range(2))

    @property
    def ffns(self) -> tuple[FFN, ...]:
        return (self.ffn,)

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        caches: Sequence[LayerCache | None],
        replay: Sequence[Tensor | None],
    ) -> tuple[Tensor, tuple[Routing | None, ...]]:
        x = self._turn(0, x, self.attention(self._read(0, x, context), context, caches[0]))
        y, routing = self.ffn(self._read(1, x, context).flatten(0, 1), context.ops, replay[0])
        return self._turn(1, x, y.view(*x.shape[:2], -1)), (routing,)

    def _read(self, turn: int, x: Tensor, context: AttentionContext) -> Tensor:
        return torch.einsum("bsnd,n->bsd", self.norms[turn](x, context.ops), self.read[turn].to(x.dtype))

    def _turn(self, turn: int, x: Tensor, y: Tensor) -> Tensor:
        mixed = torch.einsum("bsnd,nm->bsmd", x, self.mix[turn].to(x.dtype))
        return x + mixed + y.unsqueeze(2) * self.write[turn].to(x.dtype).unsqueeze(-1)
