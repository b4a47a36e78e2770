"""`rorqual distil`, also spelled `distill`: a run or a server sampled, refused by name where it cannot be, and trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_measuring import address  # noqa: F401

from commands import listing, refused
from in_process import output_of
from rorqual.cli.main import RESUMES
from rorqual.data.distilled import read_distilled

LOCAL = ("run", "task=families:add", "problems=3", "samples=2", "max_tokens=8", "keep=all", "out=taught")


def test_a_run_teaches_and_a_student_is_trained_on_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    text = output_of("distil", *LOCAL, "top_k=2", "filters.names=[]", "seed=3", "threads=1")
    assert "taught/data.parquet" in text and "Next: rorqual train sft data=taught/data.parquet" in text
    rows = read_distilled(Path("taught/data.parquet")).rows
    assert len(rows) == 6 and all(row.top_ids.shape == (len(row.token_ids), 2) and not row.dropped for row in rows)
    before = listing(place)
    output_of("distill", *LOCAL, "top_k=2", "filters.names=[]", "seed=3", "threads=1")
    assert listing(place) == before, "both spellings are one verb, and the same command does nothing twice"
    words = ("data=taught/data.parquet", "size=tiny", "steps=1", "rows=2", "row=128", "out=student", "quiet=true")
    output_of("train", "sft", *words)
    assert (place / "student" / "step-000001").is_dir()
    assert {"distil", "distill"} <= set(RESUMES)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "task=families", "problms=3"), ("'problms'", "'problems'")),
        (("run", "task=families", "filters.nams=3"), ("'filters.nams'", "'filters.names'")),
        (("run", "task=families", "concurency=3"), ("'concurency'", "'concurrency'")),
        (("run", "task=families", "keep=best"), ("keep", "'best'")),
        (("run", "task=families", "samples=0"), ("samples", "greater than or equal to 1")),
        (("run", "task=families", "split=test"), ("held out",)),
        (("run", "task=families", "--seed=1"), ("seed=1, without dashes",)),
        (("run",), ("'task'", "required")),
        (("nowhere", "task=families"), ("nowhere", "not a run directory", "rorqual train")),
        (("http://127.0.0.1:9/v1", "task=families"), ("model=NAME",)),
        (("http://127.0.0.1:9/v1", "model=m", "task=families", "top_k=4"), ("top_k", "a local run")),
        (("http://127.0.0.1:9/v1", "model=m", "task=families", "budget=1"), ("price_in",)),
        (("run", "task=families", "budget=1", "price_in=1", "price_out=1"), ("need a remote server as teacher",)),
        (("run", "task=famlies"), ("'famlies'", "'families'")),
        (("run", "task=families", "decontaminate=none.jsonl"), ("none.jsonl", "no such file")),
    ],
)
def test_refused_by_name_and_nothing_written(words: tuple[str, ...], says: tuple[str, ...], place: Path) -> None:
    refused(place, "distil", *words, says=says)


def test_a_wrong_key_of_the_server_is_told(place: Path) -> None:
    """The address of nobody: named, with what is kept and how to go on."""
    nobody = "http://127.0.0.1:9/v1"
    words = ("distil", nobody, "model=m", "task=families:add", "problems=2", "retries=0", "out=taught")
    says = (f"{nobody}/chat/completions", "refused", "0 of 2 samples are saved", "the same command resumes")
    refused(place, *words, says=says, keeps="taught")
