"""Each filter drops its own samples in the file that is written, and may be left out."""

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
FOREIGN = "abcd жж"
"""A third of its letters is not Latin."""
DAWN = "red owls eat at dawn"

Sampled = list[tuple[str, int]]
"""The text and the tokens of each sample of one problem."""
Factory = Callable[..., list[str]]


def dropped(server: Adder, config: FactoryConfig, out: Path, samples: Sampled) -> list[str]:
    """As what each sample of the only problem is dropped, in their order."""
    start = len(server.asked)
    server.rule = lambda body, number: says(samples[number - start][0], tokens=samples[number - start][1])
    return [row.dropped for row in read_distilled(sample_teacher(config, out, threads=1, quiet=True)).rows]


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


def test_a_set_row_of_words_contaminates(factory: Factory) -> None:
    samples = [("he owns seven red cars", 9), ("owns seven big cars", 9)]
    assert factory(samples) == ["", ""]
    assert factory(samples, overlap=3) == ["contaminated", ""]
    with pytest.raises(ValueError, match="less than or equal to 64"):
        FilterConfig(overlap=65)


FAULTS: Sampled = [("", 9), (f"{TWICE} " * 3, 9), (FOREIGN, 9), (f"So {HELD_OUT}.", 9), (DAWN, 9), (DAWN, 9)]
DROPPED = ["length", "repetition", "language", "contaminated", "", "duplicate"]


def test_each_filter_drops_its_own_and_may_be_left_out(factory: Factory) -> None:
    assert factory(FAULTS) == DROPPED
    assert {*FilterConfig().names} == {*DROPPED} - {""}
    assert factory(FAULTS, names=()) == [""] * 6
    for name in FilterConfig().names:
        assert factory(FAULTS, names=(name,)) == [name if reason == name else "" for reason in DROPPED]
