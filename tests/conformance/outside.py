"""Kinds as a user writes them, outside the package: attentions with three cached parts, with an indexer, and with compressed entries beside a
window; a router that may leave a token to nobody; and an objective that trains the indexer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rorqual.model.attention import Attention, AttentionConfig, AttentionContext, CachePart, LayerCache
from rorqual.model.cost import Cost, linear, vector
from rorqual.model.decoder import Decoder, Output
from rorqual.model.ffn import FFN, FFNConfig
from rorqual.model.ffn.moe import Experts
from rorqual.ops.backends import Backend
from rorqual.ops.moe import CHOOSE, SKIP, Routing
from rorqual.ops.paged import merge
from rorqual.ops.rope import Rope, rotate
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.base import Objective, Term

WIDTH = 8


class TwoKeysConfig(AttentionConfig):
    """Two heads attend by one set of keys, two by another, with the same values; positions have no say. Values stand first in the cache."""

    kind: Literal["two_keys"] = "two_keys"

    def build(self, hidden_size: int, eps: float) -> Attention:
        return TwoKeys(hidden_size)

    def cost(self, hidden_size: int, context: int) -> Cost:
        maps = linear(hidden_size, 4 * WIDTH) + linear(hidden_size, 6 * WIDTH) + linear(4 * WIDTH, hidden_size)
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
    budget: int = 6

    def build(self, hidden_size: int, eps: float) -> Attention:
        return Indexed(self, hidden_size)

    def cost(self, hidden_size: int, context: int) -> Cost:
        maps = linear(hidden_size, 4 * WIDTH) * 2 + linear(4 * WIDTH, hidden_size)
        index = linear(hidden_size, 3 * WIDTH) + linear(hidden_size, WIDTH) + linear(hidden_size, 3)
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
        self.index_q = nn.Linear(hidden_size, 3 * WIDTH, bias=False)
        self.index_k = nn.Linear(hidden_size, WIDTH, bias=False)
        self.index_weight = nn.Linear(hidden_size, 3, bias=False)
        self.o_proj = nn.Linear(4 * WIDTH, hidden_size, bias=False)

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        assert cache is not None
        q, key, value = projected(self, x, context)
        alone = x.detach()  # the indexer learns from its own loss alone, and nothing else from that
        index_key = self.index_k(alone).view(-1, 1, WIDTH)
        cache.write({"index_key": index_key, "key": key, "value": value})
        index_q, weight = self.index_q(alone).view(-1, 1, 3, WIDTH), self.index_weight(alone).view(-1, 1, 3)
        chosen = cache.select(index_q, weight, "index_key", self.config.budget)
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

    def records(self) -> frozenset[str]:
        return frozenset({"index_scores", "attended"})

    def weight(self, batch: TrainBatch) -> float:
        return float((batch.segments >= 0).sum())

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        valid = batch.segments.flatten() >= 0
        total = output.hidden.new_zeros(())
        for layer in output.recorded:
            scores, attended = layer["index_scores"][valid], layer["attended"][valid].detach()
            log_q = scores.log_softmax(-1).masked_fill(scores == -torch.inf, 0)
            total = total + (torch.special.xlogy(attended, attended) - attended * log_q).sum()
        return Term(total)


class CompressedConfig(AttentionConfig):
    """Attention to the last `window` tokens, to one compressed entry for every four tokens, and to a sink, in one softmax."""

    kind: Literal["compressed"] = "compressed"
    window: int = 5

    def build(self, hidden_size: int, eps: float) -> Attention:
        return Compressed(self, hidden_size)

    def cost(self, hidden_size: int, context: int) -> Cost:
        maps = linear(hidden_size, 4 * WIDTH) * 2 + linear(4 * WIDTH, hidden_size) + linear(hidden_size, 4)
        entries = linear(2 * WIDTH, 2 * WIDTH) + vector(4)
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
        out = merge((near, far), (near_lse, far_lse, sink))
        context.record("window_lse", near_lse)
        return self.o_proj(out.flatten(1).view(*x.shape[:2], -1))

    def _entries(self, cache: LayerCache) -> dict[str, Tensor]:
        """Of each group of four tokens, a weighted mean of the keys, mapped, and one of the values."""
        key, value, gate = (cache.groups(part, 4)[0] for part in ("key", "value", "gate"))
        weight = gate.squeeze(2).transpose(1, 2).softmax(-1).transpose(1, 2).unsqueeze(-1)  # [groups, 4, 4, 1]
        keys, values = ((weight[:, :, i : i + 2] * part).sum(1) for i, part in ((0, key), (2, value)))
        return {"entry_key": self.entry_proj(keys.flatten(1)).view(-1, 2, WIDTH), "entry_value": values}


class SkippingConfig(FFNConfig):
    """Each token goes to one of `experts` experts, or to none, as the likeliest of a softmax; who goes to none keeps a share of itself."""

    kind: Literal["skipping"] = "skipping"
    experts: int = 5

    def build(self, hidden_size: int) -> FFN:
        return Skipping(self, hidden_size)

    def cost(self, hidden_size: int) -> Cost:
        expert = linear(hidden_size, WIDTH) * 3
        return Cost(expert.params * self.experts, expert.active, expert.flops) + linear(hidden_size, self.experts + 1)

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
        routing = Routing(named, weights, scores[:, :nobody], mine, torch.zeros_like(scores[:, 0]), skips=True)
        y: Tensor = self.experts(x, routing.served(), ops)
        return y + torch.where(named == SKIP, weights, 0).to(x.dtype) * x, routing
