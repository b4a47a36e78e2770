"""`rorqual check`: every fault of a broken file is named with its line, and its repaired twin passes."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from in_process import output_of
from rorqual.core.errors import ConfigError
from rorqual.model.presets import preset
from rorqual.teach.check import check_file, training_cost_sentence
from rorqual.teach.check_page import check_page, check_text, to_json
from rorqual.teach.columns import Columns, find_columns
from rorqual.teach.examples import Example, answer_kind
from rorqual.teach.folds import divide, near_duplicate_groups
from rorqual.teach.near_duplicates import are_near_duplicates, find_near_duplicates

WORDS = (
    "whale",
    "otter",
    "seal",
    "heron",
    "plover",
    "gannet",
    "puffin",
    "tern",
    "auk",
    "skua",
    "petrel",
    "krill",
    "squid",
    "cod",
)


def question(number: int) -> str:
    """A text that shares little with those of other numbers."""
    rng = random.Random(number)
    return " ".join(rng.choice(WORDS) + str(rng.randrange(100)) for _ in range(9)) + "?"


def good(count: int = 12) -> list[dict[str, Any]]:
    return [{"question": question(n), "answer": ("yes", "no")[n % 2]} for n in range(count)]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def jsonl(change: Callable[[list[dict[str, Any]]], Any]) -> bytes:
    rows = good()
    change(rows)
    return lines(rows)


def table(rows: list[dict[str, Any]], **form: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", **form)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def put(line: int, **cells: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Change cells of the row at a line of a JSONL file."""
    return lambda rows: rows[line - 1].update(cells)


def drop(line: int, name: str) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[line - 1].pop(name)


def raw(line: int, data: bytes) -> bytes:
    parts = lines(good()).split(b"\n")
    parts[line - 1] = data
    return b"\n".join(parts)


@dataclass
class Broken:
    """A broken file: its name, its bytes, and the (line, kind) of each fault. `twin` has no fault."""

    name: str
    data: bytes
    faults: list[tuple[int, str]]
    twin: bytes = b""


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


TALKS = [
    talk(("user", question(n)), ("assistant", f"answer {n} is here and long enough to be free text {question(n + 50)}"))
    for n in range(12)
]
NEAR = question(3)[:-1] + " !"
JSON_ROWS = [{"text": question(n), "slots": {"n": n}} for n in range(12)]
ORDERED = [{"text": question(n), "slots": {"a": 1, "b": n}} for n in range(12)]
HALF = [{"text": f"{question(n)} label: {'ab'[n % 2]}x", "label": "ab"[n % 2] + "x"} for n in range(4)]
CLEAN = [{"text": question(n), "label": "ab"[n % 2] + "x"} for n in range(4, 16)]
STATED = [{"text": f"{question(n)} {('cats', 'dogs')[n % 2]}", "label": ("cats", "dogs")[n % 2]} for n in range(12)]
UNSTATED = [{"text": question(n), "label": ("cats", "dogs")[n % 2]} for n in range(12)]
CSV_ROWS = table(good())
NUMBERS = [{"question": question(n), "answer": n} for n in range(60)]

