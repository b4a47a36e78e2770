"""Dividing a checked file: what is left out, what stays together, and which files are refused."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from example_files import Write, labelled, sums

from rorqual.core.errors import DataError
from rorqual.teach import dataset
from rorqual.teach.answer_format import answer_grammar
from rorqual.teach.check import check_file
from rorqual.teach.dataset import Dataset, divide_examples, read_test_file, refuse_too_large_file
from rorqual.teach.examples import AnswerKind, Example


def divided(path: Path, *, count: int = 1_000, **keys: Any) -> Dataset:
    return divide_examples(check_file(path, len), None, count=count, **keys)


def test_every_usable_row_is_in_one_split_and_one_fold(write: Write) -> None:
    found = divided(write("a.jsonl", labelled(200)))
    lines = {split: {one.line for one in examples} for split, examples in found.splits.items()}
    assert lines["train"] | lines["dev"] | lines["test"] == set(range(1, 201)) and found.left_out == {}
    assert {split: len(own) for split, own in lines.items()} == {"train": 128, "dev": 32, "test": 40}
    fold = dict(zip((one.line for one in found.pool), found.fold.tolist(), strict=True))
    assert {line for line, number in fold.items() if number == 0} == lines["dev"] and fold.keys().isdisjoint(
        lines["test"]
    )
    assert Counter(fold.values()) == dict.fromkeys(range(5), 32)


def test_each_label_has_its_share_of_each_split_in_any_order_of_rows(write: Write) -> None:
    """A dev split without some labels has chosen a bad model."""
    rows = [row | {"label": f"label {n % 77}" if n < 400 else "often"} for n, row in enumerate(labelled(500))]
    found = divided(write("a.jsonl", rows))
    shares = {split: Counter(one.answer for one in examples) for split, examples in found.splits.items()}
    for label, count in Counter(row["label"] for row in rows).items():
        for split, share in (("test", 0.2), ("dev", 0.16)):
            assert abs(shares[split][label] - share * count) <= 1 and (shares[split][label] or count < 5), label
    assert len(found.splits["test"]) == 100 and 80 <= len(found.splits["dev"]) < 95
    turned = divided(write("a.jsonl", rows[::-1]))
    for split in ("test", "dev", "train"):
        assert {one.key for one in turned.splits[split]} == {one.key for one in found.splits[split]}


def test_labels_with_few_rows_are_spread(write: Write) -> None:
    found = divided(
        write(
            "a.jsonl", [row | {"label": f"rare {n // 2}" if n < 20 else "often"} for n, row in enumerate(labelled(200))]
        )
    )
    rare = {split: sum(one.answer != "often" for one in examples) for split, examples in found.splits.items()}
    assert rare == {"train": 12, "dev": 4, "test": 4}


@pytest.mark.parametrize("first", ["intent", "id"])
def test_json_answers_are_divided_by_their_leading_field_with_few_values(write: Write, first: str) -> None:
    rows = []
    for n, row in enumerate(labelled(100)):
        answer = {"intent": "rare" if n < 10 else "often", "id": n}
        rows.append({"text": row["text"], "label": json.dumps({first: answer[first]} | answer)})
    found = divided(write("a.jsonl", rows))
    rare = {split: sum('"rare"' in one.answer for one in examples) for split, examples in found.splits.items()}
    assert found.kind == "JSON" and rare == {"train": 6, "dev": 2, "test": 2}


def test_the_order_of_keys_is_that_of_the_training_examples(write: Write) -> None:
    """If the first row is in the dev split, its keys do not decide, because the grammar is that of the training examples."""
    rows = [{"text": row["text"], "label": {"a": n, "b": n, "c": n}} for n, row in enumerate(labelled(80))]
    [first, *_] = divided(write("a.jsonl", rows)).splits["dev"]
    rows.insert(0, rows.pop(first.line - 1) | {"label": {"c": 1, "a": 1}})
    found = divided(write("a.jsonl", rows))
    assert found.splits["dev"][0].line == 1 and found.splits["dev"][0].answer == '{"a":1,"c":1}'
    grammar = answer_grammar(found.splits["train"], "JSON")
    assert grammar is not None and [*json.loads(grammar.source)["properties"]] == ["a", "b", "c"]


def test_faulty_repeated_and_contradicting_rows_are_left_out(write: Write) -> None:
    rows = labelled(100)
    bad = [{"text": "", "label": "pin"}, rows[3], rows[4] | {"text": rows[4]["text"].upper()}]
    other = next(label for label in ("pin", "card") if label != rows[5]["label"])
    found = divided(write("a.jsonl", [*rows, *bad, rows[5] | {"label": other}]))
    assert {one.line for examples in found.splits.values() for one in examples} == set(range(1, 101)) - {6}
    assert found.left_out == {"empty": 1, "duplicate": 2, "contradiction": 2}


def test_a_model_is_trained_on_one_spelling_of_a_label(write: Write) -> None:
    rows = labelled(150)
    for n in range(30):
        rows[n]["label"] = rows[n]["label"].upper() + " "
    found = divided(write("a.jsonl", rows))
    labels = {row["label"] for row in rows[30:]}
    assert all({one.answer for one in found.splits[split]} <= labels for split in found.splits)
    assert {one.answer for one in found.pool} == labels
    test = [Example(1, "a", "CARD"), *(Example(n, f"b{n}", "New") for n in range(2, 8))]
    given = divide_examples(check_file(write("b.jsonl", rows), len), test, count=9)
    assert {one.answer for one in given.splits["test"]} == {"card", "New"}


def test_unusable_test_rows_count_against_the_test_file(write: Write) -> None:
    file = write("test.jsonl", labelled(10, seed=9))
    check = check_file(write("a.jsonl", labelled(100)), len, against=file)
    test = [Example(n, f"test {n}", "card") for n in range(1, 101)]

    def long(one: Example) -> str:
        return "too long" if one.prompt.startswith("test") and one.line <= bad else ""

    bad = 20
    found = divide_examples(check, test, count=1_000, reason_against=long)
    assert found.left_out == {"unusable test row": 20} and len(found.splits["test"]) == 80
    bad = 21
    with pytest.raises(DataError, match=r"test\.jsonl: 21 of 100 test rows cannot be used; the first: too long"):
        divide_examples(check, test, count=1_000, reason_against=long)


def test_near_duplicates_stay_in_one_split(write: Write) -> None:
    rows = []
    for number, row in enumerate(labelled(120)):
        text = f"{('please tell me', 'I ask you')[number % 2]} what happened to {row['text']}"
        rows += [row | {"text": text}, row | {"text": f"{text}!!"}]
    found = divided(write("a.jsonl", rows))
    split_of_line = {one.line: split for split, examples in found.splits.items() for one in examples}
    assert len(split_of_line) == 240
    assert all(split_of_line[n] == split_of_line[n + 1] for n in range(1, 240, 2))
    assert set(split_of_line.values()) == {"train", "dev", "test"}
    tests = [Example(n, f"test {n}", rows[0]["label"]) for n in range(1, 31)]  # with a test file too
    given = divide_examples(check_file(write("a.jsonl", rows), len), tests, count=30)
    split_of_line = {one.line: split for split in ("train", "dev") for one in given.splits[split]}
    assert all(split_of_line[n] == split_of_line[n + 1] for n in range(1, 240, 2))
    assert len(given.splits["dev"]) > 4


def test_a_test_file_is_the_test_split_and_its_rows_are_not_trained_on(write: Write) -> None:
    rows, tests = labelled(150), labelled(80, seed=9)
    path = write("a.jsonl", [*rows, tests[0], tests[1] | {"text": tests[1]["text"] + " "}])
    test_file = write("b.jsonl", tests)
    test = read_test_file(test_file, "label", prompt="", answer="", reasoning="")
    found = divide_examples(check_file(path, len, against=test_file), test, count=70)
    keys = {one.key for one in test}
    assert len(found.splits["test"]) == 70 and {one.key for one in found.splits["test"]} < keys
    assert found.left_out == {"test row": 2} and len(found.splits["train"]) + len(found.splits["dev"]) == 150
    assert not any(one.key in keys for split in ("train", "dev") for one in found.splits[split])
    write("b.jsonl", [*tests, {"text": "", "label": "x"}])
    with pytest.raises(DataError, match=r"b\.jsonl:81.*1 rows cannot be read"):
        read_test_file(test_file, "label", prompt="", answer="", reasoning="")


def test_the_test_split_has_at_most_count_examples_and_always_the_same(write: Write) -> None:
    path = write("a.jsonl", labelled(200))
    large, small = divided(path), divided(path, count=15)
    assert [one.key for one in small.splits["test"]] == [one.key for one in large.splits["test"]][:15]
    assert small.splits["train"] == large.splits["train"]


def test_one_calculation_becomes_a_worked_solution(write: Write) -> None:
    found = divided(write("a.jsonl", [*sums(90), {"question": "5 and 5 and 9 more?", "answer": 33}]))
    assert found.kind == "number" and found.derived == len(found.splits["train"]) > 40
    for one in found.splits["train"]:
        a, _, b, _ = one.prompt.split()
        assert one.reasoning == f"{a} + {b} = {one.answer}"
    assert not any(one.reasoning for split in ("dev", "test") for one in found.splits[split])
    odd = [one for one in found.all_train if one.prompt.startswith("5 and 5")]
    assert len(odd) == sum(found.left_out.values()) == len(found.all_train) - len(found.splits["train"])


def test_json_answers_are_written_in_one_order_of_keys_and_must_be_json(write: Write) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"item {n}", "label": json.dumps({"b": n, "a": "é"} if n % 2 else {"a": "é", "b": n})}
        for n in range(80)
    ]
    found = divided(write("a.jsonl", [*rows, {"text": "odd one", "label": "no JSON"}]))
    assert found.kind == "JSON"
    train = found.splits["train"]
    assert all(json.loads(one.answer) == json.loads(rows[one.line - 1]["label"]) and "é" in one.answer for one in train)
    assert len({tuple(json.loads(one.answer)) for one in train}) == 1 and not any(" " in one.answer for one in train)
    assert found.left_out == {"no JSON": 1}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (labelled(1), "only 1 usable examples"),
        (labelled(3), "only 3 usable examples"),
        (labelled(49), "only 49 usable examples"),
        ([row | {"label": "same"} for row in labelled(60)], "all answers are the same: 'same'"),
        ([*labelled(60), *[{"text": "", "label": "a"}] * 16], "16 of 76 rows cannot be used: 16 empty"),
        ([row | {"text": f"label: {row['label']} {row['text']}"} for row in labelled(60)], "60 of 60 rows .* 60 answer in prompt"),
    ],
)  # fmt: skip
def test_unusable_files_are_refused(write: Write, rows: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl.*{problem}"):
        divided(write("a.jsonl", rows))


def test_a_fifth_of_the_rows_may_have_faults(write: Write) -> None:
    found = divided(write("a.jsonl", [*labelled(60), *[{"text": "", "label": "a"}] * 15]))
    assert found.left_out == {"empty": 15} and sum(map(len, found.splits.values())) == 60


@pytest.mark.parametrize(
    ("name", "limit", "problem"),
    [("a.jsonl", "MOST_ROWS", "more than 59 rows"), ("a.json", "MOST_BYTES", "MB of JSON")],
)
def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: str, problem: str
) -> None:
    path = tmp_path / name
    rows = [json.dumps(row) for row in labelled(60)]
    path.write_text("\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]")
    size = 60 if limit == "MOST_ROWS" else path.stat().st_size
    monkeypatch.setattr(dataset, limit, size)
    refuse_too_large_file(path)
    monkeypatch.setattr(dataset, limit, size - 1)
    with pytest.raises(DataError, match=problem):
        refuse_too_large_file(path)


@pytest.mark.parametrize(
    ("kind", "answers", "refused"),
    [
        ("label", ("card", "CARD."), False),
        ("label", ("card", "pin"), True),
        ("number", ("502", "502.0"), False),
        ("number", ("502", "0502"), True),
        ("number", ("no solution", "every x"), True),
        ("text", ("no solution", "every x"), False),
    ],
)
def test_a_test_file_must_not_contradict_itself(
    write: Write, kind: AnswerKind, answers: tuple[str, str], refused: bool
) -> None:
    path = write("a.jsonl", [{"question": "a", "answer": answer} for answer in answers])
    with pytest.raises(DataError, match=r"a\.jsonl:2: the same prompt as line 1, but") if refused else nullcontext():
        assert len(read_test_file(path, kind, prompt="", answer="", reasoning="")) == 1
