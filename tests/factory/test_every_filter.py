"""Every limit of the filters drops what it says, in the file that is written: what lies just within it stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distil_server import Adder, says
from sums_task import Make

from rorqual.data.distilled import read_distilled
from rorqual.factory import FactoryConfig, FilterConfig, sample_teacher

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
