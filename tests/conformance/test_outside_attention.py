"""Attention kinds of a user's own, with an indexer and with compressed entries: the sums as the papers write them, in the engine the same bits
however a sequence was computed, and what objectives are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outside import (
    WIDTH,
    CompressedConfig,
    IndexedConfig,
    IndexKL,
    NarrowCompressedConfig,
    NarrowIndexedConfig,
    NarrowKeysConfig,
    TwoKeysConfig,
    narrow,
)
from pydantic import ValidationError
from torch import Tensor

from rorqual.core.errors import NumericsError
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.pack import TrainingSample, pack
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.kv_cache.paged import PagedCache, StepCache
from rorqual.engine.runner import ModelRunner
from rorqual.engine.weight_fingerprint import fingerprint
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.adapter import IndexerTuning
from rorqual.model.attention import AttentionConfig, AttentionContext, CachePart, LayerCache, SelectedRows
from rorqual.model.ffn import DenseConfig
from rorqual.model.init import init_weights
from rorqual.model.load.run_directory import load_run
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import TORCH, TORCH_INVARIANT, Backend
from rorqual.ops.backends.attention import AttentionMetadata
from rorqual.ops.losses import token_logprobs
from rorqual.ops.paged import BLOCK
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import gradient, open_workers
from rorqual.train.loop import fit
from rorqual.train.objectives import IndexerSparse, IndexerWarmup, NextToken
from rorqual.train.objectives.objective import Objective
from rorqual.train.optim import AdamWConfig
from rorqual.train.run import Run, StartConfig
from rorqual.train.sources import WorkedConfig

KINDS = [IndexedConfig(), CompressedConfig(), NarrowIndexedConfig(), NarrowCompressedConfig(), NarrowKeysConfig()]
HIDDEN, LONG = 24, 2 * BLOCK + 11
every_kind = pytest.mark.parametrize("attention", KINDS, ids=lambda config: config.kind)


def config(attention: AttentionConfig) -> ModelConfig:
    return ModelConfig(
        vocab_size=BASE_VOCAB,
        hidden_size=HIDDEN,
        max_position_embeddings=256,
        stages=(Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=20)),),
        initializer_range=0.3,
    )


# ---- the sums


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected).abs().max() / expected.abs().max())


def attended(
    module: torch.nn.Module, attention: AttentionConfig, x: Tensor, ops: Backend, *wanted: str
) -> tuple[Tensor, dict[str, Tensor]]:
    positions = torch.arange(len(x)).unsqueeze(0)
    sheet = PackedBatchCache(positions, None, [attention.cache_layout()], ops.attention)
    context = AttentionContext(positions, None, ops, sheet.rope_cos_sin, wanted)
    out = module(x.unsqueeze(0), context, sheet.layer(0))[0]
    return out, {name: tensor for name, [tensor] in context.recorded.items()}


@torch.no_grad()
def test_rows_are_rounded_to_the_type_of_their_part() -> None:
    module = CompressedConfig().build(HIDDEN, 1e-6)
    init_weights(module, 0.5, 3)
    x = torch.randn(LONG, HIDDEN, generator=torch.Generator().manual_seed(0))
    plain, _ = attended(module, CompressedConfig(), x, TORCH)
    found, _ = attended(module, NarrowCompressedConfig(), x, TORCH)
    assert found.dtype == torch.float32 and 1e-5 < relative(found, plain.double()) < 1e-2


# ---- the engine


def engine_of(model: Decoder, **settings: Any) -> Engine:
    tokenizer = Tokenizer.byte_level()
    return Engine.of(model, tokenizer, chat_format(tokenizer, "deepseek"), engine_cores=1, **settings)


def requests() -> list[Request]:
    """Two with a prefix of more than two blocks, and others; each draws past the end of a block or of a group."""
    rng = np.random.default_rng(0)
    stem = rng.integers(40, 200, 2 * BLOCK + 7).tolist()
    prompts = [stem, stem[: 2 * BLOCK + 2] + stem[:9], stem[:50], rng.integers(40, 200, 3).tolist()]
    return [
        Request(prompt_ids=tuple(ids), params=SamplingParams(max_tokens=30, seed=i, temperature=1.0, ignore_eos=True))
        for i, ids in enumerate(prompts)
    ]


def answers(engine: Engine, asked: list[Request]) -> list[tuple[list[int], list[float]]]:
    return [(list(c.token_ids), list(c.logprobs)) for group in engine.generate(asked) for c in group]


def alone(model: Decoder) -> list[tuple[list[int], list[float]]]:
    return [answer for r in requests() for answer in answers(engine_of(model, slots=1, reuse=False), [r])]


@every_kind
def test_the_bits_are_the_same_however_a_sequence_was_computed(attention: AttentionConfig, tmp_path: Path) -> None:
    """Alone; beside others; in chunks that end within a group; preempted; after a prefix in memory, and one from disk."""
    model, asked = build(config(attention), seed=1), requests()
    expected = alone(model)
    assert answers(engine_of(model, reuse=False), asked) == expected
    for step_tokens in (33, 50, 101):
        assert answers(engine_of(model, reuse=False, step_tokens=step_tokens), asked) == expected
    tight = engine_of(model, reuse=False, cache_bytes=6 * ModelRunner.block_bytes(model))
    assert answers(tight, asked) == expected and tight.stats()["preemptions"] > 0
    kept = engine_of(model, cache_dir=tmp_path)
    assert answers(kept, asked[:1]) == expected[:1]
    assert answers(kept, asked) == expected and kept.stats()["hit_tokens"] >= 4 * BLOCK
    kept.close()
    restored = engine_of(model, cache_dir=tmp_path)
    assert answers(restored, asked) == expected and restored.stats()["blocks_restored"] >= 2


@torch.no_grad()
@pytest.mark.parametrize("ops", [TORCH, TORCH_INVARIANT], ids=lambda ops: ops.name)
def test_a_trainer_rounds_what_an_engine_would_keep_in_another_type(ops: Backend) -> None:
    """Also a kind that needs no cache otherwise, in a backend that trains without one."""
    tokens = torch.randint(40, 200, (1, LONG), generator=torch.Generator().manual_seed(0))
    plain, rounded = (
        build(config(kind), seed=1, ops=ops)(tokens).hidden for kind in (TwoKeysConfig(), NarrowKeysConfig())
    )
    assert 1e-5 < relative(rounded, plain.double()) < 1e-2


def test_blocks_on_disk_are_of_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other parts, or the same in another order: another name, though no weight differs."""
    model = build(config(IndexedConfig()), seed=1)
    parts = IndexedConfig().cache_spec()
    names = {fingerprint(model)}
    for spec in (parts[::-1], (*parts, CachePart("more", 1, WIDTH)), narrow(parts)):
        monkeypatch.setattr(IndexedConfig, "cache_spec", lambda _, spec=spec: spec)
        names.add(fingerprint(model))
    assert len(names) == 4