BROKEN = [
    Broken("json.jsonl", raw(3, b'{"question": '), [(3, "not JSON")]),
    Broken("two-json.jsonl", raw(3, b"{").replace(b'"no"}', b'"no",}', 1), [(2, "not JSON"), (3, "not JSON")]),
    Broken("list.jsonl", raw(5, b"[1, 2]"), [(5, "not an object")]),
    Broken("bytes.jsonl", raw(4, b'{"question": "\xff", "answer": "no"}'), [(4, "not UTF-8")]),
    Broken("empty-prompt.jsonl", jsonl(put(2, question="")), [(2, "empty")]),
    Broken("blank-prompt.jsonl", jsonl(put(2, question=" \n\t")), [(2, "empty")]),
    Broken("empty-answer.jsonl", jsonl(put(7, answer="")), [(7, "empty")]),
    Broken("null.jsonl", jsonl(put(7, answer=None)), [(7, "missing or not text")]),
    Broken("missing.jsonl", jsonl(drop(9, "answer")), [(9, "missing or not text")]),
    Broken("nan.jsonl", raw(6, b'{"question": "how many?", "answer": NaN}'), [(6, "missing or not text")]),
    Broken("twice.jsonl", jsonl(put(8, question=question(1))), [(8, "duplicate")]),
    Broken("case.jsonl", jsonl(put(8, question=question(1).upper() + "  ")), [(8, "duplicate")]),
    Broken("contradiction.jsonl", jsonl(put(8, question=question(0))), [(8, "contradiction")]),
    Broken("near.jsonl", jsonl(put(10, question=NEAR)), [(10, "near-duplicate")]),
    Broken("near-other.jsonl", jsonl(put(9, question=NEAR)), [(9, "near-contradiction")]),
    Broken("all.jsonl", jsonl(lambda r: [put(2, question="")(r), put(5, question=question(2))(r), put(6, question=question(2))(r)]),
           [(2, "empty"), (5, "duplicate"), (6, "contradiction")]),
    Broken("numbers.jsonl", lines([{"question": question(n), "answer": n} for n in range(30)] + [{"question": question(0), "answer": "7.0"}]),
           [(31, "contradiction")], lines([{"question": question(n), "answer": n} for n in range(31)])),
    Broken("slots.jsonl", lines([*JSON_ROWS, {"text": question(2), "slots": {"n": 3}}]), [(13, "contradiction")], lines(JSON_ROWS)),
    Broken("slots-order.jsonl", lines([*ORDERED, {"text": question(2), "slots": {"b": 2, "a": 1}}]),
           [(13, "duplicate")], lines(JSON_ROWS)),
    Broken("free.jsonl", lines([*TALKS, talk(("user", question(2)), ("assistant", "quite another reply"))]), [(13, "duplicate")], lines(TALKS)),
    Broken("no-reply.jsonl", lines([*TALKS, talk(("user", question(77)))]), [(13, "missing or not text")], lines(TALKS)),
    Broken("empty-reply.jsonl", lines([*TALKS, talk(("user", question(77)), ("assistant", " "))]), [(13, "empty")], lines(TALKS)),
    Broken("role.jsonl", lines([*TALKS, talk(("human", question(77)), ("assistant", "x"))]), [(13, "missing or not text")], lines(TALKS)),
    Broken("label.jsonl", lines([*CLEAN, *HALF]), [(n, "answer in prompt") for n in range(13, 17)], lines(CLEAN)),
    Broken("stated.jsonl", lines(STATED), [(n, "answer in prompt") for n in range(1, 13)], lines(UNSTATED)),
    Broken("cells.csv", CSV_ROWS + b"one,two,three\n", [(14, "wrong number of cells")], CSV_ROWS),
    Broken("number.jsonl", lines([*NUMBERS, {"question": "how?", "answer": "?"}]), [(61, "no number")], lines(NUMBERS)),
    Broken("lines.csv", CSV_ROWS + b'"a cell\nof two lines",yes\n,no\n', [(16, "empty")], CSV_ROWS + b'"a cell\nof two lines",yes\nb,no\n'),
    Broken("tabs.tsv", table(good(), delimiter="\t") + b"\tno\n", [(14, "empty")], table(good(), delimiter="\t")),
]  # fmt: skip


def found(path: Path, **more: Any) -> list[tuple[int, str]]:
    return [(fault.line, fault.kind) for fault in check_file(path, len, **more).faults]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_each_fault_is_named_with_its_line_and_the_repaired_twin_passes(broken: Broken, tmp_path: Path) -> None:
    file, twin = tmp_path / broken.name, tmp_path / f"twin-{broken.name}"
    file.write_bytes(broken.data)
    twin.write_bytes(broken.twin or lines(good()))
    assert found(file) == broken.faults
    assert found(twin) == []
    text = check_text(check_file(file, len), "bytes")
    for line, kind in broken.faults[:5]:
        assert kind in text and str(line) in text
    assert "no faults" in check_text(check_file(twin, len), "bytes")


