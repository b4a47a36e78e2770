"""Kinds as a user writes them, outside the package: an attention with three cached parts, and a router that may leave a token to nobody."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rorqual.model.attention import Attention, AttentionConfig, AttentionContext, CachePart, LayerCache
from rorqual.model.cost import Cost, linear
from rorqual.model.ffn import FFN, FFNConfig
from rorqual.model.ffn.moe import Experts
from rorqual.ops.backends import Backend
from rorqual.ops.moe import CHOOSE, SKIP, Routing

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
