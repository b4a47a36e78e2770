"""Trainer and sampler are compared at every step of a run; where they disagree it stops before a checkpoint is written."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from little import grpo_run, records, sft_run, watch

from rorqual.core.errors import DataError, NumericsError, TaskError
from rorqual.core.records import RunDir
from rorqual.model.load.run_directory import load_run
from rorqual.train.gradient import UpdateResult
from rorqual.train.loop import check_sampler_agreement, fit
from rorqual.train.objectives import GRPO
from rorqual.train.run import SamplerAgreementLimits


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.9, "top_k": 40}, {"top_k": 4}], ids=str
)
def test_with_the_samplers_arithmetic_they_agree_to_the_last_bit(
    options: dict[str, float], base: Path, tmp_path: Path
) -> None:
    run = grpo_run(base, 2, **options)
    exact = SamplerAgreementLimits(mean=0.0, most=0.0, gap=0.0)
    out = RunDir(tmp_path / "run")
    fit(run.model_copy(update={"backend": "torch-invariant", "agreement": exact}), out, quiet=True)
    assert len(records(out.path)) == 2
    for step in records(out.path):
        assert (step["logprob_diff"], step["logprob_diff_max"], step["routing_gap_max"]) == (0.0, 0.0, 0.0)
        assert step["routing_flip_share"] == 0.0 and step["updates"] > 0
    with pytest.raises(NumericsError, match="step 1: trainer and sampler disagree"):
        fit(run.model_copy(update={"agreement": exact}), RunDir(tmp_path / "fast"), quiet=True)


@pytest.mark.parametrize(("mean", "most", "gap", "stops"), [
    (9e-7, 9e-5, 9e-5, False), (2e-6, 9e-5, 0.0, True), (9e-7, 2e-4, 0.0, True), (9e-7, 9e-5, 2e-4, True),
    (math.nan, 0.0, 0.0, True), (0.0, math.nan, 0.0, True), (0.0, 0.0, math.nan, True),
])  # fmt: skip
def test_a_replayed_expert_far_below_the_routers_own_is_a_bug(
    mean: float, most: float, gap: float, stops: bool, base: Path
) -> None:
    """Each limit alone stops the run, and a number that is not one too."""
    update = UpdateResult([], 0.0, {"logprob_diff": (mean * 50, 50.0)}, {"logprob_diff": most, "routing_gap": gap})
    with pytest.raises(NumericsError, match="step 8: trainer and sampler disagree") if stops else nullcontext():
        check_sampler_agreement(grpo_run(base), update, "run, step 8")


def test_groups_with_one_reward_are_counted_and_said(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With greedy-like sampling every answer of a group is the same."""
    run = grpo_run(base, 2, temperature=1e-3)
    run = run.model_copy(update={"agreement": SamplerAgreementLimits(mean=1.0, most=1.0, gap=1.0)})
    state = fit(run, RunDir(tmp_path / "run"))
    assert all(step["groups_equal"] == step["groups_total"] == 4 for step in records(tmp_path / "run"))
    assert all(step["updates"] == 0 and step["loss"] == 0.0 for step in records(tmp_path / "run"))
    said = capfd.readouterr().err
    assert "equal rewards in 4 of 4 groups" in said and "the weights were not updated" in said
    untouched = load_run(RunDir(base)).state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in state.model.state_dict().items())


def test_ungraded_answers_are_counted_and_never_trained_on(base: Path, tmp_path: Path) -> None:
    seen = watch(grpo_run(base, 1, options={"unsure": True}), tmp_path / "run")
    (record,) = records(tmp_path / "run")
    assert record["ungraded"] > 0
    trained = sum(len(torch.unique_consecutive(row[row >= 0])) for b in seen[0].batches for row in b.segments)
    assert 0 < trained <= 4 * 6 - record["ungraded"]
    graded = 4 * 6 - record["ungraded"]
    assert record["reward"] == pytest.approx(record["right"] / graded)
    for line in seen[0].trace:  # they are no members of their group: its mean is of the others
        unsure = [sample["advantage"] for sample in line["samples"] if sample["verdict"] == "ungraded"]
        assert not any(unsure)


def test_a_grader_that_raises_stops_the_run_by_the_tasks_name(base: Path, tmp_path: Path) -> None:
    out = RunDir(tmp_path / "run")
    with pytest.raises(TaskError, match=r"letters.*no such letter"):
        fit(grpo_run(base, options={"raises": True}), out, quiet=True)
    assert out.steps() == []


@pytest.mark.parametrize("recipe", ["sft", "grpo"])
def test_a_gold_answer_that_is_not_right_is_refused_when_loading(recipe: str, base: Path, tmp_path: Path) -> None:
    run = grpo_run(base, options={"bad_gold": True}) if recipe == "grpo" else sft_run()
    if recipe == "sft":
        run = run.model_copy(update={"source": run.source.model_copy(update={"options": {"bad_gold": True}})})
    with pytest.raises(DataError, match="gold answer '\\?' is graded wrong"):
        fit(run, RunDir(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists(), "refused before anything is written"


def test_every_sample_is_checked_and_not_only_what_teaches(base: Path, tmp_path: Path) -> None:
    """Groups with one reward teach nothing; a temperature that the trainer does not know of still stops the run."""
    run = grpo_run(base, 2, temperature=0.3)
    with pytest.raises(NumericsError, match="step 1: trainer and sampler disagree"):
        fit(run.model_copy(update={"objectives": (GRPO(temperature=1.0),)}), RunDir(tmp_path / "wrong"), quiet=True)
    fit(run, RunDir(tmp_path / "right"), quiet=True)
    for step in records(tmp_path / "right"):
        assert step.get("checked_tokens", 0) >= step["sampled_tokens"] + step["groups_total"]
