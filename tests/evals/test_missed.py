"""What is said to be missed equals a plain computation from the attention weights, and known answers come out as known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from rorqual.cli.main import app
from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import RunDir
from rorqual.evals.missed import DISTANCES, Misses, measure_missed
from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.attention import DSA, DSAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig
from rorqual.ops.backends import REFERENCE
from rorqual.recipes import make_run
from rorqual.recipes.sparsify import SparsifyConfig, sparsify
from rorqual.train.loop import fit

LENGTH, BUDGET, VOCAB = 90, 8, 30


def model_of(budget: int = BUDGET, *, kind: str = "dsa") -> Decoder:
    """Peaked attention, and an indexer that has learnt nothing."""
    mla = MLAConfig(
        num_attention_heads=3, q_lora_rank=10, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5
    )
    index = {"kind": "dsa", "index_n_heads": 16, "index_head_dim": 10, "index_topk": budget}
    attention = DSAConfig(**dict(mla) | index) if kind == "dsa" else mla
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=20))
    model = Decoder(ModelConfig(vocab_size=VOCAB, hidden_size=16, stages=(stage,)), REFERENCE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            scale = 4.0 if "q_b_proj" in name else 1.0
            noise = torch.randn(tensor.shape, generator=generator) * scale
            tensor.copy_(noise * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 1 + 0.2 * noise)
    return model


def windows(count: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCAB, (count, length + 1), generator=torch.Generator().manual_seed(2))


def dense_weights(layer: DSA, x: Tensor, model: Decoder) -> tuple[Tensor, Tensor]:
    """The dense attention weights of x [n, hidden], [heads, n, n], and the module's dense output [n, hidden]."""
    from rorqual.model.attention import AttentionContext

    context = AttentionContext(torch.arange(len(x))[None], None, model.ops)
    _, q_nope, q_rope, latent, k_rope = (t[0] for t in layer.project(x[None], context))
    kv = (latent @ layer.kv_b_proj.weight.T).view(len(x), 3, 11)
    k = torch.cat((kv[..., :6], k_rope.unsqueeze(1).expand(-1, 3, -1)), -1)
    scores = torch.einsum("thd,shd->hts", torch.cat((q_nope, q_rope), -1), k) * 10**-0.5
    scores = scores.masked_fill(~torch.ones(len(x), len(x), dtype=torch.bool).tril(), -torch.inf)
    weights = scores.softmax(-1)
    out = torch.einsum("hts,shd->thd", weights, kv[..., 6:]).flatten(1) @ layer.o_proj.weight.T
    return weights, out


@torch.no_grad()
def test_it_equals_a_plain_computation() -> None:
    model, tokens = model_of(), windows()
    found = measure_missed(model, tokens)
    assert (found.queries, found.dense, found.windows) == (2 * (LENGTH - BUDGET), 2 * BUDGET, 2)
    inputs: dict[int, list[Tensor]] = {0: [], 1: []}
    outputs: dict[int, list[Tensor]] = {0: [], 1: []}
    hooks = []
    for index, layer in enumerate(model.layers):
        hooks.append(
            layer.attention.register_forward_hook(  # type: ignore[union-attr]
                lambda _m, given, out, i=index: (inputs[i].append(given[0][0]), outputs[i].append(out[0]), None)[-1]
            )
        )
    selected = [model(window[None, :-1], record=("selected",)).recorded["selected"] for window in tokens]
    for hook in hooks:
        hook.remove()
    for index, layer in enumerate(found.layers):
        mass, recall, difference = [], [], []
        share, inside = np.zeros(len(DISTANCES)), np.zeros(len(DISTANCES))
        for w in range(2):
            weights, dense = dense_weights(model.layers[index].attention, inputs[index][w], model)  # type: ignore[arg-type]
            for t in range(BUDGET, LENGTH):
                rows = selected[w][index][t].tolist()
                assert len(set(rows)) == BUDGET and max(rows) <= t
                mass.append(weights[:, t, rows].sum(-1).numpy())
                mean = weights[:, t].mean(0)
                best = sorted(range(t + 1), key=lambda s: -float(mean[s]))[:BUDGET]
                recall.append(len({*best} & {*rows}) / BUDGET)
                difference.append(float((outputs[index][w][t] - dense[t]).norm() / dense[t].norm()))
                for s in range(t + 1):
                    place = max(i for i, first in enumerate(DISTANCES) if t - s >= first)
                    share[place] += float(mean[s])
                    inside[place] += float(mean[s]) * (s in rows)
        each = np.stack(mass)
        assert layer.heads == pytest.approx(each.mean(0), abs=1e-5)
        assert (layer.mass, layer.mass_min) == (
            pytest.approx(each.mean(), abs=1e-5),
            pytest.approx(each.mean(1).min(), abs=1e-5),
        )
        assert layer.mass_p1 == pytest.approx(np.percentile(each.mean(1), 1), abs=1e-5)
        assert layer.recall == pytest.approx(np.mean(recall), abs=1e-6)
        assert layer.difference == pytest.approx(np.mean(difference), rel=1e-4)
        assert len(layer.distances) == 4
        for part, a, b in zip(layer.distances, share, inside, strict=False):
            assert part.share == pytest.approx(a / len(each), abs=1e-5) and part.inside == pytest.approx(
                b / a, abs=1e-5
            )
        assert sum(part.share for part in layer.distances) == pytest.approx(1, abs=1e-5)
    logprobs = []
    for budget in (LENGTH, BUDGET):
        other = model_of(budget)
        logits = torch.stack([other.logits(other(window[None, :-1]).hidden)[0, BUDGET:] for window in tokens])
        logprobs.append(logits.log_softmax(-1))
    dense, sparse = logprobs
    assert (
        found.kl == pytest.approx(float((dense.exp() * (dense - sparse)).sum(-1).mean()), rel=1e-4) and found.kl > 0.01
    )
    assert (
        found.flips == pytest.approx(float((dense.argmax(-1) != sparse.argmax(-1)).float().mean())) and found.flips > 0
    )
    for value, part in ((found.loss_dense, dense), (found.loss_sparse, sparse)):
        assert value == pytest.approx(-float(part.gather(2, tokens[:, BUDGET + 1 :, None]).mean()), rel=1e-4)


