"""The experiment `nsa` in small: both arms see the same tokens, and the rule of the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_run import run_small

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.lab import long_training
from rorqual.lab.job import load_value
from rorqual.lab.long_scores import solutions
from rorqual.lab.long_training import KINDS
from rorqual.lab.nsa import ATTENTION, LENGTH, NSAExperiment, last_run_name
from rorqual.tasks.find import load_task, safe_problems
from rorqual.tasks.task import split_of
from rorqual.train.sources.worked import worked_sample

SHARE = 0.001


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_training, "STARTS", 1)
        return run_small(NSAExperiment(), tmp_path_factory.mktemp("nsa"), SHARE)


def test_the_sparse_model_attends_to_half() -> None:
    c: Any = ATTENTION["nsa"]
    keys = LENGTH // c.compress_block + c.num_selected_blocks * c.select_block + c.window_size
    assert keys == LENGTH // 2


def test_both_arms_are_measured_on_the_same_held_out_problems(places: dict[int, Path]) -> None:
    dense, native = (load_value(places[1], f"nsa-measure-{arm}") for arm in ATTENTION)
    assert set(dense) == set(native) == set(KINDS)
    assert all(len(dense[kind]["loss"]) == len(native[kind]["loss"]) >= 2 for kind in KINDS)
    assert dense["needle"]["loss"] != native["needle"]["loss"]
    task = load_task("long", options={"names": ["needle"], "length": LENGTH})
    problem = next(iter(safe_problems(task, "test", 1)))
    [sample] = solutions(places[1], 1, "needle", 1, "test", LENGTH, last_run_name("nsa"))
    chat = chat_format(Tokenizer.load(RunDir(places[1] / last_run_name("dense")).tokenizer_file))
    assert sample == worked_sample(problem, chat, think=True) and split_of(problem.key) == "test"
    assert LENGTH < len(sample.ids) < 2 * LENGTH
    finding = NSAExperiment().conclude(places)
    assert len(finding.contrasts) == 4 and len(finding.tables[0].rows) == 2
    metrics = [[record["tokens"] for record in RunDir(places[1] / last_run_name(arm)).metrics()] for arm in ATTENTION]
    assert metrics[0] == metrics[1] != [], "the same tokens"
