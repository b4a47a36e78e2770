"""Runs of before a router and a block were kinds are read, resumed and exported: a router's fields and tensors stood among its network's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from little import records, sft_run
from safetensors.torch import load_file, save_file

from rorqual.core.records import RunDir
from rorqual.model.ffn import older_names
from rorqual.model.load.run_directory import load_run, read_model_config
from rorqual.train.loop import fit
from rorqual.train.optim import AdamWConfig

OPTIMIZERS = {"muon": sft_run().optim, "adamw": AdamWConfig(lr=1e-3)}


def flat(model: dict[str, Any]) -> None:
    """A model's config as it was written, in place."""
    for stage in model["stages"]:
        assert stage.pop("block") == {"kind": "pre_norm"}
        router = stage["ffn"].pop("router", {"kind": "grouped_topk"})
        assert router.pop("kind") == "grouped_topk"
        stage["ffn"].update(router)


def older(made: Path, out: Path, rename: tuple[str, str] = (".ffn.router.", ".ffn.")) -> RunDir:
    """A copy of a run with the fields and names of before."""
    shutil.copytree(made, out)
    run = RunDir(out)
    data = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
    flat(data["model"])
    text = yaml.safe_dump(data, sort_keys=False)
    run.config_file.write_text(text, encoding="utf-8")
    for step in run.steps():
        folder = run.step_dir(step)
        sizes = json.loads((folder / "whole.json").read_bytes())
        for name in ("model.safetensors", "optim.safetensors"):
            tensors = load_file(folder / name)
            renamed = {key.replace(*rename): tensor for key, tensor in tensors.items()}
            assert renamed.keys() != tensors.keys()
            save_file(renamed, folder / name)
            sizes[name] = (folder / name).stat().st_size
        (folder / "whole.json").write_text(json.dumps(sizes), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Path]]:
    """By optimizer: a run of five steps, and one that ended after three."""
    out = tmp_path_factory.mktemp("made")
    found: dict[str, dict[int, Path]] = {}
    for name, optim in OPTIMIZERS.items():
        found[name] = {steps: out / f"{name}-{steps}" for steps in (3, 5)}
        for steps, path in found[name].items():
            fit(sft_run(steps, optim=optim), RunDir(path), quiet=True)
    return found


def same_weights(one: RunDir, other: RunDir) -> None:
    tensors, others = (load_run(run).state_dict() for run in (one, other))
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_older_run_goes_on_as_one_of_today(name: str, made: dict[str, dict[int, Path]], tmp_path: Path) -> None:
    """Weights, router biases and the optimizer's state: an extension of either gives the same bits."""
    before = older(made[name][3], tmp_path / "older")
    shutil.copytree(made[name][3], tmp_path / "today")
    assert read_model_config(before) == read_model_config(RunDir(made[name][3]))
    for run in (before, today := RunDir(tmp_path / "today")):
        fit(sft_run(5, optim=OPTIMIZERS[name]), run, quiet=True)
    same_weights(before, today)
    assert records(before.path) == records(today.path)
    state, other = (load_file(run.checkpoint() / "optim.safetensors") for run in (before, today))
    assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


def test_only_a_routers_tensors_had_other_names() -> None:
    today = ["layers.1.ffn.router.gate", "layers.1.ffn.experts.down_proj", "layers.2.ffn.gate", "lm_head.weight"]
    assert older_names(today) == {"layers.1.ffn.gate": "layers.1.ffn.router.gate"}
    assert older_names([*today, "layers.2.ffn.router.gate"]) == older_names(today), "layer 2 has a gate of its own, too"
