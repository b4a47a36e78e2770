"""The same request gives the same bits: ids, log-probabilities, experts and kept sets, whatever runs beside it and wherever its cache came
from. Trained models, both kinds of attention, fp32 and bf16; every comparison is for equality. 2,000 schedules: scripts/same_bits.py."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scaled import finish
from schedules import FORCED, LONG, Pool, Wrong, differences, make_pool, run_schedule
from trained import CONTEXT, FURTHER, TESTED, TYPES, in_type

from rorqual.engine import Completion, Embeds, Request, SamplingParams
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.paged import BLOCK
from rorqual.ops.row_limits import RowLimits


@pytest.fixture(scope="module", params=TESTED, ids="-".join)
def model(request: pytest.FixtureRequest, models: dict[str, Decoder]) -> Decoder:
    kind, dtype = request.param
    return in_type(models[kind], dtype)


def run_all(pool: Pool, seeds: range, folder: Path) -> None:
    total: Counter[str] = Counter()
    answers = 0
    for seed in seeds:
        try:
            counts, checked = run_schedule(pool, seed, folder / str(seed))
        except Wrong as wrong:
            raise AssertionError(str(wrong)) from wrong
        assert all(counts[name] for name in FORCED)
        total, answers = total + counts, answers + checked
    assert answers >= 8 * len(seeds) and total["hit"] and total["missed"]


@pytest.mark.usefixtures("one_thread")
def test_random_schedules_change_no_bit(model: Decoder, tmp_path: Path) -> None:
    """Each forces a preemption, a hit in part, a cancellation and a restore from disk, and counts them from outside."""
    run_all(make_pool(model, seed=1), range(1), tmp_path)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kind", "dtype"), FURTHER)
def test_random_schedules_change_no_bit_of_further_kinds(
    kind: str, dtype: str, models: dict[str, Decoder], tmp_path: Path
) -> None:
    run_all(make_pool(in_type(models[kind], dtype), seed=1), range(1), tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_random_schedules_change_no_bit_of_packed_weights(model: Decoder, tmp_path: Path) -> None:
    """Weights laid out anew round in another way, and in one way."""
    run_all(make_pool(model, seed=4, pack=True), range(3, 4), tmp_path)


def pictured(pool: Pool, seed: int) -> Pool:
    """In each family the first three have one picture in their first two blocks, and the others another one behind equal ids."""
    generator = torch.Generator().manual_seed(seed)
    table = pool.model.embed_tokens.weight.detach().float()
    for family in pool.families:
        pictures = [1.3 * table[torch.randint(len(table), (41,), generator=generator)] for _ in range(2)]
        for member, number in enumerate(family):
            request = pool.requests[number]
            assert request.prompt_ids is not None
            places = [p for p in (*range(3, 20), *range(BLOCK + 6, BLOCK + 30)) if p < len(request.prompt_ids)]
            rows = pictures[member > LONG][: len(places)]
            pool.requests[number] = replace(request, embeds=Embeds(rows, tuple(places)) if places else None)
    return pool


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kind", "dtype"), [("mla", "bf16"), ("gqa", "fp32"), ("dsa", "fp32")])
def test_pictures_in_random_schedules_change_no_bit(
    kind: str, dtype: str, models: dict[str, Decoder], tmp_path: Path
) -> None:
    run_all(pictured(make_pool(in_type(models[kind], dtype), seed=7), seed=8), range(20, 21), tmp_path)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kind", "pack"), [("mla", False), ("gqa", True)], ids=["plain", "packed"])
def test_rows_in_tiles_change_no_bit(
    models: dict[str, Decoder], kind: str, pack: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What wide layers of bf16 need on processors with AMX, on any: here everything of 16 columns or more is wide."""
    monkeypatch.setattr("rorqual.ops.row_limits.WIDE", 16)
    monkeypatch.setattr("rorqual.ops.backends.torch_invariant.find_row_limits", lambda *_: (RowLimits(16, 16), True, 1))
    cut: list[int] = []
    whole = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda x, size, dim=0: cut.append(1) or whole(x, size, dim))
    run_all(make_pool(in_type(models[kind], "bf16"), seed=6, pack=pack), range(8, 9), tmp_path)
    assert len(cut) > 1000


@pytest.mark.usefixtures("one_thread")
def test_the_comparison_sees_one_bit(model: Decoder, tmp_path: Path) -> None:
    pool = make_pool(model, seed=2)
    (expected,) = pool.alone(pool.families[0][2])
    other = Completion(**vars(expected))
    assert differences(other, expected) == []
    last = torch.tensor(expected.logprobs[-1])
    other.logprobs = [*expected.logprobs[:-1], float(torch.nextafter(last, torch.tensor(-torch.inf)))]
    assert differences(other, expected) == ["log-probabilities"]
    pool.answers = {number: [other] * 3 for number in range(len(pool.requests))}
    with pytest.raises(Wrong, match=r"log-probabilities|token ids"):
        run_schedule(pool, 0, tmp_path)


WIDE = {
    "mla": (
        MLAConfig(
            num_attention_heads=8,
            q_lora_rank=256,
            kv_lora_rank=256,
            qk_nope_head_dim=64,
            qk_rope_head_dim=32,
            v_head_dim=64,
        ),
        MoEConfig(n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=256, n_shared_experts=1),
    ),
    "gqa": (
        GQAConfig(num_attention_heads=9, num_key_value_heads=3, head_dim=64),
        DenseConfig(intermediate_size=1536),
    ),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", WIDE)
def test_wider_layers_change_no_bit(kind: str, dtype: str) -> None:
    """Products that take other paths than those of small models: together, alone, packed, with one thread and with two."""
    attention, ffn = WIDE[kind]
    stages = (Stage(layers=2, attention=attention, ffn=ffn),)
    config = ModelConfig(
        vocab_size=2048, hidden_size=512, stages=stages, max_position_embeddings=CONTEXT, initializer_range=0.05
    )
    model = build(config, seed=0).requires_grad_(False).to(TYPES[dtype])
    rng = random.Random(0)
    asked = [
        Request(
            prompt_ids=tuple(rng.randrange(2000) for _ in range(length)),
            params=SamplingParams(max_tokens=10, temperature=1.0, ignore_eos=True, seed=length),
        )
        for length in (3, 70, 333)
    ]
    for pack_ in (False, True):
        pool = Pool(model, pack_, asked, [])
        for threads in (1, 2):
            torch.set_num_threads(threads)
            engine = pool.engine(slots=4)
            for request in asked:
                engine.submit(request)
            found = finish(engine)
            torch.set_num_threads(1)
            assert [differences(found[i], pool.alone(i)[0]) for i in range(3)] == [[]] * 3
