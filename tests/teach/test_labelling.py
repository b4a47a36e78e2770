"""Advice on labels: planted wrong labels are found, and the rows to label next are doubtful and new."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bert_folder import write_bert
from example_files import Write, labelled, sums
from numpy.typing import NDArray

from in_process import output_of
from rorqual.core.errors import ConfigError, DataError
from rorqual.teach import labelling
from rorqual.teach.check import check_file
from rorqual.teach.encoder import Encoder, load_encoder
from rorqual.teach.examples import Example
from rorqual.teach.labelling import advise, find_suspects

BANKING = Path(__file__).parents[2] / "examples" / "data" / "banking10.csv"


def said(*words: str, code: int = 0) -> str:
    return output_of("check", *words, code=code)


def test_planted_wrong_labels_are_listed_first(tmp_path: Path) -> None:
    rows = list(csv.DictReader(BANKING.read_text(encoding="utf-8").splitlines()))
    names, draw = sorted({row["category"] for row in rows}), random.Random(0)
    planted = {line: draw.choice([name for name in names if name != rows[line - 1]["category"]])
               for line in draw.sample(range(1, len(rows) + 1), len(rows) // 20)}  # fmt: skip
    changed = [row | {"category": planted.get(line, row["category"])} for line, row in enumerate(rows, 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    advice = advise(check_file(tmp_path / "a.jsonl", len), None)
    text, found = advice.text, advice.json
    listed = [one for one in found["suspects"] if one["line"] in planted]
    assert len(listed) >= 0.6 * len(planted) and len(listed) >= 0.85 * len(found["suspects"])
    assert {one["line"] for one in found["suspects"][:10]} <= planted.keys(), "the least plausible labels come first"
    assert all(one["label"] == planted[one["line"]] for one in listed)
    right = sum(one["likely"] == rows[one["line"] - 1]["category"] for one in listed)
    assert right >= 0.9 * len(listed)
    margins = [one["margin"] for one in found["suspects"]]
    assert margins == sorted(margins) and margins[0] < -0.5
    assert f"probably mislabelled: {len(margins):,} of 5" in text and "label these rows next" not in text
    assert str(found["suspects"][0]["line"]) in text and found["suspects"][0]["likely"] in text


class Sevenths(Encoder):
    """An encoder that knows the remainder of a text's number."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.eye(7, dtype=np.float32)[[int(text.split()[0]) % 7 for text in texts]]


def test_a_label_that_is_far_less_probable_is_listed_even_if_the_other_label_is_usually_more_probable() -> None:
    examples = [Example(line, f"{line}", "ab"[line % 2]) for line in range(1, 13)]
    probability = np.array([[0.9, 0.1] if one.answer == examples[0].answer else [0.1, 0.9] for one in examples])
    probability[0], probability[3] = [0.24, 0.76], [0.7, 0.3]
    [found] = find_suspects(examples, probability)
    assert (found.line, found.label, found.likely, found.margin) == (1, "b", "a", pytest.approx(-0.52))


@pytest.mark.parametrize(("count", "judged"), [(4, False), (5, True)])
def test_a_label_of_a_few_rows_is_not_judged(write: Write, count: int, judged: bool) -> None:
    """Its rows look like those of another label, but a classifier hardly saw it."""
    rare = [row | {"label": "rare"} for row in labelled(60, seed=1) if row["label"] == "card"][:count]
    found = advise(check_file(write("a.jsonl", [*labelled(100), *rare]), len), None).json
    assert any(one["label"] == "rare" for one in found["suspects"]) == judged


def test_doubtful_new_rows_are_labelled_next(write: Write, tmp_path: Path) -> None:
    file = write("a.jsonl", [row for row in labelled(120) if row["label"] != "pin"])
    known = file.read_text().splitlines()[0]
    more = [
        {"text": "the card plastic 17"},
        {"text": "is there a fee for a card?", "other": 1},
        {"text": "is there a fee for a card??"},
        {"text": json.loads(known)["text"].upper()},
        {"text": "a charge of cost 4"},
    ]
    unlabelled, out, chosen = str(write("more.jsonl", more)), tmp_path / "out.json", tmp_path / "next.csv"
    text = said(str(file), f"unlabelled={unlabelled}", "encoder=none", f"out={out}", f"next={chosen}")
    found = json.loads(out.read_text())
    assert found["next"][0]["line"] in (2, 3) and found["suspects"] == []
    assert {one["line"] for one in found["next"]} in ({1, 2, 5}, {1, 3, 5}), "near-duplicates are left out"
    written = list(csv.DictReader(chosen.read_text().splitlines()))
    assert [(row["text"], row["label"]) for row in written] == [
        (more[one["line"] - 1]["text"], "") for one in found["next"]
    ]
    assert {row["text"]: row["likely"] for row in written}["a charge of cost 4"] == "fee"
    assert "label these rows next" in text and "Measured on your labelled rows: " in text


