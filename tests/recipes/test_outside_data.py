"""Data from outside: a task's files, conversations and text become runs, and what does not fit is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.model.init import build
from rorqual.recipes import make_run
from rorqual.tasks.file_task import SAMPLES
from rorqual.train.batch import TrainBatch
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.sources import SourceInputs
from rorqual.train.state import make_tokenizer

TASKS = {"gsm8k": "1.0", "knights": "1.0", "folio": "0.0"}


def batch(run: Run, step: int = 0) -> TrainBatch:
    """What a run trains on in one step."""
    tokenizer = make_tokenizer(run)
    source = run.source.build(SourceInputs(build(run.model, seed=0), tokenizer, chat_format(tokenizer), run.seed, 1))
    return source.step(step).batches[0]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_learns_from_files_named_by_data(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SAMPLES / name, folder)
    given = {"task": name, "size": "tiny", "rows": "2", "row": "4096", "source.longer": "skip", "think": TASKS[name]}
    ours, shipped = (make_run("sft", given | extra) for extra in ({"data": str(folder)}, {}))
    assert (batch(ours).tokens == batch(shipped).tokens).all()
    train = next(p for p in sorted(folder.iterdir()) if "train" in p.name)
    train.unlink()
    with pytest.raises(DataError, match="mine"):
        batch(ours)


def test_a_worked_problem_longer_than_a_row_is_refused_with_its_line_or_skipped() -> None:
    given = {"task": "gsm8k", "size": "tiny", "rows": "2"}
    with pytest.raises(DataError, match=r"train\.jsonl:\d+: a worked problem of \d+ tokens does not fit a row of 64"):
        batch(make_run("sft", given | {"row": "64"}))
    with pytest.raises(DataError, match="does not fit a row of 64"):
        batch(make_run("sft", given | {"row": "64", "source.longer": "skip"}))  # none fits: it would search for ever
    short = batch(make_run("sft", given | {"row": "420", "source.longer": "skip"}))
    assert short.n_tokens > 200


def test_rows_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    run = make_run("sft", {"task": "families", "size": "tiny", "row": "64", "source.row": "96", "steps": "1"})
    with pytest.raises(ConfigError, match=r"source\.row: rows have 96 tokens, but the model's context is 64"):
        fit(run, RunDir(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_tables_columns_point_to_the_task_that_reads_them() -> None:
    with pytest.raises(DataError, match="task=NAME"):
        batch(make_run("sft", {"data": str(SAMPLES / "knights" / "train.parquet"), "size": "tiny"}))
