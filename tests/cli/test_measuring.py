"""`eval` and `compare`: a run, a server, a text; and where the answers are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_server import StubServer, numbers_in, running, spoken

from in_process import output_of
from rorqual.evals.evaluation import Evaluation


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a server that adds numbers, and thinks first."""
    with running(
        StubServer(lambda _, body: (200, spoken(str(sum(numbers_in(body))), reasoning_content="carefully")))
    ) as server:
        yield server.url


def test_a_server_is_measured_like_a_run(address: str, tmp_path: Path) -> None:
    out = tmp_path / "server.json"
    text = output_of("eval", address, "model=adder", "task=families:add", "count=5", f"out={out}")
    assert "5/5" in text
    assert "95 % interval" in text
    row = Evaluation.load(out).rows("all")[0]
    assert (row.right, row.thought) == (5, 1.0)
    assert "model=NAME" in output_of("eval", address, "task=families:add", code=2)
    refused = output_of("eval", address, "model=adder", "task=families:add", f"out={tmp_path}", code=2)
    assert "out is a folder" in refused and "answer/s" not in refused, "before anything is asked"


REPORTS = [
    ({"reasoning_tokens": 4}, 4),
    *((none, 9) for none in ({"reasoning_tokens": 0}, {}, None, {"reasoning_tokens": "4"})),
]


@pytest.mark.parametrize(("details", "counted"), REPORTS)
def test_thinking_tokens_are_those_that_a_server_reports(details: object, counted: int, tmp_path: Path) -> None:
    """Nine of ten characters are thinking. A report of 0 for a reply with thinking is no report."""
    usage = {"prompt_tokens": 3, "completion_tokens": 10, "completion_tokens_details": details}
    said = spoken("1", reasoning_content="carefully") | {"usage": usage}
    with running(StubServer(lambda *_: (200, said))) as server:
        output_of("eval", server.url, "model=m", "task=families:add", "count=1", f"out={tmp_path / 'e.json'}")
    (sample,) = Evaluation.load(tmp_path / "e.json").samples
    assert (sample.prompt_tokens, sample.tokens, sample.thinking_tokens) == (3, 10, counted)


def test_two_runs_are_compared_on_what_both_were_measured_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shutil.copytree(place / "run", place / "other")
    for run in ("run", "other"):
        output_of("eval", run, "task=families:add,sub", "count=6", "max_tokens=4", "thinking=off")
    output_of("eval", "run", "task=families:add", "count=2", "max_tokens=4")
    kept = Path("run/evals/families-add-sub-test-off.json")
    assert kept.is_file()
    text = output_of("compare", "run", "other")
    assert text.count("paired") == 1, "the evaluation that only one run has is left out"
    assert "1.000" in text and "99 % interval" in text
    files = output_of("compare", str(kept), str(kept).replace("run/", "other/", 1))
    assert text.splitlines()[1:-1] == files.splitlines()[1:-1]
    refused = output_of("compare", str(kept), "run/evals/families-add-test-auto.json", code=2)
    assert "different problems" in refused


def test_a_text_has_a_loss_by_token_and_by_character(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "text.txt").write_text("one two three " * 400, encoding="utf-8")
    text = output_of("eval", "run", "data=text.txt")
    assert "loss per token" in text
    assert "loss per character" in text
    assert "from at most 16 tokens" in output_of("eval", "run", "data=text.txt", "window=16", "out=w.json")
    assert "or less" in output_of("eval", "run", "data=text.txt", "window=100000", "out=w.json", code=2)
    assert "no task and no data" in output_of("eval", "run", code=2)
    assert "cannot compute the loss of a text" in output_of(
        "eval", "http://127.0.0.1:9/v1", "model=m", "data=text.txt", code=2
    )


