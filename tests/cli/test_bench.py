"""`rorqual bench`: what it counts, what it says of how it measured, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import listing, refused, typed

SMALL = ("batch=1,2", "prompt=4,20", "new=5", "repeats=3", "threads=1")


def test_a_table_a_file_of_all_repeats_and_how_it_was_measured(place: Path) -> None:
    before = listing(place)
    done = typed(place, "bench", "run", *SMALL, "out=found.json")
    assert done.code == 0, done.err
    found = json.loads((place / "found.json").read_text(encoding="utf-8"))
    assert [(row["batch"], row["prompt"]) for row in found["rows"]] == [(1, 4), (1, 20), (2, 4), (2, 20)]
    for row in found["rows"]:
        assert len(row["repeats"]) == 3
        for name, key in (("decode_tokens_per_second", "decode"), ("prefill_tokens_per_second", "prefill")):
            values = sorted(repeat[key] for repeat in row["repeats"])
            assert row[name] == {"low": values[0], "median": values[1], "high": values[2]}
            assert values[0] > 0
        assert row["peak_memory_bytes"] > 50e6
    for part in ("random ids", "greedy", "ignores EOS", "median", "1 threads"):
        assert part in " ".join(done.out.split()), done.out
    assert "found.json" in done.out
    assert "…" not in done.out, "a figure is cut off"
    assert all(len(line) <= 80 for line in done.out.split("\n")), done.out
    assert {name: value for name, value in listing(place).items() if name != "found.json"} == before


REFUSED = [
    (("bench", "nowhere"), ("nowhere", "not a run directory")),
    (("bench", "run", "batch=0"), ("'batch.0'", "greater")),
    (("bench", "run", "batch="), ("'batch.0'", "integer")),
    (("bench", "run", "batch=1,x"), ("'batch.1'", "integer", "'x'")),
    (("bench", "run", "prompt=1.5"), ("'prompt.0'", "integer")),
    (("bench", "run", "new=1"), ("'new'", "greater")),
    (("bench", "run", "repeats=0"), ("'repeats'", "greater")),
    (("bench", "run", "prompt=100", "new=64"), ("164 tokens", "context is 128", "at most 128")),
    (("bench", "run", "batchs=1"), ("'batchs'", "'batch'")),
    (("bench", "run", "device=gpu9"), ("'gpu9'", "device=cpu")),
    (("bench", "run", "dtype=int2"), ("'dtype'", "int2")),
    (("bench", "run", "dtype=int8", "backend=torch"), ("dtype=int8", "backend=native")),
    (("bench", "run", "out=run"), ("run", "a folder")),
    (("bench", "http://127.0.0.1:1/v1"), ("run's folder",)),
]


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=[words[-1] for words, _ in REFUSED])
def test_refused_by_name(words: tuple[str, ...], says: tuple[str, ...], place: Path) -> None:
    refused(place, *words, says=says)
