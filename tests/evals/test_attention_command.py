"""The command `rorqual attention`: each option has its effect, the gate fails below its limit, and bad input is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sparse_model import model_of, write_run
from typer.testing import CliRunner

from rorqual.cli.main import app
from rorqual.data.passages import KINDS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    write_run(place / "dense", model_of(vocab=263, context=128, kind="mla"))
    write_run(place / "sparse", model_of(12, vocab=263, context=128))
    (place / "a.txt").write_text("".join(f"{n} eggs and {n * 7} owls. " for n in range(400)), encoding="utf-8")
    (place / "b.txt").write_text("b and 7 owls. " * 200, encoding="utf-8")
    return place


def said(run: Path, *words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["attention", str(run), *words, "threads=1"], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_passes_its_options_on(runs: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "a.json", tmp_path / "a.html"
    data = f"data={runs / 'a.txt'},kinds,needle,copy,{runs / 'b.txt'}"
    words = ("windows=1", "length=110", "budgets=6,110", "device=cpu", f"out={out}", f"page={page}")
    text = said(runs / "sparse", data, *words)
    values = json.loads(out.read_text(encoding="utf-8"))
    assert [one["text"] for one in values["texts"][::2]] == [str(runs / "a.txt"), str(runs / "b.txt"), *KINDS]
    assert {(one["budget"], one["length"], one["windows"]) for one in values["texts"]} == {(6, 110, 1), (12, 110, 1)}
    assert (values["model"], values["index_topk"], values["budgets"]) == (str(runs / "sparse"), 12, [6, 12])
    assert re.search(r"attention  (\d+)/\1 ", text), "progress is reported"
    assert values["dense_budgets"] == [110] and "At a budget of 110, attention is dense" in text
    planted = [(one["kind"], one["passages"]) for one in values["planted"]]
    assert {*planted} == {("needle", 1), ("copy", 1)}
    assert f"{page}: pictures" in text and "Copied lines" in page.read_text(encoding="utf-8")


def test_tables_of_one_text_and_the_defaults(runs: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "a.json", f"data={runs / 'a.txt'}"
    text = said(runs / "sparse", data, "length=60", "windows=3", f"out={out}")
    values = json.loads(out.read_text(encoding="utf-8"))
    own = values["texts"][2]
    assert values["budgets"] == [3, 6, 12, 24] and (own["budget"], own["windows"], own["queries"]) == (12, 3, 3 * 48)
    assert "3 windows of 60 tokens, 144 queries." in text and "36 further queries" in text
    for layer in own["layers"]:
        cells = (f"{layer[name]:.3f}" for name in ("mass", "mass_p1", "recall", "weighted_recall"))
        assert re.search(rf"^ *{layer['layer']} +{' +'.join(cells)} ", text, re.MULTILINE)
    recalls = [f"{one['layers'][0]['recall']:.3f}" for one in values["texts"]]
    assert re.search(rf"\n *0 +{' +'.join(recalls)}\n", text)
    assert "needles:" not in text and "copied lines" not in text and "prose" not in text and "html" not in text
    said(runs / "sparse", data, "length=60", "windows=3", f"out={out}", "dtype=bfloat16", "budgets=12")
    [rounded] = json.loads(out.read_text(encoding="utf-8"))["texts"]
    assert rounded["loss_dense"] != own["loss_dense"] == pytest.approx(rounded["loss_dense"], rel=0.05)
    said(runs / "sparse", data, f"out={out}", "budgets=12")
    whole = json.loads(out.read_text(encoding="utf-8"))
    assert (whole["length"], whole["budgets"]) == (128, [12]) and whole["texts"][0]["windows"] <= 8


def test_the_gate_fails_below_its_limit_and_passes_at_it(runs: Path) -> None:
    words, out = (runs / "sparse", f"data={runs / 'a.txt'}", "length=60"), runs / "gate.json"
    assert "min_recall" not in said(*words, "min_recall=0.01", f"out={out}")
    texts = json.loads(out.read_text(encoding="utf-8"))["texts"]
    (own,) = (one["weighted_recall"] for one in texts if one["budget"] == 12)
    assert "min_recall" not in said(*words, f"min_recall={own!r}")
    text = said(*words, f"min_recall={own + 1e-4}", code=1)
    assert f"weighted recall {own:.3f} is below min_recall={own + 1e-4:g}" in text


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("data=",), "key 'data': String should have at least 1 character"),
        (("data=nowhere.txt",), "nowhere.txt"),
        (("data=rows.jsonl",), "this file holds rows"),
        (("data=needles",), "needles: no such file"),
        (("length=12",), "a length of 12 tokens is not above index_topk=12"),
        (("length=129",), "length=129 exceeds the model's context of 128"),
        (("min_recall=2",), "min_recall"),
        (("windows=0",), "windows"),
        (("device=gpu9",), "device 'gpu9' is not available"),
        (("budgets=0",), "'budgets.0': Input should be greater than or equal to 1"),
        (("budgets=8,many",), "'budgets.1': Input should be a valid integer"),
        (("data=needle", "length=40"), "a passage of 40 tokens is too short for needle, .* Use length=54 or more"),
        (("data=copy", "min_recall=0.5", "budgets=12"), "min_recall= has nothing to compare: data= names no text"),
        (("min_recall=0.5", "budgets=4", "length=12"), "nothing to compare: attention is dense at index_topk=12"),
    ],
)
def test_bad_input_is_refused(words: tuple[str, ...], match: str, runs: Path) -> None:
    given = words if words[0].startswith("data") else (f"data={runs / 'a.txt'}", *words)
    assert re.search(match, " ".join(said(runs / "sparse", *given, code=2).split()))


def test_a_dense_run_is_refused(runs: Path) -> None:
    assert "Use a model with attention of kind dsa" in said(runs / "dense", f"data={runs / 'a.txt'}", code=2)
