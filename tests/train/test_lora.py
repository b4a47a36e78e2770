"""LoRA: what it computes, what it leaves alone, and that its small checkpoints are as good as whole ones."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from little import (
    TASK,
    grpo_run,
    interrupted_at,
    loud,
    records,
    relative,
    sft_run,
    tiny,
    train_with,
)  # fmt: skip
from safetensors.torch import load_file, save_file

from rorqual.convert.hf import export_hf
from rorqual.convert.merge import full_weights_file, merge_run
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.records import RunDir
from rorqual.engine.engine import Engine
from rorqual.model import Decoder
from rorqual.model.adapter import LoRA, read_adapter_info, trained_parameters
from rorqual.model.adapter.files import ADAPTER_FILE, ADAPTER_INFO
from rorqual.model.attention import GQAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.run_directory import load_run
from rorqual.recipes import make_run
from rorqual.train.loop import fit
from rorqual.train.run import Run, StartConfig

STEPS = 5
TOKENS = torch.randint(0, 250, (2, 24), generator=torch.Generator().manual_seed(5))


def llama() -> ModelConfig:
    """Grouped-query attention with biases, a dense network."""
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True)
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=48))
    return ModelConfig(vocab_size=263, hidden_size=32, stages=(stage,), max_position_embeddings=64)


@torch.no_grad()
def adapted(model: Decoder, tune: LoRA, size: float = 0.3, seed: int = 0) -> Decoder:
    """`model` with LoRA attached and its products far from zero."""
    tune.attach(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained_parameters(model).values():
        parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(TOKENS).hidden)


def lora_run(base: Path, steps: int = STEPS, r: int = 4, **settings: Any) -> Run:
    changes = {"start": StartConfig(run=str(base)), "tune": LoRA(r=r, **settings), "steps": steps}
    return sft_run(steps).model_copy(update=changes)


def frozen_part(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items() if ".lora_" not in name}


# ---- what it computes


@pytest.mark.parametrize("config", [tiny(), llama()], ids=["mla-moe", "gqa-bias"])
def test_at_the_start_no_logit_changes(config: ModelConfig) -> None:
    model = loud(config)
    before = logits(model)
    LoRA(r=4).attach(model, seed=0)
    assert torch.equal(before, logits(model))
    assert all(bool(p.any()) for name, p in trained_parameters(model).items() if name.endswith("lora_A"))
    assert all(name.startswith("layers.") for name in trained_parameters(model)), "prediction modules have none"


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("config", [tiny(), llama()], ids=["mla-moe", "gqa-bias"])
def test_merged_equals_attached(config: ModelConfig, rslora: bool) -> None:
    tune = LoRA(r=4, alpha=6.0, use_rslora=rslora)
    attached, plain = adapted(loud(config), tune), loud(config)
    before = logits(plain)
    tune.merge(plain, {name: p.detach() for name, p in trained_parameters(attached).items()})
    assert relative(before, logits(plain)) > 0.1, "an adapter that changes nothing shows nothing"
    assert relative(logits(attached), logits(plain)) <= 1e-5
    scale = 6.0 / (math.sqrt(4) if rslora else 4)
    name = "layers.0.attention.o_proj"
    linear, was = plain.get_submodule(name), loud(config).get_submodule(name)
    a, b = (trained_parameters(attached)[f"{name}.lora_{letter}"].double() for letter in "AB")
    slow = was.weight.double() + scale * b @ a
    assert relative(slow.detach(), linear.weight.detach().double()) <= 1e-6


# ---- what a run trains and keeps


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    fit(lora_run(base), RunDir(out), quiet=True)
    return out


def test_frozen_tensors_and_biases_of_routers_keep_their_bits(base: Path, straight: Path, tmp_path: Path) -> None:
    state = fit(lora_run(base), RunDir(tmp_path / "again"), quiet=True)
    start = load_run(RunDir(base)).state_dict()
    now = frozen_part(state.model)
    assert now.keys() == start.keys()
    for name, tensor in start.items():
        assert torch.equal(tensor, now[name]), name
    assert all(bool(p.any()) for n, p in trained_parameters(state.model).items() if n.endswith("lora_B"))
    assert all(p.grad is None for p in trained_parameters(state.model).values()), (
        "memory that nobody needs between steps"
    )


def test_first_weights_follow_the_seed_of_the_run(base: Path, tmp_path: Path) -> None:
    run = lora_run(base, 1).model_copy(update={"seed": 3})
    found = {
        n: p.detach()
        for n, p in trained_parameters(fit(run, RunDir(tmp_path / "run"), quiet=True).model).items()
        if "lora_A" in n
    }
    for seed, near in ((3, True), (0, False)):
        model = load_run(RunDir(base))
        LoRA(r=4).attach(model, seed=seed)
        for name, tensor in trained_parameters(model).items():
            if name in found:  # one step has moved it a little
                assert (relative(found[name], tensor.detach()) < 0.3) is near, name


def test_only_the_adapter_is_kept_and_optimised(base: Path, straight: Path) -> None:
    checkpoint, whole = RunDir(straight).checkpoint(), RunDir(base).checkpoint()
    names = {file.name for file in checkpoint.iterdir()}
    assert names == {ADAPTER_FILE, ADAPTER_INFO, "optim.safetensors", "state.json", "whole.json"}
    kept = load_file(checkpoint / ADAPTER_FILE)
    assert all(".lora_" in name for name in [*kept, *load_file(checkpoint / "optim.safetensors")])
    assert (checkpoint / ADAPTER_FILE).stat().st_size < (whole / "model.safetensors").stat().st_size / 10
    last = records(straight)[-1]
    count = sum(t.numel() for t in kept.values())
    assert last["trained_parameters"] == count and last["optimizer_bytes"] == 4 * count  # Muon: one momentum each
    assert records(base)[-1]["optimizer_bytes"] > 10 * last["optimizer_bytes"]


def stopped(run: Run, out: Path, at: int) -> None:
    """Stop after step `at`."""
    with pytest.raises(KeyboardInterrupt):
        train_with(run, RunDir(out), interrupted_at(at))


def stopped_and_resumed(run: Run, out: Path, at: int) -> None:
    """Stopped, then the same command again."""
    stopped(run, out, at)
    fit(run, RunDir(out), quiet=True, threads=2)


def same(one: Path, other: Path) -> None:
    a, b = RunDir(one).checkpoint(), RunDir(other).checkpoint()
    for name in (ADAPTER_FILE, "optim.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert records(one) == records(other)


@pytest.mark.parametrize("at", [1, 3])
def test_resumed_equals_straight(base: Path, straight: Path, tmp_path: Path, at: int) -> None:
    stopped_and_resumed(lora_run(base), tmp_path / "run", at)
    same(straight, tmp_path / "run")


def test_it_resumes_over_the_weights_that_it_began_on(base: Path, straight: Path, tmp_path: Path) -> None:
    """Also if its base was trained further meanwhile."""
    shutil.copytree(base, tmp_path / "base")
    run = lora_run(tmp_path / "base")

    stopped(run, tmp_path / "run", 3)
    fit(sft_run(91, save_seconds=1e9), RunDir(tmp_path / "base"), quiet=True)
    assert RunDir(tmp_path / "base").checkpoint().name != RunDir(base).checkpoint().name
    fit(run, RunDir(tmp_path / "run"), quiet=True)
    same(straight, tmp_path / "run")


def test_reinforcement_trains_an_adapter_and_resumes(base: Path, tmp_path: Path) -> None:
    """The engine samples with the very tensors: the check of the sampler at every step shows it."""
    run = grpo_run(base, 3, tune=LoRA(r=4), optim=grpo_run(base).optim.model_copy(update={"lr": 0.01}))
    state = fit(run, RunDir(tmp_path / "straight"), quiet=True)
    assert any(record["updates"] for record in records(tmp_path / "straight"))
    assert max(record.get("logprob_diff_max", 0.0) for record in records(tmp_path / "straight")) <= 1e-4
    stopped_and_resumed(run, tmp_path / "resumed", 2)
    same(tmp_path / "straight", tmp_path / "resumed")
    start = load_run(RunDir(base))
    merged = load_run(RunDir(tmp_path / "straight"))
    assert relative(logits(state.model), logits(merged)) <= 1e-5 < relative(logits(start), logits(merged))


def test_its_run_is_a_run_for_engine_training_and_merging(base: Path, straight: Path, tmp_path: Path) -> None:
    alone = logits(load_run(RunDir(straight)))
    assert relative(alone, logits(Engine(straight, pack=False, backend="torch-invariant").model)) == 0
    assert relative(alone, logits(Engine(straight, backend="torch-invariant").model)) < 1e-6, (
        "maps side by side may add in another order"
    )
    whole = load_run(RunDir(straight)).state_dict()
    for name, tensor in load_run(RunDir(straight), dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(tensor, whole[name].to(tensor.dtype)), f"{name}: the sum is rounded once"
    merge_run(RunDir(straight), tmp_path / "merged")
    assert torch.equal(alone, logits(load_run(RunDir(tmp_path / "merged"))))
    assert relative(alone, logits(Engine(tmp_path / "merged", pack=False, backend="torch-invariant").model)) == 0
    for refused in (lambda: export_hf(RunDir(straight), tmp_path / "hf"), lambda: full_weights_file(RunDir(straight))):
        with pytest.raises(CheckpointError, match="holds an adapter") as error:
            refused()
        assert "rorqual merge" in error.value.remedy
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge_run(RunDir(tmp_path / "merged"), tmp_path / "twice")
    # An adapter on an adapter, and all of a model from an adapter.
    second = fit(lora_run(straight, 2, targets=("o_proj",)), RunDir(tmp_path / "second"), quiet=True)
    assert relative(logits(second.model), logits(load_run(RunDir(tmp_path / "second")))) <= 1e-5
    third = sft_run(1).model_copy(update={"start": StartConfig(run=str(tmp_path / "second"))})
    fit(third, RunDir(tmp_path / "third"), quiet=True)
    assert read_adapter_info(RunDir(tmp_path / "third").checkpoint()) is None


# ---- the base


def copied(base: Path, straight: Path, place: Path) -> tuple[Path, Path]:
    """Base and adapter, side by side as they were trained, under `place`; the adapter knows its base by that place only."""
    shutil.copytree(base, place / "base")
    fit(lora_run(place / "base", 1), RunDir(place / "lora"), quiet=True)
    return place / "base", place / "lora"


def test_base_and_adapter_may_move_together(base: Path, straight: Path, tmp_path: Path) -> None:
    copied(base, straight, tmp_path / "here")
    expected = logits(load_run(RunDir(tmp_path / "here/lora")))
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(expected, logits(load_run(RunDir(tmp_path / "there/lora"))))


@pytest.mark.parametrize("what", ["weights", "step", "gone"])
def test_a_base_that_changed_is_refused(base: Path, straight: Path, tmp_path: Path, what: str) -> None:
    here, lora = copied(base, straight, tmp_path)
    step = RunDir(here).checkpoint()
    load_run(RunDir(lora))
    if what == "weights":
        tensors = load_file(step / "model.safetensors")
        tensors["norm.weight"] += 1e-6
        save_file(tensors, step / "model.safetensors")
    elif what == "step":
        step.rename(here / "step-000999")
    else:
        shutil.rmtree(here)
    with pytest.raises(
        CheckpointError, match="was not found" if what == "gone" else "base of this adapter has changed"
    ) as error:
        load_run(RunDir(lora))
    assert ADAPTER_INFO in error.value.where and error.value.remedy


# ---- from the shell


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tune.kind": "lorra"}, "Did you mean 'lora'"),
        ({"tune.kind": "lora", "tune.r": "0"}, "tune.r"),
        ({"tune.kind": "lora", "tune.alpha": "-1"}, "tune.alpha"),
        ({"tune.kind": "lora", "tune.targets": "[]"}, "tune.targets"),
        ({"tune.kind": "lora", "tune.rank": "3"}, "unknown key 'tune.rank'"),
        ({"tune.r": "3"}, "unknown key 'tune.r'"),
        ({"tune.kind": "esft", "tune.p": "0"}, "tune.p"),
        ({"tune.kind": "lora", "from": ""}, "from=RUN"),
    ],
)
def test_bad_settings_name_the_key(base: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_run("sft", {"task": TASK, "from": str(base)} | settings)


def test_targets_that_match_nothing_are_refused_with_the_nearest(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'oproj'") as error:
        fit(lora_run(base, targets=("o_proj", "oproj")), RunDir(tmp_path / "run"), quiet=True)
    assert "'o_proj'" in error.value.remedy and "kv_b_proj" in error.value.remedy
    assert not (tmp_path / "run").exists()
    found = LoRA(targets=("ffn.gate_proj", "layers.1.attention.o_proj")).find_targets(loud(tiny()))
    assert set(found) == {"layers.0.ffn.gate_proj", "layers.1.attention.o_proj"}
