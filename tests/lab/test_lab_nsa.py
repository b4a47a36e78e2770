"""The experiment `nsa` in small: both arms see the same tokens, and the rule of the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rorqual.core.config import read_yaml
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.lab import sparse
from rorqual.lab.job import value
from rorqual.lab.nsa import ATTENTION, LENGTH, NSAExperiment, contrasts, last_run, model_of
from rorqual.lab.sparse_report import KINDS
from rorqual.tasks.base import split_of
from rorqual.tasks.find import load_task, safe_problems
from rorqual.train.run import Run
from rorqual.train.sources.worked import worked_sample

SHARE = 0.001


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("nsa")
    found = {seed: folder / str(seed) for seed in (1, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "STARTS", 1)
        for seed, place in found.items():
            for job in NSAExperiment().jobs(seed, place, SHARE):
                job.finish(place, SHARE)
    return found


def test_both_arms_train_on_the_same_tokens_and_differ_in_attention_alone(places: dict[int, Path]) -> None:
    for seed, place in places.items():
        for stage in ("pairs", "mixed", "short"):
            dense, native = (read_yaml(Run, RunDir(place / f"nsa-{arm}-{stage}").config_file) for arm in ATTENTION)
            assert dense.model == model_of("dense") and native.model == model_of("nsa") and dense.model != native.model
            assert dense.seed == native.seed == seed
            moved = {"model": native.model, "start": native.start}
            assert dense.model_copy(update=moved) == native
            metrics = [
                [(r["tokens"], r["step"]) for r in RunDir(place / f"nsa-{arm}-{stage}").metrics()] for arm in ATTENTION
            ]
            assert metrics[0] == metrics[1] != []
            for arm, run in (("dense", dense), ("nsa", native)):
                before = {"mixed": "pairs", "short": "mixed"}.get(stage)
                assert run.start.run == ("" if before is None else str(place / f"nsa-{arm}-{before}"))
        assert dense.source.options["length"] == LENGTH  # type: ignore[attr-defined]


def test_the_sparse_model_attends_to_half() -> None:
    c: Any = ATTENTION["nsa"]
    keys = LENGTH // c.compress_block + c.num_selected_blocks * c.select_block + c.window_size
    assert keys == LENGTH // 2


def test_both_arms_are_measured_on_the_same_held_out_problems(places: dict[int, Path]) -> None:
    dense, native = (value(places[1], f"nsa-measure-{arm}") for arm in ATTENTION)
    assert set(dense) == set(native) == set(KINDS)
    assert all(len(dense[kind]["loss"]) == len(native[kind]["loss"]) >= 2 for kind in KINDS)
    assert dense["needle"]["loss"] != native["needle"]["loss"]
    task = load_task("long", options={"names": ["needle"], "length": LENGTH})
    problem = next(iter(safe_problems(task, "test", 1)))
    [sample] = sparse.solutions(places[1], 1, "needle", 1, "test", LENGTH, last_run("nsa"))
    chat = chat_format(Tokenizer.load(RunDir(places[1] / last_run("dense")).tokenizer_file))
    assert sample == worked_sample(problem, chat, think=True) and split_of(problem.key) == "test"
    assert LENGTH < len(sample.ids) < 2 * LENGTH


def test_the_verdict_needs_the_loss_and_the_needles(places: dict[int, Path]) -> None:
    finding = NSAExperiment().conclude(places)
    assert len(finding.contrasts) == 4 and len(finding.tables[0].rows) == 2
    right = [True] * 128

    def arm(loss: float, needles: list[bool]) -> dict[str, Any]:
        return {kind: {"loss": [loss] * 128, "right": needles if kind == "needle" else right} for kind in KINDS}

    missing = [False] * 8 + right[8:]
    for loss, needles, expected in (
        (0.1, right, (0.0, 0.0)),
        (0.12, right, (0.2, 0.0)),
        (0.1, missing, (0.0, -1 / 16)),
    ):
        measured = {"dense": [arm(0.1, right)] * 5, "nsa": [arm(loss, needles)] * 5}
        ratio, needle, *_ = contrasts(measured)
        assert (ratio.difference, needle.difference) == pytest.approx(expected)
