"""What is said to be missed equals a plain computation from the attention weights, and known answers come out as known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sparse_model import BUDGET, VOCAB, attention_inputs, dense_weights, model_of, write_run
from torch import Tensor
from typer.testing import CliRunner

from rorqual.cli.main import app
from rorqual.core.errors import ConfigError, DataError
from rorqual.evals.missed import DISTANCES, measure_missed
from rorqual.model.attention import DSA

LENGTH = 90


def windows(count: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCAB, (count, length + 1), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_it_equals_a_plain_computation() -> None:
    model, tokens = model_of(), windows()
    found = measure_missed(model, tokens)
    assert (found.queries, found.dense, found.windows) == (2 * (LENGTH - BUDGET), 2 * BUDGET, 2)
    seen = [attention_inputs(model, window[:-1]) for window in tokens]
    inputs, outputs, selected = ([[parts[which][layer] for parts in seen] for layer in range(2)] for which in range(3))
    lowest = []
    for index, layer in enumerate(found.layers):
        mass, recall, weighted, difference = [], [], [], []
        share, inside = np.zeros(len(DISTANCES)), np.zeros(len(DISTANCES))
        for w in range(2):
            weights, dense = dense_weights(model.layers[index].attention, inputs[index][w], model)  # type: ignore[arg-type]
            for t in range(BUDGET, LENGTH):
                rows = selected[index][w][t].tolist()
                assert len(set(rows)) == BUDGET and max(rows) <= t
                mass.append(weights[:, t, rows].sum(-1).numpy())
                mean = weights[:, t].mean(0)
                best = sorted(range(t + 1), key=lambda s: -float(mean[s]))[:BUDGET]
                recall.append(len({*best} & {*rows}) / BUDGET)
                weighted.append(float(mean[sorted({*best} & {*rows})].sum() / mean[best].sum()))
                lowest.append(
                    (float(mean[rows].sum()), index, w, t, mean[: t + 1], sorted(rows), sorted({*best} - {*rows}))
                )
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
        assert layer.weighted_recall == pytest.approx(np.mean(weighted), abs=1e-5)
        assert layer.difference == pytest.approx(np.mean(difference), rel=1e-4)
        assert len(layer.distances) == 4
        for part, a, b in zip(layer.distances, share, inside, strict=False):
            assert part.share == pytest.approx(a / len(each), abs=1e-5) and part.inside == pytest.approx(
                b / a, abs=1e-5
            )
        assert sum(part.share for part in layer.distances) == pytest.approx(1, abs=1e-5)
    mass, index, w, t, weights, rows, left = min(lowest, key=lambda one: one[0])
    low = found.lowest
    assert (low.layer, low.window, low.mass) == (index, w, pytest.approx(mass, abs=1e-5))
    assert (low.tokens, low.selected, low.missed) == (tuple(tokens[w, : t + 1].tolist()), tuple(rows), tuple(left))
    assert low.weights == pytest.approx(weights.numpy(), abs=1e-5) and left
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
def test_a_tie_at_the_threshold_is_counted_and_others_are_not() -> None:
    model = model_of()
    assert all(layer.tied == 0 for layer in measure_missed(model, windows()).layers)
    model.layers[1].attention.indexer.weights_proj.weight.zero_()  # type: ignore[union-attr]
    first, second = measure_missed(model, windows()).layers
    assert (first.tied, second.tied) == (0, 1), "all scores of layer 1 are 0"


def test_a_window_within_the_budget_and_a_model_without_selection_are_refused() -> None:
    with pytest.raises(DataError, match="windows of 8 tokens are not longer than index_topk=8"):
        measure_missed(model_of(), windows(length=8))
    measure_missed(model_of(), windows(length=9))
    with pytest.raises(ConfigError, match="its attention is of kind mla"):
        measure_missed(model_of(kind="mla"), windows())


# ---- the command


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("missed")
    write_run(place / "dense", model_of(vocab=263, context=128, kind="mla"))
    write_run(place / "sparse", model_of(9, vocab=263, context=128))
    (place / "text.txt").write_text("".join(f"{n} eggs and {n * 7} owls. " for n in range(400)), encoding="utf-8")
    return place


def said(*words: Any, code: int = 0) -> str:
    words = words if "threads=1" in words else (*words, "threads=1")
    done = CliRunner().invoke(app, ["attention", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_gives_its_options_on(sparse: Path, tmp_path: Path) -> None:
    run, data, out = sparse / "sparse", f"data={sparse / 'text.txt'}", tmp_path / "a.json"
    text = said(run, data, "length=60", "windows=3", f"out={out}", "threads=1", "device=cpu", "dtype=float32")
    values = json.loads(out.read_text(encoding="utf-8"))
    assert (values["length"], values["index_topk"], values["budgets"]) == (60, 9, [2, 4, 9, 18])
    assert [(one["text"], one["windows"], one["budget"]) for one in values["texts"]] == [
        (str(sparse / "text.txt"), 3, budget) for budget in (2, 4, 9, 18)
    ]
    assert "3 windows of 60 tokens, 153 queries." in text and "27 further queries" in text
    own = values["texts"][2]
    assert own["queries"] == 3 * 51
    for layer in own["layers"]:
        cells = (f"{layer[name]:.3f}" for name in ("mass", "mass_p1", "recall", "weighted_recall"))
        assert re.search(rf"^ *{layer['layer']} +{' +'.join(cells)} ", text, re.MULTILINE)
    recalls = [[one["layers"][0]["recall"] for one in values["texts"]]]
    assert re.search(r"\n *0 +" + " +".join(f"{value:.3f}" for value in recalls[0]) + r"\n", text)
    said(run, data, f"out={tmp_path / 'b.json'}", "dtype=bfloat16", "budgets=9")
    other = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert (other["length"], other["budgets"], len(other["texts"])) == (128, [9], 1) and other["texts"][0][
        "windows"
    ] <= 8
    assert other["texts"][0]["kl"] != own["kl"]
    said(run, data, "length=60", "windows=3", f"out={tmp_path / 'c.json'}", "dtype=bfloat16", "budgets=9")
    rounded = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["texts"][0]
    assert rounded["budget"] == 9 and rounded["loss_dense"] != own["loss_dense"]
    assert rounded["loss_dense"] == pytest.approx(own["loss_dense"], rel=0.05)


@torch.no_grad()
def test_the_dense_weights_of_a_query_are_those_of_all_its_positions() -> None:
    model, (window,) = model_of(), windows(1)
    recorded = model(window[None, :-1], record=("attention_rows", "attention_mass")).recorded
    for rows, mass in zip(recorded["attention_rows"], recorded["attention_mass"], strict=True):
        for t in (0, 5, LENGTH - 1):
            assert sorted(row for row in rows[t].tolist() if row >= 0) == list(range(t + 1))
            assert float(mass[t][rows[t] >= 0].sum()) == pytest.approx(1, abs=1e-5)


def test_the_dense_reference_ignores_the_adaptive_budget() -> None:
    """The same weights with another `index_top_p` have the same dense loss, and miss more."""
    model, tokens = model_of(), windows()
    fixed = measure_missed(model, tokens)
    for layer in model.layers:
        assert isinstance(layer.attention, DSA)
        layer.attention.config = layer.attention.config.model_copy(update={"index_top_p": 0.5})
    adaptive = measure_missed(model, tokens)
    assert adaptive.loss_dense == pytest.approx(fixed.loss_dense, rel=1e-6)
    assert all(a.mass < f.mass for a, f in zip(adaptive.layers, fixed.layers, strict=True))
    assert all(position >= 0 for position in adaptive.lowest.selected)
    assert [layer.attention.config.index_top_p for layer in model.layers] == [0.5, 0.5]  # type: ignore[union-attr]


def test_the_gate_fails_below_its_limit_and_passes_at_it(sparse: Path) -> None:
    run, data = sparse / "sparse", f"data={sparse / 'text.txt'}"
    assert "is below min_recall=0.999" in said(run, data, "length=60", "min_recall=0.999", code=1)
    out = sparse / "gate.json"
    assert "min_recall" not in said(run, data, "length=60", "min_recall=0.01", f"out={out}")
    texts = json.loads(out.read_text(encoding="utf-8"))["texts"]
    (own,) = (one["weighted_recall"] for one in texts if one["budget"] == 9)
    assert "min_recall" not in said(run, data, "length=60", f"min_recall={own!r}")
    text = said(run, data, "length=60", f"min_recall={own + 1e-4}", code=1)
    assert f"weighted recall {own:.3f} is below min_recall={own + 1e-4:g}" in text


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "key 'data' is missing"),
        (("data=nowhere.txt",), "nowhere.txt"),
        (("length=9",), "a length of 9 tokens is not above index_topk=9"),
        (("length=129",), "length=129 exceeds the model's context of 128"),
        (("data=rows.jsonl",), "this file holds rows"),
        (("min_recall=2",), "min_recall"),
        (("windows=0",), "windows"),
        (("device=gpu9",), "device 'gpu9' is not available"),
    ],
)
def test_bad_input_is_refused(words: tuple[str, ...], match: str, sparse: Path) -> None:
    given = words if not words or words[0].startswith("data") else (f"data={sparse / 'text.txt'}", *words)
    assert match in said(sparse / "sparse", *given, code=2)


def test_a_dense_run_is_refused(sparse: Path) -> None:
    assert "Use a model with attention of kind dsa" in said(sparse / "dense", f"data={sparse / 'text.txt'}", code=2)