@torch.no_grad()
@every_kind
def test_a_trainers_log_probabilities_are_the_samplers(attention: AttentionConfig) -> None:
    model = build(config(attention), seed=1, ops=TORCH_INVARIANT)
    done: list[Completion] = [c for group in engine_of(model).generate(requests()) for c in group]
    samples = [TrainingSample(ids, [True] * len(ids)) for c in done if (ids := [*c.prompt_ids, *c.token_ids])]
    packed = pack(samples, 256)
    tokens, positions, segments = (
        torch.from_numpy(x) for x in (packed.batch.tokens, packed.batch.positions, packed.batch.segments)
    )
    hidden = model(tokens, positions, segments=segments).hidden
    for (row, start, length), c in zip(packed.places, done, strict=True):
        logits = model.logits(hidden[row, start + len(c.prompt_ids) - 1 : start + length - 1])
        assert token_logprobs(logits, torch.tensor(c.token_ids)).tolist() == c.logprobs


# ---- training


def batch_of(length: int) -> TrainBatch:
    ids = np.random.default_rng(1).integers(0, BASE_VOCAB, length).tolist()
    return TrainBatch.from_packed(
        pack([TrainingSample(ids[:30], [True] * 30), TrainingSample(ids[30:], [True] * (length - 30))], 160).batch
    )


def grads(model: Decoder, *objectives: Objective) -> dict[str, Tensor]:
    with open_workers(1) as pool:
        found = gradient(model, objectives, batch_of(LONG), parts=1, pool=pool).grads
    return {name: grad.clone() for (name, _), grad in zip(model.named_parameters(), found, strict=True)}


@pytest.mark.parametrize("ops", [TORCH, TORCH_INVARIANT], ids=lambda ops: ops.name)
def test_the_indexer_learns_from_its_own_loss_alone(ops: Backend) -> None:
    model = build(config(IndexedConfig()), seed=1, ops=ops)
    with pytest.raises(NumericsError, match=r"no gradient reaches .*indexer"):
        grads(model, NextToken())
    both = grads(model, NextToken(), IndexKL())
    kl, none = grads(model, IndexKL(coefficient=2.0), NextToken()), grads(model, IndexKL(coefficient=0.0), NextToken())
    for name, grad in both.items():
        if ".indexer." in name:
            assert grad.abs().max() > 1e-6 and not none[name].any(), name
            assert relative(kl[name], 2 * grad.double()) < 1e-5
        else:
            assert grad.abs().max() > 1e-6 and torch.equal(none[name], grad), name


