"""Kinds of a user's own are cached, sampled from, recorded, replayed and trained like those of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outside import ShortcutConfig, SkippingConfig, StreamsConfig, TwoKeysConfig, ZeroComputationConfig
from torch import Tensor
from torch.nn.functional import dropout

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.pack import TrainingSample, pack
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.kv_cache.paged import PagedCache, StepCache
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import MLAConfig
from rorqual.model.block import BlockConfig
from rorqual.model.ffn import FFN, MoEConfig
from rorqual.model.load.find import family_for
from rorqual.ops.backends import TORCH_INVARIANT
from rorqual.ops.backends.attention import AttentionMetadata
from rorqual.ops.moe import CHOOSE, SKIP
from rorqual.ops.paged import BLOCK
from rorqual.recipes.sft import sft
from rorqual.tasks.task import Verdict
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import compare_with_sampler, gradient, open_workers
from rorqual.train.loop import fit
from rorqual.train.objectives import GRPO, NextToken
from rorqual.train.sources import SourceInputs
from rorqual.train.sources.rollouts import pack_rollouts
from rorqual.train.sources.sampler import ScoredCompletion


def config(**ffn: int) -> ModelConfig:
    return model_config(Stage(layers=2, attention=TwoKeysConfig(), ffn=SkippingConfig(**ffn)))


def model_config(*stages: Stage) -> ModelConfig:
    return ModelConfig(
        vocab_size=BASE_VOCAB, hidden_size=24, max_position_embeddings=128, stages=stages, initializer_range=0.3
    )


def identity(**router: int) -> MoEConfig:
    return MoEConfig(router=ZeroComputationConfig(**router), moe_intermediate_size=8, n_shared_experts=1)


LATENT = MLAConfig(
    num_attention_heads=2, q_lora_rank=10, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
)
MODELS = {
    "nobody serves some": config(),
    "identity experts": model_config(Stage(layers=2, attention=LATENT, ffn=identity())),
    "two attentions in a block": model_config(
        Stage(layers=2, attention=TwoKeysConfig(), ffn=identity(), block=ShortcutConfig())
    ),
    "two streams": model_config(Stage(layers=2, attention=LATENT, ffn=identity(), block=StreamsConfig())),
}
"""Each with the engine, in training and with the choices replayed."""
every_model = pytest.mark.parametrize("name", MODELS)


def changed(replay: Tensor, here: int, other: int) -> Tensor:
    """Every choice of `here` is one of `other`, where that one was not chosen already."""
    free = (replay == here) & ~(replay == other).any(-1, keepdim=True)
    return torch.where(free, other, replay)


def engine_of(model: Decoder, **settings: Any) -> Engine:
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
        TrainingSample([*c.prompt_ids, *c.token_ids], [False] * len(c.prompt_ids) + [True] * len(c.token_ids))
        for c in found
    ]
    return pack_rollouts(pack(samples, 128), [ScoredCompletion(c, Verdict.RIGHT, 1.0) for c in found])


@every_model
def test_a_prefix_is_restored_from_disk_with_its_choices(name: str, tmp_path: Path) -> None:
    model = build(MODELS[name], seed=2)
    request = Request(
        prompt_ids=tuple(range(40, 160)), params=SamplingParams(max_tokens=6, temperature=1.0, seed=4, ignore_eos=True)
    )
    found = []
    for folder in (None, tmp_path, tmp_path):
        engine = engine_of(model, cache_dir=folder)
        [[completion]] = engine.generate([request])
        engine.close()
        found.append(completion)
    alone, first, restored = found
    assert [completion.usage["prompt_cache_hit_tokens"] for completion in found] == [0, 0, 64]
    for completion in (first, restored):
        assert completion.token_ids == alone.token_ids and completion.logprobs == alone.logprobs
        assert torch.equal(completion.experts, alone.experts)


@every_model
def test_choices_are_recorded_and_replayed(name: str) -> None:
    model = build(MODELS[name], seed=1)
    found = answers(model)
    recorded = torch.cat([c.experts.flatten() for c in found])
    choices = range(model.config.ffns[0].n_router_choices())
    assert len(set(recorded.tolist())) > 4 and set(recorded.tolist()) <= {SKIP, *choices}
    assert max(recorded.tolist()) >= 5 or SKIP in recorded, "there are five experts with weights"
    batch = batch_of(found)
    assert batch.replay is not None
    fed = sum(
        len(c.prompt_ids) + len(c.token_ids) - 1 for c in found
    )  # of the rest, padding too, the router decides itself
    assert int((batch.replay[..., 0, 0] == CHOOSE).sum()) == batch.tokens.numel() - fed

    def diff(replay: Tensor) -> float:
        with open_workers(1) as pool:
            seen, _ = compare_with_sampler(model, [GRPO()], [batch_with(batch, replay)], parts=1, pool=pool)
        return seen.maxima["logprob_diff"]

    assert diff(batch.replay) < 1e-4
    absent = SKIP if SKIP in recorded else choices[-1]
    assert diff(changed(batch.replay, absent, 0)) > 1e-2, "a replay that is ignored"
    assert diff(changed(batch.replay, 0, absent)) > 1e-2


def batch_with(batch: TrainBatch, replay: Tensor) -> TrainBatch:
    return TrainBatch(**{**vars(batch), "replay": replay})


@pytest.mark.parametrize("experts", [5, 128, 129, 300])
def test_numbers_of_experts_survive_the_record(experts: int) -> None:
    model = build(config(experts=experts), seed=1)
    with torch.no_grad():
        for layer in model.routing_ffns():
            layer.gate[: experts - 2] = 0  # the last experts and nobody share the tokens
            layer.gate[experts - 2 :].mul_(20)
    recorded = torch.cat([c.experts.flatten() for c in answers(model)])
    assert {SKIP, experts - 1} <= set(recorded.tolist()) <= {SKIP, *range(experts)}


def noisy(model: Decoder) -> Decoder:
    """With dropout behind each feed-forward network, as a plug-in may have it."""
    for module in model.modules():
        if isinstance(module, FFN):
            module.register_forward_hook(lambda ffn, _, out: (dropout(out[0], 0.5, ffn.training), out[1]))
    return model


@every_model
def test_dropout_acts_in_the_gradient_alone(name: str, tmp_path: Path) -> None:
    plain = answers(build(MODELS[name], seed=1))
    model = noisy(build(MODELS[name], seed=1))
    found = answers(model.train())
    assert [(c.token_ids, c.logprobs) for c in found] == [(c.token_ids, c.logprobs) for c in plain]
    model = noisy(build(MODELS[name], seed=1))  # with an engine elsewhere
    batch = batch_of(plain)
    with open_workers(1) as pool:
        seen, _ = compare_with_sampler(model, [GRPO()], [batch], parts=1, pool=pool)
        assert seen.maxima["logprob_diff"] < 1e-4
        losses = {gradient(model, [NextToken()], batch, parts=1, pool=pool).loss for _ in range(2)}
        seen, _ = compare_with_sampler(model, [GRPO()], [batch], parts=1, pool=pool)
    assert len(losses) == 2 and seen.maxima["logprob_diff"] < 1e-4


@every_model
def test_all_of_it_trains_and_the_load_is_counted(name: str) -> None:
    model = build(MODELS[name], seed=1)
    sample = TrainingSample(list(range(60)), [True] * 60)
    with open_workers(1) as pool:
        batch = TrainBatch.from_packed(pack([sample], 60).batch)
        update = gradient(model, [NextToken()], batch, parts=1, pool=pool)
    chosen = [routing.indices for routing in model(batch.tokens).routing]
    choices = range(model.config.ffns[0].n_router_choices())
    assert [count.tolist() for count in update.counts] == [[int((c == e).sum()) for e in choices] for c in chosen]
    assert all(int(((c == SKIP) | (c >= 5)).sum()) > 0 for c in chosen) and update.zeros == 0


def test_a_run_balances_and_logs_by_what_the_router_aims_at(tmp_path: Path) -> None:
    """Half of the choices go to five experts, the rest to four that return their input: no expert aims at the mean."""
    config = model_config(Stage(layers=1, attention=LATENT, ffn=identity()))
    run = sft(task="families:add", rows=4, row=96, steps=1).model_copy(
        update={"model": config, "objectives": (NextToken(),)}
    )
    out = RunDir(tmp_path / "run")
    tokenizer = Tokenizer.byte_level()
    source = run.source.build(
        SourceInputs(model := build(config, seed=run.seed), tokenizer, chat_format(tokenizer, run.chat), run.seed, 1)
    )
    with open_workers(1) as pool:
        (load,) = gradient(model, run.objectives, source.step(0).batches[0], parts=1, pool=pool).counts
    aimed = [int(load.sum()) * share for share in [0.1] * 5 + [0.125] * 4]
    (moved,) = (
        router.router.e_score_correction_bias.tolist() for router in fit(run, out, quiet=True).model.routing_ffns()
    )
    signs = [(one < wanted) - (one > wanted) for one, wanted in zip(load.tolist(), aimed)]
    assert moved == pytest.approx([run.balance.gamma * sign for sign in signs[:5]] + [0.0] * 4)
    assert set(signs[:5]) == {-1, 1}
    logged = json.loads(out.metrics_file.read_text(encoding="utf-8"))["load_max_over_mean"]
    assert logged == pytest.approx(max(one / wanted for one, wanted in zip(load.tolist(), aimed)))


@every_model
def test_a_prepacked_engine_answers_alike(name: str) -> None:
    """Copies of the modules are run: what a block or a router holds of itself must not be those of the model that was copied."""
    model = build(MODELS[name], seed=1).bfloat16()
    for one, other in zip(answers(model), answers(model, pack=True)):
        assert one.token_ids == other.token_ids and torch.equal(one.experts, other.experts)


def test_a_block_that_is_not_what_its_config_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records or its cache would be read as another block's."""
    stage = MODELS["two attentions in a block"].stages[0]
    stage.build(24, 1e-6)
    for method in ("attentions", "ffns"):
        with monkeypatch.context() as patch:
            patch.setattr(ShortcutConfig, method, getattr(BlockConfig, method))
            if method == "ffns":
                patch.setattr(ShortcutConfig, "ffns", lambda self, ffn: (self.dense, ffn, self.dense))
            with pytest.raises(ValueError, match="block kind 'shortcut' built 2 attention modules and feed-forward"):
                stage.build(24, 1e-6)