# ---- columns


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["messages", "id"], Columns(messages="messages")),
        (["prompt", "completion"], Columns(("prompt",), ("completion",))),
        (["id", "Question", "Answer"], Columns(("Question",), ("Answer",))),
        (["instruction", "input", "output"], Columns(("instruction", "input"), ("output",))),
        (["instruction", "output"], Columns(("instruction",), ("output",))),
        (["question", "answer", "rationale"], Columns(("question",), ("answer",), "rationale")),
        (["text", "category"], Columns(("text",), ("category",))),
        (["text", "intent", "slots"], Columns(("text",), ("intent",))),
        (["problem", "solution", "answer"], Columns(("problem",), ("answer",), "solution")),
    ],
)
def test_known_columns_are_found(names: list[str], columns: Columns) -> None:
    assert find_columns(names) == columns


@pytest.mark.parametrize(
    ("names", "prompt", "answer"),
    [
        (["question", "answer", "response"], "question", "answer"),
        (["instruction", "input", "output", "response"], "instruction", "output"),
        (["text", "label", "target", "completion"], "text", "label"),
        (["text", "category", "output"], "text", "category"),
        (["input", "output", "answer"], "input", "output"),
        (["question", "input", "output"], "input", "output"),
        (["instruction", "text", "label"], "text", "label"),
        (["instruction", "input", "target"], "instruction", "target"),
    ],
)
def test_a_usual_pair_of_columns_comes_before_an_unusual_one(names: list[str], prompt: str, answer: str) -> None:
    for order in (names, names[::-1]):
        found = find_columns(order)
        assert found.prompt[0] == prompt and found.answer == (answer,)


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        ("{}\nAnswer: positive or negative?", ("positive", "negative")),
        ("Label: spam or ham\n{}", ("spam", "ham")),
        ("{} Answer: A, B or C?", ("A", "B", "C")),
        ("{}\nLabel: yes, or no?", ("yes", "no")),
        ("{}\nLabel: 1 (spam) or 0 (ham)?", ("1", "0")),
        ("{}\nAnswer: yes if it is spam, no if not.", ("yes", "no")),
        ("{}\nCategory: a; b; c", ("a", "b", "c")),
        ("Answer: new york or boston? {}", ("new", "new york", "boston")),
    ],
)
def test_the_choices_in_a_prompt_are_no_answer(tmp_path: Path, asked: str, labels: tuple[str, ...]) -> None:
    rows = [{"text": asked.format(question(n)), "label": labels[n % len(labels)]} for n in range(60)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert found(tmp_path / "a.jsonl") == []
    for end in (".", ". Choices: " + ", ".join(labels), f". This is not {labels[0]}, and not {labels[1]}"):
        rows[7]["text"] = f"{asked.format(question(7))} Answer: {rows[7]['label']}{end}"
        (tmp_path / "a.jsonl").write_bytes(lines(rows))
        assert found(tmp_path / "a.jsonl") == [(8, "answer in prompt")], end


def test_columns_can_be_named() -> None:
    names = ["text", "intent", "slots", "a", "b"]
    assert find_columns(names, answer="slots") == Columns(("text",), ("slots",))
    assert find_columns(names, prompt="a, b", answer="SLOTS", reasoning="intent") == Columns(
        ("a", "b"), ("slots",), "intent"
    )
    assert find_columns(["messages", "a", "b"], prompt="a", answer="b") == Columns(("a",), ("b",))
    for bad in ({"prompt": "c"}, {"answer": "slot"}, {"answer": "a", "reasoning": "x"}):
        with pytest.raises(ConfigError, match=f"key '{[*bad][-1]}': the file has no column"):
            find_columns(names, **bad)


def test_the_optional_part_of_an_instruction_may_be_empty(tmp_path: Path) -> None:
    rows = [{"instruction": question(n), "input": "" if n % 2 else "more", "output": f"o{n}"} for n in range(12)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    result = check_file(tmp_path / "a.jsonl", len)
    assert not result.faults and result.examples[0].prompt == question(0) + "\n\nmore"
    assert result.examples[1].prompt == question(1)


# ---- answers, near-duplicates, splits


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["yes", "no"] * 20, "label"),
        (["card lost", "card stolen", "other"] * 20, "label"),
        ([str(n) for n in range(40)], "number"),
        ([f"So it is 3.\n#### {n}" for n in range(40)], "number"),
        (["1", "0"] * 20, "label"),
        ([f"${n}.50" for n in range(30)] * 3, "number"),
        (['{"a": 1}', "[]"] * 20, "JSON"),
        ([f"a sentence number {n} that is free" for n in range(40)], "text"),
        (["x" * 90, "y" * 90] * 20, "text"),
        ([f"label {n % 3}" for n in range(95)] + ["x" * 90] * 5, "label"),
        ([f"label {n % 3}" for n in range(94)] + ["x" * 90] * 6, "text"),
        ([f"label {n % 38}" for n in range(100)], "label"),
        ([f"label {n % 41}" for n in range(100)], "text"),
        ([f"label {n % 3}" for n in range(90)] + [f"rare {n}" for n in range(10)], "label"),
        ([f"label {n % 3}" for n in range(89)] + [f"rare {n}" for n in range(11)], "text"),
        ([str(n % 30) for n in range(97)] + ["none"] * 3, "number"),
        ([f"{n:05}" for n in range(40)], "text"),
        ([f"{n % 12:03}" for n in range(100)], "label"),
        ([f"{n:02}" for n in range(5, 94)] + [str(n) for n in range(100, 200)], "number"),
        ([f"0.{n}" for n in range(40)], "number"),
        ([str(n % 10) for n in range(100)], "label"),
        ([str(n % 11) for n in range(100)], "number"),
    ],
)
def test_the_kind_of_answers(answers: list[str], kind: str) -> None:
    assert answer_kind([Example(n, question(n), answer) for n, answer in enumerate(answers)]) == kind


