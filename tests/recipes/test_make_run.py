"""A command line's `key=value` becomes a run, or an error that names the key and the nearest right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.core.config import read_yaml, to_yaml
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.recipes import make_run
from rorqual.train.objectives import MultiToken
from rorqual.train.run import BFLOAT16, FLOAT32, Run, agreement_limits

LETTERS = {"task": "families:add", "size": "tiny", "rows": "2", "row": "96"}


def test_keys_go_to_the_recipe_and_dotted_ones_to_what_it_returns() -> None:
    run = make_run("sft", {**LETTERS, "steps": "7", "optim.lr": "3e-4", "optim.adamw.betas": "[0.5, 0.6]", "device": "cpu",
                           "options": "{hard: 0.5}", "micro_batches": "4", "objectives.1.coefficient": "0.1"})  # fmt: skip
    assert (run.steps, run.micro_batches) == (7, 4)
    assert run.optim.lr == 3e-4 and run.optim.adamw.betas == (0.5, 0.6)  # type: ignore[attr-defined]
    assert run.source.options == {"hard": 0.5} and run.source.row == 96  # type: ignore[attr-defined]
    assert isinstance(run.objectives[1], MultiToken) and run.objectives[1].coefficient == 0.1


def test_a_rate_given_means_adamw_at_that_rate(start: Path) -> None:
    for name, values in (("sft", LETTERS), ("distil", {"data": "d.parquet", "size": "tiny"})):
        fresh, nudged = make_run(name, values), make_run(name, {**values, "lr": "1e-3"})
        assert (fresh.optim.kind, nudged.optim.kind) == ("muon", "adamw")
        assert nudged.optim.lr == 1e-3  # type: ignore[attr-defined]
    tuned = make_run(
        "sft",
        {"task": "families:add", "from": str(start), "lr": "1e-3", "tune.kind": "lora", "optim.schedule.warmup": "1"},
    )
    assert tuned.optim.schedule.warmup == 1 and not tuned.tune.trains_all


def test_a_deep_model_may_differ_by_what_its_layers_round() -> None:
    assert agreement_limits("float32", 3) == agreement_limits("float32", 8) == FLOAT32
    assert (
        agreement_limits("float32", 32).mean == 4 * FLOAT32.mean
        and agreement_limits("float32", 32).most == 4 * FLOAT32.most
    )
    assert agreement_limits("bfloat16", 32) == BFLOAT16


@pytest.mark.parametrize(
    ("recipe", "values", "said"),
    [
        ("stf", {}, r"unknown recipe 'stf'[\s\S]*Did you mean 'sft'"),
        ("sft", {"taks": "families"}, r"unknown key 'taks'[\s\S]*Did you mean 'task'"),
        ("sft", {**LETTERS, "optim.lrr": "1"}, r"unknown key 'optim.lrr'[\s\S]*Did you mean 'lr'"),
        ("sft", {**LETTERS, "optm.lr": "1"}, r"unknown key 'optm.lr'[\s\S]*Did you mean 'optim'"),
        ("sft", {**LETTERS, "objectives.7.coefficient": "1"}, r"unknown key 'objectives.7.coefficient'"),
        ("sft", {**LETTERS, "steps": "many"}, r"key 'steps'.*integer.*got 'many'"),
        ("sft", {**LETTERS, "steps": "0"}, r"key 'steps'.*greater than or equal to 1.*got 0"),
        ("sft", {**LETTERS, "rows": "-1"}, r"key 'rows'.*greater than or equal to 1.*got -1"),
        ("sft", {**LETTERS, "size": "huge"}, r"key 'size'.*'tiny'"),
        ("sft", {**LETTERS, "optim.clip": "wide"}, r"key 'optim.clip'.*number.*got 'wide'"),
        ("sft", {**LETTERS, "dtype": "float64"}, r"key 'dtype'"),
        ("sft", {**LETTERS, "optim.kind": "sgd"}, r"unknown kind 'sgd'"),
        ("sft", {**LETTERS, "objectives.1.depth": "2"}, r"depth 2, but the model has 1 prediction modules"),
        ("sft", {}, r"requires data=FILE or task=NAME"),
        ("grpo", {"task": "families"}, r"requires from="),
        ("pretrain", {}, r"requires data="),
        ("sft", {**LETTERS, "extensions": "1"}, r"unknown key 'extensions'"),
        ("sft", {**LETTERS, "extensions.0.from_step": "1"}, r"unknown key 'extensions.0.from_step'"),
        ("on_policy", {}, r"requires teacher=, from=, task="),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_its_key(recipe: str, values: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_run(recipe, values)


def test_a_start_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.yaml"):
        make_run("grpo", {"task": "families", "from": str(tmp_path)})


@pytest.mark.parametrize("changes", [{}, {"optim.lr": "0.5", "source.think": "0.25", "seed": "3"}])
def test_run_yaml_repeats_the_run(changes: dict[str, str], tmp_path: Path) -> None:
    run = make_run("sft", {**LETTERS, **changes})
    (tmp_path / "run.yaml").write_text(to_yaml(run), encoding="utf-8")
    assert read_yaml(Run, tmp_path / "run.yaml") == run