def test_stages_with_other_numbers_of_streams_are_refused() -> None:
    one, two = (MODELS[name].stages[0] for name in ("identity experts", "two streams"))
    with pytest.raises(ValueError, match=r"stages have \[1, 2\] residual streams"):
        model_config(one, two)


@pytest.mark.parametrize("name", ["identity experts", "two streams", "two attentions in a block"])
def test_no_published_family_takes_a_model_of_other_kinds_for_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="no published family"):
        family_for(MODELS[name])


def test_parts_that_the_kind_does_not_keep_are_refused() -> None:
    model = build(config(), seed=1)
    cache = PagedCache(TORCH_INVARIANT.attention, model.config, 2, torch.device("cpu"), torch.float32, 8)
    one = AttentionMetadata(np.array([0, 1]), np.array([1]), np.array([[1]]), np.array([BLOCK]))
    layer = StepCache(cache, cache.attention.plan(one, cache.device)).layer(0)
    part = torch.ones(1, 2, 8)
    layer.write(dict.fromkeys(("value", "key", "other_key"), part))
    for names in (("value", "key"), ("value", "key", "other_key", "fourth")):
        with pytest.raises(ValueError, match=r"its cache_spec declares \['key', 'other_key', 'value'\]"):
            layer.write(dict.fromkeys(names, part))


# ---- what is said of a model before it is built