def test_other_numbers_make_another_problem() -> None:
    a, b = (
        "A shop sells 12 pens for $3 each and 14 books, how much in all?",
        "A shop sells 12 pens for $4 each and 14 books, how much in all?",
    )
    assert (
        not are_near_duplicates(a, b)
        and are_near_duplicates(a, a.replace("how", "so how"))
        and find_near_duplicates([a, b]).earlier == {}
    )
    assert find_near_duplicates(["½ cup of cream, whipped", "¾ cup of cream, whipped"]).earlier == {}
    assert find_near_duplicates([]).earlier == {} and find_near_duplicates(["", "a", "ab"]).earlier == {}


def test_groups_stay_in_one_split_and_splits_do_not_depend_on_the_order() -> None:
    examples = [Example(n, question(n // 2) + ("" if n % 2 else " !"), "x") for n in range(600)]
    folds = divide(examples, "text", near_duplicate_groups(examples)).tolist()
    assert folds[::2] == folds[1::2]
    assert {fold: folds.count(fold) for fold in (-1, 0, 1)} == {-1: 120, 0: 96, 1: 96}
    turned = [replace(one, prompt="  " + one.prompt.upper()) for one in examples[::-1]]
    assert divide(turned, "text", near_duplicate_groups(turned)).tolist() == folds[::-1]
    assert max(divide(examples, "text", near_duplicate_groups(examples), has_test_file=True)) == 4


def test_a_large_group_of_near_duplicates_is_not_held_out() -> None:
    examples = [Example(n, question(0) + "!" * (n + 1) if n < 20 else question(n), "x") for n in range(100)]
    folds = divide(examples, "text", near_duplicate_groups(examples)).tolist()
    assert len({*folds[:20]}) == 1 and folds[0] > 0 and folds.count(-1) == 20 and folds.count(0) == 15


# ---- leaks


def test_an_answer_that_occurs_by_nature_is_no_leak(tmp_path: Path) -> None:
    """The word of a label in some prompts, a number of the text as the answer, and a label that other prompts contain as well."""
    rows = [
        {"text": f"{question(n)} {'cash' if n % 3 else 'card'}", "label": ("cash", "card")[n % 2]} for n in range(12)
    ]
    sums = [{"question": f"{question(n)} take {n}", "answer": str(n)} for n in range(20)]
    both = [{"text": f"{question(n)} cats or dogs", "label": ("cats", "dogs")[n % 2]} for n in range(12)]
    for name, some in (("a", rows), ("b", sums), ("c", both)):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(some))
        assert found(tmp_path / f"{name}.jsonl") == [], name


# ---- the command, the page and the forecast


def said(*words: str, code: int = 0) -> str:
    return output_of("check", *words, code=code)


def test_the_command_writes_what_it_was_told_and_its_status_tells(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl(put(8, question=question(0))))
    page, out = tmp_path / "p.html", tmp_path / "o.json"
    text = said(str(file), f"page={page}", f"out={out}", code=1)
    assert "contradiction" in text and "12 rows, 12 usable" in text and "2 labels" in text
    result = check_file(file, lambda text: len(text.encode()))
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(to_json(result)))
    assert page.read_text(encoding="utf-8") == check_page(result, "bytes")
    file.write_bytes(jsonl(put(8, question=question(1))))
    assert "duplicate" in said(str(file), code=0), "a duplicate is a warning"
    named = [{"a": question(n), "b": "c", "question": "z", "answer": "z", "why": "so"} for n in range(3)]
    file.write_bytes(lines(named))
    assert "prompt: 'a', answer: 'b', reasoning: 'why'" in said(str(file), "prompt=a", "answer=b", "reasoning=why")
    (tmp_path / "t.jsonl").write_bytes(lines([{"a": question(1), "b": "c"}]))
    assert "test row" in said(str(file), "prompt=a", "answer=b", f"against={tmp_path / 't.jsonl'}", code=1)
    assert "is not key=value" in said(str(file), "page", code=2)


def test_lengths_are_counted_with_the_tokenizer_of_the_base(tmp_path: Path, tiny: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(good()))
    text = said(str(file), f"base={tiny}")
    assert "length in tokens" in text and "an epoch has" in text
    assert "none: not a run directory" in said(str(file), "base=none", code=2)


def test_without_a_base_the_forecast_is_that_of_the_default_model(tmp_path: Path) -> None:
    rows = [{"question": "word " * n, "answer": "yes"} for n in (1, 40, 200)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    lengths = check_file(tmp_path / "a.jsonl", len).lengths
    words = training_cost_sentence(preset("smollm2-135m"), [math.ceil(length / 4) for length in lengths])
    assert said(str(tmp_path / "a.jsonl")).rstrip().endswith(f"at 4 bytes per token: {words}")


def conversation(number: int, system: str | None) -> dict[str, Any]:
    return talk(*([("system", system)] if system else []), ("user", question(number)), ("assistant", "x"))


@pytest.mark.parametrize(
    ("systems", "prompt"),
    [
        (("Be brief.",) * 3, question(0)),
        (("Be brief.", "Be brief.", "Be long."), f"system: Be brief.\n\nuser: {question(0)}"),
        (("Be brief.", None, "Be brief."), f"system: Be brief.\n\nuser: {question(0)}"),
        ((None,) * 3, question(0)),
    ],
)
def test_a_system_turn_that_all_conversations_share_is_left_out(
    tmp_path: Path, systems: tuple[str | None, ...], prompt: str
) -> None:
    """And from the test file, too."""
    file, test = tmp_path / "a.jsonl", tmp_path / "t.jsonl"
    file.write_bytes(lines([conversation(n, system) for n, system in enumerate(systems)]))
    test.write_bytes(lines([conversation(0, systems[0])]))
    result = check_file(file, len, against=test)
    assert result.examples[0].prompt == prompt and [fault.line for fault in result.faults] == [1]
    assert result.columns.system == ("Be brief." if len({*systems}) == 1 and systems[0] else "")