@torch.no_grad()
def test_nothing_is_missed_where_one_position_of_no_weight_is_left_out() -> None:
    """A control: with a budget of all positions but one, only the last query misses one, the one with the lowest index score."""
    model = model_of(LENGTH - 1)
    found = measure_missed(model, windows(3))
    assert (found.queries, found.dense) == (3, 3 * (LENGTH - 1))
    assert all(layer.recall >= 1 - 1.001 / (LENGTH - 1) for layer in found.layers)
    assert found.kl < 0.05


@torch.no_grad()
def test_a_tie_at_the_threshold_is_counted_and_others_are_not() -> None:
    model = model_of()
    assert all(layer.tied == 0 for layer in measure_missed(model, windows()).layers)
    model.layers[1].attention.indexer.weights_proj.weight.zero_()  # type: ignore[union-attr]
    first, second = measure_missed(model, windows()).layers
    assert (first.tied, second.tied) == (0, 1), "all scores of layer 1 are 0"


@torch.no_grad()
def test_what_the_model_computes_is_as_before() -> None:
    model, tokens = model_of(), windows(1)
    before = model(tokens[:, :-1]).hidden
    measure_missed(model, tokens)
    assert torch.equal(model(tokens[:, :-1]).hidden, before)
    assert [layer.attention.config.index_topk for layer in model.layers] == [BUDGET, BUDGET]  # type: ignore[union-attr]


def test_a_window_within_the_budget_and_a_model_without_selection_are_refused() -> None:
    with pytest.raises(DataError, match="windows of 8 tokens are not longer than index_topk=8"):
        measure_missed(model_of(), windows(length=8))
    measure_missed(model_of(), windows(length=9))
    with pytest.raises(ConfigError, match="its kind is mla"):
        measure_missed(model_of(kind="mla"), windows())


# ---- the command


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("missed")
    run = make_run("sft", {"task": "families", "size": "tiny", "steps": "3", "rows": "2"})
    fit(run, place / "dense", quiet=True)
    sparsify(
        RunDir(place / "dense"), place / "out", SparsifyConfig(index_topk=9, warmup=1, steps=1, rows=2), quiet=True
    )
    (place / "text.txt").write_text("".join(f"{n} eggs and {n * 7} owls. " for n in range(400)), encoding="utf-8")
    return place


def said(*words: Any, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["attention", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_gives_its_options_on(sparse: Path, tmp_path: Path) -> None:
    run, data, out = sparse / "out" / "sparse", f"data={sparse / 'text.txt'}", tmp_path / "a.json"
    text = said(run, data, "length=60", "windows=3", f"out={out}", "threads=1", "device=cpu", "dtype=float32")
    values = json.loads(out.read_text(encoding="utf-8"))
    assert (values["length"], values["windows"], values["budget"], values["queries"]) == (60, 3, 9, 3 * 51)
    assert "3 windows of 60 tokens, index_topk=9" in text and "153 queries; 27 further queries" in text
    for layer in values["layers"]:
        assert f"{layer['mass']:>6.3f}  {layer['mass_p1']:>7.3f}  {layer['recall']:>6.3f}" in text
    said(run, data, f"out={tmp_path / 'b.json'}", "dtype=bfloat16")
    other = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert (other["length"], other["windows"]) == (128, min(8, (int(other["windows"])))) and other["kl"] != values["kl"]


def test_the_gate_fails_below_its_limit_and_passes_at_it(sparse: Path) -> None:
    run, data = sparse / "out" / "sparse", f"data={sparse / 'text.txt'}"
    assert "is below min_recall=0.999" in said(run, data, "length=60", "min_recall=0.999", code=1)
    assert "min_recall" not in said(run, data, "length=60", "min_recall=0.01")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "key 'data' is missing"),
        (("data=nowhere.txt",), "nowhere.txt"),
        (("length=9",), "not longer than index_topk=9"),
        (("length=129",), "length=129 exceeds the model's context of 128"),
        (("data=rows.jsonl",), "this file holds rows"),
        (("min_recall=2",), "min_recall"),
        (("windows=0",), "windows"),
        (("device=gpu9",), "device 'gpu9' is not available"),
    ],
)
def test_bad_input_is_refused(words: tuple[str, ...], match: str, sparse: Path) -> None:
    given = words if not words or words[0].startswith("data") else (f"data={sparse / 'text.txt'}", *words)
    assert match in said(sparse / "out" / "sparse", *given, code=2)


def test_a_dense_run_is_refused(sparse: Path) -> None:
    assert "Use a model with attention of kind dsa" in said(sparse / "dense", f"data={sparse / 'text.txt'}", code=2)


def test_the_lowest_layer_decides() -> None:
    with torch.no_grad():
        found = measure_missed(model_of(), windows())
    assert isinstance(found, Misses) and found.recall == min(layer.recall for layer in found.layers)
    assert found.recall == found.to_json()["recall"]
