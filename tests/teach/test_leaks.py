"""Leaks inserted into files are found with their lines, and clean files pass, by the plain rule of benchmarks/leaks.py."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.teach.check import check_file
from rorqual.teach.examples import Example
from rorqual.teach.folds import near_duplicate_groups
from rorqual.teach.near_duplicates import find_near_duplicates

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def leaks() -> Any:
    sys.path.append(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmark_leaks", ROOT / "benchmarks" / "leaks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "benchmarks"))
    return module


THINGS = ("card", "transfer", "PIN", "refund", "account", "payment", "top-up", "statement", "passcode", "cheque")
VERBS = ("find", "cancel", "change", "receive", "lose", "pay for", "explain", "open", "close", "see", "trust", "order")
ENDS = (
    "before my holiday starts", "after the long weekend", "with my old phone", "while I am abroad", "in another currency",
    "without an extra fee", "at the nearest branch", "for my daughter", "on the website",
)  # fmt: skip
STARTS = ("How do I", "Why can I not", "When may I", "Could you help me to", "Is it possible to", "Who would")


def pool(leaks: Any, data: str) -> list[Any]:
    rng = random.Random(0)
    rows = []
    for _ in range(400):
        thing, amount = rng.choice(THINGS), rng.randint(3, 900)
        text = f"{rng.choice(STARTS)} {rng.choice(VERBS)} the {thing} {rng.choice(ENDS)}"
        if data == "labels":
            rows.append(leaks.Row(f"{text}?", f"about_{thing}?"))
        else:
            rows.append(leaks.Row(f"{text} of {amount} euros?", f"It is twice {amount}.\n#### {2 * amount}"))
    return rows


@pytest.mark.parametrize("data", ["labels", "numbers"])
@pytest.mark.parametrize("name", ["exact", "near", "stated", "word", "block"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_every_leaking_line_is_named_and_no_other(
    leaks: Any, data: str, name: str, suffix: str, tmp_path: Path
) -> None:
    labels, rng = data == "labels", random.Random(name + suffix)
    source = leaks.Source("", "text", "label", labels)
    rows = leaks.clean(pool(leaks, data), 150, labels=labels)
    train, test = rows[:120], rows[120:]
    leaky, places = getattr(leaks, name)(train, test, rng, labels=labels)
    paths = [tmp_path / f"{part}{suffix}" for part in ("train", "test", "leaky")]
    lines = [leaks.write(path, rows, source) for path, rows in zip(paths, (train, test, leaky), strict=True)]
    assert leaks.read(paths[2], source) == leaky and len(places) >= 3

    found = check_file(paths[2], len, against=paths[1]).faults
    kind = "answer in prompt" if name in ("stated", "word") else "test row"
    verdict = leaks.verdict({(fault.line, fault.kind) for fault in found}, kind, {lines[2][place] for place in places})
    assert verdict == {"missed": [], "others": []}
    assert not check_file(paths[0], len, against=paths[1]).faults


def test_a_marked_answer_ends_where_a_number_or_word_ends(tmp_path: Path) -> None:
    """A prompt with "answer: 12" states 12, but neither 1 nor 12.5; a solution counts as its final answer, and "####" alone states none."""
    pairs = [
        ("12", "12"),
        ("12.5", "12"),
        ("12", "1"),
        ("12.", "12"),
        ("7,", "so\n#### 7"),
        ("1,000", "1"),
        ("?", "####"),
    ]
    pairs += [("", str(n)) for n in range(93)]
    rows = [(f"{n} and {n + 1}, answer: {stated}", answer) for n, (stated, answer) in enumerate(pairs)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows), encoding="utf-8"
    )
    found = [fault for fault in check_file(tmp_path / "a.jsonl", len).faults if fault.kind == "answer in prompt"]
    assert [fault.line for fault in found] == [1, 4, 5]
    assert found[-1].text == "the prompt states the answer '7'"


def test_a_row_near_a_train_row_and_a_test_row_is_a_test_row(leaks: Any, tmp_path: Path) -> None:
    """The first near-duplicate in the train file does not hide the test row, and a row that is near the copy only is no test row."""
    text = "a long question of a customer about the missing card that never arrived in the post of last week, with all details"
    copy = text.replace("long", "wide")
    other = copy.replace("week", "year")
    plain = [leaks.Plain(one) for one in (text, copy, other)]
    assert plain[0].near(plain[1]) and plain[1].near(plain[2]) and not plain[0].near(plain[2])
    (tmp_path / "test.csv").write_text(f'text,label\n"{text}",x\n', encoding="utf-8")
    for first, second, line in ((other, copy, 3), (copy, other, 2)):
        (tmp_path / "train.csv").write_text(f'text,label\n"{first}",x\n"{second}",x\n', encoding="utf-8")
        found = check_file(tmp_path / "train.csv", len, against=tmp_path / "test.csv").faults
        assert {(fault.line, fault.kind) for fault in found} == {(3, "near-duplicate"), (line, "test row")}


def test_texts_of_one_template_with_other_numbers_hide_no_near_duplicate() -> None:
    rng = random.Random(0)
    template = "A shop sells {} pens for {} dollars each and {} books, so how much does a customer pay for all of them?"
    texts = [template.format(*(rng.randint(2, 99) for _ in range(3))) for _ in range(400)]
    rng.shuffle(copies := [(text.replace("customer", "client"), n) for n, text in enumerate(texts[:200])])
    assert find_near_duplicates([*texts, *(copy for copy, _ in copies)]).earlier == {
        400 + at: n for at, (_, n) in enumerate(copies)
    }


def test_a_chain_of_near_duplicates_is_one_group(leaks: Any) -> None:
    first = "a long question of a customer about the missing card that never arrived in the post of last week, with all details"
    texts = [first, first.replace("long", "wide"), first.replace("long", "wide").replace("week", "year")]
    assert find_near_duplicates(texts).earlier == {1: 0, 2: 1}
    for order in ((0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 0, 2)):  # the last text connects the first two in some orders
        shuffled = [texts[place] for place in order]
        assert find_near_duplicates(shuffled).groups == [0] * 3
        assert near_duplicate_groups([Example(n, text, "x") for n, text in enumerate(shuffled)]) == [shuffled[0]] * 3


def test_an_instruction_that_all_prompts_share_makes_no_near_duplicates() -> None:
    opening = "read the message of a customer below and decide which of the departments of the bank must answer it. the message: "
    closing = ". now name the department that must answer, with one word and without an explanation"
    texts = [f"{opening}{one}{closing}" for one in ("my card is lost", "the fee is too high", "what is my pin")] * 7
    assert find_near_duplicates(texts).earlier == {} and find_near_duplicates(texts).groups == [0, 1, 2] * 7
    assert (
        find_near_duplicates(
            [*texts, f"{opening}my card is  LOST{closing}", f"{opening}my card is lost!{closing}"]
        ).groups[-2]
        == 0
    )
    assert find_near_duplicates(texts[:3]).groups == [0, 1, 0], "of few texts nobody knows whether it is an instruction"


WORDS = st.sampled_from(
    ["card", "lost", "where", "the", "12", "3.5", "my", "please", "PIN", "bank", "卡", "arrived", "?"]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(WORDS, max_size=12), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), WORDS), max_size=10),
    st.randoms(use_true_random=False),
)
def test_near_duplicates_are_those_of_the_plain_rule(
    leaks: Any, texts: list[list[str]], edits: list[tuple[int, int, str]], rng: random.Random
) -> None:
    """Each pair that is named is similar, and each text with an earlier one of a similarity of 0.9 or more is named."""
    words = [*texts, *([*(text := texts[of % len(texts)])[:at], word, *text[at:]] for of, at, word in edits)]
    rng.shuffle(words)
    shown = [" ".join(each) for each in words]
    plain = [leaks.Plain(text) for text in shown]
    found = find_near_duplicates(shown).earlier
    for later, one in found.items():
        assert one < later and plain[one].text != plain[later].text and plain[one].near(plain[later])
    normal = [text.text for text in plain]
    for later, text in enumerate(plain):
        if (first := normal.index(text.text)) < later:
            assert found.get(later) == found.get(first)
            continue
        assert later in found or all(similarity(plain[one], text) < 0.9 for one in range(later))


def similarity(a: Any, b: Any) -> float:
    return len(a.grams & b.grams) / len(a.grams | b.grams) if a.numbers == b.numbers else 0.0
