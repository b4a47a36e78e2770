"""A dense model becomes sparse: each stage trains what it should, on the data that it should, and a complete stage is not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from rorqual.convert.sparse import add_indexers, sparse_config
from rorqual.core.config import read_yaml
from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.records import RunDir
from rorqual.model.load.run_directory import load_run, read_model_config
from rorqual.recipes import make_run
from rorqual.recipes.sparsify import SparsifyConfig, source_of, sparsify
from rorqual.train.loop import fit
from rorqual.train.run import Run


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run("sft", {"task": "families", "size": "tiny", "steps": "12", "rows": "4", "seed": "3"})
    place = RunDir(tmp_path_factory.mktemp("dense") / "run")
    fit(run, place, quiet=True)
    return place


@pytest.fixture(scope="module")
def done(dense: RunDir) -> Path:
    out = dense.path.parent / "out"
    config = SparsifyConfig(index_topk=9, index_n_heads=3, warmup=10, warmup_lr=2e-3, steps=6, lr=2e-4, seed=5)
    assert sparsify(dense, out, config, quiet=True).path == out / "sparse"
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_run(RunDir(run)).state_dict())


def test_the_seed_draws_the_indexers(dense: RunDir, done: Path, tmp_path: Path) -> None:
    name = "layers.0.attention.indexer.wk.weight"
    for seed in (5, 6):
        config = sparse_config(read_model_config(dense), index_n_heads=3, index_head_dim=32, index_topk=9)
        add_indexers(dense, tmp_path / str(seed), config, seed=seed)
    drawn = [weights(place)[name] for place in (done / "indexers", tmp_path / "5", tmp_path / "6")]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_the_warmup_trains_indexers_alone_and_sparse_training_everything(done: Path) -> None:
    added, warm, sparse = (weights(done / name) for name in ("indexers", "warmup", "sparse"))
    for name, tensor in added.items():
        assert torch.equal(warm[name], tensor) == (".indexer." not in name), name
    still = [name for name in warm if torch.equal(sparse[name], warm[name]) and not name.endswith("correction_bias")]
    assert not [name for name in still if ".experts." not in name]
    assert set(load_file(next(iter(sorted((done / "warmup").glob("step-*")))) / "adapter.safetensors")) == {
        name for name in added if ".indexer." in name
    }


def test_each_stage_gets_its_settings_and_the_data_of_the_dense_run(dense: RunDir, done: Path) -> None:
    first, warm, sparse = (read_yaml(Run, path / "run.yaml") for path in (dense.path, done / "warmup", done / "sparse"))
    assert warm.source == sparse.source == first.source
    assert [(run.steps, run.optim.lr, run.seed) for run in (warm, sparse)] == [(10, 2e-3, 5), (6, 2e-4, 5)]  # type: ignore[attr-defined]
    assert warm.optim.schedule.warmup == 10 and warm.objectives[0].depth == 1  # type: ignore[attr-defined]
    assert [run.start.run for run in (warm, sparse)] == [str(done / "indexers"), str(done / "warmup")]
    assert [o.kind for o in warm.objectives] == ["indexer_warmup"] and warm.tune.kind == "indexer"
    assert [o.kind for o in sparse.objectives] == ["next_token", "mtp", "sparse"] and sparse.tune.kind == "full"


@pytest.mark.parametrize("recipe", ["sft", "pretrain", "distil", "on_policy", "grpo"])
def test_every_recipe_trains_the_indexers_of_a_sparse_model_and_of_no_other(
    recipe: str, dense: RunDir, done: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three " * 40, encoding="utf-8")
    given = {
        "sft": {"task": "families"}, "pretrain": {"data": str(text)}, "distil": {"data": str(text), "objective": "forward"},
        "on_policy": {"teacher": str(dense.path), "task": "families"}, "grpo": {"task": "families"},
    }[recipe]  # fmt: skip
    kinds = [
        [o.kind for o in make_run(recipe, {**given, "from": str(start)}).objectives]
        for start in (dense.path, done / "sparse")
    ]
    assert kinds[1] == [*kinds[0], "sparse"]


def test_a_sparse_model_without_its_objective_and_the_objective_without_a_sparse_model_are_refused(
    dense: RunDir, done: Path
) -> None:
    for start, objectives, match in (
        (done / "sparse", [{"kind": "next_token"}, {"kind": "mtp"}], "needs the objective sparse"),
        (dense.path, [{"kind": "next_token"}, {"kind": "sparse"}], "need attention with an indexer, such as kind dsa"),
        (done / "sparse", [{"kind": "next_token"}, {"kind": "sparse", "depth": 1}], "depth 1, but the run trains 0"),
        (
            done / "sparse",
            [{"kind": "next_token"}, {"kind": "mtp"}, {"kind": "sparse"}],
            "depth 0, but the run trains 1",
        ),
    ):
        values = make_run("sft", {"task": "families", "from": str(start)}).model_dump()
        with pytest.raises(ValidationError, match=match):
            Run.model_validate({**values, "objectives": objectives})


def test_other_data_may_be_named(dense: RunDir, tmp_path: Path) -> None:
    config = SparsifyConfig(index_topk=9, warmup=1, steps=1, task="gsm8k", data="nowhere", rows=2, row=64)
    with pytest.raises(RorqualError, match="nowhere"):
        sparsify(dense, tmp_path / "out", config, quiet=True)


def test_complete_stages_are_not_repeated_and_other_settings_are_refused(dense: RunDir, done: Path) -> None:
    config = SparsifyConfig(index_topk=9, index_n_heads=3, warmup=10, warmup_lr=2e-3, steps=6, lr=2e-4, seed=5)
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    sparsify(dense, done, config, quiet=True)
    after = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    assert before == after
    with pytest.raises(ConfigError, match="another run"):
        sparsify(dense, done, config.model_copy(update={"warmup_lr": 1e-3}), quiet=True)
    for change in (
        {"index_topk": 10},
        {"index_n_heads": 2},
        {"index_head_dim": 40},
        {"index_dtype": "float8_e4m3fn"},
        {"seed": 6},
    ):
        with pytest.raises(ConfigError, match="another model or seed, or have other settings"):
            sparsify(dense, done, config.model_copy(update=change), quiet=True)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"size": "tiny-student"}, "attention is of kind gqa"),
        ({"size": "tiny", "model.stages": "no"}, "q_lora_rank"),
    ],
)
def test_a_model_that_can_have_no_indexer_is_refused(values: dict[str, str], match: str, tmp_path: Path) -> None:
    run = make_run("sft", {"task": "families", "steps": "1", "rows": "2", "size": values["size"]})
    if "model.stages" in values:
        stages = tuple(
            s.model_copy(update={"attention": s.attention.model_copy(update={"q_lora_rank": 0})})
            for s in run.model.stages
        )
        run = run.model_copy(update={"model": run.model.model_copy(update={"stages": stages})})
    place = RunDir(tmp_path / "run")
    fit(run, place, quiet=True)
    with pytest.raises(ConfigError, match=match):
        sparsify(place, tmp_path / "out", SparsifyConfig(index_topk=4), quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_data_are_those_of_the_run_in_rows_of_the_given_sizes(dense: RunDir) -> None:
    own = source_of(dense, SparsifyConfig(index_topk=4))
    assert own.model_dump() == read_yaml(Run, dense.config_file).source.model_dump()
    resized = source_of(dense, SparsifyConfig(index_topk=4, rows=own.rows + 1, row=own.row + 2))
    assert resized == own.model_copy(update={"rows": own.rows + 1, "row": own.row + 2})


def test_a_model_that_sampled_its_own_data_needs_other_data(dense: RunDir, tmp_path: Path) -> None:
    values = {
        "task": "families",
        "from": str(dense.path),
        "steps": "1",
        "problems": "2",
        "samples": "2",
        "max_tokens": "4",
    }
    fit(make_run("grpo", values), tmp_path / "rl", quiet=True)
    with pytest.raises(ConfigError, match="samples that it generated"):
        sparsify(RunDir(tmp_path / "rl"), tmp_path / "out", SparsifyConfig(index_topk=4), quiet=True)
    assert not (tmp_path / "out").exists()


def test_an_indexer_that_would_select_every_position_is_refused(dense: RunDir, tmp_path: Path) -> None:
    row = int(dense.config()["source"]["row"])
    for topk in (row, 100_000):
        with pytest.raises(ConfigError, match=f"index_topk={topk} is not below the row length {row}"):
            sparsify(dense, tmp_path / "out", SparsifyConfig(index_topk=topk), quiet=True)
    assert not (tmp_path / "out").exists()
