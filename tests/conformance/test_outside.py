"""Kinds of a user's own are cached, sampled from, recorded, replayed and trained like those of the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from outside import SkippingConfig, TwoKeysConfig
from torch import Tensor

from rorqual.data.chat import chat_format
from rorqual.data.pack import Sample, pack
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.kv_cache.paged import PagedCache, StepCache
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import CachePart
from rorqual.ops.moe import CHOOSE, SKIP
from rorqual.tasks.base import Verdict
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import GRPO, NextToken
from rorqual.train.sources.rollouts import Scored, lay_beside
from rorqual.train.workers import compare, gradient, workers


def config(**ffn: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=BASE_VOCAB,
        hidden_size=24,
        max_position_embeddings=128,
        stages=(Stage(layers=2, attention=TwoKeysConfig(), ffn=SkippingConfig(**ffn)),),
        initializer_range=0.3,
    )


def engine_of(model: Decoder, **settings: bool) -> Engine:
    tokenizer = Tokenizer.byte_level()
    return Engine.of(model, tokenizer, chat_format(tokenizer, "deepseek"), **settings)


def answers(model: Decoder, **settings: bool) -> list[Completion]:
    requests = [
        Request(prompt_ids=tuple(range(40, 52 + 70 * i)), params=SamplingParams(max_tokens=24, seed=i, ignore_eos=True))
        for i in range(2)
    ]
    return [one for group in engine_of(model, **settings).generate(requests) for one in group]


def batch_of(found: list[Completion]) -> TrainBatch:
    samples = [
        Sample([*c.prompt_ids, *c.token_ids], [False] * len(c.prompt_ids) + [True] * len(c.token_ids)) for c in found
    ]
    return lay_beside(pack(samples, 128), [Scored(c, Verdict.RIGHT, 1.0) for c in found])


def test_who_is_served_by_nobody_is_recorded_and_replayed() -> None:
    model = build(config(), seed=1)
    found = answers(model)
    recorded = torch.cat([c.experts.flatten() for c in found])
    assert set(recorded.tolist()) > {SKIP, 0} and int(recorded.min()) >= SKIP and int(recorded.max()) < 5
    batch = batch_of(found)
    assert batch.replay is not None
    fed = sum(
        len(c.prompt_ids) + len(c.token_ids) - 1 for c in found
    )  # of the rest, padding too, the router decides itself
    assert int((batch.replay[..., 0, 0] == CHOOSE).sum()) == batch.tokens.numel() - fed

    def diff(replay: Tensor) -> float:
        with workers(1) as pool:
            seen, _ = compare(model, [GRPO()], [batch_with(batch, replay)], parts=1, pool=pool)
        return seen.maxima["logprob_diff"]

    assert diff(batch.replay) < 1e-4
    assert diff(torch.where(batch.replay == SKIP, 0, batch.replay)) > 1e-2, "a replay that is ignored"
    assert diff(torch.where(batch.replay == 0, SKIP, batch.replay)) > 1e-2


def batch_with(batch: TrainBatch, replay: Tensor) -> TrainBatch:
    return TrainBatch(**{**vars(batch), "replay": replay})


@pytest.mark.parametrize("experts", [5, 128, 129, 300])
def test_numbers_of_experts_survive_the_record(experts: int) -> None:
    model = build(config(experts=experts), seed=1)
    with torch.no_grad():
        for layer in model.routers():
            layer.gate[: experts - 2] = 0  # the last experts and nobody share the tokens
            layer.gate[experts - 2 :].mul_(20)
    recorded = torch.cat([c.experts.flatten() for c in answers(model)])
    assert {SKIP, experts - 1} <= set(recorded.tolist()) <= {SKIP, *range(experts)}


def test_all_of_it_trains_and_the_load_is_counted() -> None:
    model = build(config(), seed=1)
    sample = Sample(list(range(60)), [True] * 60)
    with workers(1) as pool:
        batch = TrainBatch.from_packed(pack([sample], 60).batch)
        update = gradient(model, [NextToken()], batch, parts=1, pool=pool)
    chosen = [routing.indices for routing in model(batch.tokens).routing]
    assert [count.tolist() for count in update.counts] == [[int((c == e).sum()) for e in range(5)] for c in chosen]
    assert all(int((c == SKIP).sum()) > 0 for c in chosen) and update.zeros == 0


def test_cached_blocks_of_three_parts_serve_again() -> None:
    model = build(config(), seed=1)
    engine = engine_of(model, reuse=True)
    request = Request(prompt_ids=tuple(range(40, 122)), params=SamplingParams(max_tokens=24, ignore_eos=True))
    [[first]], [[again]] = engine.generate([request]), engine.generate([request])
    assert first.usage["prompt_cache_hit_tokens"] == 0 < again.usage["prompt_cache_hit_tokens"]
    assert again.token_ids == first.token_ids and again.logprobs == first.logprobs
    assert torch.equal(again.experts, first.experts)


def test_parts_that_the_kind_does_not_keep_are_refused() -> None:
    model = build(config(), seed=1)
    cache = PagedCache(model.config, 2, torch.device("cpu"), torch.float32, 8)
    layer = StepCache(cache, np.ones(1, np.int64), np.zeros(1, np.int64), []).layer(0)
    part = torch.ones(1, 2, 8)
    layer.write(dict.fromkeys(("value", "key", "other_key"), part))
    for names in (("value", "key"), ("value", "key", "other_key", "fourth")):
        with pytest.raises(ValueError, match=r"its cache_spec names \['key', 'other_key', 'value'\]"):
            layer.write(dict.fromkeys(names, part))


def test_two_parts_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    PagedCache(config(), 1, torch.device("cpu"), torch.float32, 8)
    monkeypatch.setattr(TwoKeysConfig, "cache_spec", lambda _: (CachePart("key", 2, 8),) * 2)
    with pytest.raises(ValueError, match="two parts of the cache of kind 'two_keys' have one name"):
        PagedCache(config(), 1, torch.device("cpu"), torch.float32, 8)
