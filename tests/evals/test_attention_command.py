"""The command `rorqual attention`: each option has its effect, the gate fails below its limit, and bad input is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sparse_model import model_of, write_run

from in_process import output_of
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
    return output_of("attention", str(run), *words, "threads=1", code=code)


def test_the_command_passes_its_options_on(runs: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "a.json", tmp_path / "a.html"
    data = f"data={runs / 'a.txt'},kinds,needle,copy,{runs / 'b.txt'}"
    words = ("windows=2", "length=110", "budgets=6,110", "device=cpu", f"out={out}", f"page={page}")
    text = said(runs / "sparse", data, *words)
    values = json.loads(out.read_text(encoding="utf-8"))
    texts, planted = ([m for m in values["measurements"] if (m["depth"] is None) == one] for one in (True, False))
    assert [one["name"] for one in texts[::2]] == [str(runs / "a.txt"), str(runs / "b.txt"), *KINDS]
    assert {(one["budget"], one["length"], len(one["passages"])) for one in texts} == {(6, 110, 2), (12, 110, 2)}
    assert (values["model"], values["trained"], values["budgets"]) == (str(runs / "sparse"), 12, [6, 12])
    assert re.search(r"attention  (\d+)/\1 ", text), "progress is reported"
    assert values["dense"] == [110] and "At a budget of 110, attention is dense" in text
    assert {(one["name"], len(one["passages"])) for one in planted} == {("needle", 2), ("copy", 2)}
    assert {*values["summaries"]["6"]} == {str(runs / "a.txt"), str(runs / "b.txt"), *KINDS, "needle", "copy"}
    assert f"{page}: the tables" in text and "Planted texts" in page.read_text(encoding="utf-8")
    for key in ("out", "page"):
        refused = said(runs / "sparse", data, "windows=2", "length=110", f"{key}={tmp_path}", code=2)
        assert "out is a folder" in refused and "measurement/s" not in refused, "before the first measurement"
    short = said(runs / "sparse", data, "windows=2", "length=30", code=2)
    assert "too short for" in short and "measurement/s" not in short


def test_tables_of_one_text_and_the_defaults(runs: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "a.json", f"data={runs / 'a.txt'}"
    text = said(runs / "sparse", data, "length=60", "windows=3", f"out={out}")
    values = json.loads(out.read_text(encoding="utf-8"))
    own = values["summaries"]["12"][str(runs / "a.txt")]
    assert values["budgets"] == [3, 6, 12, 24] and (own["kl"]["pairs"], own["scored"]) == (3, 3 * 48)
    kl, changed, lost = (own[name] for name in ("kl", "changed", "lost"))
    cells = (f"{kl['mean']:.3f} [{kl['interval']['low']:.3f}, {kl['interval']['high']:.3f}]",
             f"{changed['mean']:.1%} [{changed['interval']['low']:.1%}, {changed['interval']['high']:.1%}]",
             f"{own['right_before']:.1%}",
             f"{lost['mean']:.1%} [{lost['interval']['low']:.1%}, {lost['interval']['high']:.1%}]")  # fmt: skip
    assert re.search(r" 3 +144 +" + " +".join(map(re.escape, cells)), text)
    [measured] = [one for one in values["measurements"] if one["budget"] == 12]
    for index, layer in enumerate(measured["layers"]):
        columns = (f"{layer[name]:.3f}" for name in ("inside", "recall", "weighted_recall", "difference"))
        assert re.search(rf"^ *{index} +{' +'.join(columns)}$", text, re.MULTILINE)
    assert "needle" not in text and "copy" not in text and "prose" not in text and "html" not in text
    said(runs / "sparse", data, "length=60", "windows=3", f"out={out}", "dtype=bfloat16", "budgets=12")
    [rounded] = json.loads(out.read_text(encoding="utf-8"))["measurements"]
    exact, near = (one["passages"][0]["loss_before"] for one in (measured, rounded))
    assert near != exact == pytest.approx(near, rel=0.05)
    said(runs / "sparse", data, f"out={out}", "budgets=12")
    whole = json.loads(out.read_text(encoding="utf-8"))
    assert (whole["length"], whole["budgets"]) == (128, [12]) and len(whole["measurements"][0]["passages"]) <= 8


@pytest.mark.parametrize("field", ["kl", "changed", "lost"])
def test_a_limit_fails_below_the_upper_end_and_passes_at_it(field: str, runs: Path, tmp_path: Path) -> None:
    words, out, page = (runs / "sparse", f"data={runs / 'a.txt'}", "length=60"), runs / "gate.json", tmp_path / "a.html"
    others = [f"max_{other}=1" for other in ("changed", "lost") if other != field]
    assert "above" not in said(*words, f"max_{field}=1", *others, f"out={out}")
    [own] = json.loads(out.read_text(encoding="utf-8"))["summaries"]["12"].values()
    high = own[field]["interval"]["high"]
    assert "above" not in said(*words, f"max_{field}={high!r}")
    text = said(*words, f"max_{field}={high - 1e-4}", *others, f"page={page}", code=1)
    sentence = f"{field} may be {high:.3g}, above max_{field}={high - 1e-4:g}"
    assert sentence in text and sentence in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("data=",), "key 'data': String should have at least 1 character"),
        (("data=nowhere.txt",), "nowhere.txt"),
        (("data=rows.jsonl",), "this file holds rows"),
        (("data=needles",), "needles: no such file"),
        (("length=12",), "a length of 12 tokens is not above index_topk=12"),
        (("length=129",), "length=129 exceeds the model's context of 128"),
        (("max_kl=0",), "max_kl"),
        (("max_changed=2",), "max_changed"),
        (("max_lost=-1",), "max_lost"),
        (("windows=1",), "windows"),
        (("device=gpu9",), "device 'gpu9' is not available"),
        (("budgets=0",), "'budgets.0': Input should be greater than or equal to 1"),
        (("budgets=8,many",), "'budgets.1': Input should be a valid integer"),
        (("data=needle", "length=40"), "a passage of 40 tokens is too short for needle, .* Use length=54 or more"),
        (("max_kl=1", "budgets=4", "length=12"), "attention is dense and nothing can be missed"),
    ],
)
def test_bad_input_is_refused(words: tuple[str, ...], match: str, runs: Path) -> None:
    given = words if words[0].startswith("data") else (f"data={runs / 'a.txt'}", *words)
    assert re.search(match, " ".join(said(runs / "sparse", *given, code=2).split()))


def test_a_dense_run_is_refused(runs: Path) -> None:
    assert "Use a model with attention of kind dsa" in said(runs / "dense", f"data={runs / 'a.txt'}", code=2)