def test_the_stages_of_sparsify_train_an_indexer_of_a_users_own(tmp_path: Path) -> None:
    def trained(name: str, **settings: Any) -> dict[str, Tensor]:
        run = Run(
            recipe="sft",
            model=config(IndexedConfig()),
            steps=2,
            source=WorkedConfig(task="families", row=128),
            optim=AdamWConfig(lr=0.02),
            **settings,
        )
        fit(run, RunDir(tmp_path / name), quiet=True)
        return dict(load_run(RunDir(tmp_path / name)).state_dict())

    with pytest.raises(ValidationError, match="attention with an indexer needs the objective sparse"):
        trained("none", objectives=[NextToken()])
    first = trained("sparse", objectives=[NextToken(), IndexerSparse()])
    second = trained(
        "warmup", objectives=[IndexerWarmup()], start=StartConfig(run=str(tmp_path / "sparse")), tune=IndexerTuning()
    )
    assert {name.split(".")[3] for name in first if not torch.equal(first[name], second[name])} == {"indexer"}
    assert {name for name in first if ".indexer." in name and torch.equal(first[name], second[name])} == set()


# ---- what is recorded


# ---- errors and accounts


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ((CachePart("key", 2, 8),) * 2, "'indexed' declares two cache parts with the same name"),
        ((CachePart("key", 2, 8, every=3),), "'indexed' declares cache part 'key' with every=3"),
        ((CachePart("key", 2, 8, every=128),), "every=128, which does not divide the block size 64"),
        ((CachePart("key", 2, 8, every=0),), "every=0"),
    ],
    ids=["one name", "3", "128", "0"],
)
def test_a_cache_that_cannot_be_is_refused_at_once(
    spec: tuple[CachePart, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(IndexedConfig())
    monkeypatch.setattr(IndexedConfig, "cache_spec", lambda _: spec)
    with pytest.raises(ValidationError, match=message):
        config(IndexedConfig())


def in_the_engine(attention: AttentionConfig) -> LayerCache:
    cache = PagedCache(TORCH_INVARIANT.attention, config(attention), 2, torch.device("cpu"), torch.float32, 8)
    four = AttentionMetadata(np.array([0, 4]), np.array([4]), np.array([[1]]), BLOCK + np.arange(4))
    return StepCache(cache, cache.attention.plan(four, cache.device)).layer(0)


def in_training(attention: AttentionConfig) -> LayerCache:
    return PackedBatchCache(
        torch.arange(4).unsqueeze(0), None, [attention.cache_layout()], TORCH_INVARIANT.attention
    ).layer(0)


@pytest.mark.parametrize("layer_of", [in_the_engine, in_training])
def test_a_part_that_the_kind_has_not_is_refused_by_name(layer_of: Callable[[AttentionConfig], LayerCache]) -> None:
    layer = layer_of(CompressedConfig())
    q, part, gate = torch.ones(4, 2, 2, WIDTH), torch.ones(4, 2, WIDTH), torch.ones(4, 1, 4)
    rows = {"key": part, "value": part, "gate": gate}
    some = SelectedRows(torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="'compressed' reads the cached part 'key' before writing it"):
        layer.attend(q, "key", "value", 1.0)
    for wrong in (
        {"key": part, "value": part},
        {**rows, "fourth": part},
        {**rows, "entry_key": part},
        {"entry_key": part},
        {"fourth": part},
    ):
        with pytest.raises(ValueError, match=r"'compressed' writes the parts .*its cache_spec declares \['entry_key'"):
            layer.write(wrong)
    layer.write(rows)
    calls: list[Callable[[str], object]] = [
        lambda name: layer.attend(q, name, "value", 1.0),
        lambda name: layer.attend(q, "key", name, 1.0),
        lambda name: layer.attend_with_lse(q, name, name, 1.0, window=2),
        lambda name: layer.select(q, q[..., 0], name, 2),
        lambda name: layer.gather(name, some),
        lambda name: layer.select_by_attention(q, name, 1.0, 2),
        lambda name: layer.index_kl(q, name, 1.0, q, q[..., 0], "key"),
        lambda name: layer.index_kl(q, "key", 1.0, q, q[..., 0], name),
        lambda name: layer.groups(name, 4),
    ]
    for call in calls:
        with pytest.raises(
            (ValueError, KeyError), match="'compressed' uses the cached part 'fourth'; its cache_spec declares"
        ):
            call("fourth")
        with pytest.raises(ValueError, match="'compressed' reads the cached part 'entry_key' before writing it"):
            call("entry_key")
    entries = layer.groups("key", 4)[0][:, 0]
    layer.write({"entry_key": entries, "entry_value": entries})
    with pytest.raises(ValueError, match="with keys 'entry_key' and values 'value', which must have the same"):
        layer.attend(q, "entry_key", "value", 1.0)
    for call_ in (lambda: layer.groups("key", 3), lambda: layer.groups("entry_key", 4)):
        with pytest.raises(ValueError, match=r"'compressed' requests groups of \d rows of the cached part"):
            call_()