def test_two_pretrained_runs_are_compared_by_their_losses_on_a_text(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    Path("text.txt").write_text("".join(f"one {n} two {n * n} three " for n in range(400)), encoding="utf-8")
    output_of("train", "pretrain", "data=text.txt", "from=run", "steps=4", "rows=4", "row=32", "out=trained")
    for run in ("run", "trained"):
        assert f"{run}/evals/text.txt-loss.json" in output_of("eval", run, "data=text.txt", "window=16")
    told = output_of("compare", "run", "trained", "names=old, new", "out=r.json")
    assert "new" in told and output_of("compare", "run, run", "trained,trained", code=2) == output_of(
        "compare", "run,run", "trained,trained", code=2
    )
    (shown,) = json.loads(Path("r.json").read_bytes())["comparisons"]
    (row,) = shown["rows"]
    files = [json.loads(Path(run, "evals/text.txt-loss.json").read_bytes())["losses"] for run in ("run", "trained")]
    assert [row["before"], row["after"]] == pytest.approx([sum(one) / len(one) for one in files])
    assert f"{row['before']:.4f}" in told and row["difference"]["pairs"] == len(files[0]) > 5
    assert "text.txt" in output_of("eval", "run", "data=text.txt", "out=own.json") and Path("own.json").is_file()
    refused = output_of("eval", "run", "data=text.txt", f"out={place}", code=2)
    assert "out is a folder" in refused
    assert "passages differ" in output_of("compare", "own.json", "run/evals/text.txt-loss.json", code=2)


def test_an_evaluation_of_other_settings_is_not_overwritten(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    asked = ("eval", "run", "task=families:add", "max_tokens=2")
    kept = Path("run/evals/families-add-test-auto.json")
    output_of(*asked, "count=5")
    whole = Evaluation.load(kept)
    for other, named in (("count=3", "count=5, not 3"), ("seed=1", "seed=0, not 1"), ("refine=1", "refine=0, not 1")):
        refused = output_of(*asked, other, *["count=5"] * (other != "count=3"), code=2)
        assert f"other settings: {named}\n" in refused and "out=FILE.json" in refused and str(kept) in refused
    assert Evaluation.load(kept) == whole
    output_of(*asked, "count=5", "threads=1", "concurrency=2")
    again = Evaluation.load(kept)
    assert again.samples == whole.samples and again.seconds != whole.seconds
    output_of(*asked, "count=3", f"out={kept}")
    assert Evaluation.load(kept).count == 3
    older = json.loads(kept.read_bytes())
    del older["settings"]
    kept.write_text(json.dumps(older))
    output_of(*asked, "count=5")
    assert Evaluation.load(kept).count == 5
    for folder in "xy":
        Path(folder).mkdir()
        Path(folder, "book.txt").write_text(f"{folder} one two three " * 400, encoding="utf-8")
    output_of("eval", "run", "data=x/book.txt", "window=16")
    refused = output_of("eval", "run", "data=y/book.txt", "window=16", code=2)
    assert "data=x/book.txt, not y/book.txt" in refused and "run/evals/book.txt-loss.json" in refused
    output_of("eval", "run", "data=x/book.txt", "window=16")


def test_compare_refuses_evaluations_of_old_weights_and_one_run_as_several_seeds(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    Path("text.txt").write_text("".join(f"one {n} two {n * n} three " for n in range(400)), encoding="utf-8")
    asked = (("task=families:add", "count=4", "max_tokens=4"), ("data=text.txt", "window=16"))
    files = ("families-add-test-auto.json", "text.txt-loss.json")
    train = ("train", "sft", "task=families", "size=tiny", "rows=4")
    output_of(*train, "steps=3", "seed=7", "out=other")
    for run in ("run", "other"):
        for words in asked:
            output_of("eval", run, *words)
    for name in files:
        first, second = (json.loads(Path(run, "evals", name).read_bytes()) for run in ("run", "other"))
        assert (first["step"], first["training_seed"], second["training_seed"]) == (3, 0, 7)
    output_of("compare", "run,other", "run,other")
    crossed = output_of("compare", "run,other", "other,run", code=2)
    assert "run has training seed 0, but its pair other has 7" in crossed
    shutil.copytree("run", "copy")
    for name, words in zip(files, asked, strict=True):
        output_of("eval", "copy", *words)
        twice = output_of(
            "compare",
            *(f"{run}/evals/{name},{two}/evals/{name}" for run, two in (("run", "copy"), ("run", "other"))),
            code=2,
        )
        assert f"same result: run/evals/{name} and copy/evals/{name}\n" in twice
    output_of(*train, "steps=5", "out=run")
    for name, words in zip(files, asked, strict=True):
        for arms in (("run", "other"), ("other", "run")):
            old = output_of("compare", *arms, code=2)
            assert "of step 3, but the run's newest checkpoint is of step 5" in old
            assert f"run/evals/{name}" in old and "Repeat `rorqual eval run`" in old
        output_of("compare", *(f"{run}/evals/{name}" for run in ("run", "other")))
        output_of("eval", "run", *words)
    output_of("compare", "run", "other")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "ROWS.CSV"])
def test_rows_are_no_text(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Their braces and keys would be counted, and the rows that a run was trained on would look held out."""
    monkeypatch.chdir(place)
    Path(name).write_text('{"prompt": "a", "completion": "b"}\n' * 2000)
    told = output_of("eval", "run", f"data={name}", code=2)
    assert "holds rows" in told and "task=" in told


def test_a_machine_is_described() -> None:
    text = output_of("doctor")
    for name in ("python", "cores", "memory", "torch", "matrix products", "pydantic", "How to make it faster"):
        assert name in text
    assert "missing" not in text
    assert "device 'gpu9' is not available" in output_of("doctor", "device=gpu9", code=2)


@pytest.mark.parametrize("run", ["first", "second"])
def test_an_evaluation_on_the_training_file_of_a_run_or_its_ancestor_says_so(
    run: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.getbasetemp() / "trained-on-a-file"
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(20)]
    if not folder.exists():
        folder.mkdir()
        for name, part in (("mine.jsonl", rows[:10]), ("other.jsonl", rows[:10]), ("held.jsonl", rows[10:])):
            (folder / name).write_text("\n".join(map(json.dumps, part)))
        monkeypatch.chdir(folder)
        made = ["train", "sft", "steps=1", "rows=2"]
        output_of(*made, "size=tiny", "data=mine.jsonl", "out=first")
        output_of(*made, "data=other.jsonl", "from=first", "out=second")
    monkeypatch.chdir(folder)
    asked = ["eval", run, "task=messages", "count=2", "max_tokens=2", "out=e.json"]
    for data, expected in (("mine.jsonl", True), (f"{folder}/mine.jsonl", True), ("held.jsonl", False)):
        assert (f"{run} was trained on this file" in output_of(*asked, f"data={data}")) == expected, data
    assert ("was trained on this file" in output_of(*asked, "data=other.jsonl")) == (run == "second")
    assert "add task=messages" in output_of("eval", run, "data=held.jsonl", code=2)
