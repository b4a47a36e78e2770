"""`rorqual bench`: what it counts, what it says of how it measured, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import listing, typed

from rorqual.cli.benching import step_bytes
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.moe import MoE

SMALL = ("batch=1,2", "prompt=4,20", "new=5", "repeats=3", "threads=1")


def test_a_table_a_file_of_all_repeats_and_how_it_was_measured(place: Path) -> None:
    before = listing(place)
    done = typed(place, "bench", "run", *SMALL, "out=found.json")
    assert done.code == 0, done.err
    found = json.loads((place / "found.json").read_text(encoding="utf-8"))
    assert [(row["batch"], row["prompt"]) for row in found["rows"]] == [(1, 4), (1, 20), (2, 4), (2, 20)]
    for row in found["rows"]:
        assert len(row["repeats"]) == 3
        for name, key in (("decode_tokens_per_second", "decode"), ("prefill_tokens_per_second", "prefill")):
            values = sorted(repeat[key] for repeat in row["repeats"])
            assert row[name] == {"low": values[0], "median": values[1], "high": values[2]}
            assert values[0] > 0
        step = row["batch"] / row["decode_tokens_per_second"]["median"]
        share = row["bytes_per_step"] / step / found["bandwidth_bytes_per_second"]
        assert row["bandwidth_share"]["median"] == pytest.approx(share)
        assert row["peak_memory_bytes"] > 50e6
    for part in ("random ids", "greedy", "ignores EOS", "GB/s", "median", "1 threads"):
        assert part in " ".join(done.out.split()), done.out
    assert "found.json" in done.out
    assert "…" not in done.out, "a figure is cut off"
    assert all(len(line) <= 80 for line in done.out.split("\n")), done.out
    assert {name: value for name, value in listing(place).items() if name != "found.json"} == before


def model_of(ffn: Any, *, tied: bool) -> tuple[ModelConfig, Decoder]:
    attention = MLAConfig(num_attention_heads=2, kv_lora_rank=8, q_lora_rank=12, qk_nope_head_dim=4,
                          qk_rope_head_dim=4, v_head_dim=4)  # fmt: skip
    dense = DenseConfig(intermediate_size=24)
    stages = (Stage(layers=1, attention=attention, ffn=dense), Stage(layers=2, attention=attention, ffn=ffn))
    config = ModelConfig(vocab_size=50, hidden_size=16, stages=stages, tie_word_embeddings=tied)
    return config, build(config, seed=0)


def numbers(model: Decoder) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_step_reads_each_weight_once_and_of_the_embedding_a_row() -> None:
    config, model = model_of(DenseConfig(intermediate_size=40), tied=False)
    wanted = numbers(model) - 50 * 16 + 16
    assert step_bytes(config, 1, 0, 4) == step_bytes(config, 7, 0, 4) == 4 * wanted
    config, model = model_of(DenseConfig(intermediate_size=40), tied=True)
    assert step_bytes(config, 3, 0, 2) == 2 * numbers(model), "tied, it is read whole as the head"
    width = 3 * (8 + 4)
    assert step_bytes(config, 3, 10, 2) - step_bytes(config, 3, 0, 2) == 3 * 10 * width * 2


def test_a_step_reads_the_experts_that_so_many_tokens_reach() -> None:
    ffn = MoEConfig(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=10, n_shared_experts=1)
    config, model = model_of(ffn, tied=True)
    experts = 2 * 8 * 3 * 16 * 10
    assert sum(isinstance(module, MoE) for module in model.modules()) == 2
    base = numbers(model) - experts
    rng = np.random.default_rng(0)
    for batch in (1, 4, 20):
        draws = rng.random((4000, batch, 8)).argsort(-1)[:, :, :2].reshape(4000, -1)
        reached = np.mean([len(set(row)) for row in draws.tolist()]) / 8
        assert step_bytes(config, batch, 0, 1) == pytest.approx(base + reached * experts, rel=0.01)
    assert step_bytes(config, 10_000, 0, 1) == pytest.approx(numbers(model) + 2 * 8), "and the router's biases"


REFUSED = [
    (("bench", "nowhere"), ("nowhere", "not a run directory")),
    (("bench", "run", "batch=0"), ("'batch.0'", "greater")),
    (("bench", "run", "batch="), ("'batch.0'", "integer")),
    (("bench", "run", "batch=1,x"), ("'batch.1'", "integer", "'x'")),
    (("bench", "run", "prompt=1.5"), ("'prompt.0'", "integer")),
    (("bench", "run", "new=1"), ("'new'", "greater")),
    (("bench", "run", "repeats=0"), ("'repeats'", "greater")),
    (("bench", "run", "prompt=100", "new=64"), ("164 tokens", "context is 128", "at most 128")),
    (("bench", "run", "batchs=1"), ("'batchs'", "'batch'")),
    (("bench", "run", "device=gpu9"), ("'gpu9'", "device=cpu")),
    (("bench", "run", "dtype=int8"), ("'dtype'", "int8")),
    (("bench", "run", "out=run"), ("run", "a folder")),
    (("bench", "run", "data=nowhere.txt", *SMALL), ("nowhere.txt", "no such file")),
    (("bench", "run", "data=short.txt", *SMALL), ("short.txt", "prompts of 20", "longer text")),
    (("bench", "http://127.0.0.1:1/v1"), ("run's folder",)),
]


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=[words[-1] for words, _ in REFUSED])
def test_refused_by_name(words: tuple[str, ...], says: tuple[str, ...], place: Path) -> None:
    (place / "short.txt").write_text("short", encoding="utf-8")
    before = listing(place)
    done = typed(place, *words)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    for part in says:
        assert part in done.err, done.err
    assert listing(place) == before