def test_the_gain_is_that_of_the_choice(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most rows have one label, and a random draw rarely finds another. The smallest margins find them."""
    draw = random.Random(3)
    words = ["often" if draw.random() < 0.8 else f"word{n % 10}" for n in range(240)]
    rows = [
        {"text": f"{word} number {draw.randrange(10**6)} of row {n}", "label": f"label {word}"}
        for n, word in enumerate(words)
    ]
    check, more = check_file(write("a.jsonl", rows), len), write("more.jsonl", [{"text": "often number 5"}])
    text = advise(check, None, unlabelled=more).text
    sentence = text.splitlines()[-1]
    figures = [float(one) for one in re.findall(r"[-+]?\d+\.\d", sentence)]
    before, chosen, drawn, gain, low, high = figures
    assert "24 more rows" in sentence and "not shown" not in sentence
    assert before < drawn < chosen and gain == pytest.approx(chosen - drawn, abs=0.11) and 3 < low < gain < high
    monkeypatch.setattr(labelling, "MORE", 0.3)  # all rows of the pool: the two choices are the same
    text = advise(check, None, unlabelled=more).text
    assert "+0.0 points [0.0, 0.0]" in text and text.endswith("The choice is not shown to help.")


def test_the_better_features_are_used(write: Write, tmp_path: Path) -> None:
    """An encoder that knows no word of the file finds nothing, and TF-IDF finds a wrong label. For words with a few letters, of
    which only the encoder knows the meaning, it is the other way round."""
    known = [{"text": f"my plastic\ncard {n} is of plastic", "label": "fee"} for n in (77,)]
    rows, bert = [*labelled(90), *known], write_bert(tmp_path / "bert")
    file, out, page = str(write("a.jsonl", rows)), tmp_path / "o.json", tmp_path / "p.html"
    for name in ("none", str(bert)):
        text = said(file, "suspects=true", f"encoder={name}", f"out={out}", f"page={page}")
        assert [one["line"] for one in json.loads(out.read_text())["suspects"]] == [91]
        assert "1 of 91 rows (by TF-IDF, right on 9" in " ".join(text.split())
        assert "my plastic card 77 is of plastic" in text, "line breaks do not tear the table"
        assert "my plastic card 77 is of plastic" in page.read_text(), "the page has what is printed"
    words = [{"text": f"{n} is {'even' if n % 2 else 'odd'}{n}", "label": "ab"[n % 7 < 3]} for n in range(100, 200)]
    found = advise(check_file(write("b.jsonl", words), len), Sevenths(**vars(load_encoder(str(bert)))))
    assert "(by embeddings, right on 100.0%)" in " ".join(found.text.split())
    assert "no-such" in said(file, "suspects=true", "encoder=no-such", code=2)


def test_advice_that_cannot_be_given_is_refused(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, good = write("a.jsonl", labelled(60)), write("more.jsonl", [{"text": "a card"}])
    assert "probably mislabelled" in said(str(file), "suspects=true", "encoder=none")
    for name, rows in (("sums.jsonl", sums(60)), ("one.jsonl", [row | {"label": "a"} for row in labelled(60)])):
        with pytest.raises(ConfigError, match=rf"{name}.*at least two labels"):
            advise(check_file(write(name, rows), len), None)
    with pytest.raises(DataError, match="only 49 usable examples"):
        advise(check_file(write("few.jsonl", labelled(49)), len), None)
    for row, problem in (({"text": ""}, "the prompt is empty"), ({"label": "card"}, "column 'text' is missing")):
        with pytest.raises(DataError, match=rf"bad\.jsonl:2: {problem}"):
            advise(check_file(file, len), None, unlabelled=write("bad.jsonl", [{"text": "a card"}, row]))
    assert "next= needs unlabelled=" in said(str(file), f"next={tmp_path / 'n.csv'}", code=2)
    turns = [{"role": "user", "content": "a card"}, {"role": "assistant", "content": "card"}]
    talks = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in labelled(60)
    ]
    with pytest.raises(ConfigError, match="cannot read conversations"):
        advise(check_file(write("talks.jsonl", talks), len), None, unlabelled=write("t.jsonl", [{"messages": turns}]))
    monkeypatch.setattr(labelling, "MOST_ROWS", 61)
    advise(check_file(file, len), None, unlabelled=good)
    monkeypatch.setattr(labelling, "MOST_ROWS", 60)
    with pytest.raises(DataError, match="more than 60 rows"):
        advise(check_file(file, len), None, unlabelled=good)
