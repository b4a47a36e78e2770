"""Every limit of the filters drops what it says, in the file that is written: what lies just within it stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distil_server import Adder, Reply, says
from sums_task import Make

from rorqual.data.distilled import read_distilled
from rorqual.factory import FactoryConfig, FilterConfig, sample_teacher
from rorqual.factory.card import REASONS

HELD_OUT = "my brother owns seven red boats and sails them on the lake each morning"
TWICE = "one two three four one two three four five six seven eight nine ten eleven twelve"
"""Of its 16 words 4 lie in a row of four that was there before."""
TENTH, FIFTH, THIRD = "abcdefghi ж", "abcd ж", "abcd жж"
"""By the share of letters that are not Latin."""
DAWN, DUSK, NIGHT = "red owls eat at dawn", "red owls eat at dusk", "red cats sing all night"
"""Of the words in the first two, four of six are in both; of their rows of three words, two of four."""

Sampled = list[tuple[str, int]]
"""The text and the tokens of each sample of one problem."""
Factory = Callable[..., list[str]]
CASES: dict[str, tuple[dict[str, Any], Any, Sampled, list[str], list[str]]] = {
    # limit: what is set beside it, another value, samples, and what each is dropped as by default and with the value
    "shortest": ({}, 7, [("a", 6), ("b", 7), ("c", 0)], ["", "", "length"], ["length", "", "length"]),
    "longest": ({}, 7, [("a", 7), ("b", 8), ("c", 9000)], ["", "", ""], ["", "length", "length"]),
    "ngram": ({"names": ["repetition"], "repeated": 0.2}, 4, [(TWICE, 9), (NIGHT, 9)], ["", ""], ["repetition", ""]),
    "repeated": (
        {"names": ["repetition"], "ngram": 4}, 0.25,
        [(f"{TWICE} yes", 9), (TWICE, 9), (f"four {TWICE}", 9)], ["", "", ""], ["", "", "repetition"],
    ),
    "foreign": ({}, 0.1, [(FIFTH, 9), (TENTH, 9), (THIRD, 9)], ["", "", "language"], ["language", "", "language"]),
    "shingle": ({"similar": 0.6}, 1, [(DAWN, 9), (DUSK, 9), (NIGHT, 9)], ["", "", ""], ["", "duplicate", ""]),
    "similar": ({}, 0.5, [(DAWN, 9), (DUSK, 9), (NIGHT, 9)], ["", "", ""], ["", "duplicate", ""]),
    "overlap": ({}, 3, [("he owns seven red cars", 9), ("owns seven big cars", 9)], ["", ""], ["contaminated", ""]),
}  # fmt: skip


def dropped(server: Adder, config: FactoryConfig, out: Path, samples: Sampled) -> list[str]:
    """As what each sample of the only problem is dropped, in their order."""
    start = len(server.asked)
    server.rule = lambda body, number: says(samples[number - start][0], tokens=samples[number - start][1])
    rows = read_distilled(sample_teacher(config, out, threads=1, quiet=True)).rows
    return [row.dropped for row in rows]


@pytest.fixture
def factory(server: Adder, remote: Make, tmp_path: Path) -> Factory:
    """Sample one problem of which the server's answers are `samples`."""
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"prompt": HELD_OUT}), encoding="utf-8")

    def run(samples: Sampled, **filters: Any) -> list[str]:
        count = len(list(tmp_path.iterdir()))
        config = remote(
            {"concurrency": 1}, problems=1, samples=len(samples), keep="all", filters=filters,
            decontaminate=(str(tmp_path / "held_out.jsonl"),),
        )  # fmt: skip
        return dropped(server, config, tmp_path / f"out{count}", samples)

    return run


@pytest.mark.parametrize("limit", CASES)
def test_a_limit_drops_what_lies_beyond_it(factory: Factory, limit: str) -> None:
    beside, value, samples, plain, other = CASES[limit]
    assert factory(samples, **beside) == plain
    assert factory(samples, **beside, **{limit: value}) == other


FAULTS: Sampled = [("short", 0), (f"{TWICE} " * 3, 9), (THIRD, 9), (f"So {HELD_OUT}.", 9), (DAWN, 9), (DAWN, 9)]
DROPPED = ["length", "repetition", "language", "contaminated", "", "duplicate"]


def test_each_filter_drops_its_own_and_may_be_left_out(factory: Factory) -> None:
    assert factory(FAULTS) == DROPPED
    assert {*FilterConfig().names} == {*DROPPED} - {""}
    assert factory(FAULTS, names=()) == [""] * 6
    for name in FilterConfig().names:
        assert factory(FAULTS, names=(name,)) == [name if reason == name else "" for reason in DROPPED]


def test_no_limit_is_forgotten_here() -> None:
    assert set(FilterConfig.model_fields) == {*CASES, "names"}


def test_the_reasoning_is_filtered_like_the_answer(factory: Factory) -> None:
    thoughts: Sampled = [(f"<think>{text}</think>ok", tokens) for text, tokens in FAULTS]
    assert factory(thoughts) == DROPPED


def test_the_first_reason_in_the_cards_order_is_told(server: Adder, remote: Make, tmp_path: Path) -> None:
    """A sample with every fault, of which one after the other is taken away. The duplicate comes last."""
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"prompt": HELD_OUT}), encoding="utf-8")
    all_but = [*FilterConfig().names]
    again = " ".join([HELD_OUT] * 4)
    samples = [("1", 9), (f"{again} {'ж' * 200}", 0)]
    told = []
    for number, (keep, without) in enumerate(
        [("right", ""), ("right", "length"), ("all", ""), ("all", "repetition"), ("all", "language")]
    ):
        if without:
            all_but.remove(without)
        config = remote(
            {"concurrency": 1}, problems=1, samples=2, keep=keep, filters={"names": all_but},
            decontaminate=(str(tmp_path / "held_out.jsonl"),),
        )  # fmt: skip
        told.append(dropped(server, config, tmp_path / str(number), samples))
    assert told == [["", name] for name in ("length", "wrong", "repetition", "language", "contaminated")]
    assert list(REASONS) == ["error", "length", "wrong", "ungraded", *FilterConfig().names[1:]]


def test_only_the_sample_that_was_cut_off_or_contaminated_is_dropped(
    server: Adder, remote: Make, tmp_path: Path
) -> None:
    """Each sample's own end and own words count, not its neighbour's."""
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": HELD_OUT}), encoding="utf-8")

    def rule(body: dict[str, Any], number: int) -> Reply:
        thought = HELD_OUT if number == 1 else f"thought {number}"
        return says(f"<think>{thought}</think>{number}", finish="length" if number == 4 else "stop")

    server.rule = rule
    config = remote(
        {"concurrency": 1}, problems=6, samples=1, keep="all", decontaminate=(str(tmp_path / "held_out.jsonl"),)
    )
    rows = read_distilled(sample_teacher(config, tmp_path / "out", threads=1, quiet=True)).rows
    assert [row.dropped for row in rows] == ["", "contaminated", "", "", "length", ""]
    (met,) = [json.loads(line) for line in (tmp_path / "out" / "contaminated.jsonl").read_text().splitlines()]
    by = met.pop("by")
    assert by in HELD_OUT and len(by.split()) == 8
    assert met == {"key": "1+2", "number": 0, "met": f"{tmp_path / 'held_out.jsonl'}:1", "what": "sample"}
